"""Ingest from the hub: lost networks and moved branches."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from pipeline import plan, sources
from pipeline.engine.local import Local
from pipeline.ingest import Limits, ingest
from pipeline.manifest import HubSplit, Manifest
from pipeline.report.run.bands import in_bands
from pipeline.report.run.frame import read_run
from pipeline.report.run.sections import origin
from pipeline.run import ActiveRun
from pipeline.sources import SourceError, hub
from pipeline.store import RunFolderError, Store
from tests.conftest import ROOT, chat, contents, read_shards

Jsonl = Callable[..., Path]


def take(source: object, out: Path, **limits: Any) -> pl.DataFrame:
    """Ingest a source and read its raw shards."""
    found = sources.find(os.fspath(source)) if isinstance(source, str | Path) else source
    ingest(found, Store(out), Limits(**limits))  # type: ignore[arg-type]  # any Source
    return read_shards(out / "raw")


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
    """Whatever kind the error is; an error that a retry cannot fix is raised at once."""

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


def test_an_ingest_that_was_stopped_goes_on_after_its_last_shard(
    tmp_path: Path, online: Callable[..., list[float]]
) -> None:
    """The rows of finished shards are not streamed again; the files are those of an ingest that was not stopped."""
    online(lambda _: None)
    take(sources.find("a/b"), tmp_path / "whole", rows=3)
    asked = list[int]()

    def stop(i: int) -> None:
        if i == 7:
            raise KeyboardInterrupt

    online(stop)
    with pytest.raises(KeyboardInterrupt):
        take(sources.find("a/b"), tmp_path / "r", rows=3)
    before = {path: path.stat().st_ino for path in (tmp_path / "r" / "raw").glob("*.parquet")}
    assert len(before) == 2
    online(asked.append)
    take(sources.find("a/b"), tmp_path / "r", rows=3)
    assert asked == [6, 7, 8, 9]
    assert {path: path.stat().st_ino for path in before} == before
    assert contents(tmp_path / "r") == contents(tmp_path / "whole")
    kept, whole = (json.loads((tmp_path / name / "raw" / "shards.json").read_text()) for name in ("r", "whole"))
    assert {**kept, "seconds": 0} == {**whole, "seconds": 0}


@pytest.mark.parametrize("damage", ["progress", "shard"])
def test_an_ingest_that_cannot_go_on_begins_again(
    tmp_path: Path, online: Callable[..., list[float]], damage: str
) -> None:
    """Its progress is damaged, or one of its shards is gone."""
    online(lambda i: (_ for _ in ()).throw(KeyboardInterrupt) if i == 7 else None)
    with pytest.raises(KeyboardInterrupt):
        take(sources.find("a/b"), tmp_path / "r", rows=3)
    raw = tmp_path / "r" / "raw"
    if damage == "progress":
        (raw / "progress.json").write_text("{")
    else:
        (raw / "00000.parquet").unlink()
    asked = list[int]()
    online(asked.append)
    assert take(sources.find("a/b"), tmp_path / "r", rows=3).height == 10
    assert asked == list(range(10))
    assert not (raw / "progress.json").exists()


def test_a_run_of_a_dataset_with_one_split_names_none(tmp_path: Path, online: Callable[..., list[float]]) -> None:
    """From the first row to the manifest, the card, and the command that repeats the run."""
    online(lambda _: None)
    store = Store.at(tmp_path / "r")
    run = ActiveRun(store, plan.load(ROOT / "tests" / "pipeline" / "toy.toml"), Local(1), lambda *_: None, print)
    run.carry_out(sources.find("a/b", config="en"), Limits())
    assert Manifest.load(store).inputs == (HubSplit("a/b", "c1", "en", None),)
    assert "| `a/b` | `revision c1, configuration en` |" in store.card.read_text()
    command = origin(in_bands(read_run(store.folder), []))[0][1]
    assert command.startswith(f"refine run a/b --plan {tmp_path}/r/plan.toml --out {tmp_path}/r-again ")
    assert " --revision c1 --config en --shard-rows 2000\n" in command
