"""A plan is checked before any work, and says what it could not understand."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline import plan as planning
from pipeline.plan import PlanError
from pipeline.rules import Drop, KeepBest, RuleError
from stages import UnknownStageError
from tests.conftest import ROOT

TOY = ROOT / "tests" / "pipeline" / "toy.toml"


def test_the_default_plan_gives_each_rule_a_source() -> None:
    """It loads, every rule says why, of any corpus, and it is short enough to be read in two minutes."""
    plan = planning.load(planning.DEFAULT)
    assert [measured.name for measured in plan.stages] == ["heuristics", "language", "dedup", "ppl", "toxicity"]
    assert all(rule.because for rule in plan.rules)
    assert not [rule.because for rule in plan.rules if "%" in rule.because or "embedded" in rule.because]
    assert len(planning.DEFAULT.read_text().split()) < 700


NAMES = ["default", "pretrain", "sft", "strict", "ultrachat"]


@pytest.mark.parametrize("name", NAMES)
def test_each_plan_by_name_can_be_read_in_two_minutes(name: str) -> None:
    """It loads, says in its first line what it is for, and gives each rule a reason of its own and a source."""
    path = planning.find(name)
    plan = planning.load(path)
    assert path.read_text().startswith(f"# {planning.named()[name]}\n")
    assert len(path.read_text().split()) < 700
    assert len({rule.reason for rule in plan.rules}) == len(plan.rules)
    assert all(rule.because for rule in plan.rules)


def test_a_plan_is_a_name_or_a_path() -> None:
    """Text with an ending or a slash is a path, even that of a file that is called like a plan."""
    assert list(planning.named()) == NAMES
    assert planning.find(None) == planning.find("default") == planning.DEFAULT
    for path in ("sft.toml", "./sft", "plans/sft", "/sft"):
        assert planning.find(path) == planning.find(Path(path)) == Path(path)


@pytest.mark.parametrize(("name", "hint"), [("stict", "did you mean 'strict'? "), ("mine", ""), ("", "")])
def test_a_wrong_name_of_a_plan_is_one_sentence(name: str, hint: str) -> None:
    """With the names that there are, and how a file is named."""
    with pytest.raises(PlanError) as error:
        planning.find(name)
    assert str(error.value) == (
        f"there is no plan {name!r}: {hint}there are {', '.join(NAMES)}; a file is named with its ending or as ./{name}"
    )


def test_a_plan_survives_being_written(tmp_path: Path) -> None:
    """The plan.toml of a run is read as the plan that made it, --drop rules and parameters included."""
    plan = planning.load(TOY).with_drops(["words > 99", "long: words > 77"]).check()
    (tmp_path / "plan.toml").write_text(planning.dumps(plan))
    again = planning.load(tmp_path / "plan.toml")
    assert (again.rules, again.order, again.columns) == (plan.rules, plan.order, plan.columns)
    assert [m.key for m in again.stages] == [m.key for m in plan.stages]


def test_picking_stages_keeps_the_rules_they_suffice_for() -> None:
    """The rules that need another stage are omitted, and it they are listed."""
    plan = planning.load(TOY).with_stages(["tests.pipeline.toy_stages:Words"])
    assert [rule.reason for rule in plan.rules] == ["too_short"]
    assert plan.left_out == ("far_too_long", "duplicate")
    assert plan.columns == ("words",)


def test_added_rules_come_before_the_choice_among_duplicates() -> None:
    """A row that --drop drops is no longer the kept one of its group."""
    plan = planning.load(TOY).with_drops(["noisy: words > 5", "words > 9"])
    assert plan.rules[-3:-1] == (Drop("noisy", "words > 5", "--drop"), Drop("words > 9", "words > 9", "--drop"))
    assert isinstance(plan.rules[-1], KeepBest)


@pytest.mark.parametrize(
    ("given", "reason", "where"),
    [
        ("too long: words > 5", "too long", "words > 5"),
        (" too-long :words > 5", "too-long", "words > 5"),
        ("words::int > 5", "words::int > 5", "words::int > 5"),
        ("long: words::int > 5", "long", "words::int > 5"),
        ("language = 'a:b'", "language = 'a:b'", "language = 'a:b'"),
    ],
)
def test_an_added_rule_may_have_a_reason(given: str, reason: str, where: str) -> None:
    """Words before the first colon; a cast and a colon in a text belong to the condition."""
    assert planning.load(TOY).with_drops([given]).rules[-2] == Drop(reason, where, "--drop")


STAGE = '[[stage]]\nuse = "tests.pipeline.toy_stages:Words"\n'


@pytest.mark.parametrize(
    ("text", "kind", "expected"),
    [
        ("stage = 3", PlanError, r"stage should be written as \[\[stage\]\]"),
        ("[[stages]]\n", PlanError, "unknown key 'stages': did you mean 'stage'"),
        ('[[stage]]\nuse = "dedupe"', UnknownStageError, "unknown stage 'dedupe': did you mean 'dedup'"),
        ('[[stage]]\nuse = "no.such:Thing"', UnknownStageError, "cannot be loaded"),
        ('[[stage]]\nuse = "pathlib:Path"', UnknownStageError, "is not a subclass"),
        ("[[stage]]\n", PlanError, r"a \[\[stage\]\] needs use"),
        (STAGE + "at_lest = 3", PlanError, "unknown key 'at_lest': did you mean 'at_least'"),
        (STAGE + 'at_least = "x"', PlanError, "at_least is 'x', expected int"),
        (STAGE + STAGE, PlanError, "both write the column 'words'"),
        (STAGE + '[[drop]]\nreason = "r"', PlanError, "has no where"),
        (STAGE + '[[drop]]\nreason = "keep"\nwhere = "words > 1"', PlanError, "cannot have the reason 'keep'"),
        (STAGE + '[[drop]]\nreason = "r"\nwhere = "wrds > 1"', RuleError, "no stage writes the column 'wrds'"),
        ('columns = ["none"]\n' + STAGE, PlanError, "no stage writes 'none'"),
        ("order = 3", PlanError, "order is 3, expected a list of strings"),
        ("this is not TOML", PlanError, "is not TOML"),
    ],
)
def test_a_plan_that_cannot_be_used_is_one_sentence(
    tmp_path: Path, text: str, kind: type[Exception], expected: str
) -> None:
    """It names the file or the key, and what there is."""
    path = tmp_path / "plan.toml"
    path.write_text(text)
    with pytest.raises(kind, match=expected):
        planning.load(path)


def test_a_plan_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    """The path is in it."""
    with pytest.raises(PlanError, match=r"nothing\.toml cannot be read"):
        planning.load(tmp_path / "nothing.toml")
