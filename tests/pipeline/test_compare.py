"""`refine compare`: from two corpora to a verdict, resumable, independent of the number of workers; errors."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

from pipeline.api.errors import RefineError
from pipeline.cli import app
from pipeline.compare import command as comparing
from pipeline.compare import corpora
from pipeline.compare.checks import corpora_checks
from pipeline.compare.result import Comparison
from pipeline.compare.screen.page import answers
from pipeline.experiments.formats import change
from pipeline.ownership import CLAIM
from pipeline.report.folder import ReportError
from pipeline.report.parts import Check
from pipeline.report.run.checks import SHARE
from pipeline.sources.rows import SourceError
from pipeline.store import RunFolderError, read_json
from tests.conftest import Refine, chat
from tests.pipeline.compare_corpus import BLINK, LIMIT, WANTED, asked, how, report
from tests.trainer.test_causal import ENDS, save_gpt2
from trainer import presets
from trainer.prepare.arms import ArmsError
from trainer.prepare.ppmi import EmbeddingsError
from trainer.prepare.split import SplitError

pytestmark = pytest.mark.usefixtures("no_pictures", "few_orders")


@pytest.fixture(autouse=True)
def blink(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the presets of the tests available."""
    monkeypatch.setitem(presets.PRESETS, "blink", BLINK)
    vast = replace(BLINK, name="vast", budgets=(200_000, 400_000, 800_000, 1_600_000, 9_000_000))
    monkeypatch.setitem(presets.PRESETS, "vast", vast)


