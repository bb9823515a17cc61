"""Keys, band keys and sets of shingles of texts, by which near-duplicates are found."""

import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np
import polars as pl
from numpy.typing import NDArray

from stages.dedup.bands import Matching
from stages.dedup.kernel import B32, ROW
from stages.files import mapped
from stages.text.compiled import Kernels
from stages.text.shards import Rows
from stages.text.shingles import Sets, Words, parts, shingle_sets, words

Result = TypeVar("Result")
Mask = NDArray[np.bool_]

LOOPS = Kernels(
    "stages.dedup.kernel",
    {
        "first_alike": "u8** i4* i8*",
        "unite": "i8** i8*",
        "pairs_loop": "u8* i8* u4** i8 u8* i8* u8* u8* i8* f8 f8 i8* i8** f4*",
        "keep_best_loop": "i8* i8 u4** i8* u4* u4* u8* i8* f8 i8 u4* i8* f4* u1*",
        "turns_loop": "i8** i8* u8* u8* i8* i8* f8 f8 u1*",
        "nearest_loop": "u4** i8** u8* i8* u8** u8* i8* f8 i8 u4* f4* i8* u1*",
    },
)


@dataclass(frozen=True)
class Signatures:
    """Keys, lengths and band keys of texts, computed before texts are compared."""

    keys: NDArray[np.uint64]  # [n, 2]; equal for exact copies only
    words: NDArray[np.uint32]  # [n], words of each text
    bands: NDArray[np.uint32]  # [n, bands]


def sign_texts(
    texts: Iterable[pl.Series], matching: Matching, workers: int = 1, file: IO[bytes] | None = None
) -> Signatures:
    """Signatures of a column of texts in parts (no nulls); band keys are mapped from `file` if there is one."""

    def sign(part: Words) -> tuple[NDArray[np.uint64], NDArray[np.uint32], NDArray[np.uint32]]:
        return part.keys, np.diff(part.ends).astype(np.uint32), matching.keys(part)

    keys, lengths = [np.empty((0, 2), np.uint64)], [np.empty(0, np.uint32)]
    bands = [np.empty((0, matching.bands()[0]), np.uint32)]
    for key, length, band in each_part(sign, texts, workers):
        keys.append(key)
        lengths.append(length)
        if file:
            file.write(band.data)
        else:
            bands.append(band)
    whole = mapped(file, np.uint32).reshape(-1, matching.bands()[0]) if file else np.concatenate(bands)
    return Signatures(np.concatenate(keys), np.concatenate(lengths), whole)


def write_sets(texts: Iterable[pl.Series], folder: Path | None, workers: int) -> Sets:
    """Sets of shingles of texts in parts, mapped from temporary files; `ends` begins with 0."""
    total = 0
    with tempfile.TemporaryFile(dir=folder) as value_file, tempfile.TemporaryFile(dir=folder) as end_file:
        end_file.write(np.zeros(1, np.int64).data)
        for values, ends in each_part(shingle_sets, texts, workers):
            value_file.write(values.data)
            end_file.write((total + ends).data)
            total += len(values)
        return Sets(mapped(value_file, np.uint64), mapped(end_file, np.int64))


def choose(texts: Iterable[pl.Series], chosen: Mask) -> Iterator[pl.Series]:
    """The chosen rows, bool [n], of a column in parts; a part without any is omitted."""
    begin = 0
    for some in texts:
        here = np.flatnonzero(chosen[begin : begin + len(some)])
        begin += len(some)
        if len(here):
            yield some.gather(here)


def each_part(work: Callable[[Words], Result], texts: Iterable[pl.Series], workers: int) -> Iterator[Result]:
    """Apply a function to the words of texts by parts, in order; at most two parts per thread wait in memory."""
    every = (part for some in texts for part in parts(some))
    if workers == 1:
        yield from (work(words(part)) for part in every)
        return
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        for part in every:
            waiting.append(pool.submit(lambda one: work(words(one)), part))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def first_alike(keys: NDArray[np.uint64]) -> Rows:
    """For each row of keys, [n, 2], the first row that equals it: a hash table, 8 to 16 bytes per row."""
    slots = np.full(1 << max(4, (2 * len(keys)).bit_length()), -1, np.int32)
    first = np.empty(len(keys), np.int64)
    LOOPS.call("first_alike", keys, slots, first)
    return first


def in_order(keys: NDArray[np.uint32], numbers: Rows) -> NDArray[np.uint64]:
    """Buckets of a band: key << 32 | number, sorted."""
    order = pack(keys, numbers)
    order.sort()
    return order


def pack(high: NDArray[Any], low: NDArray[Any]) -> NDArray[np.uint64]:
    """Pairs of numbers under 2**32 as single ones: high << 32 | low."""
    both = high.astype(np.uint64) << B32
    both |= low.astype(np.uint64)
    return both


def shared_keys(keys: NDArray[np.uint32], numbers: Rows) -> tuple[NDArray[np.uint32], Rows]:
    """Sorted keys that several rows have, and the numbers of these rows."""
    order = in_order(keys, numbers)
    same = order[1:] ^ order[:-1] <= ROW
    shared = np.zeros(len(order), np.bool_)
    shared[1:] = same
    shared[:-1] |= same
    return (order[shared] >> B32).astype(np.uint32), (order[shared] & ROW).astype(np.int64)
