"""Evaluation sets in files: the texts of each item, and the name of the item."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from stages import readers
from stages.readers import RECORDS, TEXT, Listing, UnreadableFileError
from stages.stage import MissingModelError, StageParameterError, reason

# fmt: off
QUESTIONS = frozenset({
    "prompt", "question", "query", "input", "instruction", "problem", "text", "context", "passage", "article",
    "document", "story", "sentence", "sentence1", "sentence2", "premise", "hypothesis", "goal", "ctx", "turns",
    "messages", "conversations", "conversation", "dialogue", "data",
})
ANSWERS = frozenset({
    "answer", "answers", "output", "outputs", "target", "targets", "response", "responses", "completion",
    "completions", "solution", "canonical_solution", "reference", "references", "label", "labels", "choice",
    "choices", "options", "endings", "best_answer", "correct_answers", "chosen", "rejected",
})
# fmt: on
"""Columns with questions and dialogues, and with answers. All other columns of an item are ignored."""
ANSWERING_ROLES = frozenset({"assistant", "gpt", "chatgpt", "model", "bot"})
"""Roles whose messages are answers."""
NAME_COLUMNS = ("id", "question_id", "task_id", "prompt_id", "qid", "key", "uid", "idx", "index", "unique_id")
"""Columns that name an item; the first one present counts."""

_PLAIN = (*TEXT, ".md")
ENDINGS = (*RECORDS, *_PLAIN)
"""Endings of files of evaluation sets."""
EXCERPT = 80
"""Maximum length of an item's name and of its excerpt in characters."""


class ItemText(NamedTuple):
    """A text of an item: a question, an answer, or a message."""

    file: str  # of the evaluation set
    item: int  # number of the item in its file, counted from 1
    name: str  # of the item, or its row
    field: str  # the column, with the role for a message
    text: str
    asks: bool  # whether it is not an answer; a short answer such as "Is there anything else?" proves nothing


def files(evals: str) -> tuple[Path, ...]:
    """The files of evaluation sets in order of their names; none for an empty string."""
    return listing(evals).paths if evals else ()


def listing(evals: str) -> Listing:
    """The files of evaluation sets, and what else is in their folder; `MissingModelError` if there is none."""
    made = readers.list_files(Path(evals).expanduser(), ENDINGS)
    if not made.paths:
        raise MissingModelError(
            f"no evaluation sets at {evals!r}: expected a file, or a folder of files, ending in "
            f"{', '.join(ENDINGS)} (text and JSON also with {', '.join(readers.PACKINGS)})"
        )
    return made


def parts(evals: str) -> Iterator[ItemText]:
    """The texts of every item.

    Loops over items, because each has its own shape; evaluation sets are small. `StageParameterError` if a file cannot
    be read, or its items have no known column.
    """
    root = Path(evals).expanduser()
    for path in files(evals):
        label = path.name if path == root else path.relative_to(root).as_posix()
        try:
            yield from _parts(path, label)
        except UnreadableFileError as error:
            raise StageParameterError(f"evaluation set {str(path)!r} {error}: repair or remove the file") from error
        except (OSError, pl.exceptions.PolarsError) as error:
            raise StageParameterError(f"evaluation set {str(path)!r} cannot be read ({reason(error)})") from error


def _parts(path: Path, label: str) -> list[ItemText]:
    records = list(_records(path))
    for number, record in enumerate(records, 1):
        if not isinstance(record, str | Mapping):
            raise StageParameterError(
                f"evaluation set {str(path)!r}: item {number} is {type(record).__name__}, expected an object or a text"
            )
    found = [part for number, record in enumerate(records, 1) for part in _of_item(record, number, label)]
    if any(records) and not found:
        columns = ", ".join(map(str, next(filter(None, records))))
        raise StageParameterError(
            f"evaluation set {str(path)!r} has the columns {columns}: expected one such as prompt, question, input, "
            f"instruction, text, messages, answer, output or choices; rename one, or name another file"
        )
    return found


def _of_item(record: str | Mapping[str, Any], number: int, file: str) -> Iterator[ItemText]:
    if isinstance(record, str):
        yield ItemText(file, number, f"row {number}", "text", record, asks=True)
        return
    name = next((str(record[key]) for key in NAME_COLUMNS if isinstance(record.get(key), str | int)), "")
    for column in record:
        if column.lower() in QUESTIONS | ANSWERS:
            for field, text in _texts(column, record[column]):
                asks = column.lower() in QUESTIONS and field.rpartition(".")[2].lower() not in ANSWERING_ROLES
                yield ItemText(file, number, name or f"row {number}", field, text, asks)


def _records(path: Path) -> Iterator[Any]:
    ending = readers.ending(path)
    if ending in _PLAIN:
        text = readers.read_text(path)
        blocks = re.split(r"\n\s*\n", text) if re.search(r"\S\s*\n\s*\n\s*\S", text) else text.splitlines()
        yield from (block.strip() for block in blocks if block.strip())
    elif ending == ".json" and (items := _whole(path)) is not None:
        yield from items
    elif ending not in readers.JSON:
        for frame in readers.frames(path):
            yield from frame.iter_rows(named=True)
    else:
        for first, lines in readers.lines(path):
            yield from (readers.parse(line, at) for at, line in enumerate(lines, first) if not line.isspace())


def _whole(path: Path) -> list[Any] | None:
    """The items of a file with one JSON value: an array, an array in an object, or the object. None for JSON Lines."""
    try:
        value = json.loads(readers.read_text(path))
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict):
        return value if isinstance(value, list) else None
    lists = [each for each in value.values() if isinstance(each, list) and each and isinstance(each[0], dict)]
    lists = [each for each in lists if {key.lower() for key in each[0]} & (QUESTIONS | ANSWERS)]
    return lists[0] if lists else [value]


def _texts(field: str, value: Any) -> Iterator[tuple[str, str]]:  # noqa: ANN401  any JSON
    """The texts in a value, each with its field."""
    if isinstance(value, str):
        yield field, value.encode("utf-8", "surrogatepass").decode("utf-8", "replace")  # lone surrogates
    elif isinstance(value, list):
        for each in value:
            yield from _texts(field, each)
    elif isinstance(value, Mapping):
        role = value.get("role") or value.get("from")
        inside = next((key for key in ("content", "value", "text") if key in value), None)
        for key in [inside] if inside else value:
            yield from _texts(f"{field}.{role}" if isinstance(role, str) else field, value[key])


def excerpt(part: ItemText) -> str:
    """The name of an item and the beginning of its text, on one line, without control characters."""
    start = "".join(c if c.isprintable() else " " for c in part.text[: 4 * EXCERPT])
    return f"{part.name[:EXCERPT]}: {' '.join(start.split())[:EXCERPT]}"