@pytest.fixture(scope="module")
def result(my_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    """A comparison of the run's two corpora, trained once for the tests of this module."""
    here = tmp_path_factory.mktemp("compare")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(presets.PRESETS, "blink", BLINK)
        patch.setattr("pipeline.report.page.png", lambda _figure: b"\x89PNG")
        return comparing.compare(asked("raw", "refined", my_run, here, how(work=here / "work", seeds=2)))


@pytest.fixture(scope="module")
def made(result: Comparison) -> Path:
    """The folder of that comparison, in which report/ and work/ lie."""
    return result.page.parent.parent


def scores(here: Path) -> dict[str, bytes]:
    """The scores of every test conversation, by training run."""
    return {path.parent.name: path.read_bytes() for path in sorted((here / "work" / "trainings").glob("*/scores.npz"))}


def test_a_report_holds_every_number(made: Path) -> None:
    """Both test sets with laws, differences, held-out tests, baselines and every training run; checks pass."""
    found = report(made)
    assert found["verdict"] == found["headline"]
    assert found["budgets"] == [200, 500, 1200, 3000, 7000]
    assert (found["seeds"], found["subset"]) == ([2] * 5, True)
    assert list(found["test_sets"]) == ["raw-test", "refined-test"]
    low, high = found["delta_alpha_interval"]
    assert low < found["delta_alpha"] < high
    for test in found["test_sets"].values():
        assert [(law["corpus"], law["law"]) for law in test["laws"]] == [
            (arm, kind) for arm in ("raw", "refined") for kind in ("power", "saturating")
        ]
        assert {one["law"] for one in test["differences"]} == {"power"}
        assert {one["corpus"] for one in test["held_out"]} == {"raw", "refined"}
        kinds = {(one["arm"], one["kind"]) for one in test["trainings"]}
        assert {("raw", "random_block"), ("raw", "gru"), ("refined", "kneser_ney"), ("raw", "unigram")} <= kinds
    (first,) = found["test_sets"]["refined-test"]["differences"]
    assert found["primary_test_set"] == "refined-test"
    assert found["delta_alpha"] == pytest.approx(first["delta_alpha"])
    assert found["level"] == pytest.approx(np.expm1(first["ln_ratio"]))
    assert found["level_interval"] == pytest.approx(np.expm1(first["ln_ratio_interval"]))
    low, high = np.log1p(found["choice_interval"])
    assert high - low > first["ln_ratio_interval"][1] - first["ln_ratio_interval"][0]
    assert low < np.log1p(found["choice"]) < high
    assert (found["scored"], found["replies"]) == ("everything", None)  # too few test conversations have a reply
    assert found["everything"]["level"] == found["level"]
    assert {"placebo", "per_corpus", "ceiling"} <= set(found)
    assert not [one["name"] for one in found["checks"] if one["passed"] is False]
    assert {"train/test leakage 0", "both arms take the same optimiser steps", "refined is a subset of raw"} <= {
        one["name"] for one in found["checks"] if one["passed"]
    }


def test_the_page_says_how_sure_it_is_and_what_would_tell_more(result: Comparison, made: Path) -> None:
    """The interval of the headline, and the smallest difference that four times the seeds would find."""
    sure, more = (text for _, text in answers(result))
    low, high = report(made)["choice_interval"]
    assert f"is {change(np.log1p(low))} to {change(np.log1p(high))}, from 10 pairs of networks" in sure
    rules = sum(one["rules"] for one in report(made)["placebo"].values())
    assert f" Of {rules} placebo rules, " in sure
    assert more.startswith("A larger test set comes first")  # it has fewer conversations than a bootstrap needs
    page = (made / "report" / "index.html").read_text()
    assert sure in page
    assert more in page
    (_, more) = answers(replace(result, primary=None))[1]
    found = re.search(r"differences of PPL from ([\d.]+).% on .* would find those from ([\d.]+).% on", more)
    assert found is not None
    assert 0 < float(found[2]) < float(found[1])


def test_the_result_holds_the_numbers_of_the_report(result: Comparison, made: Path) -> None:
    """As frames: differences and laws with the ends of their intervals, training runs, corpora."""
    found = report(made)
    assert result.verdict.sentence == found["verdict"]
    assert not result.failed
    first = result.differences.row(
        by_predicate=(pl.col("test_set") == "refined-test") & (pl.col("law") == "power"), named=True
    )
    assert [first["delta_alpha_low"], first["delta_alpha_high"]] == pytest.approx(found["delta_alpha_interval"])
    assert (first["corpus"], first["against"], first["budget"]) == ("refined", "raw", found["budget"])
    assert (len(result.differences), len(result.laws)) == (2, 8)
    law = next(one for one in found["test_sets"]["refined-test"]["laws"] if one["law"] == "power")
    row = result.laws.row(
        by_predicate=(pl.col("test_set") == "refined-test")
        & (pl.col("law") == "power")
        & (pl.col("corpus") == law["corpus"]),
        named=True,
    )
    assert [row["alpha_low"], row["alpha"], row["alpha_high"]] == pytest.approx(
        [law["alpha_interval"][0], law["alpha"], law["alpha_interval"][1]]
    )
    assert len(result.training_runs) == sum(len(one["trainings"]) for one in found["test_sets"].values())
    assert dict(result.corpora.select("corpus", "words").iter_rows()) == {
        name: one["words"] for name, one in found["corpora"].items()
    }
    assert result._repr_html_().startswith(f"<p>{result.verdict.sentence}</p>")


@pytest.mark.usefixtures("no_sections")
def test_a_comparison_prints_nothing(my_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Standard output belongs to the caller."""
    found = comparing.compare(asked("raw", "refined", my_run, tmp_path, how(), train=False))
    assert capsys.readouterr().out == ""
    assert (found.differences.is_empty(), len(found.corpora), found.page.is_file()) == (True, 2, True)


def test_the_refined_test_set_is_a_part_of_the_raw_one(made: Path) -> None:
    """It has fewer conversations and tokens, and other scores."""
    raw, refined = report(made)["test_sets"].values()
    assert 0 < refined["conversations"] < raw["conversations"]
    assert 0 < refined["tokens"] < raw["tokens"]
    assert raw["trainings"][0]["ppl"] != refined["trainings"][0]["ppl"]


def test_the_page_shows_laws_and_corpora(made: Path) -> None:
    """Each figure has a picture, and the page has the sections that a reader looks for."""
    page = (made / "report" / "index.html").read_text()
    for title in ("The difference", "Scaling laws", "Baselines", "Every training run", "The experiment", "The corpora"):
        assert f"<h2>{title}</h2>" in page
    assert {"laws-power", "laws-saturating", "differences"} <= set(report(made)["figures"])
    rows = report(made)["figures"]["differences"]["panels"][0]["rows"]
    found = next(one for one in rows if (one["y"], one["test"]) == ("power law", "refined-test"))
    assert [found["low"], found["high"]] == pytest.approx(report(made)["delta_alpha_interval"])
    assert (made / "report" / "differences.png").read_bytes()[:4] == b"\x89PNG"


def test_the_page_shows_the_run(made: Path) -> None:
    """For raw and refined of a run, the page includes that of `refine report`: checks, plan and examples."""
    page = (made / "report" / "index.html").read_text()
    for title in ("Kept and dropped", "What the rules do", "Distributions", "Mix", "Conversations"):
        assert f"<h2>{title}</h2>" in page
    assert {"retention", "rules", "distributions", "mix"} <= set(report(made)["figures"])
    checks = {one["name"]: one["passed"] for one in report(made)["checks"]}
    assert (checks["counts add up"], checks["refined share within bounds"]) == (True, True)
    for heading in ("The command that repeats this run", "Plan", "Manifest"):
        assert f"<summary>{heading}</summary>" in page


def test_the_page_counts_runs_whose_last_evaluation_was_best(made: Path) -> None:
    """For each budget and arm."""
    page = (made / "report" / "index.html").read_text()
    found = re.search(
        r"validation was best at the last evaluation, when the learning rate is 0, of 200 tokens in (\d) of 2 training "
        r"runs of raw and (\d) of 2 training runs of refined; of 500 tokens",
        page,
    )
    assert found
    records = [read_json(path) for path in (made / "work" / "trainings").glob("cvfp-0000000200-*/record.json")]
    last = [one["best_evaluation"] == one["evaluations"] for one in records]
    assert sum(last) <= sum(map(int, found.groups())) <= 2 * sum(last)  # both arms may share a run


def test_baselines_stand_beside_the_same_seed(made: Path) -> None:
    """The page shows the network's PPL with seed 0, and the baselines below it."""
    page = (made / "report" / "index.html").read_text()
    rows = pl.DataFrame(report(made)["test_sets"]["raw-test"]["trainings"]).filter(pl.col("arm") == "raw", seed=0)
    network, block = (dict(rows.filter(kind=kind).select("tokens", "ppl").iter_rows()) for kind in ("cvfp", "gru"))
    below = sum(block[budget] < ppl for budget, ppl in network.items())
    sentence = f"GRU at {below} of 5 budgets" if below else "raw-test, raw: CVFP"
    assert sentence in page
    assert f">{network[200]:,.2f}<" in page


def test_a_comparison_goes_on_where_it_stopped(made: Path, my_run: Path, tmp_path: Path) -> None:
    """Finished runs are not repeated, missing ones are trained, and the report has the same numbers."""
    shutil.copytree(made / "work", tmp_path / "work")
    gone = sorted((tmp_path / "work" / "trainings").iterdir())[:3]
    for folder in gone:
        shutil.rmtree(folder)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "work" / "trainings").glob("*/record.json")}
    comparing.compare(asked("raw", "refined", my_run, tmp_path, how(work=tmp_path / "work", seeds=2)))
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert scores(tmp_path) == scores(made)
    numbers, again = ({**report(here), "folder": ""} for here in (made, tmp_path))
    assert numbers == again


