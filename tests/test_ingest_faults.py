"""Ingest under bad conditions: other runs' leftovers, hostile names and values, broken files, lost networks."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import hub, parquet, sources
from pipeline.ingest import Limits, ingest
from pipeline.sources import SourceError
from pipeline.store import RunFolderError, Store, read_json
from tests.conftest import chat

Jsonl = Callable[..., Path]


def take(source: object, out: Path, **limits: Any) -> pl.DataFrame:
    """Ingest a source and read its raw shards."""
    found = sources.find(os.fspath(source)) if isinstance(source, str | Path) else source
    ingest(found, Store(out), Limits(**limits))  # type: ignore[arg-type]  # any Source
    return pl.read_parquet(out / "raw" / "*.parquet")


def derived(out: Path) -> None:
    """What a run leaves beside its raw shards."""
    for name in ("signals/words-1/00000.parquet", "refined/00000.parquet", "rejected/00000.parquet"):
        (out / name).parent.mkdir(parents=True)
        (out / name).touch()
    for name in ("decisions.parquet", "manifest.json", "README.md", "plan.toml"):
        (out / name).touch()


@pytest.mark.parametrize("change", ["source", "limit"])
def test_signals_of_another_source_do_not_stay(jsonl: Jsonl, tmp_path: Path, change: str) -> None:
    """Where the shard list is gone and the source or what is read of it is another one, all that came of it goes."""
    out = tmp_path / "r"
    source = jsonl([chat(1), chat(2)])
    take(source, out)
    derived(out)
    (out / "raw" / "shards.json").unlink()
    take(jsonl([chat(3), chat(4)]) if change == "source" else source, out, limit=1 if change == "limit" else None)
    assert sorted(path.name for path in out.iterdir()) == ["raw", "source.json"]


def test_signals_of_the_same_source_stay(jsonl: Jsonl, tmp_path: Path) -> None:
    """Where a raw shard is made again, nothing is measured again; the run counts as complete when it is."""
    out = tmp_path / "r"
    source = jsonl([chat(1), chat(2)])
    take(source, out)
    derived(out)
    (out / "raw" / "shards.json").unlink()
    take(source, out)
    assert (out / "signals" / "words-1" / "00000.parquet").exists()
    assert (out / "decisions.parquet").exists()
    assert not (out / "manifest.json").exists()


@pytest.mark.parametrize("part", ["raw", "quarantine", "signals", "refined", "rejected"])
def test_a_folder_that_leads_elsewhere_is_refused(jsonl: Jsonl, tmp_path: Path, part: str) -> None:
    """Nothing is removed or written behind a symbolic link."""
    out = tmp_path / "r"
    source = jsonl([chat(1), b"{"])
    take(source, out, unreadable=1.0)
    (out / part).mkdir(exist_ok=True)
    (out / part).rename(tmp_path / "elsewhere")
    (out / part).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RunFolderError, match=f"{part} is a link"):
        take(source, out, unreadable=1.0)


def test_shards_that_are_not_in_the_list_go(jsonl: Jsonl, tmp_path: Path) -> None:
    """Whoever reads raw/*.parquet or quarantine/*.parquet reads this run's rows; a lost quarantine is made again."""
    out, source = tmp_path / "r", jsonl([chat(1), chat(2), b"{"])
    take(source, out, unreadable=1.0)
    there = (out / "quarantine" / "00000.parquet").read_bytes()
    for part in ("raw", "quarantine"):
        shutil.copy(out / part / "00000.parquet", out / part / "00007.parquet")
    assert take(source, out, unreadable=1.0).height == 2
    assert [path.name for path in (out / "quarantine").iterdir()] == ["00000.parquet"]
    shutil.rmtree(out / "quarantine")
    take(source, out, unreadable=1.0)
    assert (out / "quarantine" / "00000.parquet").read_bytes() == there


@pytest.mark.parametrize(
    "text", ["{}", "[]", "3", "{", '{"shards": [{"name": "../../x.parquet", "rows": 1, "quarantined": 0}]}']
)
def test_a_damaged_shard_list_is_made_again(jsonl: Jsonl, tmp_path: Path, text: str) -> None:
    """Whatever JSON lies there; a damaged source.json is one sentence, because it may be somebody else's."""
    out, source = tmp_path / "r", jsonl([chat(1), chat(2)])
    take(source, out)
    said = read_json(out / "raw" / "shards.json")
    (out / "raw" / "shards.json").write_text(text)
    take(source, out)
    assert {**read_json(out / "raw" / "shards.json"), "seconds": 0} == {**said, "seconds": 0}
    (out / "source.json").write_text(text)
    with pytest.raises(RunFolderError, match=r"source\.json (does not say what this run was started for|is not valid)"):
        take(source, out)


def test_a_run_inside_its_source_goes_on(jsonl: Jsonl, tmp_path: Path) -> None:
    """Runs of ours inside a folder are no part of it, at any depth."""
    (tmp_path / "in" / "data" / "runs").mkdir(parents=True)
    jsonl([chat(1), chat(2)], name="in/a.jsonl")
    out = tmp_path / "in" / "data" / "runs" / "one"
    first = take(tmp_path / "in", out)
    (out / "manifest.json").write_text("{}")
    assert take(tmp_path / "in", out).equals(first)
    assert take(tmp_path / "in", tmp_path / "in" / "two").height == 2


def test_a_folder_with_a_source_json_that_is_not_ours_is_read(jsonl: Jsonl, tmp_path: Path) -> None:
    """Only what refine wrote is left out."""
    (tmp_path / "in" / "crawl" / "raw").mkdir(parents=True)
    jsonl([chat(1)], name="in/crawl/raw/a.jsonl")
    jsonl([chat(2)], name="in/crawl/source.json")
    assert take(tmp_path / "in", tmp_path / "r").height == 2


def test_a_run_that_is_not_complete_is_no_source(jsonl: Jsonl, tmp_path: Path) -> None:
    """Nor are its raw shards; of a complete one the raw shards are a corpus, without their list."""
    take(jsonl([chat(1), chat(2)]), tmp_path / "r")
    for folder in (tmp_path / "r", tmp_path / "r" / "raw"):
        with pytest.raises(SourceError, match="this run is not complete"):
            take(folder, tmp_path / "s")
    (tmp_path / "r" / "manifest.json").write_text("{}")
    assert take(tmp_path / "r" / "raw", tmp_path / "s").height == 2


@pytest.mark.parametrize("said", ["", "  "])
def test_an_empty_word_is_no_source(said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not mean the folder refine is started in."""
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n')
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SourceError, match="SOURCE is an empty text"):
        sources.find(said)


def test_an_option_without_effect_is_refused(jsonl: Jsonl, tmp_path: Path) -> None:
    """Files have no split, configuration or revision; a saved Dataset has no other split than its own."""
    import datasets

    path = jsonl([chat(1)])
    for option in ("split", "config", "revision"):
        for said in (str(path), str(path.parent), None):
            with pytest.raises(SourceError, match=f"--{option} is 'x', and .* which has none"):
                sources.find(said, **{option: "x"})
    datasets.Dataset.from_list([chat(1)], split="train").save_to_disk(str(tmp_path / "saved"))
    assert take(sources.find(str(tmp_path / "saved"), split="train"), tmp_path / "r").height == 1
    with pytest.raises(SourceError, match="of the split train, and there is no split 'test' in it"):
        take(sources.find(str(tmp_path / "saved"), split="test"), tmp_path / "s")
    with pytest.raises(SourceError, match=r"--revision is 'x', and .* is a saved Dataset"):
        sources.find(str(tmp_path / "saved"), revision="x")


def test_a_file_name_that_is_not_utf8_is_a_name(tmp_path: Path) -> None:
    """Its bytes that are no text are shown as U+FFFD, in Parquet, in JSON and in messages."""
    folder = tmp_path / os.fsdecode(b"f\xe9")
    try:
        folder.mkdir()
    except OSError:
        pytest.skip("this file system takes only UTF-8")
    (folder / os.fsdecode(b"caf\xe9.jsonl")).write_text('{"text": "a"}\n{\n')
    raw = take(folder, tmp_path / "r", unreadable=1.0)
    assert raw["source"].to_list() == ["caf\ufffd.jsonl"]
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
    pq.write_table(pa.table({"messages": pa.array(values, kind)}), tmp_path / "c.parquet")
    assert take(tmp_path / "c.parquet", tmp_path / "r", unreadable=0.5).height == 2
    row = pl.read_parquet(tmp_path / "r" / "quarantine" / "*.parquet").to_dicts()[0]
    assert row["row"] == 2
    assert row["reason"].startswith("messages cannot be read")


def test_nesting_and_surrogates_in_other_fields_do_no_harm(jsonl: Jsonl, tmp_path: Path) -> None:
    """JSON may nest deeper than Python's or orjson's writer goes."""
    lines = [b'{"text": "a", "x": %s1%s}' % (b"[" * n, b"]" * n) for n in (10, 300, 900, 1010)]
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
    with pytest.raises(SourceError, match="is not one \\(nested too deeply\\)"):
        take(tmp_path / "a.json", tmp_path / "r")
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n' + "[" * 200_000)
    assert take(tmp_path / "a.jsonl", tmp_path / "s", unreadable=1.0).height == 1


class Stream:
    """A hub's stream of ten rows, which is lost where `fail` says, by call and row."""

    def __init__(self, fail: Callable[[int], None], start: int = 0) -> None:
        self.fail, self.start = fail, start

    def skip(self, n: int) -> Stream:
        return Stream(self.fail, n)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for i in range(self.start, 10):
            self.fail(i)
            yield chat(i)


class LostError(Exception):
    """As httpx has them: of no kind that Python knows."""


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[float]]:
    """Put a hub in place of the network; returns the seconds that were waited."""
    import datasets
    import huggingface_hub

    def put(fail: Callable[[int], None], commit: str | None = "c1") -> list[float]:
        waited: list[float] = []

        def info(_self: object, _name: str, revision: str | None) -> Any:
            if commit is None:
                raise LostError("no network")
            return type("Info", (), {"sha": f"{commit}{revision or ''}"})()

        monkeypatch.setattr(datasets, "load_dataset", lambda *_a, **_k: {"train": Stream(fail)})
        monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", info)
        monkeypatch.setattr("time.sleep", waited.append)
        return waited

    return put


def test_a_lost_stream_goes_on_at_its_row(tmp_path: Path, online: Callable[..., list[float]]) -> None:
    """No row is lost or doubled; waiting grows while no row comes."""
    losses = [0, 0, 4, 9, 9, 9]

    def fail(i: int) -> None:
        if losses and losses[0] == i:
            losses.pop(0)
            raise LostError("read timed out")

    waited = online(fail)
    raw = take(sources.find("a/b"), tmp_path / "r")
    assert raw["prompt_id"].to_list() == [f"p{i}" for i in range(10)]
    assert waited == [1, 2, 1, 1, 2, 4]


def test_a_stream_that_is_lost_for_good_is_one_sentence(tmp_path: Path, online: Callable[..., list[float]]) -> None:
    """Whatever kind the error is; an error that no new try mends is said at once."""

    def lost(i: int) -> None:
        if i == 3:
            raise LostError

    waited = online(lost)
    with pytest.raises(SourceError, match=r"a/b: .* cannot be streamed past row 3 \(LostError: LostError\)"):
        take(sources.find("a/b"), tmp_path / "r")
    assert len(waited) == hub.TRIES - 1

    def wrong(_i: int) -> None:
        raise ValueError("Config name is missing")

    waited = online(wrong)
    with pytest.raises(SourceError, match="Config name is missing"):
        take(sources.find("a/b"), tmp_path / "s")
    assert waited == []


def test_a_run_of_the_hub_is_resumed_at_its_commit(tmp_path: Path, online: Callable[..., list[float]]) -> None:
    """Without a network where all is there, and though the branch has moved; another revision is another source."""
    online(lambda _i: None)
    first = take(sources.find("a/b"), tmp_path / "r")
    online(lambda _i: None, commit=None)
    assert take(sources.find("a/b"), tmp_path / "r").equals(first)
    online(lambda _i: None, commit="c2")
    assert take(sources.find("a/b"), tmp_path / "r").equals(first)
    with pytest.raises(RunFolderError, match="belongs to another run: its digest"):
        take(sources.find("a/b", revision="v2"), tmp_path / "r")
    (tmp_path / "r" / "raw" / "shards.json").unlink()
    assert take(sources.find("a/b"), tmp_path / "r")["id"].equals(first["id"])


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
    records = parquet._records  # noqa: SLF001

    def counted(batch: Any) -> Iterator[Any]:
        sizes.append(batch.num_rows)
        return records(batch)

    monkeypatch.setattr(parquet, "_records", counted)
    monkeypatch.setattr(parquet, "BYTES", 100_000)
    table = pa.table({"text": [f"{i} " + os.urandom(10_000).hex() for i in range(20)]})
    pq.write_table(table, tmp_path / "long.parquet", row_group_size=10)
    pq.write_table(pa.table({"text": [str(i) for i in range(2500)]}), tmp_path / "short.parquet")
    assert take(tmp_path / "long.parquet", tmp_path / "r")["text"].to_list() == table["text"].to_pylist()
    assert max(sizes) <= 5
    sizes.clear()
    take(tmp_path / "short.parquet", tmp_path / "s")
    assert sizes == [1000, 1000, 500]
    monkeypatch.setattr(parquet, "BYTES", 1)
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
