"""Records of JSON files: one per line, however the file holds them."""

import codecs
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from stages.readers.opening import AS_IS, DAMAGE, UnreadableFileError, open_text
from stages.stage import reason

BATCH_BYTES = 1 << 24
"""Target size of a batch of lines in bytes."""
SAMPLE = 1000
"""Number of records read to discover the fields of a file."""
HEAD = 1 << 16
"""Bytes of the first lines by which the form of a file is recognised, and of the first piece of JSON that is parsed."""
CONVERSATIONS = frozenset(
    {"messages", "conversations", "conversation", "dialogue", "dialog", "turns", "chat", "chosen", "rejected", "tools"}
)
"""Keys whose flat objects are the turns of one record, not records."""
TEXTS = frozenset({"text", "prompt", "instruction", "question", "query", "input", "problem"})
"""Keys by which a flat object is a record."""
SPEAKERS = frozenset({"role", "from", "author", "speaker", "sender", "user", "name"})
"""Keys by which an object is a message."""
MAX_LITERAL = 16
"""Maximum length in characters of what JSON is read in at once, besides strings: "-Infinity", an escape."""
_BETWEEN, _SPACE = re.compile(r"[\s,]*"), re.compile(r"[ \t\n\r]*")
_DECODER = json.JSONDecoder()


def lines(path: Path, size: int = BATCH_BYTES) -> Iterator[tuple[int, list[bytes]]]:
    """Batches of about `size` bytes of the lines of a JSON file, each with the number of its first line, from 1.

    The file may also be one array, one object that holds its records under one key, or values on several lines each;
    then its records are given one per line and numbered. Arrays and objects are parsed record by record. An error names
    the last complete line.
    """
    holder = _holder(path)
    yield from _batches(path, size, _values if holder is None else holder.records)


def envelope(path: Path) -> tuple[bytes, bytes] | None:
    """What a JSON file has before and after its records, which commas separate; None if each is on a line of its own.

    These are the brackets of an array, or the rest of the only object, which holds the records under one key.
    """
    if holder := _holder(path):
        around = json.dumps({**holder.members, holder.key: ["\0"]}, ensure_ascii=False)
        before, _, after = around.partition(json.dumps("\0"))
        return _bytes(before) + b"\n", b"\n" + _bytes(after) + b"\n"
    with open_text(path) as file:
        array = file.peek(HEAD)[:HEAD].lstrip().startswith(b"[")
        values = islice((value for value in _values(file) if not value.isspace()), 1) if array else ()
        return (b"[\n", b"\n]\n") if array and not any(value.lstrip().startswith(b"[") for value in values) else None


def line_blocks(path: Path, room: int, rows: int) -> list[tuple[int, int, int]] | None:
    """Blocks of `rows` lines of a plain file of JSON Lines, the first one of `room`: (first line, begin, lines).

    Lines are numbered from 1; `begin` is in bytes. Blank lines do not count as lines of a block. None if the file is
    compressed, or if `lines` gives anything else than its lines.
    """
    if _holder(path):
        return None
    with open_text(path) as file:
        begin, (_, _, spread) = file.tell(), _start(file)
        if spread or not isinstance(file.raw, io.FileIO):
            return None
        file.seek(begin)
        blocks, count = list[tuple[int, int, int]](), 0
        first, start = 1, begin
        # A loop over lines, because a blank one is not a record.
        for number, line in enumerate(file, 1):
            begin += len(line)
            if line.isspace():
                continue
            count += 1
            if count == room:
                blocks.append((first, start, count))
                first, start, count, room = number + 1, begin, 0, rows
    return [*blocks, (first, start, count)] if count else blocks


def block_lines(path: Path, first: int, begin: int, count: int, size: int) -> Iterator[tuple[int, list[bytes]]]:
    """The lines of a block of `line_blocks`, in batches of about `size` bytes as `lines` gives them."""
    batch, room = list[bytes](), size
    try:
        with path.open("rb") as file:
            file.seek(begin)
            while count:
                line = file.readline()
                if not line:
                    raise UnreadableFileError(f"has changed while it was read: it ends in line {first + len(batch)}")
                batch.append(line)
                count, room = count - (not line.isspace()), room - len(line)
                if room <= 0 or not count:
                    yield first, batch
                    first, batch, room = first + len(batch), [], size
    except OSError as error:
        place = f"cannot be read after line {first + len(batch) - 1} ({reason(error)})"
        raise UnreadableFileError(place) from error