@pytest.mark.usefixtures("no_sections")
def test_workers_do_not_change_a_number(made: Path, my_run: Path, tmp_path: Path) -> None:
    """With one process or two, every run's scores are the same to the byte."""
    asks = how(work=tmp_path / "work", workers=2, budgets=(200, 500), seeds=1)
    comparing.compare(asked("raw", "refined", my_run, tmp_path, asks))
    found = scores(tmp_path)
    assert len(found) > 6
    assert found.items() <= scores(made).items()
    assert report(tmp_path)["concludes"] is False


def halves(here: Path) -> tuple[str, str]:
    """Two files of real conversations, with a third of them in both."""
    texts = [json.loads(line) for line in (here / "all.jsonl").read_text().splitlines()]
    for name, part in (("a", texts[: 2 * len(texts) // 3]), ("b", texts[len(texts) // 3 :])):
        (here / f"{name}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in part))
    return str(here / "a.jsonl"), str(here / "b.jsonl")


def test_two_corpora_that_overlap_have_two_test_sets(
    my_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A note says that neither is a subset, and both arms are scored on both; shared conversations count once."""
    monkeypatch.setattr("pipeline.compare.design.baselines", lambda _networks: ("kneser_ney",))
    frame = corpora.pair("raw", "refined", my_run, None, grouped=False).union.frame
    lines = [{"messages": [{"role": "user", "content": text}]} for text in frame["text"] if text.strip()]
    (tmp_path / "all.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    a, b = halves(tmp_path)
    asks = how(work=tmp_path / "work", budgets=(200, 500, 1200), seeds=1)
    comparing.compare(asked(a, b, None, tmp_path, asks))
    found = report(tmp_path)
    assert list(found["test_sets"]) == ["a.jsonl-test", "b.jsonl-test"]
    assert found["subset"] is False
    assert "b.jsonl is not a subset of a.jsonl" in found["notes"][0]
    assert found["corpora"]["a.jsonl"]["shared"] > len(lines) / 4
    assert [one["passed"] for one in found["checks"] if "subset" in one["name"]] == [None]
    assert found["corpora"]["a.jsonl"]["near_duplicates"] > 0
    bars = found["figures"]["languages"]["panels"][0]["rows"]
    assert bars[0]["y"] == "en"
    for size in ("conversations", "words"):
        assert sum(one[f"a.jsonl {size}"] for one in bars) == found["corpora"]["a.jsonl"][size]


def test_no_train_is_sizes_only(my_run: Path, refine: Refine, tmp_path: Path) -> None:
    """Nothing is concluded, no experiment is begun, and the last line is the file of the page."""
    done = refine("compare", "--no-train", "--run", my_run, "--out", "page", "--check")
    assert done.returncode == 0, done.stderr
    assert done.stdout.rstrip().splitlines()[-1] == "page/index.html"
    assert "Nothing was trained" in done.stdout
    found = read_json(tmp_path / "page" / "report.json")
    assert found["corpora"]["raw"]["conversations"] == LIMIT
    assert found["corpora"]["refined"]["conversations"] < LIMIT
    assert not (tmp_path / "data").exists()
    assert "The same command with --screen in place of --no-train" in (tmp_path / "page" / "index.html").read_text()


@pytest.mark.usefixtures("no_sections")
def test_no_train_does_not_replace_the_report_of_an_experiment(my_run: Path, refine: Refine, tmp_path: Path) -> None:
    """It has a folder of its own, and a note announces that another command's report will be replaced."""
    done = refine("compare", "--no-train", "--run", my_run)
    assert (done.stderr, done.stdout.rstrip().splitlines()[-1]) == ("", "reports/my-run-compare-corpora/index.html")
    assert refine("compare", "--no-train", "--run", my_run).stderr == ""
    other = refine("compare", "--no-train", "--run", my_run, "--limit", "20", "--json")
    assert json.loads(other.stdout)["notes"] == [
        f"--limit 20 compares the first rows of {my_run}; the run's own figures are of all rows"
    ]
    assert "the report of `refine compare --no-train --run" in other.stderr
    assert "will be replaced; --out keeps both" in other.stderr
    assert "--limit 20 compares the first rows" in other.stderr
    assert refine("compare", "--no-train", "--run", my_run, "--limit", "99999", "--out", "all").stderr == ""
    assert refine("report", my_run, "--out", "one").stderr == ""
    assert refine("report", my_run, "--out", "one", "--check").stderr == ""
    assert "the report of `refine report" in refine("compare", "--no-train", "--run", my_run, "--out", "one").stderr
    assert "the report of `refine compare" in refine("report", my_run, "--out", "one").stderr
    assert (tmp_path / "reports" / "my-run-compare-corpora").is_dir()


def test_the_shape_of_two_files_can_be_set(refine: Refine, tmp_path: Path) -> None:
    """As the error about unknown fields advises."""
    for name, numbers in (("a", range(4)), ("b", range(2, 6))):
        lines = [{"text": f"a plain document of words, number {i}", "messages": "none"} for i in numbers]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    done = refine("compare", "a.jsonl", "b.jsonl", "--no-train", "--shape", "text", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["corpora"]["b.jsonl"]["conversations"] == 4
    assert "the shape is 'prose'; there are" in refine("compare", "a.jsonl", "b.jsonl", "--shape", "prose").stderr
    assert "--shape text sets how records are read" in refine("compare", "--shape", "text").stderr


@pytest.mark.parametrize(
    ("first", "second", "names"),
    [
        ("data/raw.jsonl", "data/refined.jsonl", ["raw.jsonl", "refined.jsonl"]),
        ("old/chat", "new/chat/", ["old/chat", "new/chat/"]),
        (
            f"{'a-very-long-name-' * 4}old.jsonl",
            f"{'a-very-long-name-' * 4}new.jsonl",
            ["…ry-long-name-a-very-long-name-old.jsonl", "…ry-long-name-a-very-long-name-new.jsonl"],
        ),
        (f"old-{'x' * 90}", f"new-{'x' * 90}", [f"old-{'x' * 35}…", f"new-{'x' * 35}…"]),
        ("a" * 60, "a" * 90, [f"…{'a' * 39}", f"…{'a' * 38}…"]),
        ("a" * 90, "a" * 91, [f"…{'a' * 35} (1)", f"…{'a' * 35} (2)"]),
    ],
)
def test_names_of_arms_are_short_and_distinct(first: str, second: str, names: list[str]) -> None:
    """They show where they differ; short names are not cut."""
    found = [corpora._arm(one, first, second) for one in (first, second)]  # noqa: SLF001
    assert found == names
    assert max(map(len, found)) <= corpora.MAX_NAME
    assert found[0] != found[1]


@pytest.mark.usefixtures("no_sections")
def test_the_default_is_the_latest_complete_run(my_run: Path, refine: Refine, tmp_path: Path) -> None:
    """Among those in data/runs/; unfinished runs do not count."""
    assert "there is no complete run in data/runs" in refine("compare", "--no-train").stderr
    shutil.copytree(my_run, tmp_path / "data" / "runs" / "done")
    shutil.copytree(my_run, tmp_path / "data" / "runs" / "later")
    (tmp_path / "data" / "runs" / "later" / "manifest.json").unlink()
    done = refine("compare", "--no-train", "--json")
    assert json.loads(done.stdout)["run"] == "data/runs/done"
    assert "raw and refined of data/runs/done, the run that finished last; --run names another" in done.stderr
    assert "finished last" not in refine("compare", "--run", "data/runs/done", "--no-train", "--json").stderr


def broken(run: Path, here: Path, **counts: int) -> Path:
    """A copy of a run with other counts in its manifest, or without a manifest."""
    copy = here / "copy"
    shutil.copytree(run, copy)
    if not counts:
        (copy / "manifest.json").unlink()
        return copy
    manifest = read_json(copy / "manifest.json")
    manifest["counts"] |= counts
    (copy / "manifest.json").write_text(json.dumps(manifest))
    return copy


def test_bad_corpora_get_a_sentence(my_run: Path, tmp_path: Path) -> None:
    """Unfinished runs, empty refined corpora, the same corpus twice, plain text against conversations."""
    with pytest.raises(RunFolderError, match="is not a complete run: start `refine run` again with its source"):
        pair("raw", "refined", broken(my_run, tmp_path))
    shutil.rmtree(tmp_path / "copy")
    with pytest.raises(SourceError, match="is empty, every conversation was dropped"):
        pair("raw", "refined", broken(my_run, tmp_path, refined=0))
    with pytest.raises(SourceError, match="both corpora are raw: name two"):
        pair("raw", "raw", my_run)
    (tmp_path / "notes.jsonl").write_text(json.dumps({"text": "a plain document"}) + "\n")
    with pytest.raises(SourceError, match=r"plain documents and conversations share no schema"):
        pair("raw", str(tmp_path / "notes.jsonl"), my_run)
    with pytest.raises(RunFolderError, match="is not a run folder"):
        pair("raw", "refined", tmp_path)


def pair(first: str, second: str, run: Path | None) -> Any:
    return corpora.pair(first, second, run, None, grouped=False)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"preset": "vast"}, r"too small for the default budgets .* take a larger corpus, or --budgets \d+,"),
        ({"budgets": (200, 10_000_000)}, r"--budgets has 10,000,000 tokens, .* or --budgets \d+,\d+,"),
    ],
)
def test_too_large_budgets_get_a_proposal_that_fits(
    my_run: Path, tmp_path: Path, more: dict[str, Any], message: str
) -> None:
    """The proposal fits the smaller training pool."""
    asks = replace(how(work=tmp_path / "work"), **more)
    with pytest.raises(ArmsError, match=message) as found:
        comparing.compare(asked("raw", "refined", my_run, tmp_path, asks))
    if "or --budgets " in str(found.value):
        counts = [int(one) for one in str(found.value).rpartition("--budgets ")[2].split(",")]
        assert len(counts) == 6
        asks = how(work=tmp_path / "work", budgets=tuple(counts), preset=asks.preset)
        from pipeline.compare.data import arms
        from pipeline.compare.design import design

        both = corpora.pair("raw", "refined", my_run, None, grouped=True)
        assert design(arms(both.union, asks, tmp_path / "again"), counts, None).budgets == tuple(counts)


def test_a_corpus_of_a_few_conversations_is_too_small(tmp_path: Path) -> None:
    """The error of the split says what to do."""
    for name, some in (("a", range(3)), ("b", range(3, 6))):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(chat(i)) + "\n" for i in some))
    first, second = (str(tmp_path / f"{name}.jsonl") for name in "ab")
    with pytest.raises(SplitError, match="take a larger corpus"):
        comparing.compare(asked(first, second, None, tmp_path, how(work=tmp_path / "work")))


