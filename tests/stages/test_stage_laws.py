"""The laws of every stage that comes with refine."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from polars.testing import assert_frame_equal

import stages
from stages.files import read_frame, save_frame
from stages.overlap.turns import Turns
from stages.stage import Axis, FittedStage, GlobalStage, Measure, Stage
from tests import strategies
from tests.conftest import chat

STAGE_NAMES = list(stages.BUILTIN)

ORDINARY = [chat(i, 2 + i % 5)["messages"] for i in range(120)]


@pytest.fixture(scope="module", params=STAGE_NAMES)
def opened(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Stage, Measure]:
    """A stage, fitted on ordinary conversations where it needs a fit, and opened."""
    stage = stages.find(request.param)()
    folder = tmp_path_factory.mktemp(request.param)
    if isinstance(stage, FittedStage):
        save_frame(folder / "raw" / "00000.parquet", strategies.raw(ORDINARY))
        stage.fit([folder / "raw" / "00000.parquet"], folder)
    return stage, stage.open(folder)


def same(a: pl.DataFrame, b: pl.DataFrame) -> None:
    """Equal, floats to 1e-5 (neural scores may differ by the batch)."""
    assert_frame_equal(a, b, check_exact=False, abs_tol=1e-5, rel_tol=0)


slow = settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))


@slow
@given(made=strategies.corpora)
def test_as_many_rows_out_as_in_and_only_the_columns_promised(
    opened: tuple[Stage, Measure], made: list[list[dict[str, str]]]
) -> None:
    """In the schema that `writes` says, and never NaN."""
    stage, measure = opened
    signals = measure(strategies.raw(made).select(stage.reads))
    assert signals.schema == stage.writes
    assert signals.height == len(made)
    assert not any(signals[name].is_nan().any() for name in signals.columns if signals.schema[name].is_float())


@slow
@given(made=strategies.corpora)
def test_measuring_parts_and_joining_them_is_measuring_the_whole(
    opened: tuple[Stage, Measure], made: list[list[dict[str, str]]]
) -> None:
    """A row's signals do not depend on its neighbours."""
    stage, measure = opened
    batch = strategies.raw(made).select(stage.reads)
    cut = len(made) // 2
    same(pl.concat([measure(batch[:cut]), measure(batch[cut:])]), measure(batch))


def test_odd_and_huge_texts_do_no_harm(opened: tuple[Stage, Measure]) -> None:
    """Empty text, no messages, 1 MB in one word or in many, right-to-left, NUL: a row each, and the neighbours stay."""
    stage, measure = opened
    million = ["x" * 1_000_000, "some words and a line\n" * 45_000, "a b " * 250_000, "今" * 300_000]
    odd = [
        [{"role": "user", "content": text}, {"role": "assistant", "content": text}]
        for text in [*strategies.ODD, *million]
    ]
    ordinary = strategies.raw(ORDINARY[:3]).select(stage.reads)
    batch = pl.concat([strategies.raw([[], *odd]).select(stage.reads), ordinary])
    signals = measure(batch)
    assert signals.height == len(odd) + 4
    same(signals.tail(3), measure(ordinary))


def test_an_empty_shard_gives_no_rows(opened: tuple[Stage, Measure]) -> None:
    """A shard whose rows are all in quarantine is a shard like any other."""
    stage, measure = opened
    assert measure(strategies.raw([]).select(stage.reads)).schema == stage.writes


@pytest.mark.parametrize("name", STAGE_NAMES)
def test_the_same_parameters_are_the_same_identity(name: str) -> None:
    """Two instances have one digest; another value of any parameter gives another."""
    kind = stages.find(name)
    assert kind().digest() == kind().digest()
    stage = kind()
    assert hash(stage) == hash(kind())
    for field in dataclasses.fields(stage):
        value = getattr(stage, field.name)
        if isinstance(value, float):
            try:
                other = dataclasses.replace(stage, **{field.name: value * 0.9})
            except ValueError:
                continue
            assert other.digest() != stage.digest()


DIGESTS = {
    "heuristics": "2fd3b836150bb496",
    "dedup": "d8758aabcd4a951a",
    "ppl": "272e2eab58e74170",
    "turns": "6f69b4d1fa01e5f7",
    "substrings": "6f56eca383ccbf97",
    "contamination": "26f9c3026d1212d6",
    "against": "a10baf1319cf55a4",
}
"""Digests since tool calls are read; `language` and `toxicity` also depend on the files of installed packages."""