def text_lines(path: Path, size: int = BATCH_BYTES) -> Iterator[list[bytes]]:
    """Lines of a text file in batches of about `size` bytes."""
    yield from (batch for _, batch in _batches(path, size, iter))


def _batches(
    path: Path, size: int, split: Callable[[io.BufferedReader], Iterator[bytes]]
) -> Iterator[tuple[int, list[bytes]]]:
    first, batch, room = 1, list[bytes](), size
    try:
        with open_text(path) as file:
            for line in split(file):
                batch.append(line)
                room -= len(line)
                if room <= 0:
                    yield first, batch
                    first, batch, room = first + len(batch), [], size
    except UnreadableFileError as error:
        if isinstance(error.__cause__, DAMAGE):
            place = f"cannot be read after line {first + len(batch) - 1} ({reason(error.__cause__)})"
            raise UnreadableFileError(place) from error
        raise
    if batch:
        yield first, batch


def _values(file: io.BufferedReader) -> Iterator[bytes]:
    """The lines of a file, or its values, if the first line is an array or no whole value."""
    ahead, array, spread = _start(file)
    if spread:
        return _parse(file, ahead, array=array)
    return chain(io.BytesIO(ahead + file.readline()), file)


def _start(file: io.BufferedReader) -> tuple[bytes, bool, bool]:
    """What is read of a file to recognise its form; whether it is an array; whether its values are not its lines."""
    ahead, first = _line(file)
    more, second = _line(file) if first.startswith(b"[") and first.endswith(b"]") else (b"", b"")
    array = first.startswith(b"[") and not second
    spread = array or b"}\r" in first or (ahead.endswith(b"\n") and first.endswith((b"{", b"[", b",")))
    return ahead + more, array, spread


def _line(file: io.BufferedReader) -> tuple[bytes, bytes]:
    """The next line that is not blank, cut to `HEAD` bytes: with the blank lines before it, and stripped."""
    read = line = file.readline(HEAD)
    while line.isspace():
        line = file.readline(HEAD)
        read += line
    return read, line.strip()


def _parse(file: io.BufferedReader, ahead: bytes, *, array: bool) -> Iterator[bytes]:
    """The values of an array, or one after the other, each on one line; `ahead` has been read from the file."""
    decode = codecs.getincrementaldecoder("utf-8")(AS_IS).decode
    text, number, whole = decode(ahead), 1, False
    at = text.index("[") + 1 if array else 0
    while True:
        at = _BETWEEN.match(text, at).end()  # type: ignore[union-attr]  # it matches nothing, too
        if array and text.startswith("]", at):
            break
        try:
            end = _decoded(text, at, whole=whole)[1] if at < len(text) else 0
        except (ValueError, RecursionError) as error:
            raise _malformed(number, error, array=array) from error
        if end:
            yield re.sub(r"[\r\n]", " ", text[at:end]).encode("utf-8", AS_IS) + b"\n"
            at, number = end, number + 1
        elif not whole:
            piece = file.read(max(HEAD, len(text) - at))
            text, at, whole = text[at:] + decode(piece, final=not piece), 0, not piece
        elif array:
            raise _malformed(number, "it has no end", array=array)
        else:
            return
    if text[at + 1 :].strip() or sum(len(piece.strip()) for piece in iter(lambda: file.read(HEAD), b"")):
        raise _malformed(number, "there is more after its end", array=array)


def _malformed(number: int, why: str | Exception, *, array: bool) -> UnreadableFileError:
    what = "begins like a JSON array and is not one" if array else "is not JSON"
    fault = why if isinstance(why, str) else getattr(why, "msg", json_fault(why))  # its place counts from some piece
    return UnreadableFileError(f"{what} (record {number}: {fault})")


