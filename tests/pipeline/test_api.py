"""`import refine`: the commands as functions, with typed results that a notebook shows."""

from __future__ import annotations

import inspect
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import FrozenInstanceError, asdict
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from typer.main import get_command

import refine
from pipeline.cli import app
from tests.conftest import ROOT, Refine, chat, contents

pytestmark = pytest.mark.usefixtures("no_pictures")

TOY = ROOT / "tests" / "pipeline" / "toy.toml"
Jsonl = Callable[..., Path]


@pytest.fixture
def run(jsonl: Jsonl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> refine.Run:
    """A small run, made from Python in the current folder."""
    monkeypatch.chdir(tmp_path)
    jsonl([chat(i) for i in range(60)])
    return refine.run("corpus.jsonl", plan=TOY, out="r", shard_rows=25, workers=1)


@pytest.mark.parametrize(
    ("command", "function", "without"),
    [
        ("run", refine.run, {"dry_run", "verbose", "as_json"}),
        ("decide", refine.decide, {"as_json"}),
        ("report", refine.report, {"check", "as_json"}),
        ("push", refine.push, {"as_json"}),
        ("plant", refine.plant, {"as_json"}),
        ("audit", refine.audit, {"as_json"}),
        ("compare", refine.compare, {"check", "as_json"}),
        ("search", refine.search, {"as_json"}),
        ("score", refine.score, {"as_json"}),
        ("transfer extract", refine.transfer_extract, {"dry_run", "as_json"}),
        ("transfer apply", refine.transfer_apply, {"as_json"}),
        ("distill", refine.distill, {"as_json"}),
    ],
)
def test_each_function_has_the_options_of_its_command(
    command: str, function: Callable[..., object], without: set[str]
) -> None:
    """The same names and defaults; what only prints or sets the exit code is left to the command line."""
    found: Any = get_command(app)
    for word in command.split():
        found = found.commands[word]
    options = {option.name: option for option in found.params}
    renamed = {"folder": "run", "raw": "first", "refined": "second"}
    theirs = {renamed.get(name, name): option for name, option in options.items() if name not in {"help", *without}}
    ours = {name: each for name, each in inspect.signature(function).parameters.items() if name != "progress"}
    assert list(ours) == list(theirs)
    for name, each in ours.items():
        if each.default is not inspect.Parameter.empty:
            assert (each.default or None) == (theirs[name].default or None), name


def test_importing_refine_is_light_and_every_name_is_there() -> None:
    """Nothing heavy is loaded before a function is used; `dir` and `__all__` name what there is."""
    code = (
        "import sys, refine\n"
        "assert not [m for m in ('polars', 'numpy', 'torch', 'rich', 'typer', 'pipeline') if m in sys.modules]\n"
        "assert dir(refine) == sorted(refine.__all__) and all(getattr(refine, name) for name in refine.__all__)\n"
        "try: refine.rum\nexcept AttributeError as error: print(error)"
    )
    env = {"PYTHONPATH": str(ROOT), "PATH": ""}
    done = subprocess.run([sys.executable, "-c", code], cwd="/", env=env, capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.stderr) == ("module 'refine' has no attribute 'rum'", "")


def test_a_run_from_python_is_the_run_of_the_command(run: refine.Run, refine_command: Refine, tmp_path: Path) -> None:
    """The same files, byte for byte, and the numbers that `--json` prints."""
    words = ["run", "corpus.jsonl", "--plan", TOY, "--out", "c", "--shard-rows", 25, "--workers", 1]
    printed = json.loads(refine_command(*words, "--json").stdout)
    assert contents(tmp_path / "r") == contents(tmp_path / "c")
    assert printed.items() >= asdict(run.counts).items()
    assert run.counts.ingested == 60
    assert set(run.seconds) == set(printed["seconds"])


@pytest.fixture
def refine_command(request: pytest.FixtureRequest) -> Refine:
    """The command line, by a name of its own beside the module's."""
    command: Refine = request.getfixturevalue("refine")
    return command


def test_a_run_in_the_place_of_another_takes_no_model_of_it(
    jsonl: Jsonl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one process, a second corpus in the same folder is measured by its own models."""
    monkeypatch.chdir(tmp_path)
    jsonl([chat(i) for i in range(40)], "first.jsonl")
    jsonl([chat(i, 4) for i in range(50, 90)], "second.jsonl")
    options: dict[str, Any] = {"stages": "ppl", "shard_rows": 100, "workers": 1}
    expected = refine.run("second.jsonl", out="own", **options).signals.collect()
    other = refine.run("first.jsonl", out="r", **options).signals.collect()
    shutil.rmtree("r")
    assert refine.run("second.jsonl", out="r", **options).signals.collect().equals(expected)
    assert not other["ppl"].equals(expected["ppl"])


def test_the_frames_of_a_run(run: refine.Run) -> None:
    """Lazy, in the order of the corpus; refined and rejected are the parts of raw that were decided on."""
    raw, signals, decisions = (frame.collect() for frame in (run.raw, run.signals, run.decisions))
    assert all(isinstance(frame, pl.LazyFrame) for frame in (run.raw, run.signals, run.refined, run.rejected))
    assert raw["id"].equals(signals["id"])
    assert raw["id"].equals(decisions["id"])
    assert signals["words"].to_list() == [len(text.split()) for text in raw["text"]]
    kept = raw.filter(decisions["keep"])["id"].to_list()
    assert run.refined.collect()["id"].to_list() == kept
    rejected = run.rejected.collect()
    assert sorted([*kept, *rejected["id"]]) == sorted(raw["id"])
    assert 0 < rejected.height == run.counts.rejected


def test_a_run_is_opened_and_decided_again(run: refine.Run) -> None:
    """A result is frozen; deciding gives a new one and takes a run or its folder."""
    opened = refine.open_run("r")
    assert opened == run
    assert opened.manifest.by_rule == run.manifest.by_rule
    with pytest.raises(FrozenInstanceError):
        opened.path = Path("x")  # type: ignore[misc]
    before = run.counts.refined
    fewer = refine.decide(run, drop="long: words > 15")
    assert fewer.manifest.by_rule["long"] > 0
    assert fewer.counts.refined < before
    assert refine.decide("r").counts.refined == before


@pytest.mark.parametrize(
    "call",
    [
        lambda: refine.run("nowhere.jsonl"),
        lambda: refine.run(stages="dedupe"),
        lambda: refine.run(shape="cube"),
        lambda: refine.open_run("nowhere"),
        lambda: refine.decide("nowhere"),
        lambda: refine.report("nowhere"),
        lambda: refine.compare(train=False),
        lambda: refine.compare("raw", "raw"),
        lambda: refine.score("nowhere", text="nowhere.jsonl"),
        lambda: refine.transfer_extract("nowhere", "nowhere", out="made", rank=0),
        lambda: refine.transfer_apply("nowhere", "nowhere", out="made"),
        lambda: refine.distill("nowhere", []),
    ],
)
def test_an_error_of_the_user_is_one_of_the_public_classes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Callable[[], object]
) -> None:
    """Its message is the sentence that the command line prints."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(refine.RefineError) as caught:
        call()
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: refine.run(limit=0), "--limit is 0, expected at least 1"),
        (lambda: refine.run(shard_rows=0), "--shard-rows is 0, expected at least 1"),
        (lambda: refine.run(max_unreadable=1.1), "--max-unreadable is 1.1, expected a share from 0 to 1"),
        (lambda: refine.run(workers=-1, stages="heuristics"), "--workers is -1, expected at least 0"),
        (lambda: refine.plant("nowhere", out="x", seed=-1), "--seed is -1, expected at least 0"),
        (lambda: refine.report("nowhere", max_kept=2), "--max-kept is 2, expected a share from 0 to 1"),
        (lambda: refine.compare("chitchat", "chitchat-planted", seeds=0), "--seeds is 0, expected at least 1"),
        (lambda: refine.compare("chitchat", "chitchat-planted", workers=-1), "--workers is -1, expected at least 0"),
        (lambda: refine.search(target="chitchat", candidates=0), "--candidates is 0, expected at least 1"),
        (lambda: refine.search(target="chitchat", minutes=-1), "--minutes is -1, expected at least 0"),
        (lambda: refine.distill("m", ["chitchat", "chitchat-planted"], seeds=0), "--seeds is 0, expected at least 1"),
    ],
)
def test_numbers_are_checked_as_the_command_line_checks_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Callable[[], object], said: str
) -> None:
    """Before any work, whoever calls."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(refine.RefineError) as caught:
        call()
    assert str(caught.value) == said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "call",
    [
        lambda url: refine.report("nowhere", out=url),
        lambda url: refine.compare("chitchat", "chitchat-planted", out=url),
        lambda url: refine.compare("chitchat", "chitchat-planted", work=url),
        lambda url: refine.plant("chitchat", out=url),
        lambda url: refine.search(target="chitchat", out=url),
        lambda url: refine.distill("m", "chitchat", out=url),
        lambda url: refine.score("m", text="chitchat", out=url),
        lambda url: refine.transfer_extract("a", "b", out=url),
        lambda url: refine.transfer_apply("a", "b", out=url),
    ],
)
@pytest.mark.parametrize("kind", [str, Path])
def test_only_a_run_is_written_to_a_bucket(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    call: Callable[[Path | str], object],
    kind: Callable[[str], Path | str],
) -> None:
    """Elsewhere a URL would be made a folder named s3:."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(refine.RefineError, match="s3://bucket/x is a URL, expected a path: only `refine run` writes"):
        call(kind("s3://bucket/x"))
    assert not list(tmp_path.iterdir())