def test_other_folders_are_not_touched(my_run: Path, tmp_path: Path) -> None:
    """Neither as the report's folder nor as that of the training runs."""
    for name in ("report", "work"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "precious.txt").write_text("mine")
    with pytest.raises(ReportError, match="is not a report folder of refine: it holds precious"):
        comparing.compare(asked("raw", "refined", my_run, tmp_path, how()))
    (tmp_path / "report" / "precious.txt").unlink()
    with pytest.raises(RunFolderError, match="is not an experiment's folder"):
        comparing.compare(asked("raw", "refined", my_run, tmp_path, how(work=tmp_path / "work")))
    assert sorted(path.name for path in (tmp_path / "work").iterdir()) == ["precious.txt"]


def test_the_same_command_finds_its_training_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without --work, their folder is named by corpora and options."""
    monkeypatch.chdir(tmp_path)
    with how().folder("my-run", ["1", "2"]) as once:
        assert (once.parent, (once / CLAIM).is_file()) == (Path("data/experiments"), True)
        with (
            pytest.raises(RunFolderError, match="is in use by another refine process"),
            how().folder("my-run", ["1", "2"]),
        ):
            pass
    with how(seeds=5, budgets=(1, 2), screen=True).folder("my-run", ["2", "1"]) as again:
        assert again == once
    with how(choices=replace(WANTED, tokenizer="bpe:512")).folder("my-run", ["1", "2"]) as other:
        assert other != once
    with (
        pytest.raises(RunFolderError, match="is the experiment of another corpus"),
        how(work=once).folder("my-run", ["1", "3"]),
    ):
        pass


@pytest.mark.usefixtures("no_sections")
def test_a_check_that_fails_ends_with_1(my_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With --check, after writing the page; without it the exit code is 0."""
    monkeypatch.setattr(comparing, "corpora_checks", lambda _pair: [Check("a check", passed=False, found="it")])
    words = ["compare", "--no-train", "--run", str(my_run), "--out", str(tmp_path / "report")]
    assert CliRunner().invoke(app, words).exit_code == 0
    done = CliRunner().invoke(app, [*words, "--check"])
    assert done.exit_code == 1
    assert "FAIL" in done.stdout
    assert (tmp_path / "report" / "index.html").exists()