def _decoded(text: str, at: int, *, whole: bool) -> tuple[Any, int]:
    """A value and where it ends; 0 if it may go on after the text, which is then not the `whole` rest of the file."""
    try:
        value, end = _DECODER.raw_decode(text, at)
    except json.JSONDecodeError as error:
        if whole or (error.pos < len(text) - MAX_LITERAL and not error.msg.startswith("Unterminated string")):
            raise
        return None, 0
    return value, end if whole or end < len(text) or text[end - 1] in '"]}' else 0


class _Window:
    """A window on the text of a file, from which JSON is taken piece by piece."""

    def __init__(self, file: io.BufferedReader) -> None:
        self._file, self._decode = file, codecs.getincrementaldecoder("utf-8")(AS_IS).decode
        self._text, self._at, self._whole = "", 0, False

    def next(self, between: re.Pattern[str] = _SPACE) -> str:
        """The next character that is not between values; empty at the end of the file."""
        while True:
            self._at = between.match(self._text, self._at).end()  # type: ignore[union-attr]  # it matches nothing, too
            if self._at < len(self._text):
                return self._text[self._at]
            if self._whole:
                return ""
            self._read()

    def take(self, mark: str) -> bool:
        """Whether the next character is the mark, which is then passed."""
        passed = self.next() == mark
        self._at += passed
        return passed

    def expect(self, mark: str) -> None:
        """Pass a mark; `ValueError` if another character is next."""
        if not self.take(mark):
            raise ValueError(mark)

    def value(self) -> Any:  # noqa: ANN401  any JSON
        """The next value; `ValueError` if there is none."""
        self.next()
        while True:
            value, end = _decoded(self._text, self._at, whole=self._whole)
            if end:
                self._at = end
                return value
            self._read()

    def _read(self) -> None:
        piece = self._file.read(max(HEAD, len(self._text) - self._at))
        self._text, self._whole = self._text[self._at :] + self._decode(piece, final=not piece), not piece
        self._at = 0


class _Member(NamedTuple):
    """A member of an object, or an item of one that is a list of objects."""

    number: int
    key: str
    value: Any
    is_item: bool = False


def _members(file: io.BufferedReader) -> Iterator[_Member]:
    """The members of the only value of a file, an object; `ValueError` if it is anything else."""
    window, number = _Window(file), 0
    window.expect("{")
    more = not window.take("}")
    while more:
        key = window.value()
        if not isinstance(key, str):
            raise ValueError(key)  # noqa: TRY004  it is no JSON
        window.expect(":")
        if window.take("["):
            items = _items(window)
            start = list(islice(items, 1))
            if start and isinstance(start[0], dict):
                yield from (_Member(number, key, item, is_item=True) for item in chain(start, items))
            else:
                yield _Member(number, key, [*start, *items])
        else:
            yield _Member(number, key, window.value())
        number, more = number + 1, window.take(",")
        if not more:
            window.expect("}")
    if window.next(_BETWEEN):
        raise ValueError("more")


def _items(window: _Window) -> Iterator[Any]:
    """The items of a list whose first bracket has been passed."""
    if window.take("]"):
        return
    yield window.value()
    while window.take(","):
        yield window.value()
    window.expect("]")


@dataclass(frozen=True)
class _Holder:
    """An object that holds the records of a file under one key, `key`, by its member of this number."""

    members: dict[str, Any]
    """Of a list of objects, the first one alone."""
    key: str
    number: int

    def records(self, file: io.BufferedReader) -> Iterator[bytes]:
        """The records, each on a line."""
        for member in _members(file):
            if member.number == self.number:
                yield _bytes(json.dumps(member.value, ensure_ascii=False)) + b"\n"


def _bytes(text: str) -> bytes:
    """JSON as it stood in a file, where it may have held bytes that are not UTF-8, or escapes of lone surrogates."""
    try:
        return text.encode("utf-8", AS_IS)
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass")


