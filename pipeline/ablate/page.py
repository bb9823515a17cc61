"""The page of an ablation: what each rule does to the exponent and to PPL, alone and on top of all others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipeline.compare.figures import CHANGES, HOW_TO_READ, figure, panel
from pipeline.compare.mixes import statistics
from pipeline.compare.numbers import HeadAndRows, Rows, difference_dict, scored_numbers
from pipeline.compare.scored import Scored
from pipeline.compare.sections import EFFECTIVE_SIZE, scored_sentence, test_table
from pipeline.experiments.formats import change, delta_alpha, ppl_change, token_worth, with_interval
from pipeline.report.parts import Figure, Page, Section, Table, Tile
from pipeline.report.text import visible
from trainer.scaling import Difference

if TYPE_CHECKING:
    from pipeline.ablate.result import Ablation
    from pipeline.compare.corpora import Pair

PANELS = {"alone": "Each rule alone, against raw", "on top": "Each rule on top of all others"}
"""Titles of the panels of a figure, by `Contrast.how`."""
TERMS = (
    "CVFP, a small language model whose context vectors come from a fixed-point iteration, is trained on growing parts "
    "of each corpus, and PPL = A tokens^alpha is fitted. Delta alpha is the exponent with the rule minus the exponent "
    "without it: below 0, PPL falls faster with training tokens if the rule is applied. Test sets: raw-test holds "
    "conversations of the raw corpus, refined-test those of them that all rules keep."
)
"""Explanation of the terms of the headline."""


def page(ablation: Ablation) -> Page:
    """The report of an ablation."""
    run = ablation.pair.run
    name = visible(run.folder.resolve().name, 60) if run is not None else ""
    head, rows = contrast_rows(ablation)
    tests, command = ablation.test_sets(), ablation.command
    if ablation.experiment is not None:
        design, preset = ablation.experiment.design, ablation.experiment.arms.preset.name
        budgets = ", ".join(f"{budget:,}" for budget in design.budgets)
        command += f"\n# preset {preset}; budgets {budgets} tokens; seeds by budget {', '.join(map(str, design.seeds))}"
    about = (
        "Alone: the corpus that only this rule has cleaned, against raw. On top: the refined corpus against the corpus "
        "that all other rules leave."
    )
    if tests:
        about += (
            f" {scored_sentence(tests[0].test)} PPL differs by the mean over all pairs of training runs, with a 95 % "
            "interval over orders and test conversations. Beyond random rules: less the mean of random rules that drop "
            f"as much, with their spread in the interval. {EFFECTIVE_SIZE}"
        )
    return Page(
        title=f"Which rule of {name} helped?",
        kicker=f"refine ablate · {name}",
        headline=visible(ablation.sentence),
        tiles=tuple(
            Tile(f"{size['conversations']:,}", f"conversations in {arm}, with {size['words']:,} words")
            for arm, size in statistics(ablation.pair).items()
        ),
        warnings=(),
        checks=tuple(ablation.checks),
        sections=(
            Section(
                "rules",
                "What each rule does",
                about,
                tuple(filter(None, (_figure(ablation, key) for key in CHANGES))),
                (Table(head, tuple(rows)), *([test_table(tests)] if tests else [])),
                missing=tuple(
                    f"{visible(note)}."
                    for note in [
                        *target_notes(ablation.pair),
                        *filter(None, (one.test.small for one in tests)),
                        *ablation.skipped,
                    ]
                ),
            ),
            Section(
                "origin",
                "How to repeat it",
                "Arms with the same training data share a training run; after an interruption, repeat the command.",
                texts=(("The command that makes this again", visible(command)),),
            ),
        ),
        about=TERMS if tests else "",
        numbers=numbers(ablation),
    )


def target_notes(pair: Pair) -> list[str]:
    """What was left out of the target, as a sentence; none without a target."""
    return list(pair.target.notes) if pair.target else []


def contrast_rows(ablation: Ablation) -> HeadAndRows:
    """One row per contrast and test set; without training, one row per contrast and what it drops."""
    sizes = ("rule", "how", "drops", "words dropped", "adds")
    head = (*sizes, "test set", "delta alpha", "PPL differs by", "beyond random rules", "a token's worth")
    rows: Rows = []
    for one in ablation.contrasts:
        begin = (visible(one.reason, 40), one.how, one.dropped, one.dropped_words, one.added)
        if not ablation.scored:
            rows.append(begin)
            continue
        numbers = [(*begin, visible(of.test.name, 40), *_cells(of, power)) for of, power in ablation.by_power_law(one)]
        rows += numbers or [(*begin, "-", "-", "-", "-", "-")]
    return head if ablation.scored else sizes, rows


def _cells(of: Scored, power: Difference) -> tuple[str, str, str, str]:
    if power.delta_alpha == 0 and power.ln_ratio == 0:  # both arms hold the same conversations at every budget
        return "0, the same training runs", "0", "-", "1"
    choice = with_interval(of.choice.ln_ratio, of.choice.interval, change)
    return delta_alpha(power), ppl_change(power), choice, token_worth(power)


def numbers(ablation: Ablation) -> dict[str, Any]:
    """Everything for a script."""
    contrasts = [
        {
            **vars(one),
            "test_sets": {
                scored.test.name: {"scored": scored.test.scope, **difference_dict(power), **scored_numbers(scored)}
                for scored, power in ablation.by_power_law(one)
            },
        }
        for one in ablation.contrasts
    ]
    design = ablation.experiment.design if ablation.experiment else None
    return {
        "command": ablation.command,
        "verdict": ablation.sentence,
        "contrasts": contrasts,
        "skipped": list(ablation.skipped),
        "budgets": list(design.budgets) if design else [],
        "seeds": list(design.seeds) if design else [],
    }


def _figure(ablation: Ablation, key: str) -> Figure | None:
    """Differences with their intervals, a panel per way of applying a rule; None without training."""
    panels = []
    for how, title in PANELS.items():
        contrasts = [one for one in ablation.contrasts if one.how == how]
        rows = [(one.reason, of.test.name, power) for one in contrasts for of, power in ablation.by_power_law(one)]
        panels.append(panel(title, key, rows))
    return figure(f"rules-{key.replace('_', '-')}", CHANGES[key], f"{HOW_TO_READ}.", panels)
