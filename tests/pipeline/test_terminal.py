"""Progress: rates and times that do not mislead, and no silence while a stage fits."""

from __future__ import annotations

import threading
import time

import pytest

from pipeline import terminal
from pipeline.experiments.train import MetricsPrinter
from pipeline.terminal import ProgressReporter


class Clock:
    """A clock that a test turns."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock that progress reads."""
    made = Clock()
    monkeypatch.setattr(time, "monotonic", made)
    return made


def test_time_left_is_not_predicted_from_the_first_shard(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    """A rate appears when a step is some seconds old, and is that of the last half minute, not of the beginning."""
    reporter = ProgressReporter()
    reporter("ppl", 0, 10_000)
    for seconds, rows in [(1, 10), (11, 110), (41, 410), (62, 2510), (83, 4610)]:
        clock.now = 100 + seconds
        reporter("ppl", rows, 10_000)
    clock.now = 200
    reporter("ppl", 10_000, 10_000)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "ppl: 110 of 10,000 rows, 10 rows/s, about 16 min left"
    assert lines[3] == "ppl: 4,610 of 10,000 rows, 100 rows/s, about 54 s left"
    assert lines[-1] == "ppl: 10,000 rows in 100.0 s"


def test_a_stage_of_ones_own_reports_its_rows(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    """A name such as module:Class is no fit."""
    reporter = ProgressReporter()
    reporter("mine:Mine", 0, 100)
    clock.now += 11
    reporter("mine:Mine", 22, 100)
    assert capsys.readouterr().err == "mine:Mine: 22 of 100 rows, 2 rows/s, about 39 s left\n"


def test_a_step_with_nothing_to_do_prints_nothing(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    """What was measured before is not measured again, and needs no line."""
    ProgressReporter()("ppl", 50, 50)
    assert clock.now == 100
    assert capsys.readouterr().err == ""


def test_a_fit_says_what_it_does_and_for_how_long(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It reports no rows, so a line at regular intervals shows that it is at work."""
    monkeypatch.setattr(terminal, "BEAT_INTERVAL", 0.01)
    with ProgressReporter() as reporter:
        reporter("ppl: fit", 0, 2000)
        deadline, said = time.monotonic() + 30, ""
        while "so far" not in said and time.monotonic() < deadline:
            time.sleep(0.01)
            said += capsys.readouterr().err
        reporter("ppl: fit", 2000, 2000)
    lines = (said + capsys.readouterr().err).splitlines()
    assert lines[0] == "ppl: fit of 2,000 rows ..."
    assert lines[1] == "ppl: fit of 2,000 rows, 0 s so far"
    assert lines[-1].startswith("ppl: fit of 2,000 rows in 0.")


def test_time_left_is_weighted_by_the_work_of_the_rows(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    """Half of the rows were a tenth of the work: nine times as long is left as it took."""
    reporter = ProgressReporter()
    reporter("ppl", 0, 1000, 0.0)
    clock.now += 11
    reporter("ppl", 500, 1000, 0.1)
    assert capsys.readouterr().err == "ppl: 500 of 1,000 rows, 45 rows/s, about 99 s left\n"


def test_an_estimate_holds_until_there_is_something_to_measure(
    clock: Clock, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the first shard is done a line says what was estimated, less the time since; then the rate counts."""
    monkeypatch.setattr(terminal, "BEAT_INTERVAL", 30.0)
    reporter = ProgressReporter()
    reporter("ppl", 0, 1000, 0.0, 100.0)
    clock.now += 29
    reporter.beat()
    assert capsys.readouterr().err == ""
    clock.now += 1
    reporter.beat()
    assert capsys.readouterr().err == "ppl: 0 of 1,000 rows, 30 s so far, about 70 s left\n"
    clock.now += 10
    reporter.beat()
    reporter("ppl", 500, 1000, 0.8, 100.0)
    clock.now += 1
    reporter("ppl", 510, 1000, 0.9, 100.0)
    assert capsys.readouterr().err == "ppl: 510 of 1,000 rows, 12 rows/s, about 5 s left\n"


def test_a_fit_says_how_far_it_has_read(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    """In each pass over the corpus; threads may take shards in any order. An estimate is of the whole fit."""
    for seconds, left in ((0.0, "about 22 s left of this pass"), (60.0, "about 27 s left")):
        reporter = ProgressReporter()
        reporter("ppl: fit", 0, 1000, 0.0, seconds)
        for rows in (0, 400, 200, 900, 0):
            reporter("ppl: fit", rows, 1000, None, seconds)
        clock.now += 22
        reporter("ppl: fit", 100, 1000, None, seconds)
        clock.now += 11
        reporter("ppl: fit", 600, 1000, None, seconds)
        *_, line = capsys.readouterr().err.splitlines()
        assert line == f"ppl: fit, pass 2: 600 of 1,000 rows, 18 rows/s, {left}"


def test_text_of_a_corpus_does_nothing_to_a_terminal() -> None:
    """Escapes, controls and direction overrides are replaced; line breaks, tabs and all scripts stay."""
    assert terminal.safe("a\x1b[31m\x07\u202eb\u2066c\x9b\ud800") == "a\ufffd[31m\ufffd\ufffdb\ufffdc\ufffd\ufffd"
    assert terminal.safe("line\n\ttab é 漢字 שלום 😀") == "line\n\ttab é 漢字 שלום 😀"


def test_a_block_that_takes_long_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    """A line now and then while it runs, and none afterwards."""
    written = threading.Event()

    def line() -> str:
        written.set()
        return "still at work"

    with terminal.repeating(0.001, line):
        assert written.wait(60)
    assert capsys.readouterr().err.startswith("still at work\n")
    written.clear()
    assert not written.wait(0.05)


def test_a_training_run_says_how_much_is_left(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    """Of each phase, at the rate since the line before; nothing before the second line, nor when it is done."""
    show = MetricsPrinter(passes=3, steps=400)
    common = {"phase": 2, "train_loss": 1.0, "validation_loss": 2.0, "validation_accuracy": 0.5, "best": False}
    for step in (100, 200, 400):
        clock.now += 30
        show({**common, "step": step, "tokens_per_s": 1000.0})
    first, second, last = capsys.readouterr().err.splitlines()
    assert first.endswith("1,000 tokens/s")
    assert second.endswith("1,000 tokens/s, about 60 s left of phase 2")
    assert last.endswith("1,000 tokens/s")
