"""The audit of a run of a damaged corpus: recall, intervals, rules and false drops, from the run alone."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from math import sqrt
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import refine
from pipeline.plant.audit import Baseline, audit
from pipeline.plant.kinds import KINDS
from pipeline.report.run import figures
from pipeline.report.run.bands import in_bands
from pipeline.report.run.examples import examples
from pipeline.report.run.frame import read_run
from pipeline.store import Store
from refine import report as make_report
from stages.files import read_frame, save_frame
from tests.conftest import Refine
from tests.pipeline.report_corpus import refine as start
from tests.pipeline.test_plant import talk

pytestmark = pytest.mark.usefixtures("no_pictures")

PLAN = """
order = ["dedup_words DESC"]
columns = []
[[stage]]
use = "heuristics"
[[stage]]
use = "dedup"
[[drop]]
reason = "empty_reply"
where = "empty_replies > 0"
[[drop]]
reason = "looping"
where = "reply_repetition > 0.4"
[[drop]]
reason = "odd"
where = "REGEXP_LIKE(first_role, 'nobody') OR n_words < 50"
[[keep_best]]
reason = "near_duplicate"
pairs = "dedup"
at_least = 0.8
"""


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a corpus, its damaged copy, and a run of each; every tenth conversation is too short."""
    folder = tmp_path_factory.mktemp("audit")
    records = [talk(i, words=2 if i % 10 == 9 else 20) for i in range(120)]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (folder / "plan.toml").write_text(PLAN)
    for words in (
        ("plant", "corpus.jsonl", "--share", 0.05, "--out", "damaged"),
        ("run", "damaged", "--plan", "plan.toml", "--out", "my-run", "--workers", 1),
        ("run", "corpus.jsonl", "--plan", "plan.toml", "--out", "clean", "--workers", 1),
    ):
        done = start(folder, *words)
        assert done.returncode == 0, done.stderr
    return folder


def expected(run: refine.Run) -> dict[str, tuple[int, int, dict[str, int]]]:
    """An independent, slow count, conversation by conversation: total, dropped, by rule; "" is untouched."""
    truth = {row["source_id"]: json.loads(row["extra"] or "{}") for row in run.raw.collect().iter_rows(named=True)}
    names = dict(run.raw.select("id", "source_id").collect().iter_rows())
    fate = {names[row["id"]]: row["reason"] for row in run.decisions.collect().iter_rows(named=True)}
    originals = {one["planted_of"] for one in truth.values() if "planted_of" in one}
    reasons: dict[str, list[str | None]] = {}
    for name, one in truth.items():
        if name not in originals:
            reason = fate[name] or (fate[one["planted_of"]] if "planted_of" in one else None)
            reasons.setdefault(one.get("planted_kind", ""), []).append(reason)
    return {
        kind: (len(each), len([one for one in each if one]), dict(Counter(one for one in each if one)))
        for kind, each in reasons.items()
    }


def test_the_audit_counts_what_was_planted_and_dropped(here: Path) -> None:
    """By kind and rule, as an independent count of the run's files."""
    run = refine.open_run(here / "my-run")
    made, slow = refine.audit(run), expected(run)
    assert {name: (one.total, one.dropped, one.by_rule) for name, one in made.kinds.items()} == {
        name: one for name, one in slow.items() if name
    }
    assert (made.untouched.total, made.untouched.dropped, made.untouched.by_rule) == slow[""]
    assert list(made.kinds) == [name for name in KINDS if name in made.kinds]
    assert made.kinds["empty_reply"].by_rule == {"empty_reply": 6}
    assert made.kinds["exact_copy"].by_rule == {"near_duplicate": 6}
    assert made.kinds["near_copy_85"].share == 1.0
    assert made.kinds["near_copy_75"].share == 0.0  # below the plan's 0.8


def wilson(k: int, n: int) -> tuple[float, float]:
    """Wilson's interval as in Brown, Cai and DasGupta 2001, equation 4."""
    z, p = 1.959963984540054, k / n
    middle, half = (k + z * z / 2) / (n + z * z), z * sqrt(n) / (n + z * z) * sqrt(p * (1 - p) + z * z / (4 * n))
    return middle - half, middle + half


def test_the_interval_is_wilsons(here: Path) -> None:
    """Against the formula."""
    made = refine.audit(here / "my-run")
    for one in (*made.kinds.values(), made.untouched):
        assert one.interval == pytest.approx(wilson(one.dropped, one.total), abs=1e-9)