@pytest.mark.usefixtures("no_sections")
def test_the_share_kept_is_checked(my_run: Path, refine: Refine) -> None:
    """Against --min-kept and --max-kept."""
    assert (
        refine("compare", "--no-train", "--run", my_run, "--check", "--min-kept", "0.9", "--out", "a").returncode == 1
    )
    assert (
        refine("compare", "--no-train", "--run", my_run, "--check", "--max-kept", "0.9", "--out", "a").returncode == 0
    )


def test_a_run_whose_files_are_wrong_allows_no_conclusion(made: Path, my_run: Path) -> None:
    """The run's checks forbid a conclusion too, except the one of the share kept."""
    pair = corpora.pair("raw", "refined", my_run, None, grouped=True)
    share, moved = (Check(name, passed=False, found="") for name in (SHARE, "moved"))
    experiment = comparing.train_arms(pair.union, how(seeds=2), made / "work", pair, imitated=[pair.names])
    empty = Comparison(pair, comparing.UNTRAINED, [], None, [], None, [], "", made)
    found = [comparing.conclude(empty, experiment, checks).verdict for checks in ([share], [share, moved])]
    assert "a check failed" not in found[0].sentence
    assert found[1].sentence == "Nothing can be concluded, because a check failed: moved."


class BegunError(Exception):
    """Training has begun."""


