"""Ingest of hostile names and values, broken and cut files, and rows of any length."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from pipeline import sources
from pipeline.ingest import Limits, ingest
from pipeline.sources import SourceError, tables
from pipeline.store import Store, read_json
from tests.conftest import chat, read_shards

Jsonl = Callable[..., Path]


def take(source: object, out: Path, **limits: Any) -> pl.DataFrame:
    """Ingest a source and read its raw shards."""
    found = sources.find(os.fspath(source)) if isinstance(source, str | Path) else source
    ingest(found, Store(out), Limits(**limits))  # type: ignore[arg-type]  # any Source
    return read_shards(out / "raw")


def test_a_file_name_that_is_not_utf8_is_a_name(tmp_path: Path) -> None:
    """Its bytes that are no text are shown as U+FFFD, in Parquet, in JSON and in messages."""
    folder = tmp_path / os.fsdecode(b"f\xe9")
    try:
        folder.mkdir()
    except OSError:
        pytest.skip("this file system takes only UTF-8")
    (folder / os.fsdecode(b"caf\xe9.jsonl")).write_text('{"text": "a"}\n{\n')
    (folder / os.fsdecode(b"d\xe9.jsonl.zst")).write_bytes(zstandard.compress(b'{"text": "b"}\n'))
    pl.DataFrame({"text": ["c"]}).write_parquet(tmp_path / "e")
    (tmp_path / "e").rename(folder / os.fsdecode(b"e\xe9.parquet"))
    raw = take(folder, tmp_path / "r", unreadable=1.0)
    assert raw["source"].to_list() == ["caf\ufffd.jsonl", "d\ufffd.jsonl.zst", "e\ufffd.parquet"]
    assert pl.read_parquet(tmp_path / "r" / "quarantine" / "*.parquet")["file"].to_list() == ["caf\ufffd.jsonl"]
    assert read_json(tmp_path / "r" / "raw" / "shards.json")["source"].endswith("f\ufffd")
    with pytest.raises(SourceError, match="caf\ufffd\\.txt"):
        sources.find(str(folder / os.fsdecode(b"caf\xe9.txt")))


def test_dates_that_python_cannot_hold_are_kept_as_numbers(tmp_path: Path) -> None:
    """A value of another column never ends a run, nor costs a conversation."""
    columns = {
        "text": pa.array(["a", "b"]),
        "when": pa.array([2**60, 0], pa.timestamp("us")),
        "day": pa.array([2**31 - 1, 0], pa.int32()).view(pa.date32()),
        "zone": pa.array([0, 0], pa.timestamp("us", tz="Mars/Base")),
        "took": pa.array([2**62, 1], pa.duration("s")),
    }
    pq.write_table(pa.table(columns), tmp_path / "c.parquet")
    raw = take(tmp_path / "c.parquet", tmp_path / "r")
    assert [json.loads(extra) for extra in raw["extra"]] == [
        {
            "when": f"{2**60} timestamp[us]",
            "day": f"{2**31 - 1} date32[day]",
            "zone": "0 timestamp[us, tz=Mars/Base]",
            "took": f"{2**62} duration[s]",
        },
        {
            "when": "1970-01-01T00:00:00",
            "day": "1970-01-01",
            "zone": "0 timestamp[us, tz=Mars/Base]",
            "took": "0:00:01",
        },
    ]


def test_a_date_inside_a_message_that_python_cannot_hold_costs_its_row(tmp_path: Path) -> None:
    """And no other."""
    kind = pa.list_(pa.struct({"role": pa.string(), "content": pa.string(), "at": pa.timestamp("us")}))
    values = [[{"role": "user", "content": "hi", "at": at}] for at in (0, 2**60, 1)]
    names = pa.array(["first", "second", "third"])
    pq.write_table(pa.table({"name": names, "messages": pa.array(values, kind)}), tmp_path / "c.parquet")
    assert take(tmp_path / "c.parquet", tmp_path / "r", unreadable=0.5).height == 2
    row = pl.read_parquet(tmp_path / "r" / "quarantine" / "*.parquet").to_dicts()[0]
    assert row["row"] == 2
    assert row["reason"].startswith("messages cannot be read")
    assert json.loads(row["record"])["name"] == "second"
    assert "hi" in json.loads(row["record"])["messages"]


def test_nesting_and_surrogates_in_other_fields_do_no_harm(jsonl: Jsonl, tmp_path: Path) -> None:
    """JSON may nest deeper than Python's or orjson's writer goes."""
    lines = [b'{"text": "a", "x": %s1%s}' % (b"[" * n, b"]" * n) for n in (10, 300, 900, 1010)]
    lines.append(b'{"text": "a", "id": %s1%s}' % (b"[" * 1010, b"]" * 1010))
    lines.append(b'{"text": "a", "\\ud800": "\\udfff"}')
    assert take(jsonl(lines), tmp_path / "r", unreadable=1.0).height >= 4
    assert take(jsonl([b'{"nothing": 1, "x": %s1%s}' % (b"[" * 1010, b"]" * 1010)], name="b.jsonl"), tmp_path / "s",
                unreadable=1.0, shape="text").height == 0  # fmt: skip


def damage(folder: Path, how: str) -> None:
    if how == "arrow":
        (folder / "data-00000-of-00001.arrow").write_bytes(b"junk" * 99)
    elif how == "no arrow":
        (folder / "data-00000-of-00001.arrow").unlink()
    elif how == "state":
        (folder / "state.json").write_text("{")
    elif how == "empty state":
        (folder / "state.json").write_text("[]")
    else:
        (folder / "state.json").unlink()
        (folder / "dataset_info.json").write_text("")


@pytest.mark.parametrize("how", ["arrow", "no arrow", "state", "empty state", "info alone"])
def test_a_broken_saved_dataset_is_one_sentence(tmp_path: Path, how: str) -> None:
    """It names the folder and what is broken."""
    import datasets

    datasets.Dataset.from_list([chat(1)]).save_to_disk(str(tmp_path / "saved"))
    damage(tmp_path / "saved", how)
    with pytest.raises(SourceError, match=r"not a whole saved Dataset|cannot be read: No such file|has a state\.json"):
        take(tmp_path / "saved", tmp_path / "r")


def test_a_saved_dataset_with_damaged_offsets_is_refused(tmp_path: Path) -> None:
    """To read on in it would end the process."""
    import datasets

    datasets.Dataset.from_dict({"text": ["one", "two", "three"]}).save_to_disk(str(tmp_path / "saved"))
    (path,) = (tmp_path / "saved").glob("*.arrow")
    whole, damaged = struct.pack("<4i", 0, 3, 6, 11), struct.pack("<4i", 0, 3, 1 << 30, 11)
    assert whole in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(whole, damaged))
    with pytest.raises(SourceError, match=r"not a whole saved Dataset: .*damaged or cut short \(Offset invariant"):
        list(sources.find(str(tmp_path / "saved")).rows())


def test_a_cache_beside_a_saved_dataset_is_no_part_of_it(tmp_path: Path) -> None:
    """`datasets` writes caches of map and filter there; the run goes on."""
    import datasets

    datasets.Dataset.from_list([chat(1)]).save_to_disk(str(tmp_path / "saved"))
    first = take(tmp_path / "saved", tmp_path / "r")
    (tmp_path / "saved" / "cache-1.arrow").write_bytes(b"x")
    assert take(tmp_path / "saved", tmp_path / "r").equals(first)


def test_an_array_that_only_opens_is_one_sentence(tmp_path: Path) -> None:
    """200,000 brackets are no reason for a traceback, in an array or in a line."""
    (tmp_path / "a.json").write_text("[" * 200_000)
    with pytest.raises(SourceError, match="is not one \\(record 1: nested too deeply\\)"):
        take(tmp_path / "a.json", tmp_path / "r")
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n' + "[" * 200_000)
    assert take(tmp_path / "a.jsonl", tmp_path / "s", unreadable=1.0).height == 1


@pytest.mark.parametrize(
    "record",
    [
        {"text": "a", "more": "x" * 1000},
        {"messages": [], "prompt": "x" * 1000},
        {"body": "x" * 1000},
        {"messages": [{"role": "x" * 100, "content": ""}] * 10},
    ],
)
def test_a_shard_is_bounded_whatever_is_long(jsonl: Jsonl, tmp_path: Path, record: dict[str, Any]) -> None:
    """Other fields, prompts, role names and quarantined records fill a shard like text."""
    shape = "text" if "text" in record or "body" in record else "openai"
    take(jsonl([record] * 10), tmp_path / "r", characters=2500, unreadable=1.0, shape=shape)
    assert 4 <= len(list((tmp_path / "r" / "raw").glob("*.parquet"))) <= 5


def test_a_hopeless_source_stops_early(jsonl: Jsonl, tmp_path: Path) -> None:
    """After a shard and 1,000 rows the share of unreadable ones is looked at; not all of the source need be read."""
    source = jsonl([{"text": "a"}, *[b"{"] * 5000])
    with pytest.raises(SourceError, match="999 of 1,000 rows"):
        take(source, tmp_path / "r", rows=500)


def test_parquet_is_read_in_batches_of_bounded_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Long rows come in small batches, short ones by the thousand; one row is never too long."""
    sizes: list[int] = []
    records = tables._records  # noqa: SLF001

    def counted(batch: Any) -> Iterator[Any]:
        sizes.append(batch.num_rows)
        return records(batch)

    monkeypatch.setattr(tables, "_records", counted)
    monkeypatch.setattr(tables, "BATCH_BYTES", 100_000)
    table = pa.table({"text": [f"{i} " + os.urandom(10_000).hex() for i in range(20)]})
    pq.write_table(table, tmp_path / "long.parquet", row_group_size=10)
    pq.write_table(pa.table({"text": [str(i) for i in range(2500)]}), tmp_path / "short.parquet")
    assert take(tmp_path / "long.parquet", tmp_path / "r")["text"].to_list() == table["text"].to_pylist()
    assert max(sizes) <= 5
    sizes.clear()
    take(tmp_path / "short.parquet", tmp_path / "s")
    assert sizes == [1000, 1000, 500]
    monkeypatch.setattr(tables, "BATCH_BYTES", 1)
    assert take(tmp_path / "long.parquet", tmp_path / "t").height == 20