def test_nothing_is_printed_unless_progress_is_asked_for(run: refine.Run, capfd: pytest.CaptureFixture[str]) -> None:
    """Neither to stdout nor to stderr; with `progress`, to stderr alone."""
    refine.decide(run, drop="words > 15")
    refine.report(run, out="report")
    refine.compare(run=run, train=False, out="comparison")
    assert capfd.readouterr() == ("", "")
    refine.decide(run, progress=True)
    out, err = capfd.readouterr()
    assert out == ""
    assert "rules of an earlier --drop no longer apply" in err


def test_results_show_as_tables_and_everything_is_escaped(
    jsonl: Jsonl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names of files and rules that hold markup stay text in a notebook, and do nothing to a terminal."""
    monkeypatch.chdir(tmp_path)
    source = jsonl([chat(i) for i in range(20)], name="<img src=x>.jsonl")
    run = refine.run(source, plan=TOY, out="r<b>", workers=1, drop='"words" > 15')
    report = refine.report(run, out="report<b>")
    comparison = refine.compare(run=run, train=False, out="comparison<b>")
    for result in (run, report, comparison):
        html = result._repr_html_()
        assert "<table" in html
        assert not [piece for piece in ("<b>/", "<img") if piece in html]
        assert "\x1b" not in repr(result)
    assert "&quot;words&quot; &gt; 15" in run._repr_html_()
    assert "r&lt;b&gt;" in run._repr_html_()
    assert repr(run).splitlines()[1].split()[:2] == ["in", "20"]
    assert (report.failed, Path("report<b>/index.html")) == ([], report.page)
    assert str(comparison.page) in repr(comparison)


@pytest.mark.usefixtures("no_sections")
def test_a_report_tells_unreadable_rows_from_dropped_ones(
    jsonl: Jsonl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows in quarantine were dropped by no rule, and the share kept is of all rows that came in."""
    monkeypatch.chdir(tmp_path)
    with jsonl([chat(i) for i in range(20)]).open("a") as file:
        file.write("no JSON\n" * 20)
    run = refine.run("corpus.jsonl", plan=TOY, out="r", workers=1, max_unreadable=1)
    assert (run.counts.quarantined, run.counts.rejected) == (20, 9)
    assert str(run).endswith("r: README.md, refined/, rejected/, decisions/, quarantine/, manifest.json")
    report = refine.report(run)
    said = "40 conversations came in, 20 could not be read, 11 (27.5%) were kept and 9 dropped, all of them for "
    assert report.headline.startswith(said)
    assert "What was dropped is 22.5% of the conversations, and " in report.headline
    assert report.checks[-1].found.startswith("27.5% kept")


def test_a_comparison_names_the_command_that_makes_it(run: refine.Run) -> None:
    """Options that have their default are left out."""
    made = refine.compare("raw", "refined", run=run, train=False, budgets=[2000, 4000], out="x", max_kept=0.9)
    words = "refine compare raw refined --run r --budgets 2000,4000 --no-train --out x --max-kept 0.9"
    assert made.command == words
    assert json.loads(Path("x/report.json").read_text())["command"] == words


def test_a_script_needs_no_guard(jsonl: Jsonl, tmp_path: Path) -> None:
    """Workers do not import the script that started them, which would start everything again."""
    jsonl([chat(i) for i in range(60)])
    script = "import refine\nprint('once')\n"
    script += f"print(refine.run('corpus.jsonl', plan={str(TOY)!r}, out='r', workers=2, shard_rows=20).counts.ingested)"
    (tmp_path / "script.py").write_text(script)
    env = {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )
    assert (done.stdout.split(), done.stderr) == (["once", "60"], "")


def test_a_stage_of_ones_own(jsonl: Jsonl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A subclass of `refine.Stage` in a module of the current folder measures, and rules can use its signal."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "shouting.py").write_text(
        "import polars as pl\nimport refine\n\n\nclass Shouting(refine.Stage):\n"
        '    """Exclamation marks."""\n\n    summary = "counts exclamation marks"\n'
        '    writes = pl.Schema({"marks": pl.Int64()})\n\n    def measure(self, batch):\n'
        '        return batch.select(marks=pl.col("text").str.count_matches("!").cast(pl.Int64))\n'
    )
    source = jsonl([{"text": "Stop! Now!"}, {"text": "Please stop now."}])
    run = refine.run(source, stages=["shouting:Shouting"], drop="marks > 1", out="r", workers=1)
    assert run.signals.collect()["marks"].to_list() == [2, 0]
    assert (run.counts.refined, run.counts.rejected) == (1, 1)


def test_the_example_of_the_docstring_runs(jsonl: Jsonl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it stands."""
    monkeypatch.chdir(tmp_path)
    jsonl([chat(i) for i in range(40)], name="chats.jsonl")
    lines = [line.strip()[4:] for line in str(refine.__doc__).splitlines() if line.strip().startswith(">>> ")]
    space: dict[str, Any] = {}
    for line in lines:
        exec(line, space)  # noqa: S102  our own text
    assert isinstance(space["run"], refine.Run)
    assert len(lines) == 7
