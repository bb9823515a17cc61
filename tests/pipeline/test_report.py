"""`refine report`: what is written where, what its checks find, and what a user's errors get."""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from pipeline.compare.figures import laws
from pipeline.report import folder
from pipeline.report.folder import ReportError, build
from pipeline.report.parts import Check, Figure, Page, Panel, Section
from pipeline.report.run.bands import in_bands
from pipeline.report.run.checks import Bounds, check
from pipeline.report.run.frame import kinds, read_run
from pipeline.report.run.sections import page
from pipeline.report.text import short
from stages.files import read_frame, save_frame
from tests.conftest import contents
from tests.pipeline.report_corpus import PLAN, records, refine, run


@dataclass(frozen=True)
class Made:
    """A run and its report, made once for all tests of this module."""

    run: Path
    done: subprocess.CompletedProcess[str]

    @property
    def report(self) -> Path:
        return self.run.parent / "reports" / "my-run"

    def rows(self, figure: str, panel: int = 0) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = numbers(self.report)["figures"][figure]["panels"][panel]["rows"]
        return found


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    here = tmp_path_factory.mktemp("report")
    done = run(here, records())
    return Made(done, refine(here, "report", "my-run", "--check"))


def numbers(report: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((report / "report.json").read_text())
    return found


def test_a_report_is_a_page_a_picture_a_figure_and_the_numbers(made: Made) -> None:
    """By default in reports/ under the run's name; all checks pass, and the last line is where the page is."""
    assert (made.done.returncode, made.done.stderr) == (0, "")
    assert made.done.stdout.rstrip().splitlines()[-1].strip() == "reports/my-run/index.html"
    found = numbers(made.report)
    wanted = {"index.html", "report.json", *(f"{name}.png" for name in found["figures"])}
    assert {path.name for path in made.report.iterdir()} == wanted
    assert set(found["files"]) == wanted - {"report.json"}
    assert all((made.report / name).read_bytes()[:4] == b"\x89PNG" for name in wanted if name.endswith(".png"))
    figures = {"retention", "ppl-tox", "duplicates-ppl-tox", "removed-ppl", "rules", "distributions", "correlations"}
    assert figures | {"signals-source", "signals-prompt", "mix"} == set(found["figures"])


def test_the_same_run_gives_the_same_bytes(made: Made) -> None:
    """Samples are drawn by seed, and no clock is written down; a second report takes the place of the first."""
    once = {path.name: path.read_bytes() for path in made.report.iterdir()}
    assert refine(made.run.parent, "report", "my-run", "--json").returncode == 0
    assert {path.name: path.read_bytes() for path in made.report.iterdir()} == once


def test_every_figure_counts_every_conversation(made: Made) -> None:
    """Cells, reasons and shares add up to what the manifest says."""
    manifest = json.loads((made.run / "manifest.json").read_text())
    counts, by_rule = manifest["counts"], manifest["by_rule"]
    assert by_rule["near_duplicate"] > 0
    assert by_rule["toxic"] > 0
    cells = [sum(row[name] for row in made.rows("ppl-tox", i)) for i, name in enumerate(("raw", "refined", "removed"))]
    assert cells == [counts["ingested"], counts["refined"], counts["rejected"]]
    removed = pl.DataFrame(made.rows("removed-ppl")).group_by("y").agg(pl.col("n").sum())
    assert dict(removed.iter_rows()) == {reason: n for reason, n in by_rule.items() if n}
    for panel in numbers(made.report)["figures"]["mix"]["panels"]:
        assert sum(row["raw"] for row in panel["rows"]) == counts["ingested"], panel["title"]
        assert sum(row["refined_share"] for row in panel["rows"]) == pytest.approx(1)
    steps = made.rows("retention")
    assert [steps[0]["n"], steps[-1]["n"]] == [counts["ingested"], counts["refined"]]


def test_a_difference_is_the_share_of_a_cell_that_was_dropped(made: Made) -> None:
    """Of its raw conversations, from 0 to 1, with their number beside it; unknown for an empty cell."""
    raw, refined, difference = (made.rows("ppl-tox", i) for i in range(3))
    for before, after, change in zip(raw, refined, difference, strict=True):
        assert change["removed"] == before["raw"] - after["refined"]
        share = change["removed"] / before["raw"] if before["raw"] else None
        assert change["removed_share"] == (share if share is None else pytest.approx(share))
    duplicates = zip(raw, made.rows("duplicates-ppl-tox", 0), made.rows("duplicates-ppl-tox", 2), strict=True)
    for before, share, change in duplicates:
        many = round(before["raw"] * (share["dup_raw"] or 0))
        expected = change["dup_removed"] / many if many else None
        assert change["dup_removed_share"] == (expected if expected is None else pytest.approx(expected))


def test_words_are_counted_beside_conversations(made: Made) -> None:
    """In cells, steps, rules, bins and mixes, and all of them add up to the signal; the headline has tokens."""
    rows = read_run(made.run).rows
    words = {keep: int(rows.filter(keep=keep)["n_words"].sum()) for keep in (True, False)}
    kept, total = words[True], sum(words.values())
    assert sum(row["raw_words"] for row in made.rows("ppl-tox", 0)) == total
    assert sum(row["refined_words"] for row in made.rows("ppl-tox", 1)) == kept
    steps = {row["step"]: row for row in made.rows("retention", 1)}
    assert (steps["in"]["words"], steps["kept"]["words"]) == (total, kept)
    assert steps["kept"]["words_share"] == pytest.approx(kept / total)
    by_rule = dict(rows.group_by(pl.col("reason").cast(pl.String)).agg(pl.col("n_words").sum()).iter_rows())
    table = numbers(made.report)["tables"]["rules"][0]
    column = table["head"].index("words dropped")
    for row in table["rows"]:
        assert row[column] == by_rule.get(row[0], 0) == steps.get(row[0], {"words": 0})["words"]
    assert sum(row["words"] for row in made.rows("removed-ppl")) == words[False]
    for panel in numbers(made.report)["figures"]["mix"]["panels"]:
        assert sum(row["raw_words"] for row in panel["rows"]) == total, panel["title"]
    counts = numbers(made.report)["counts"]
    tokens = counts["refined_tokens"] + counts["rejected_tokens"]
    assert numbers(made.report)["kept_token_share"] == pytest.approx(counts["refined_tokens"] / tokens)
    assert f"and {counts['rejected_tokens'] / tokens:.1%} of the tokens." in numbers(made.report)["headline"]


def test_heatmaps_of_zeros_are_a_sentence(made: Made) -> None:
    """No chart of refined, in which no duplicate is left; its numbers are in report.json all the same."""
    page = (made.report / "index.html").read_text()
    figure = page.split('id="figure-duplicates-ppl-tox"')[1].split("</figure>")[0]
    assert "<b>Refined</b> No conversation has a duplicate." in figure
    assert figure.count("data-chart=") == 2
    assert {row["dup_refined"] for row in made.rows("duplicates-ppl-tox", 1)} == {0, None}


def test_a_mixed_corpus_has_the_perplexities_of_each_source(made: Made) -> None:
    """Quantiles of the known values, as numpy has them, beside the sizes of each source."""
    (table,) = numbers(made.report)["tables"]["heatmaps"]
    rows = read_run(made.run).rows
    assert [row[0] for row in table["rows"]] == ["books", "web"]
    for row in table["rows"]:
        of_source = rows.filter(pl.col("source").cast(pl.String) == row[0])
        known = of_source["ppl"].drop_nulls().to_numpy().astype(float)
        named = dict(zip(table["head"], row, strict=True))
        assert (named["conversations"], named["words"]) == (of_source.height, of_source["n_words"].sum())
        for head, at in (("ppl: 10 %", 10), ("25 %", 25), ("median", 50), ("75 %", 75), ("90 % below", 90)):
            assert named[head] == short(float(np.percentile(known, at)))


def test_refined_has_no_duplicates_and_raw_has(made: Made) -> None:
    """The share of duplicates is that of each corpus by itself."""
    assert any(row["dup_raw"] for row in made.rows("duplicates-ppl-tox", 0))
    assert not any(row["dup_refined"] for row in made.rows("duplicates-ppl-tox", 1))


def test_figures_of_a_large_run_count_a_sample(made: Made) -> None:
    """The same each time, and the page says so; checks and what is left are of all conversations, words included."""
    whole, read = read_run(made.run), read_run(made.run, most=100)
    assert 70 < read.rows.height < 130
    assert read.rows.equals(read_run(made.run, most=100).rows)
    assert read.rows.drop("source", "reason").equals(whole.rows[read.numbers].drop("source", "reason"))
    duplicates = kinds(read.plan, read.store)
    pages = [page(in_bands(one, duplicates), check(one, duplicates, Bounds())) for one in (whole, read)]
    assert pages[0].checks == pages[1].checks
    left, of_sample = ([panel.numbers for panel in one.sections[0].figures[0].panels] for one in pages)
    assert all(a.equals(b) for a, b in zip(left, of_sample, strict=True))
    assert pages[1].sections[0].says.endswith(f"count a random sample of {read.rows.height} of the 240 conversations.")
    assert pages[1].numbers == {**pages[0].numbers, "figure_rows": read.rows.height}


def checked(run: Path, bounds: Bounds = Bounds()) -> list[Check]:  # noqa: B008  frozen
    read = read_run(run)
    return check(read, kinds(read.plan, read.store), bounds)


def test_bounds_of_the_share_kept_are_the_users(made: Made) -> None:
    """A refinement that keeps more, or less, than was said fails that check alone."""
    assert all(one.passed for one in checked(made.run))
    for bounds in (Bounds(0.0, 0.5), Bounds(0.999, 1.0)):
        assert [one.name for one in checked(made.run, bounds) if not one.passed] == ["refined share within bounds"]


def reasonless(run: Path) -> None:
    path = next((run / "rejected").glob("*.parquet"))
    save_frame(path, read_frame(path).with_columns(reason=pl.lit(None, pl.String)))


def lost(run: Path) -> None:
    path = next((run / "refined").glob("*.parquet"))
    save_frame(path, read_frame(path).head(-1))


def nulled(run: Path) -> None:
    path = next((run / "refined").glob("*.parquet"))
    frame = read_frame(path)
    one = pl.struct(role=pl.lit("user"), content=pl.lit(None, pl.String))
    save_frame(path, frame.with_columns(messages=pl.concat_list(one)))


def swapped(run: Path) -> None:
    path = next((run / "refined").glob("*.parquet"))
    save_frame(path, read_frame(path).reverse())


def doubled(run: Path) -> None:
    """Decisions that keep a duplicate."""
    (path,) = (run / "decisions").glob("*.parquet")
    kept = pl.col("reason").ne_missing("near_duplicate")
    save_frame(path, read_frame(path).with_columns(keep=pl.col("keep") | ~kept))


@pytest.mark.parametrize(
    ("spoil", "name"),
    [
        (reasonless, "every dropped row has a reason"),
        (lost, "counts add up"),
        (nulled, "no text is null"),
        (swapped, "each conversation is where its decision says"),
        (doubled, "no two kept duplicates (dedup)"),
    ],
)
def test_each_check_finds_what_it_is_for(made: Made, tmp_path: Path, spoil: Callable[[Path], None], name: str) -> None:
    """A run that someone changed fails the check that names the change."""
    shutil.copytree(made.run, tmp_path / "my-run")
    spoil(tmp_path / "my-run")
    assert name in [one.name for one in checked(tmp_path / "my-run") if one.passed is False]


def test_a_folder_of_something_else_is_left_alone(made: Made, tmp_path: Path) -> None:
    """Neither files of another kind nor ones that were added to a report are touched; a link is not followed."""
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.md").write_text("mine")
    (tmp_path / "note").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "thesis")
    shutil.copytree(made.report, tmp_path / "ours")
    folder.check(tmp_path / "ours")
    (tmp_path / "ours" / "notes.txt").write_text("mine")
    for out, said in (("thesis", "chapter.md"), ("note", "is a file"), ("link", "is a link"), ("ours", "notes.txt")):
        with pytest.raises(ReportError, match=said), folder.write(tmp_path / out) as aside:
            (aside / "index.html").touch()
    done = refine(tmp_path, "report", made.run, "--out", "thesis")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "thesis is not a report folder of refine: it holds chapter.md; choose another" in done.stderr
    assert sorted(path.name for path in tmp_path.rglob("*.*") if "ours" not in path.parts) == ["chapter.md"]
    assert (tmp_path / "ours" / "notes.txt").read_text() == "mine"


