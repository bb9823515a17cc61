"""Ingest by an engine: the same files as in order, whatever the source, its cuts and the order of results."""

from __future__ import annotations

import gzip
import json
import math
import pickle
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import polars as pl
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline import ingest as ingesting
from pipeline import sources
from pipeline.engine import ANY, Answers, Needs
from pipeline.engine.local import Local
from pipeline.ingest import Limits, ingest
from pipeline.sources import SourceError
from pipeline.store import Store
from tests.conftest import chat, contents

T = TypeVar("T")


class Backwards:
    """An engine that carries tasks over as workers get them, and begins with the last key."""

    def __init__(self) -> None:
        self.keys: list[str] = []

    def processes(self, shards: int, seconds: float = math.inf) -> int:
        return 2 if shards > 1 and seconds else 1

    here = True

    def map(self, task: Callable[[str], T], keys: Iterable[str], needs: Needs = ANY) -> Iterator[tuple[str, T]]:
        del needs
        self.keys += keys
        for key in reversed(self.keys):
            yield key, pickle.loads(pickle.dumps(pickle.loads(pickle.dumps(task))(key)))  # noqa: S301  our own

    def agree(self, question: Callable[[], Answers]) -> None:
        pass

    def close(self) -> None:
        pass


def line(record: object) -> bytes:
    return json.dumps(record).encode()


TURNS: list[dict[str, Any]] = [
    {"from": "human", "value": "Why?"},
    {"from": "gpt", "value": "Because. " * 9, "weight": 1},
]
RECORDS = (
    *(line(chat(i)) for i in range(6)),
    line({"conversations": TURNS, "source": "b"}),
    line({"conversations": [{**TURNS[0], "weight": 0.5, "name": "x"}, {"from": "sage", "value": "Yes."}]}),
    line({"messages": [{"role": "critic", "content": "\ud800 no"}, {"role": "user", "content": "x" * 400}]}),
    b"{broken",
    b'{"messages": 3}',
    b'{"text": "a plain document"}',
    b"\xff\xfe not text",
    b"",
    b" \t\r",
    b'[{"role": "user", "content": "a list"}]',
)
"""Lines of several shapes, unreadable ones, blank ones."""
SOME = st.lists(st.sampled_from(RECORDS), min_size=3, max_size=12)
FILES = st.lists(st.one_of(SOME, SOME, SOME, st.lists(st.sampled_from(RECORDS), max_size=1)), min_size=1, max_size=3)


def outcome(out: Path, source: Path, limits: Limits, engine: Any = None) -> tuple[object, ...]:
    """All that an ingest leaves: files, shard list, progress; or its error."""
    told: list[int] = []
    shutil.rmtree(out, ignore_errors=True)
    try:
        made = ingest(sources.find(str(source)), Store(out), limits, told.append, engine)
    except SourceError as error:
        return (str(error),)
    made.pop("seconds")
    listed = json.loads((out / "raw" / "shards.json").read_text())
    assert listed.pop("seconds") >= 0
    return contents(out), made, listed, told


@settings(max_examples=25)
@example(files=[[RECORDS[0]] * 9], limits=Limits(2, 250), end=b"\n")
@example(files=[[RECORDS[0]], [RECORDS[1]] * 9], limits=Limits(4), end=b"\n")
@example(files=[list(RECORDS), [], [RECORDS[6]]], limits=Limits(4, limit=17, unreadable=1.0), end=b"\r\n")
@given(
    files=FILES,
    limits=st.builds(
        Limits,
        rows=st.integers(1, 5),
        characters=st.sampled_from([250, 10**9]),
        limit=st.one_of(st.none(), st.integers(1, 14)),
        unreadable=st.just(1.0),
        shape=st.sampled_from([None, "ultrachat"]),
    ),
    end=st.sampled_from([b"\n", b"\r\n"]),
)
def test_an_engine_writes_the_files_that_reading_in_order_writes(
    tmp_path_factory: pytest.TempPathFactory, files: list[list[bytes]], limits: Limits, end: bytes
) -> None:
    """Shards, quarantine, counts, notes and progress, or the error; also where shards end early by their characters."""
    here = tmp_path_factory.mktemp("engine")
    (here / "in").mkdir()
    for number, lines in enumerate(files):
        (here / "in" / f"{number}.jsonl").write_bytes(b"\xef\xbb\xbf" * (number == 1) + end.join(lines))
    engine = Backwards()
    whole = outcome(here / "a", here / "in", limits)
    assert whole == outcome(here / "b", here / "in", limits, engine)
    if engine.keys and limits.characters > 250:
        assert len(engine.keys) == len(json.loads((here / "b" / "raw" / "shards.json").read_text())["shards"])