def test_a_dropped_original_counts_as_found(here: Path) -> None:
    """A copy that is kept while its original is dropped was found."""
    run = refine.open_run(here / "my-run")
    copies = run.raw.filter(pl.col("source_id").str.ends_with("-exact_copy")).select("id").collect()["id"].to_list()
    kept = run.decisions.filter(pl.col("id").is_in(copies)).select("keep").collect()["keep"]
    assert kept.any()
    assert refine.audit(run).kinds["exact_copy"].dropped == 6


def test_false_drops_are_told_from_flaws_of_the_source(here: Path) -> None:
    """The short conversations are dropped with and without damage; nothing else that is untouched is."""
    made = refine.audit(here / "my-run", clean=here / "clean")
    assert made.baseline is not None
    assert made.untouched.by_rule == {"odd": made.baseline.dropped}
    assert made.baseline.dropped > 0
    assert made.baseline.only_here == 0
    assert refine.audit(here / "my-run").baseline is None


def test_a_drop_that_only_the_damage_causes_is_counted(here: Path) -> None:
    """It is kept in the clean run."""
    shutil.copytree(here / "clean", here / "forgiving")
    store = Store(here / "forgiving")
    (shard,) = store.shards()
    path = store.decisions(shard)
    save_frame(path, read_frame(path).with_columns(keep=pl.lit(value=True)))
    before = refine.audit(here / "my-run", clean=here / "clean").baseline
    after = refine.audit(here / "my-run", clean=here / "forgiving").baseline
    assert before is not None
    assert after == Baseline(dropped=0, only_here=before.dropped)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["clean"], "clean is no run of a damaged corpus: `refine plant SOURCE --out damaged` makes one"),
        (["damaged"], "damaged is not a run folder"),
        (["my-run", "--clean", "other-plan"], "have different plans: run both with the same one"),
        (["my-run", "--clean", "few"], "expected all: name a run of the source that was damaged"),
    ],
)
def test_errors_name_what_to_do(here: Path, words: list[object], says: str) -> None:
    """One sentence each."""
    if "other-plan" in words:
        shutil.copytree(here / "clean", here / "other-plan")
        assert start(here, "decide", "other-plan", "--drop", "n_words > 9").returncode == 0
    if "few" in words:
        start(here, "run", "corpus.jsonl", "--limit", 50, "--plan", "plan.toml", "--out", "few", "--workers", 1)
    done = start(here, "audit", *words)
    assert (done.returncode, done.stdout) == (1, "")
    assert says in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_terminal_and_json_say_the_same(here: Path) -> None:
    """A row per kind, with its rules; JSON holds every number."""
    printed = start(here, "audit", "my-run", "--clean", "clean").stdout
    held = json.loads(start(here, "audit", "my-run", "--clean", "clean", "--json").stdout)
    for name, one in held["kinds"].items():
        row = next(line.split() for line in printed.splitlines() if line.startswith(name))
        assert row[1:4] == [str(one["total"]), str(one["dropped"]), f"{one['recall']:.1%}"]
        assert all(reason in row for reason in one["by_rule"])
    assert (
        f"drops {held['baseline']['dropped']} of the untouched conversations; 0 are dropped only because of it"
        in printed
    )


def test_the_report_shows_the_damage(here: Path) -> None:
    """A heatmap of kinds by rules whose rows add up, for a run that has some and for no other."""
    report = refine.report(here / "my-run", out=here / "report")
    (panel,) = report.numbers["figures"]["planted"]["panels"]
    sums: Counter[str] = Counter()
    for cell in panel["rows"]:
        sums[cell["y"]] += cell["n"]
    made = refine.audit(here / "my-run")
    assert sums == {**{name: one.total for name, one in made.kinds.items()}, "(untouched)": made.untouched.total}
    assert {(cell["y"], cell["x"]): cell["n"] for cell in panel["rows"]}["exact_copy", "near_duplicate"] == 6
    assert "Planted damage" in report.page.read_text()
    assert "planted" not in refine.report(here / "clean", out=here / "report-clean").numbers["figures"]


def test_a_cell_shows_conversations_of_its_kind(here: Path) -> None:
    """A click on a kind and a rule asks for examples, and they are of that kind."""
    banded = in_bands(read_run(here / "my-run"), [])
    source_ids = dict(refine.open_run(here / "my-run").raw.select("id", "source_id").collect().iter_rows())
    findings = audit(banded.store)
    assert findings is not None
    (panel,) = figures.planted(banded, findings).panels
    assert panel.chart is not None
    data = json.dumps(panel.chart.to_dict())
    at, reason = list(KINDS).index("exact_copy"), banded.reasons.index("near_duplicate")
    assert f'"planted:{at} reason:{reason}"' in data
    shown = [one for one in examples(banded) if f"planted:{at}" in one["in"]]
    assert {one["kept"] for one in shown} == {True, False}
    assert all(source_ids[one["id"]].endswith("-exact_copy") for one in shown)