def test_an_interrupted_report_leaves_the_old_one(tmp_path: Path) -> None:
    """Nothing half-written is ever in its place, and nothing is left beside it."""
    with folder.write(tmp_path / "report") as aside:
        (aside / "index.html").write_text("old")
        (aside / folder.MARK).write_text(json.dumps({"refine_report": "0", "files": ["index.html"]}))
    with contextlib.suppress(KeyboardInterrupt), folder.write(tmp_path / "report") as aside:
        (aside / "index.html").write_text("new")
        raise KeyboardInterrupt
    assert (tmp_path / "report" / "index.html").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["report"]


def test_what_is_no_finished_run_gets_one_sentence(made: Made, tmp_path: Path) -> None:
    """A folder without a run, and a run without its manifest; no report is begun."""
    (tmp_path / "empty").mkdir()
    done = refine(tmp_path, "report", "empty")
    assert (done.returncode, done.stderr) == (
        1,
        "refine: empty is not a run folder: it holds no source.json of a run; `refine run --out DIR` makes one\n",
    )
    shutil.copytree(made.run, tmp_path / "my-run")
    (tmp_path / "my-run" / "manifest.json").unlink()
    done = refine(tmp_path, "report", "my-run")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "my-run is not a complete run: start `refine run` again" in done.stderr
    assert not (tmp_path / "reports").exists()