@pytest.mark.parametrize("group", [1, 3, 8, 100])
def test_parquet_is_read_by_row_groups(tmp_path: Path, group: int) -> None:
    """Groups that end within a shard, or hold several; of larger groups the rows are read in order."""
    frame = pl.DataFrame([{**chat(i), "source": f"s{i % 3}"} for i in range(23)])
    frame.write_parquet(tmp_path / "c.parquet", row_group_size=group)
    engine = Backwards()
    one, other = (outcome(tmp_path / "r", tmp_path / "c.parquet", Limits(5), by) for by in (None, engine))
    assert one == other
    assert len(engine.keys) == (0 if group == 100 else 5)


@pytest.mark.parametrize("name", ["array", "object", "spread", "packed", "csv", "trees", "sample"])
def test_what_must_be_read_in_order_is(tmp_path: Path, name: str) -> None:
    """Records that are not lines, compressed files, tables of text, conversations of many rows, samples."""
    records, path = [chat(i) for i in range(9)], tmp_path / "c.jsonl"
    tree = [{"message_id": str(i), "parent_id": None, "role": "prompter", "text": "Why?"} for i in range(9)]
    texts = {
        "array": json.dumps(records),
        "object": json.dumps({"data": records}),
        "spread": json.dumps(records, indent=1),
        "csv": "text\n" + "one\n" * 9,
        "trees": "\n".join(map(json.dumps, tree)),
    }
    if name == "packed":
        path = path.with_suffix(".jsonl.gz")
        path.write_bytes(gzip.compress("\n".join(map(json.dumps, records)).encode()))
    else:
        path = path.with_suffix(".csv") if name == "csv" else path
        path.write_text(texts.get(name, "\n".join(map(json.dumps, records))))
    engine, limits = Backwards(), Limits(2, sample=0.6 if name == "sample" else None)
    assert outcome(tmp_path / "a", path, limits) == outcome(tmp_path / "b", path, limits, engine)
    assert not engine.keys


def test_too_many_unreadable_rows_end_it_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the sentence that reading in order gives, which counts the rows up to the shard that went too far."""
    monkeypatch.setattr(ingesting, "MIN_ROWS", 5)
    lines = [line(chat(i)) for i in range(4)] + [b"{broken"] * 3 + [line(chat(i)) for i in range(99)]
    (tmp_path / "c.jsonl").write_bytes(b"\n".join(lines))
    engine = Backwards()
    one, other = (outcome(tmp_path / "r", tmp_path / "c.jsonl", Limits(3), by) for by in (None, engine))
    assert one == other
    assert str(one[0]).startswith("2 of 6 rows of ")
    assert engine.keys


def test_a_small_source_starts_no_worker(tmp_path: Path) -> None:
    """Workers are worth their start from some bytes on."""
    (tmp_path / "c.jsonl").write_bytes(b"\n".join(line(chat(i)) for i in range(9)))
    engine = Local(2)
    outcome(tmp_path / "r", tmp_path / "c.jsonl", Limits(2), engine)
    assert engine._pool is None  # noqa: SLF001
