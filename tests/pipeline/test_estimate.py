"""The estimate: what a sample of the first shard took, for the whole corpus."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import pytest

from pipeline import estimate as estimating
from pipeline import sources
from pipeline.engine.local import WORKER_START, Local
from pipeline.estimate import Estimate, estimate
from pipeline.ingest import Limits, ingest
from pipeline.plan import Plan, PlannedStage
from pipeline.store import Store
from stages.files import read_frame, save_json
from stages.stage import FittedStage, Measure, Stage
from tests.conftest import chat
from tests.pipeline.test_terminal import Clock

Jsonl = Callable[..., Path]
CLOCK = Clock()


@dataclass(frozen=True)
class Timed(FittedStage):
    """It takes 30 s to open and 20 ms a conversation; its fit 7 s and 5 ms a conversation."""

    summary = "takes its time"
    writes = pl.Schema({"n": pl.Int64()})

    def fit(self, raw: Sequence[Path], folder: Path) -> None:
        CLOCK.now += 7 + sum(0.005 * read_frame(path, ["id"]).height for path in raw)
        save_json(folder / "fitted.json", {})

    def open(self, folder: Path) -> Measure:
        assert (folder / "fitted.json").exists()
        CLOCK.now += 30

        def measure(batch: pl.DataFrame) -> pl.DataFrame:
            CLOCK.now += 0.02 * batch.height
            return batch.select(n=pl.lit(1))

        return measure


@dataclass(frozen=True)
class Choosy(Stage):
    """It measures nothing below 1,000 conversations."""

    summary = "refuses"
    writes = pl.Schema({"n": pl.Int64()})

    def measure(self, batch: pl.DataFrame) -> pl.DataFrame:
        raise ValueError(f"{batch.height} conversations are too few")


@pytest.fixture
def store(jsonl: Jsonl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A corpus of 600 equal conversations in three shards, and a clock that only `Timed` turns."""
    made = Store(tmp_path / "r")
    ingest(sources.find(str(jsonl([chat(1)] * 600))), made, Limits(rows=200))
    monkeypatch.setattr(time, "perf_counter", CLOCK)
    return made


def test_the_time_of_a_run_is_that_of_a_sample_for_all_rows(store: Store) -> None:
    """What is loaded or happens once does not count; the shards that are measured already do not either."""
    timed = PlannedStage("timed", Timed())
    plan = Plan((timed,), (), (), ())
    made = estimate(plan, store, everything=False)
    assert made.seconds == pytest.approx({"timed: fit": 600 * 0.005, "timed": 600 * 0.02}, rel=0.01)
    assert made.left == {"timed": 1.0}
    assert not list(store.stage("").iterdir())
    for shard in store.shards()[:2]:
        path = store.stage(timed.key) / shard
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert estimate(plan, store, everything=False).left["timed"] == pytest.approx(1 / 3, rel=0.01)
    (store.stage(timed.key) / store.shards()[2]).touch()
    assert estimate(plan, store, everything=False) == Estimate()
    assert estimate(plan, store, everything=True).left == {"timed": 1.0}


def test_a_stage_that_refuses_a_sample_is_not_counted(store: Store) -> None:
    """Its error is not the run's; the estimate names it."""
    plan = Plan((PlannedStage("timed", Timed()), PlannedStage("choosy", Choosy())), (), (), ())
    made = estimate(plan, store, everything=False)
    assert made.unknown == ["choosy"]
    assert made.sentence(Local(1), 3, 600) == (
        "about 15 s for 600 conversations: timed 100%; without choosy, which cannot be estimated"
    )


def test_an_estimate_counts_the_workers_that_a_stage_will_have() -> None:
    """A fit without parts is the work of one process, and little work is as well; a short run needs no estimate."""
    made = Estimate({"a": 60.0, "b: fit": 40.0, "b": 1.9 * WORKER_START}, {"a": 1.0, "b": 1.0})
    assert made.wall(Local(4), 100) == pytest.approx({"b": 40 + 1.9 * WORKER_START, "a": 15})
    assert made.wall(Local(4), 1) == pytest.approx({"a": 60, "b": 40 + 1.9 * WORKER_START})
    assert made.wall(Local(4), 100, factor=10.0)["b"] == pytest.approx(400 + 19 * WORKER_START / 4)
    halves = Estimate({"b: fit": 40.0}, {"b": 1.0}, parts={"b": 2})
    assert halves.wall(Local(4), 100) == {"b": 20}
    short = Estimate({"a": estimating.WORTH_SAYING - 0.1}, {"a": 1.0})
    assert short.sentence(Local(1), 9, 600) == ""