def test_an_empty_refined_corpus_has_a_page_that_says_so(tmp_path: Path) -> None:
    """All was dropped: the raw side is shown, the check on the share fails, and --check says so to a script."""
    run(tmp_path, records(40), PLAN.replace("n_words < 6", "n_words < 600"))
    said = refine(tmp_path, "report", "my-run", "--check", "--json")
    assert (said.returncode, said.stderr) == (1, "")
    found = json.loads(said.stdout)
    assert found["report"] == "reports/my-run/index.html"
    assert [one["name"] for one in found["checks"] if one["passed"] is False] == ["refined share within bounds"]
    never = refine(tmp_path, "report", "my-run", "--min-kept", "0.9", "--max-kept", "0.1")
    assert (never.returncode, never.stderr.count("\n")) == (1, 1)
    assert "--min-kept 0.9 is above --max-kept 0.1" in never.stderr
    page = (tmp_path / "reports" / "my-run" / "index.html").read_text()
    assert "Nothing was kept" in page
    assert "0 (0.0%) were kept" in page


def test_a_run_of_one_stage_says_which_would_add_the_rest(tmp_path: Path) -> None:
    """Only duplicates were looked for: the page has what can be shown, and names the stages that were not run."""
    best = PLAN[PLAN.index("[[keep_best]]") :]
    run(tmp_path, records(60), f'order = ["dedup_words DESC"]\n[[stage]]\nuse = "dedup"\n{best}')
    assert refine(tmp_path, "report", "my-run").returncode == 0
    page = (tmp_path / "reports" / "my-run" / "index.html").read_text()
    for stage in ("ppl", "toxicity", "heuristics", "language"):
        assert f"the stage {stage} adds" in page
    assert "the stage dedup adds" not in page
    assert "length-source" in numbers(tmp_path / "reports" / "my-run")["figures"]