def test_an_experiment_that_could_find_nothing_trains_nothing(
    my_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two corpora that differ by a conversation: it says what it could find and the most there can be.

    With --force it trains anyway. The design is on disk before.
    """

    def begin(*_: object) -> None:
        raise BegunError

    monkeypatch.setattr(comparing, "_carry_out", begin)
    frame = corpora.pair("raw", "refined", my_run, None, grouped=False).union.frame
    lines = [
        json.dumps({"messages": [{"role": "user", "content": text}]}) + "\n" for text in frame["text"] if text.strip()
    ]
    for name, some in (("a", lines), ("b", lines[:-1])):
        (tmp_path / f"{name}.jsonl").write_text("".join(some))
    first, second = (str(tmp_path / f"{name}.jsonl") for name in "ab")
    asks = how(work=tmp_path / "work", budgets=(200, 500, 1200), seeds=2, force=False)
    with pytest.raises(ArmsError, match=r"nothing is trained, because this experiment finds .* at most: compare"):
        comparing.compare(asked(first, second, None, tmp_path, asks))
    assert not list((tmp_path / "work").glob("design-*.json"))
    with pytest.raises(BegunError):
        comparing.compare(asked(first, second, None, tmp_path, replace(asks, force=True)))
    (path,) = (tmp_path / "work").glob("design-*.json")
    design = read_json(path)
    assert (design["budgets"], design["seeds"]) == ([200, 500, 1200], [2, 2, 2])
    assert design["primary"].startswith("ln of the PPL ratio on everything of b.jsonl-test")
    assert 0 < design["forecast"]["ceiling"] < design["forecast"]["level"]
    path.write_text(path.read_text().replace('"worth_knowing": 0.005', '"worth_knowing": 0.5'))
    with pytest.raises(RunFolderError, match="was changed after it was written"):
        comparing.compare(asked(first, second, None, tmp_path, replace(asks, force=True)))


@pytest.mark.usefixtures("no_sections")
def test_an_experiment_stops_at_the_first_look_that_decides(
    result: Comparison, made: Path, my_run: Path, tmp_path: Path
) -> None:
    """Of four seeds a budget two are enough; the result has wider intervals than a design of two seeds.

    The training runs of two seeds are those of the other comparison; no other is begun.
    """
    shutil.copytree(made / "work", tmp_path / "work")
    asks = how(work=tmp_path / "work", seeds=4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comparing, "decides", lambda _ends, _worth: True)
        found = comparing.compare(asked("raw", "refined", my_run, tmp_path, asks))
    assert found.experiment is not None
    assert (set(found.experiment.design.seeds), found.experiment.design.level) == ({2}, 0.999)
    sure, _ = (text for _, text in answers(found))
    assert sure.startswith("The experiment stopped early, because it was decided. The 99.9 % interval")
    trained = {job.name for job in found.experiment.every()}
    assert {folder.name for folder in (tmp_path / "work" / "trainings").iterdir()} == trained
    assert result.scored[0].points["raw"].ppl.tolist() == found.scored[0].points["raw"].ppl.tolist()
    (low, high), (inner_low, inner_high) = (
        one.scored[0].differences["power"].ln_ratio_interval or (0.0, 0.0) for one in (found, result)
    )
    assert low < inner_low < inner_high < high


def test_a_limit_applies_to_the_raw_rows_of_a_run(my_run: Path) -> None:
    """Refined is what was kept of these rows, so it stays a subset of raw, in either order of the arguments."""
    found = corpora.pair("raw", "refined", my_run, 150, grouped=False)
    assert found.subset
    assert int(found.union.members["raw"].sum()) == 150
    assert 0 < int(found.union.members["refined"].sum()) < 150
    turned = corpora.pair("refined", "raw", my_run, None, grouped=False)
    assert corpora_checks(turned)[0].passed is True
    assert "the test set is drawn from raw" in turned.notes[0]


def test_options_are_checked_before_corpora_are_read(my_run: Path, tmp_path: Path) -> None:
    """Presets and options that do not suit a comparison, and a --run that has no effect."""
    for more, message in (
        ({"preset": "e1"}, "preset e1 reports the set that selects its weights"),
        ({"budgets": (1000,)}, "--budgets names one size"),
    ):
        with pytest.raises(ArmsError, match=message):
            comparing.compare(asked("nowhere.jsonl", "refined", my_run, tmp_path, how(**more)))
    asks = how(choices=replace(WANTED, embeddings="nowhere.npy"))
    with pytest.raises(EmbeddingsError, match=r"nowhere\.npy"):
        comparing.compare(asked("nowhere.jsonl", "refined", my_run, tmp_path, asks))
    with pytest.raises(SourceError, match="--run names the run of raw and refined"):
        pair("a.jsonl", "b.jsonl", my_run)
    shutil.copytree(my_run, tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy" / "signals")
    with pytest.raises(RunFolderError, match="holds no signals of stage"):
        comparing.compare(asked("raw", "refined", tmp_path / "copy", tmp_path, how(work=tmp_path / "work")))
    assert not (tmp_path / "work").exists()


@pytest.fixture(scope="module")
def gpt2s(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A model, the same again, and one that knows less."""
    import torch

    folders = [tmp_path_factory.mktemp(name) for name in ("first", "same", "worse")]
    for folder in folders:
        model = save_gpt2(folder, scale=0.02 if folder == folders[2] else 0.1, **ENDS)
    with torch.no_grad():
        model.transformer.wte.weight.mul_(30)
    model.save_pretrained(folders[2])
    return list(map(str, folders))


def test_models_are_scored_beside_those_of_the_comparison(made: Path, gpt2s: list[str]) -> None:
    """What the comparison trained has the numbers of its report; a copy of a model does not differ from it."""
    from pipeline.models.score import ScoreOptions, score

    table = score(ScoreOptions(tuple(gpt2s), on=made / "work"))
    assert table is not None
    assert table.test == "refined-test"  # that of the verdict
    beside = {row.name: row.bits_per_byte for row in table.rows if row.trained}
    runs = report(made)["test_sets"]["refined-test"]["trainings"]
    (cvfp,) = (run for run in runs if (run["kind"], run["arm"], run["tokens"], run["seed"]) == ("cvfp", "raw", 7000, 0))
    scope = report(made)["test_sets"]["refined-test"]["scored"]
    (found,) = (row for row in table.rows if row.name == "CVFP, raw, 7,000 tokens")
    bits = found.bits_per_byte if scope == "everything" else found.replies_bits_per_byte
    assert bits == pytest.approx(cvfp["bits_per_byte"], rel=1e-6)
    assert len([name for name in beside if name.endswith(", refined, 7,000 tokens")]) >= 3
    same, worse = table.rows[1], table.rows[2]
    assert same.differences["everything"].ln_ratio == 0
    assert same.differences["everything"].interval == (0, 0)
    low, high = worse.differences["everything"].interval or (0, 0)
    assert 0 < low < worse.differences["everything"].ln_ratio < high
    if table.effective >= 20:
        assert "There is no difference above 0.5%" in table.sentences[0]
        assert " is worse than " in table.sentences[1]
    else:
        assert "Nothing can be concluded" in table.sentences[0]
    raw = score(ScoreOptions(tuple(gpt2s[:1]), on=made / "work", test="raw"))
    assert raw is not None
    assert raw.conversations > table.conversations


def test_training_texts_hold_no_test_conversation(made: Path, my_run: Path, tmp_path: Path) -> None:
    """Those of each corpus as it came, and none that its test set holds."""
    from pipeline.models.score import ScoreOptions, score
    from pipeline.models.work import open_work

    assert score(ScoreOptions(on=made / "work", training_texts=tmp_path)) is None
    texts = {}
    for arm in ("raw", "refined"):
        lines = (tmp_path / f"{arm}.jsonl").read_text(encoding="utf-8").splitlines()
        texts[arm] = ["\n".join(one["content"] for one in json.loads(line)["messages"]) for line in lines]
    frame = pl.concat([pl.read_parquet(path) for path in sorted((my_run / "refined").glob("*.parquet"))])
    kept = frame["messages"].list.eval(pl.element().struct["content"]).list.join("\n")
    tested = set(open_work(made / "work").test("both").conversations["text"])
    assert len(tested) > 10
    assert not tested & (set(texts["raw"]) | set(texts["refined"]))
    assert set(texts["refined"]) < set(kept)
    assert set(texts["refined"]) < set(texts["raw"])


def test_a_comparison_of_an_earlier_version_is_refused(made: Path, tmp_path: Path) -> None:
    """Without the file that says which conversations are whose, arms could not be told apart."""
    from pipeline.models.work import open_work

    old = tmp_path / "old"
    shutil.copytree(made / "work", old, ignore=shutil.ignore_patterns("trainings"))
    (old / "data" / "arms.json").unlink()
    with pytest.raises(RunFolderError, match="start the same command again, which repeats no training run"):
        open_work(old)


def test_a_folder_without_a_test_set_is_refused(made: Path, tmp_path: Path) -> None:
    """And so is a test set that there is not, and options that contradict each other."""
    from pipeline.models.score import ScoreOptions, score

    for options, words in (
        (ScoreOptions(("m",), on=tmp_path), "is not the folder of an experiment"),
        (ScoreOptions(("m",), on=made / "work", test="best"), "--test is 'best', expected raw, refined or both"),
        (ScoreOptions(("m",)), "--on, or a corpus with --text"),
        (ScoreOptions(("m", "n"), (tmp_path,), on=made / "work"), "--adapter needs one MODEL"),
    ):
        with pytest.raises(RefineError, match=re.escape(words)):
            score(options)