HOSTILE: tuple[Any, ...] = (
    {"planted_kind": "<script>alert(1)</script>"},
    {"planted_kind": ["exact_copy"]},
    {"planted_kind": 7, "planted_of": {"a": "b"}},
    {"planted_kind": "\x1b[31mexact_copy", "planted_of": 1},
    {"note": 'the text "planted_kind":"exact_copy" in a field'},
    {"deep": json.loads("[" * 150 + "]" * 150), "planted_kind": "nothing"},
)


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A run of records whose own fields look like the truth."""
    records = [{**talk(i), **HOSTILE[i % len(HOSTILE)]} for i in range(12)]
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (tmp_path / "plan.toml").write_text(PLAN)
    done = start(tmp_path, "run", "corpus.jsonl", "--plan", "plan.toml", "--out", "my-run", "--workers", 1)
    assert done.returncode == 0, done.stderr
    return tmp_path


def test_fields_that_only_look_like_the_truth_are_none(hostile: Path) -> None:
    """The audit says so, and the report is that of any corpus."""
    done = start(hostile, "audit", "my-run")
    assert done.returncode == 1
    assert "is no run of a damaged corpus" in done.stderr
    assert "planted" not in refine.report(hostile / "my-run", out=hostile / "report").numbers["figures"]


def test_a_truth_that_names_no_original_is_audited_alone(refine: Refine, tmp_path: Path) -> None:
    """A copy whose original was left out, as by --limit, counts by itself."""
    records = [{**talk(i), "planted_kind": "exact_copy", "planted_of": "gone"} for i in range(3)]
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    refine("run", "corpus.jsonl", "--stages", "heuristics", "--out", "my-run")
    held = json.loads(refine("audit", "my-run", "--json").stdout)
    made = held["kinds"]["exact_copy"]
    assert (made["total"], made["dropped"], made["recall"], made["by_rule"]) == (3, 0, 0.0, {})
    assert held["untouched"]["total"] == 0
    assert held["untouched"]["share"] == 0


def test_damage_that_a_repair_removes_is_found(refine: Refine, tmp_path: Path) -> None:
    """By the repair of that damage, and if it is kept: not by another one, and not twice if a rule drops it."""
    kinds = ("truncated", "truncated", "empty_reply", "empty_reply", "swapped_replies", "boilerplate")
    records: list[dict[str, Any]] = [{**talk(i), "planted_kind": kind} for i, kind in enumerate(kinds)]
    said = [one["messages"] for one in records]
    said[0][-1]["content"] += " It was seen by all of the"
    said[2][3]["content"] = ""
    said[3][3]["content"] = said[3][5]["content"] = said[3][7]["content"] = ""
    said[4].append({"role": "user", "content": "And then?"})
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    repairs = "".join(f'[[repair]]\ntrim = "{trim}"\n' for trim in ("empty", "truncated", "unanswered"))
    odd = '[[drop]]\nreason = "odd"\nwhere = "n_words < 200"\n'
    (tmp_path / "plan.toml").write_text(f'order = ["n_words DESC"]\n{repairs}[[stage]]\nuse = "heuristics"\n{odd}')
    refine("run", "corpus.jsonl", "--plan", "plan.toml", "--out", "my-run")
    held = json.loads(refine("audit", "my-run", "--json").stdout)["kinds"]
    found = {kind: (one["total"], one["dropped"], one["repaired"], one["recall"]) for kind, one in held.items()}
    assert found == {
        "truncated": (2, 0, 1, 0.5),
        "empty_reply": (2, 1, 1, 1.0),
        "swapped_replies": (1, 0, 0, 0.0),
        "boilerplate": (1, 0, 0, 0.0),
    }
    assert held["truncated"]["interval"] == pytest.approx(wilson(1, 2), abs=1e-9)
    printed = refine("audit", "my-run").stdout.splitlines()
    assert next(line.split() for line in printed if "truncated" in line)[1:5] == ["2", "0", "1", "50.0%"]
    (panel,) = make_report(tmp_path / "my-run", out=tmp_path / "report").numbers["figures"]["planted"]["panels"]
    cells = {(cell["y"], cell["x"]): cell["n"] for cell in panel["rows"]}
    assert [cells["truncated", x] for x in ("repaired", "kept")] == [1, 1]
