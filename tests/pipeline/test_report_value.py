"""The sections of value and meaning in a report: numbers of the stages, clusters, and text that attacks the page."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from pipeline.report import charts
from pipeline.report.run import value
from pipeline.report.run.bands import BandedRun, in_bands, split_by_cluster
from pipeline.report.run.checks import Bounds, check
from pipeline.report.run.examples import examples
from pipeline.report.run.frame import kinds, read_run
from stages.files import read_json
from tests.conftest import call
from tests.pipeline.report_corpus import POISON
from tests.stages.test_value import CODE, COOK, chats, corpus

PLAN = """
[[stage]]
use = "semantic"
floor = 0.9
clusters = 4
[[stage]]
use = "target"
target = {target!r}
[[keep_best]]
reason = "same_meaning"
pairs = "semantic"
at_least = 0.95
[[keep_top]]
reason = "not_selected"
by = "target_entropy_difference DESC"
per = "semantic_cluster"
conversations = 12
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, BandedRun]:
    """A run over two subjects, a few copies and hostile prompts, and what its report reads of it."""
    folder = tmp_path_factory.mktemp("value")
    some = [*chats(CODE, range(60)), *chats(COOK, range(40)), *chats(CODE, range(8))]
    some += [[{"role": "user", "content": f"bread {text[:2000]}"}] for text in POISON]
    source = corpus(folder / "mixed.jsonl", some)
    target = corpus(folder / "target.jsonl", chats(COOK, range(200, 240)))
    (folder / "plan.toml").write_text(PLAN.format(target=target))
    done = call("run", source, "--plan", "plan.toml", "--out", "my-run", cwd=folder)
    assert done.returncode == 0, done.stderr
    run = read_run(folder / "my-run")
    return folder, in_bands(run, kinds(run.plan, run.store))


def table(run: BandedRun, section: str) -> list[tuple[Any, ...]]:
    (found,) = [one for one in value.sections(run) if one.name == section]
    return list(found.tables[0].rows)


def test_the_map_counts_each_cluster_of_the_signal(made: tuple[Path, BandedRun]) -> None:
    """Raw and kept conversations, by a count of the signals and decisions themselves."""
    folder, run = made
    frame = value.clusters(run, value.summaries(run)["semantic"])
    signals = pl.concat([pl.read_parquet(path) for path in sorted(folder.glob("my-run/signals/semantic*/merged/*"))])
    decided = pl.concat([pl.read_parquet(path) for path in sorted(folder.glob("my-run/decisions/*"))])
    both = signals.join(decided, on="id").drop_nulls("semantic_cluster").group_by("semantic_cluster")
    slow = both.agg(raw=pl.len(), refined=pl.col("keep").sum()).sort("semantic_cluster")
    assert frame.select("yi", "raw", "refined").rows() == slow.rows()
    assert frame["share"].to_list() == (slow["refined"] / slow["raw"]).to_list()
    assert frame["raw"].is_sorted(descending=True)


