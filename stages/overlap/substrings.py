"""Passages that several conversations contain, word for word: windows of words, which repeat, and what these cover."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import polars as pl
from numpy.typing import NDArray

from stages.files import mapped, read_frame, save_frame, scratch, zeros
from stages.stage import Axis, GlobalStage, require
from stages.text.compiled import Kernels
from stages.text.messages import by_row
from stages.text.repeats import Shard, Table, find, find_repeats, prefix_index
from stages.text.shards import Ids, Rows, Shards, column, cores
from stages.text.shingles import Keys, split

LOOPS = Kernels(
    "stages.overlap.substrings_kernel",
    {
        "anchors": "u8* i8* i8 u8* i8* u8** i8*",
        "windows": "u8* i8* i8 u8* i8* u8 u8* i8* u8** i8*",
        "cover": "u8* i8* i8 u8* i8* u8 u4* u4* i8* i8** u8*",
    },
)
AT_ONCE = 1 << 25
"""About twice the number of windows that are sorted in memory."""
MAX_BITS = 8
"""Maximum number of top bits by which windows are split into files: 2 * 256 files are open at once."""

Windows = tuple[Keys, Rows, int, NDArray[np.uint32], NDArray[np.uint32]]
"""Sorted hashes and their prefix index, the number of conversations with each, and the first of them."""
Result = TypeVar("Result")


@dataclass(frozen=True)
class Substrings(GlobalStage):
    r"""Spans of at least `span` words that another conversation also contains, word for word; whole copies included.

    Source: Lee et al. 2022, "Deduplicating Training Data Makes Language Models Better", with spans of 50 tokens. Words
    are those of `dedup` (lower-cased `\w+`), so case, punctuation and line breaks make no difference. A span may extend
    over several messages. System messages are ignored, because a corpus repeats them on purpose.

    Signals:
        span_words: words of the conversation.
        span_anchors: sorted anchors of its windows (winnowing), by which the merge finds repeated windows.
        dup_span_share: share (0 to 1) of its words in repeated spans; null if it has no word.
        dup_span_earlier: share of its words in spans that an earlier conversation contains. A rule on it keeps the
            first conversation with a span; a rule on `dup_span_share` drops all of them.
        dup_span_words: words of its longest stretch in which every `span` words occur together in another conversation
            (usually the same one throughout); 0 if there is none.
        dup_span_copies: number of conversations, itself included, that contain its most repeated `span` words; 1 if no
            other conversation contains any.
        dup_span_of: id of the first conversation that contains the beginning of its longest stretch with an earlier
            copy; null if there is none.

    Exact up to collisions of 64-bit hashes; nothing is sampled. The anchor of a window of `span` words is the least
    hash of its runs of `span // 2` words (Schleimer et al. 2003): about one distinct anchor per 13 words at 50. Equal
    windows have equal anchors, so only windows whose anchor two conversations have are compared, by a hash of all their
    words. The chance that any two of a billion different windows collide is 0.03.

    Memory of the merge: 4 bytes per repeated anchor, 60 bytes per conversation that is the first with a repeated span,
    2 bytes per repeated window, a shard per core, and at most 700 MB to sort up to 4 billion words. Temporary disk
    space: 40 bytes per conversation, 8 bytes per anchor, 12 bytes per word whose window has a repeated anchor, and 16
    bytes per repeated anchor or window.

    Attributes:
        span: minimum number of words of a span.
    """

    span: int = 50

    identity: ClassVar[str] = "stages.substrings:Substrings"
    summary: ClassVar[str] = "passages of at least 50 words that other conversations also contain, word for word"
    reads: ClassVar[tuple[str, ...]] = ("text", "messages")
    writes: ClassVar[pl.Schema] = pl.Schema({"span_words": pl.UInt32(), "span_anchors": pl.List(pl.UInt64())})
    merges: ClassVar[pl.Schema] = pl.Schema(
        {
            **dict.fromkeys(("dup_span_share", "dup_span_earlier"), pl.Float32()),
            **dict.fromkeys(("dup_span_words", "dup_span_copies"), pl.UInt32()),
            "dup_span_of": pl.String(),
        }
    )
    axes: ClassVar[Mapping[str, Axis]] = {"dup_span_share": Axis("share of words that occur elsewhere", rank=310)}

    def __post_init__(self) -> None:
        require("substrings: span", self.span, self.span > 1, "at least 2 words")  # a span has two halves

    def measure(self, batch: pl.DataFrame) -> pl.DataFrame:
        words, keys, sizes = hash_sets("anchors", texts_without_system(batch), self.span)
        owners = pl.DataFrame({"row": np.repeat(np.arange(batch.height, dtype=np.uint32), sizes), "span_anchors": keys})
        lists = by_row(batch.height, owners.group_by("row").agg("span_anchors"))
        anchors = lists.select(pl.col("span_anchors").fill_null([]))
        return anchors.with_columns(span_words=words).select(self.writes.names()).cast(self.writes)

    def merge(self, raw: Sequence[Path], measured: Sequence[Path], folder: Path) -> None:
        Merge(Shards.of(raw, measured), self.span).write(folder)


def texts_without_system(frame: pl.DataFrame) -> pl.Series:
    """The texts of conversations (`text` and `messages`) without their system messages."""
    role = pl.element().struct.field("role")
    system = frame.select(pl.col("messages").list.eval(role == "system").list.any().fill_null(value=False)).to_series()
    if not system.any():
        return frame["text"]
    others = pl.col("messages").list.eval(pl.element().filter(role != "system").struct.field("content"))
    return frame.select(pl.when(system).then(others.list.join("\n")).otherwise(pl.col("text"))).to_series()


def hash_sets(loop: str, texts: pl.Series, width: int, *table: Any) -> tuple[Rows, Keys, Rows]:  # noqa: ANN401
    """Words of each text; the set of hashes that a loop writes for each, text by text; the size of each set.

    The loop "anchors" writes the anchors of a text's windows; "windows" the windows whose anchor is in `table`.
    """
    words, hashes, sizes = [np.empty(0, np.int64)], [np.empty(0, np.uint64)], [np.empty(0, np.int64)]
    for part in split(texts):
        longest = part.longest()
        found, ends = np.empty(len(part.hashes), np.uint64), np.empty_like(part.ends)
        scratch, starts = np.empty((3, longest), np.uint64), np.empty(2 * longest + 3, np.int64)
        count = LOOPS.call(loop, part.hashes, part.ends, width, *table, found, ends, scratch, starts)
        words.append(np.diff(part.ends))
        hashes.append(found[:count].copy())
        sizes.append(np.diff(ends))
    return np.concatenate(words), np.concatenate(hashes), np.concatenate(sizes)


@dataclass(frozen=True)
class Merge:
    """A merge of measured shards: `width` words are a window; `at_once` bounds how many are sorted in memory."""

    shards: Shards
    width: int
    at_once: int = AT_ONCE

    def write(self, folder: Path) -> None:
        """Write the merged signals of each shard to `folder/merged`."""
        starts, width, firsts = self.shards.starts, len(Substrings.merges), [np.empty(0, np.int64)]
        with scratch(folder, "windows") as aside:
            anchors = self._anchors()
            windows = self._windows(anchors, aside)
            covered = zeros(aside / "covered", np.int64, len(self.shards) * width).reshape(-1, width)
            for at, part in enumerate(_each(len(self.shards.raw), lambda at: self._cover(at, anchors, windows))):
                covered[starts[at] : starts[at + 1]] = part
                firsts.append(np.unique(part[:, -1][part[:, -1] >= 0]))
            names = Ids(self.shards, *firsts)
            for at, path in enumerate(self.shards.measured):
                here = covered[starts[at] : starts[at + 1]]
                columns = _columns(here, self.shards.ids(at), column(path, "span_words"), names)
                save_frame(folder / "merged" / path.name, columns)

    def _anchors(self) -> Table:
        """The anchors of more than one conversation."""

        def each() -> Iterator[Keys]:
            shards = range(len(self.shards.measured))
            return (self.shards.pairs(at, "span_anchors")["key"].to_numpy() for at in shards)

        keys, _ = find_repeats(each, self.shards.folder)
        return keys, *prefix_index(keys)

    def _rows_with(self, at: int, anchors: Table) -> tuple[Rows, pl.Series]:
        """The rows of a shard that have one of the anchors, from 0, and their texts."""
        pairs = self.shards.pairs(at, "span_anchors")
        rows = np.unique(pairs["row"].to_numpy()[find(pairs["key"].to_numpy(), *anchors) >= 0]).astype(np.int64)
        if not len(rows):
            return rows, pl.Series([], dtype=pl.String)
        return rows, texts_without_system(read_frame(self.shards.raw[at], ("text", "messages"))[rows])

    def _candidates(self, at: int, anchors: Table, bits: int) -> list[Shard]:
        """Rows and windows of a shard whose anchor is in the table, for each value of the windows' top bits."""
        rows, texts = self._rows_with(at, anchors)
        _, keys, sizes = hash_sets("windows", texts, self.width, *anchors)
        numbers = np.repeat(rows + self.shards.starts[at], sizes)
        if not bits:
            return [(numbers, keys)]
        tops = (keys >> np.uint64(64 - bits)).astype(np.uint8)
        cuts = np.cumsum(np.bincount(tops, minlength=1 << bits))[:-1]
        return [(numbers[here], keys[here]) for here in np.split(np.argsort(tops, kind="stable"), cuts)]

    def _windows(self, anchors: Table, aside: Path) -> Windows:
        """The windows that several conversations have, sorted on disk by ranges of their hashes."""
        words = sum(int(column(path, "span_words").sum()) for path in self.shards.measured)
        bits = min(MAX_BITS, (max(0, words - 1) // max(1, self.at_once // 2)).bit_length())  # 36 bytes each to sort
        with ExitStack() as stack:
            files = [stack.enter_context((aside / f"{part}").open("wb")) for part in range(2 << bits)]
            for parts in _each(len(self.shards.raw), lambda at: self._candidates(at, anchors, bits)):
                for part, (rows, keys) in enumerate(parts):
                    files[2 * part].write(keys.data)
                    files[2 * part + 1].write(rows.astype(np.uint32).data)
        with ExitStack() as stack:
            out = [stack.enter_context((aside / name).open("wb")) for name in ("keys", "counts", "firsts")]
            for part in range(1 << bits):
                for file, values in zip(out, _groups(aside / f"{2 * part}", aside / f"{2 * part + 1}"), strict=True):
                    file.write(values.data)
        keys = mapped(aside / "keys", np.uint64)
        counts, firsts = mapped(aside / "counts", np.uint32), mapped(aside / "firsts", np.uint32)
        return keys, *prefix_index(keys), counts, firsts

    def _cover(self, at: int, anchors: Table, windows: Windows) -> Rows:
        """What the windows cover of each row of a shard, [rows, 5]: see the loop `cover`."""
        rows, texts = self._rows_with(at, anchors)
        start, end = self.shards.starts[at], self.shards.starts[at + 1]
        out, done = np.empty((len(rows), len(Substrings.merges)), np.int64), 0
        for part in split(texts):
            here = slice(done, done + len(part.keys))
            given = (part.hashes, part.ends, self.width, *windows)
            LOOPS.call("cover", *given, rows[here] + start, out[here], np.empty(part.longest(), np.uint64))
            done = here.stop
        covered = np.tile(np.array([0, 0, 0, 1, -1]), (end - start, 1))
        covered[rows] = out
        return covered


def _each(count: int, work: Callable[[int], Result]) -> Iterator[Result]:
    """The results for each shard, in order, computed on all cores."""
    with ThreadPoolExecutor(cores()) as pool:
        for begin in range(0, count, cores()):
            yield from pool.map(work, range(begin, min(count, begin + cores())))


def _groups(keys_file: Path, rows_file: Path) -> tuple[NDArray[Any], ...]:
    """The windows that more than one row has, sorted; the number of rows with each; the first of them."""
    keys = np.fromfile(keys_file, np.uint64)
    order = np.argsort(keys)
    keys, rows = keys[order], np.fromfile(rows_file, np.uint32)[order]
    begins = np.flatnonzero(np.concatenate([np.ones(min(1, len(keys)), np.bool_), keys[1:] != keys[:-1]]))
    counts = np.diff(np.append(begins, len(keys)))
    firsts = np.minimum.reduceat(rows, begins) if len(rows) else rows
    return keys[begins][counts > 1], counts[counts > 1].astype(np.uint32), firsts[counts > 1]


def _columns(covered: Rows, ids: pl.Series, words: pl.Series, names: Ids) -> pl.DataFrame:
    """The columns that the loop `cover` fills are those of `merges`, with words for shares and a row for its id."""
    there = np.flatnonzero(covered[:, -1] >= 0)
    source = pl.repeat(None, len(ids), dtype=pl.String, eager=True).scatter(there, names.of(covered[there, -1]))
    share = pl.when(words > 0).then(pl.col("dup_span_share", "dup_span_earlier") / words)
    frame = pl.DataFrame(covered, schema=list(Substrings.merges), orient="row").with_columns(share, dup_span_of=source)
    return frame.select(ids, *Substrings.merges).cast(Substrings.merges)
