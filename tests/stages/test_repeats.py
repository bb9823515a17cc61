"""Keys that repeat are found in bounded memory."""

from __future__ import annotations

import tracemalloc
from collections import Counter
from collections.abc import Iterator

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from stages.text.repeats import Repeats, Shard, find_repeats, prefix_index

keys = st.one_of(st.integers(0, 5), st.integers((1 << 64) - 3, (1 << 64) - 1), st.integers(0, (1 << 64) - 1))


@given(made=st.lists(st.lists(st.sets(keys, max_size=6), max_size=5), max_size=4))
def test_repeats_are_those_of_a_counter(made: list[list[set[int]]]) -> None:
    """How many rows have a key, and the first of them, over any shards."""
    count = Counter(key for shard in made for row in shard for key in row)
    first: dict[int, int] = {}
    for number, row in enumerate(row for shard in made for row in shard):
        first |= {key: first.get(key, number) for key in row}

    def shards() -> Iterator[Shard]:
        start = 0
        for shard in made:
            rows = np.repeat(np.arange(start, start + len(shard)), [len(row) for row in shard]).astype(np.int64)
            yield rows, np.array([key for row in shard for key in sorted(row)], np.uint64)
            start += len(shard)

    found = Repeats(shards)
    asked = np.array([*count, 77], np.uint64)
    counts, firsts = found.of(asked)
    for key, many, row in zip(asked.tolist(), counts.tolist(), firsts.tolist(), strict=True):
        assert many == max(count[key], 1)
        assert row == (first[key] if count[key] > 1 else -1)


@given(made=st.lists(keys, unique=True, max_size=40))
def test_a_directory_says_where_each_key_is(made: list[int]) -> None:
    """A key lies between the places where its top bits, and the next ones, begin."""
    every = np.sort(np.array(made, np.uint64))
    starts, shift = prefix_index(every)
    for at, key in enumerate(every):
        assert starts[int(key >> shift)] <= at < starts[int(key >> shift) + 1]
    assert starts[-1] == len(every)


def test_keys_are_sorted_in_files() -> None:
    """Two million keys take less than two bytes each."""
    draw = np.random.default_rng(3)
    every = [draw.integers(0, 1 << 64, 40_000, np.uint64) for _ in range(50)]
    every[7][:100] = every[3][:100]
    tracemalloc.start()
    found, counts = find_repeats(lambda: iter(every))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.tolist() == sorted(every[3][:100].tolist())
    assert set(counts.tolist()) == {2}
    assert peak < 2 * 2_000_000