def test_what_the_models_found_stands_in_the_report(made: tuple[Path, BandedRun]) -> None:
    """The held-out AUC of the target's models; and of the other stages, what their files say."""
    folder, run = made
    found = read_json(next(folder.glob("my-run/signals/target*/target.json")))
    rows = {what: said for _, what, said in table(run, "value")}
    assert f"{found['auc']:.3f}" in rows.values()
    others = {
        "quality": {"auc": 0.875, "like": 30, "other": 30, "words_like": ["<b>", "\u202eoven"], "words_other": []},
        "follows": {"files": [], "pairs": 3, "preference": None, "judged": 0},
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(value, "summaries", lambda _: others)
        said = [each for *_, each in table(run, "value")]
    assert said == ["0.875", "30, 30", "<b>, ⟨U+202E⟩oven", "", "too few replies to train a model on"]


def test_the_page_holds_the_map_and_survives_its_words(made: tuple[Path, BandedRun]) -> None:
    """Words and examples of hostile prompts are text; the numbers of the map are in report.json."""
    folder, _ = made
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.report.page.png", lambda _figure: b"\x89PNG")
        done = call("report", "my-run", cwd=folder)
    assert done.returncode == 0, done.stderr
    page = (folder / "reports" / "my-run" / "index.html").read_text()
    assert not any(f"<{attack}" in page for attack in ("script>alert", "img src=x", "svg/onload"))
    rows = json.loads((folder / "reports" / "my-run" / "report.json").read_text())["figures"]["meaning"]["panels"][0]
    assert {"x", "y", "raw", "refined", "words"} <= set(rows["rows"][0])


def test_a_kept_duplicate_that_keep_top_drops_later_is_no_loss(made: tuple[Path, BandedRun]) -> None:
    """Every check of the run passes, and the one of duplicates says what it leaves out."""
    _, run = made
    checks = {one.name: one for one in check(run, kinds(run.plan, run.store), Bounds())}
    lost = checks["every dropped duplicate has a kept one"]
    assert lost.passed
    assert "apart from what keep_top dropped" in lost.found
    assert "at cosine 0.95" in checks["no two kept duplicates (semantic)"].found
    named = run.rows.filter(pl.col("reason").cast(pl.String) == "same_meaning")["duplicate_of"].drop_nulls()
    assert run.rows.filter(pl.col("id").is_in(named.implode()), ~pl.col("keep")).height > 0  # there is one


def test_an_example_of_the_same_meaning_has_its_cosine(made: tuple[Path, BandedRun]) -> None:
    """As the decisions have it, under the name of the measure."""
    _, run = made
    cosines = {row["id"]: row["cosine"] for row in run.rows.drop_nulls("duplicate_of").iter_rows(named=True)}
    found = {one["id"]: one["alike"] for one in examples(run) if "alike" in one}
    assert found
    assert found == {name: f"cosine {round(cosines[name], 3)}" for name in found}


def test_examples_of_clusters_are_not_shown_where_data_are_redacted(made: tuple[Path, BandedRun]) -> None:
    """An example is cut, so that half an address could stay."""
    _, run = made
    redacted = replace(run, plan=replace(run.plan, redact=("email",)))
    frame = value.clusters(redacted, value.summaries(run)["semantic"])
    assert frame["example"].unique().to_list() == ["(not shown, because personal data are redacted)"]


def test_words_on_the_map_do_not_cover_each_other() -> None:
    """The smaller cluster gives way, also where there are many; the words are legible in dark mode."""
    spots = pl.DataFrame({"x": [0.0, 0.1, 0.1, 1.0], "y": [0.0, 0.0, 0.5, 1.0], "label": ["some, words"] * 4})
    assert value.with_room(spots).to_list() == ["some, words", "", "some, words", "some, words"]
    assert value.with_room(spots.head(1)).to_list() == ["some, words"]
    row = pl.DataFrame({"x": [0.0] * 40, "y": [float(i) for i in range(40)], "label": ["words"] * 40})
    assert (value.with_room(row) != "").sum() == value.LABELLED
    drawn = spots.with_columns(raw=pl.lit(1), share=pl.lit(0.5), tip=pl.lit(""), pick=pl.lit(""))
    assert charts.bubbles(drawn).to_dict()["layer"][1]["name"] == "beside"
    assert ".beside_marks text" in (Path(charts.__file__).parent / "page.css").read_text()


def test_clusters_beyond_the_largest_share_a_band() -> None:
    """As do conversations without one."""
    band, index = split_by_cluster(pl.Series([0, 63, 64, 900, None], dtype=pl.UInt32))
    assert [band.labels[i] for i in index] == ["0", "63", "others", "others", "unknown"]
    band, index = split_by_cluster(pl.Series([None, None], dtype=pl.UInt32))
    assert [band.labels[i] for i in index] == ["unknown", "unknown"]