def _holder(path: Path) -> _Holder | None:
    """The only value of a file, if it is an object that holds records; it is read to its end, one record at a time."""
    members, numbers = dict[str, Any](), dict[str, int]()
    try:
        with open_text(path) as file:
            for number, key, value, is_item in _members(file):
                if not is_item or numbers.get(key) != number:  # the last one of a name counts
                    members[key], numbers[key] = [value] if is_item else value, number
    except (ValueError, RecursionError, UnreadableFileError):
        return None  # other JSON, or none; who reads it on says what is wrong
    held = wrapper(members)
    return None if held is None else _Holder(members, held, numbers[held])


def wrapper(value: object) -> str | None:
    """The key under which the only object of a file holds its records; None if it is a record itself."""
    if not isinstance(value, dict):
        return None
    lists = [(key, one) for key, one in value.items() if isinstance(one, list) and one and isinstance(one[0], dict)]
    if len(lists) != 1 or "text" in value:
        return None
    ((key, records),) = lists
    first = records[0]
    own_text = any(isinstance(value.get(name), str) for name in TEXTS)
    if own_text and (key == "tools" or not (TEXTS | CONVERSATIONS) & first.keys()):
        return None
    flat = not any(isinstance(one, list) for one in first.values())
    message = SPEAKERS & first.keys() or (flat and (key in CONVERSATIONS or not TEXTS & first.keys()))
    return None if message else key


def json_fault(error: BaseException) -> str:
    """Describe the first fault of a text that is not JSON."""
    if isinstance(error, ValueError) and not isinstance(error, json.JSONDecodeError):
        return "a number of more than 4,300 digits"
    return "nested too deeply" if isinstance(error, RecursionError) else reason(error)


def loads(text: str) -> Any:  # noqa: ANN401  any JSON
    """The value of JSON text; null for NaN and Infinity, which Python and others write and JSON does not have."""
    return json.loads(text, parse_constant=lambda _name: None)


def parse(line: bytes, number: int) -> Any:  # noqa: ANN401  any JSON
    """The JSON value on a line; bytes that are not UTF-8 become U+FFFD, and a byte-order mark is skipped."""
    try:
        return loads(line.decode("utf-8", "replace").removeprefix("\ufeff"))
    except (ValueError, RecursionError) as error:
        raise UnreadableFileError(f"is not JSON on line {number} ({json_fault(error)})") from error


def _record(line: bytes, number: int) -> dict[str, Any]:
    record = parse(line, number)
    if not isinstance(record, dict):
        raise UnreadableFileError(f"has {type(record).__name__} on line {number}, expected a JSON object on each line")
    return record


def fields(path: Path) -> list[str]:
    """Names of the fields of the first `SAMPLE` records of a JSON file, in order of appearance."""
    numbered = ((number, line) for first, batch in lines(path, 1 << 16) for number, line in enumerate(batch, first))
    records = (_record(line, number) for number, line in numbered if not line.isspace())
    return list(dict.fromkeys(name for record in islice(records, SAMPLE) for name in record))


def json_frames(path: Path, schema: pl.Schema | None, size: int) -> Iterator[pl.DataFrame]:
    """Records of a JSON file as frames; see `frames`."""
    for first, batch in lines(path, size):
        if text := b"".join(line for line in batch if not line.isspace()):
            try:
                yield pl.read_ndjson(text, schema=schema, infer_schema_length=None)
            except pl.exceptions.PolarsError:  # a line is not JSON or not UTF-8
                yield _repair(batch, first, schema)


def _repair(batch: Iterable[bytes], first: int, schema: pl.Schema | None) -> pl.DataFrame:
    """A batch parsed line by line, with U+FFFD for what is not text."""
    records = [_record(line, number) for number, line in enumerate(batch, first) if not line.isspace()]
    if schema is not None:
        records = [{name: record.get(name) for name in schema} for record in records]
    joined = "\n".join(json.dumps(record, ensure_ascii=False) for record in records)
    text = joined.encode("utf-8", "surrogatepass").decode("utf-8", "replace").encode()
    try:
        return pl.read_ndjson(text, schema=schema, infer_schema_length=None)
    except pl.exceptions.PolarsError as error:
        raise UnreadableFileError(f"cannot be read near line {first} ({reason(error)})") from error
