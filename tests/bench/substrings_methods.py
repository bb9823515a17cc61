"""The cost of finding spans of 50 words that two conversations share, by method.

    python tests/bench/substrings_methods.py METHOD CORPUS

CORPUS is a Parquet file with a column `text`, one conversation per row. Methods: `anchors` (the substrings stage, on
shards of 5,000 rows on disk), `windows` (the hash of every window, sorted), `suffix` (a suffix array over the words by
pydivsufsort, and its LCP; `pip install pydivsufsort`). Each prints words, seconds, words per second, memory beyond that
of the texts, and words covered, which are equal for all methods. Run it twice: the first run compiles.
"""

from __future__ import annotations

import importlib
import resource
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

SPAN = 50


def shards(path: Path, folder: Path) -> list[Path]:
    """The corpus as raw shards of 5,000 rows."""
    texts = pl.read_parquet(path, columns=["text"])["text"]
    (folder / "raw").mkdir()
    empty, raw = pl.Series([[]], dtype=pl.List(pl.Struct({"role": pl.String, "content": pl.String}))), []
    for begin in range(0, len(texts), 5000):
        text = texts[begin : begin + 5000]
        ids = pl.Series([f"{begin + i}" for i in range(len(text))])
        raw.append(folder / "raw" / f"{begin:09}.parquet")
        columns = {"id": ids, "text": text, "messages": empty.new_from_index(0, len(text))}
        pl.DataFrame(columns).write_parquet(raw[-1])
    return raw


def anchors(raw: list[Path]) -> int:
    """Words covered according to the substrings stage, measured and merged shard by shard on disk."""
    from stages.overlap.substrings import Merge, Substrings
    from stages.text.shards import Shards

    stage, covered, folder = Substrings(SPAN), 0.0, raw[0].parent.parent
    measured = [folder / path.name for path in raw]
    for path, out in zip(raw, measured, strict=True):
        shard = pl.read_parquet(path)
        shard.select("id").hstack(stage.measure(shard)).write_parquet(out)
    print(f"measured after {time.perf_counter() - BEGUN:.1f} s")  # noqa: T201
    Merge(Shards.of(raw, measured), SPAN).write(folder)
    for path in measured:
        words = pl.read_parquet(path, columns=["span_words"])["span_words"]
        merged = pl.read_parquet(folder / "merged" / path.name, columns=["dup_span_share"])["dup_span_share"]
        covered += float((words * merged.cast(pl.Float64)).sum())
    return round(covered)


def _words(texts: pl.Series) -> tuple[NDArray[Any], NDArray[Any]]:
    from stages.text.shingles import split

    parts = [(part.hashes[: part.ends[-1]].copy(), np.diff(part.ends)) for part in split(texts)]
    return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])


def _cover(marks: NDArray[Any]) -> int:
    """Number of words in the windows that begin at a mark."""
    steps = np.zeros(len(marks) + SPAN + 1, np.int32)
    np.add.at(steps, np.flatnonzero(marks), 1)
    np.add.at(steps, np.flatnonzero(marks) + SPAN, -1)
    return int((steps.cumsum() > 0).sum())


def windows(texts: pl.Series) -> int:
    """The hash of every window, sorted with the conversation's number: at least 20 bytes per word."""
    from stages.text.compiled import Kernels

    loops = Kernels("stages.text.hashes_kernel", {"runs": "u8* i8 i8 u8*"})
    words, sizes = _words(texts)
    ends = np.concatenate([[0], np.cumsum(sizes)])
    hashes, owner = np.zeros(len(words), np.uint64), np.repeat(np.arange(len(sizes), dtype=np.uint32), sizes)
    valid = np.zeros(len(words), np.bool_)
    for begin, end in pairwise(ends):
        count = loops.call("runs", words[begin:end], int(end - begin), SPAN, hashes[begin:])
        valid[begin : begin + count] = True
    at = np.flatnonzero(valid)
    order = at[np.argsort(hashes[at], kind="stable")]
    keys, rows = hashes[order], owner[order]
    begins = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
    shared = np.minimum.reduceat(rows, begins) != np.maximum.reduceat(rows, begins)
    marks = np.zeros(len(words), np.bool_)
    marks[order[np.repeat(shared, np.diff(np.append(begins, len(keys))))]] = True
    return _cover(marks)


def suffix(texts: pl.Series) -> int:
    """A suffix array over the ranks of words, with a separator after each conversation."""
    sais = importlib.import_module("pydivsufsort")  # not a dependency of the project

    words, sizes = _words(texts)
    _, ranks = np.unique(words, return_inverse=True)
    owner = np.repeat(np.arange(len(sizes), dtype=np.uint32), sizes + 1)
    symbols = np.full(len(owner), 0, np.int64)
    stops = np.cumsum(sizes + 1) - 1
    inside = np.ones(len(owner), np.bool_)
    inside[stops] = False
    symbols[inside] = ranks + len(sizes)
    symbols[stops] = np.arange(len(sizes))  # separators differ, so no span contains one
    if symbols.max() < 1 << 31:
        symbols = symbols.astype(np.int32)
    array = sais.divsufsort(symbols)
    common = sais.kasai(symbols, array)
    marks = np.zeros(len(owner), np.bool_)
    group = np.concatenate([[0], np.cumsum(common[:-1] < SPAN)])  # suffixes that share their first words
    begins = np.flatnonzero(np.concatenate([[True], group[1:] != group[:-1]]))
    rows = owner[array]
    shared = np.minimum.reduceat(rows, begins) != np.maximum.reduceat(rows, begins)
    marks[array[np.repeat(shared, np.diff(np.append(begins, len(array))))]] = True
    return _cover(marks)


BEGUN = time.perf_counter()


def run(method: str, path: Path, folder: Path) -> str:
    """One method over one corpus."""
    if method == "anchors":
        raw = shards(path, folder)
        work: Callable[[], int] = lambda: anchors(raw)  # noqa: E731  one of two
    else:
        texts = pl.read_parquet(path, columns=["text"])["text"]
        work = lambda: {"windows": windows, "suffix": suffix}[method](texts)  # noqa: E731
    total = int(pl.scan_parquet(path).select(pl.col("text").str.count_matches(r"\w+").sum()).collect().item())
    peaks, start, done = [0], _resident(), threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            peaks[0] = max(peaks[0], _resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    begun, cpu = time.perf_counter(), time.process_time()
    globals()["BEGUN"] = begun
    found = work()
    seconds, cpu = time.perf_counter() - begun, time.process_time() - cpu
    done.set()
    watcher.join()
    rate, memory = total / seconds / 1e6, peaks[0] - start
    return (
        f"{method} {path.stem}: {total} words, {seconds:.1f} s, {cpu:.1f} CPU s, {rate:.2f} M words/s, "
        f"{memory / 1e6:.0f} MB, {memory / total:.1f} bytes a word, {found} words covered"
    )


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        print(run(sys.argv[1], Path(sys.argv[2]), Path(scratch)))  # noqa: T201