@pytest.mark.parametrize("name", DIGESTS)
def test_a_run_on_disk_outlives_a_move_of_the_code(name: str) -> None:
    """A stage's default digest stays. Raise `version` when signals change; never rename by accident."""
    assert stages.find(name)().digest() == DIGESTS[name]


def test_a_subclass_elsewhere_is_another_measurement() -> None:
    """A user's class that inherits from a moved stage does not inherit its identity."""

    @dataclasses.dataclass(frozen=True)
    class Mine(Turns):
        pass

    assert Mine().digest() != Turns().digest()


def columns(kind: type[Stage]) -> pl.Schema:
    """The columns of a stage, those of its merge included."""
    return pl.Schema({**kind.writes, **(kind.merges if issubclass(kind, GlobalStage) else {})})


@pytest.mark.parametrize("name", STAGE_NAMES)
def test_every_signal_is_documented(name: str) -> None:
    """A user who reads `refine stages NAME` finds each column."""
    kind = stages.find(name)
    assert kind.summary
    missing = [column for column in columns(kind) if column not in str(kind.__doc__)]
    assert not missing


def test_every_stage_says_how_its_signals_are_drawn() -> None:
    """Each axis has a unit and a rank of its own, and belongs to a number that its stage writes."""
    axes = {column: axis for name in STAGE_NAMES for column, axis in stages.find(name).axes.items()}
    assert all(stages.find(name).axes for name in STAGE_NAMES)
    assert all(axis.unit for axis in axes.values())
    assert len({axis.rank for axis in axes.values()}) == len(axes)
    kinds = {column: kind for name in STAGE_NAMES for column, kind in columns(stages.find(name)).items()}
    assert all(kinds[column].is_numeric() or kinds[column] == pl.Boolean for column in axes)


def test_an_axis_of_a_column_that_is_not_written_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mistyped name ends a run before it begins."""
    monkeypatch.setattr(Turns, "axes", {"answer_copy": Axis("conversations")})
    with pytest.raises(stages.UnknownStageError, match=r"axes\['answer_copy'\] must be an Axis of a column"):
        stages.find("turns")


def test_a_class_that_forgets_to_be_a_dataclass_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its parameters would be ignored."""

    class Mine(Turns):
        longest: int = 3

    monkeypatch.setattr("stages.overlap.turns.Mine", Mine, raising=False)
    with pytest.raises(stages.UnknownStageError, match=r"has the parameter longest; decorate it with @dataclass"):
        stages.find("stages.overlap.turns:Mine")


@pytest.mark.parametrize("name", [name for name in STAGE_NAMES if issubclass(stages.find(name), GlobalStage)])
def test_a_merge_does_not_depend_on_how_the_corpus_is_cut(name: str, tmp_path: Path) -> None:
    """One shard or five: the same columns and pairs."""
    stage = stages.find(name)()
    assert isinstance(stage, GlobalStage)
    whole = strategies.raw([*ORDINARY, *ORDINARY[:7]])
    answers = []
    for parts in (1, 5):
        folder = tmp_path / str(parts)
        size = -(-whole.height // parts)
        raw = []
        for i in range(parts):
            path = folder / "raw" / f"{i:05d}.parquet"
            save_frame(path, whole[i * size : (i + 1) * size])
            raw.append(path)
        if isinstance(stage, FittedStage):
            stage.fit(raw, folder)
        measure = stage.open(folder)
        for path in raw:
            batch = read_frame(path)
            save_frame(folder / path.name, batch.select("id").hstack(measure(batch.select(stage.reads))))
        stage.merge(raw, [folder / path.name for path in raw], folder)
        merged = pl.concat([read_frame(folder / "merged" / path.name) for path in raw])
        assert merged.columns == ["id", *stage.merges]
        assert merged["id"].equals(whole["id"])
        assert merged.drop("id").schema == stage.merges
        answers.append([merged, *(read_frame(folder / f"{kind}.parquet") for kind in stage.pairs)])
    assert all(a.equals(b) for a, b in zip(*answers, strict=True))