def test_a_source_is_hashed_once(jsonl: Jsonl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its digest and the digests of its files, for the manifest, come of one reading."""
    import hashlib

    hashed: list[str] = []
    real = hashlib.file_digest

    def count(file: Any, name: str) -> Any:
        hashed.append(file.name)
        return real(file, name)

    (tmp_path / "in").mkdir()
    jsonl([chat(1)], name="in/a.jsonl")
    jsonl([chat(2)], name="in/b.jsonl")
    monkeypatch.setattr(hashlib, "file_digest", count)
    take(tmp_path / "in", tmp_path / "r")
    assert [Path(name).name for name in hashed] == ["a.jsonl", "b.jsonl"]


@pytest.mark.parametrize("cut", [3, 0.3, 0.7, -5])
def test_a_zst_file_cut_short_is_never_taken_for_a_shorter_one(jsonl: Jsonl, tmp_path: Path, cut: float) -> None:
    """Wherever it is cut; frames that follow each other are one file."""
    plain = jsonl([{"text": os.urandom(150).hex()} for _ in range(3000)])
    packed = zstandard.compress(plain.read_bytes())
    end = int(cut * len(packed)) if isinstance(cut, float) else cut
    (tmp_path / "a.jsonl.zst").write_bytes(packed + packed[:end])
    with pytest.raises(SourceError, match=r"a\.jsonl\.zst cannot be read after line .* repair or remove the file"):
        take(tmp_path / "a.jsonl.zst", tmp_path / "r")
    (tmp_path / "a.jsonl.zst").write_bytes(packed + packed)
    assert take(tmp_path / "a.jsonl.zst", tmp_path / "s").height == 6000