def test_a_run_that_counts_no_words_says_so(tmp_path: Path) -> None:
    """Its sizes are conversations alone, in the page and in report.json."""
    run(tmp_path, records(40), '[[stage]]\nuse = "language"\n')
    assert refine(tmp_path, "report", "my-run").returncode == 0
    assert "Words were not counted in this run" in (tmp_path / "reports" / "my-run" / "index.html").read_text()
    found = numbers(tmp_path / "reports" / "my-run")
    rows = [row for figure in found["figures"].values() for panel in figure["panels"] for row in panel["rows"]]
    assert rows
    assert not [key for row in rows for key in row if "words" in key]


def test_the_command_of_a_report_repeats_the_run(tmp_path: Path) -> None:
    """With every option that decides which conversations are in which shard."""
    options = ("--limit", 50, "--sample", "0.5", "--shape", "ultrachat", "--shard-rows", 7)
    made = run(tmp_path, records(60), '[[stage]]\nuse = "heuristics"\n', *options)
    assert refine(tmp_path, "report", "my-run").returncode == 0
    page = (tmp_path / "reports" / "my-run" / "index.html").read_text()
    found = re.search(r"<pre[^>]*>refine (run corpus.jsonl .*)\n# source digest", page)
    assert found
    done = refine(tmp_path, *shlex.split(found[1]))
    assert done.returncode == 0, done.stderr
    again = tmp_path / "my-run-again"
    assert len(list((made / "refined").iterdir())) > 1
    assert contents(again / "raw") == contents(made / "raw")
    assert contents(again / "refined") == contents(made / "refined")


def test_a_section_of_other_numbers_can_be_added(tmp_path: Path) -> None:
    """Laws from given numbers: a page, a picture and the numbers, without any run."""
    points = pl.DataFrame(
        {
            "arm": ["raw", "refined"] * 3,
            "tokens": [1e4, 1e4, 1e5, 1e5, 1e6, 1e6],
            "ppl": [600.0, 580.0, 250.0, 240.0, 104.0, 96.0],
        }
    )
    curves = points.with_columns(low=pl.col("ppl") - 10, high=pl.col("ppl") + 10, extrapolated=pl.col("tokens") > 1e5)
    figure = Figure("laws", "Scaling laws", "PPL by training tokens.", (Panel("", laws(points, curves), points),))
    page = Page(
        "a and b",
        "refine compare",
        "Nothing can be concluded.",
        (),
        (),
        (),
        (Section("laws", "Laws", "Both.", (figure,)),),
    )
    found = build(page, tmp_path / "compare")
    assert found["figures"]["laws"]["panels"][0]["rows"] == points.to_dicts()
    assert (tmp_path / "compare" / "laws.png").stat().st_size > 5000
    assert 'id="laws"' in (tmp_path / "compare" / "index.html").read_text()
