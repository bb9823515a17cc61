"""The page of an ablation: what each rule does to the exponent and to PPL, by itself and on top of all others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipeline.compare.figures import SAYS, VALUES, figure, panel
from pipeline.compare.numbers import Rows, finite
from pipeline.compare.sections import WORTH, tests
from pipeline.compare.verdict import alpha_said, efficiency_said, ratio_said
from pipeline.report.parts import Figure, Page, Section, Table, Tile
from pipeline.report.text import visible
from trainer.scaling import Difference

if TYPE_CHECKING:
    from pipeline.ablate.result import Ablated

HOW = {"alone": "Each rule alone, against raw", "on top": "Each rule on top of all others"}


def page(found: Ablated) -> Page:
    """The report of an ablation."""
    run = found.pair.run
    name = visible(run.folder.resolve().name, 60) if run is not None else ""
    figures = tuple(one for one in (_figure(found, key) for key in VALUES) if one)
    head, rows = rows_of(found)
    notes = filter(None, (one.test.small for one in found.tests()))
    members = found.pair.union.members
    return Page(
        title=f"Which rule moved the exponent of {name}?",
        kicker=f"refine ablate · {name}",
        headline=visible(found.sentence),
        tiles=tuple(Tile(f"{int(mask.sum()):,}", f"conversations in {arm}") for arm, mask in members.items()),
        warnings=(),
        checks=tuple(found.checks),
        sections=(
            Section(
                "rules",
                "What each rule does",
                "A rule alone: the corpus that only this rule has cleaned, against raw. On top: the refined corpus "
                "against what all other rules leave."
                + (f" PPL is that at the largest budget. {WORTH}" if found.scored else ""),
                figures,
                (Table(head, tuple(rows)), *([tests(found.tests())] if found.scored else [])),
                missing=tuple(f"{visible(said)}." for said in [*notes, *found.skipped]),
            ),
            Section(
                "origin",
                "How to repeat it",
                "Trainings that two arms share are done once; the same command goes on where it stopped.",
                texts=(("The command that makes this again", visible("\n".join([found.command, *_plan(found)]))),),
            ),
        ),
        numbers=numbers(found),
    )


def _plan(found: Ablated) -> list[str]:
    if found.design is None or found.arms is None:
        return []
    budgets = ", ".join(f"{budget:,}" for budget in found.design.budgets)
    return [f"# preset {found.arms.preset.name}; budgets {budgets} tokens; {found.design.seeds} seeds"]


def rows_of(found: Ablated) -> tuple[tuple[str, ...], Rows]:
    """A row a contrast and test set; without trainings, a row a contrast and what it drops."""
    head = ("rule", "how", "drops", "adds", "test set", "delta alpha", "PPL differs by", "a token's worth")
    rows: Rows = []
    for one in found.contrasts:
        begin = (visible(one.reason, 40), one.how, one.dropped, one.added)
        scored = found.scored.get((one.reason, one.how), ())
        differences = [(each.test.name, each.differences["power"]) for each in scored if "power" in each.differences]
        rows += [(*begin, visible(test, 40), *_said(power)) for test, power in differences] or [
            begin if not found.scored else (*begin, "-", "-", "-", "-")
        ]
    return head if found.scored else head[:4], rows


def _said(power: Difference) -> tuple[str, str, str]:
    """A contrast's numbers; both arms may hold the same conversations at every budget."""
    if power.delta_alpha == 0 and power.ln_ratio == 0:
        return "0, the same trainings", "0", "1"
    return alpha_said(power), ratio_said(power), efficiency_said(power)


def numbers(found: Ablated) -> dict[str, Any]:
    """Everything for a script."""
    keys = ("delta_alpha", "delta_ln_A", "ln_ratio", "efficiency")
    told = [
        {
            **{key: getattr(one, key) for key in ("reason", "how", "first", "second", "dropped", "added")},
            "test_sets": {
                each.test.name: {
                    name: finite(getattr(each.differences["power"], name))
                    for key in keys
                    for name in (key, f"{key}_interval")
                }
                | {"extrapolates": each.differences["power"].extrapolates}
                for each in found.scored.get((one.reason, one.how), ())
                if "power" in each.differences
            },
        }
        for one in found.contrasts
    ]
    design = found.design
    return {
        "command": found.command,
        "verdict": found.sentence,
        "contrasts": told,
        "skipped": list(found.skipped),
        "budgets": list(design.budgets) if design else [],
        "seeds": design.seeds if design else 0,
    }


def _figure(found: Ablated, key: str) -> Figure | None:
    """Differences with their intervals, a panel for each way; None where nothing was trained."""
    panels = []
    for how, title in HOW.items():
        rows = [
            (one.reason, each.test.name, each.differences["power"])
            for one in found.contrasts
            if one.how == how
            for each in found.scored.get((one.reason, one.how), ())
            if "power" in each.differences
        ]
        panels.append(panel(title, key, rows))
    what = {"delta_alpha": "Change of the exponent", "ln_ratio": "Change of PPL at the largest budget"}[key]
    return figure(f"rules-{key.replace('_', '-')}", what, f"{SAYS}.", panels)
