"""The numbers of a comparison: rows of its tables for the terminal and the page, and the JSON of `--json`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import polars as pl

from pipeline.compare.corpora import Pair, Target
from pipeline.compare.mixes import statistics
from pipeline.compare.scored import Scored
from pipeline.compare.verdict import NetworkFinding
from pipeline.experiments.formats import (
    DIFFERENCE_HEAD,
    LAW_HEAD,
    change,
    delta_alpha,
    difference_cells,
    finite,
    law_cells,
    number,
    percent,
    ppl_change,
    with_interval,
)
from pipeline.experiments.laws import DIFFERENCE_NUMBERS
from pipeline.experiments.scale import lost_to
from trainer.experiment.kinds import KINDS
from trainer.prepare.arms import Arms
from trainer.scaling import Difference, Law

if TYPE_CHECKING:
    from pipeline.compare.result import Comparison

Rows = list[tuple[str | int | float | None, ...]]
HeadAndRows = tuple[tuple[str, ...], Rows]


def law_rows(one: Scored) -> HeadAndRows:
    """Each arm's laws on a test set, with the error of each at the largest budget, fitted without it."""
    head = ("corpus", *LAW_HEAD, "held-out error")
    fits = one.laws.fits.items()
    return head, [(arm, *law_cells(law), _held_out_error(one, arm, law)) for (arm, _), law in fits]


def _held_out_error(one: Scored, arm: str | None, law: Law) -> str:
    held = one.laws.held_out.get(arm)
    if held is None:
        return "-"
    error = held.power_error if law.kind == "power" else held.saturating_error
    return percent(error) + (", the better" if held.preferred == law.kind and held.clear else "")


def difference_rows(one: Scored) -> HeadAndRows:
    """The second arm against the first on a test set, by law."""
    return DIFFERENCE_HEAD, [difference_cells(difference) for difference in one.differences.values()]


SCOPES = {"replies": "replies", "everything": "all messages"}
"""What is scored, for a reader."""


def scope_rows(scored: Sequence[Scored]) -> HeadAndRows:
    """The difference on replies and on all messages, on one test set."""
    rows: Rows = []
    for one in scored:
        power = one.differences["power"]
        choice = with_interval(one.choice.ln_ratio, one.choice.interval, change)
        tokens = f"{one.test.tokens:,}"
        rows.append((SCOPES[one.test.scope], tokens, ppl_change(power), choice, delta_alpha(power)))
    return ("scored", "tokens", "PPL differs by", "beyond random rules", "delta alpha"), rows


def network_rows(findings: Sequence[NetworkFinding]) -> HeadAndRows:
    """What each network finds on the primary test set."""
    rows: Rows = []
    for one in findings:
        if (power := one.difference) is None:
            rows.append((one.label, "-", "-", "-"))
        else:
            choice = with_interval(one.choice.ln_ratio, one.choice.interval, change)
            rows.append((one.label, ppl_change(power), choice, delta_alpha(power)))
    return ("network", "PPL differs by", "beyond random rules", "delta alpha"), rows


def baselines(one: Scored) -> HeadAndRows:
    """PPL on a test set by budget with seed 0: the same tokens in the same order."""
    budgets = sorted(one.rows["tokens"].unique().to_list())
    head = ("corpus", "model", *(f"{budget:,}" for budget in budgets))
    first = one.rows.filter(pl.col("seed") == 0).select("arm", "kind", "tokens", "ppl")
    ppl = {(arm, kind, tokens): value for arm, kind, tokens, value in first.iter_rows()}
    arms, kinds = list(one.points), list(KINDS)
    order = sorted({key[:2] for key in ppl}, key=lambda key: (arms.index(key[0]), kinds.index(key[1])))
    rows: Rows = [
        (arm, KINDS[kind].label, *(_known(ppl.get((arm, kind, budget))) for budget in budgets)) for arm, kind in order
    ]
    return head, rows


def _known(ppl: float | None) -> str:
    return "-" if ppl is None else number(ppl)


def baseline_sentences(one: Scored) -> list[str]:
    """Which models beat the network on a test set, and at how many budgets, for each arm that has all of them."""
    arms = {arm: one.rows.filter(pl.col("arm") == arm) for arm in one.points}
    most = max(rows["kind"].n_unique() for rows in arms.values())
    return [
        f"{one.test.name}, {arm}: {lost_to(rows, one.networks[0])}"
        for arm, rows in arms.items()
        if rows["kind"].n_unique() == most > 1
    ]


def point_rows(one: Scored) -> HeadAndRows:
    """PPL of the networks on a test set: a row per network, corpus and budget, a column per seed, means over seeds."""
    rows = one.rows.filter(pl.col("kind").is_in(one.networks))
    seeds = sorted(rows["seed"].unique().to_list())
    runs = rows.select("kind", "arm", "tokens", "seed", "ppl").iter_rows()
    ppl = {tuple(of_run): value for *of_run, value in runs}
    means = rows.group_by("kind", "arm", "tokens", maintain_order=True).agg(pl.col("nats", "bits_per_byte").mean())
    head = ("network", "corpus", "tokens", *(f"seed {seed}" for seed in seeds), "nats per token", "bits per byte")
    return head, [
        (
            *(KINDS[kind].label, arm, f"{tokens:,}"),
            *(_known(ppl.get((kind, arm, tokens, seed))) for seed in seeds),
            *(f"{nats:.4f}", f"{bits:.4f}"),
        )
        for kind, arm, tokens, nats, bits in means.iter_rows()
    ]


CORPORA = {
    "conversations": "conversations",
    "words": "words",
    "bytes": "bytes",
    "median words": "median_words",
    "longest": "longest_words",
    "copies": "copies",
    "near-duplicates": "near_duplicates",
    "in both": "shared",
}
"""Heads of the table of corpora after the name, and the keys of `statistics` that they show."""


def corpora_rows(pair: Pair) -> HeadAndRows:
    """Sizes of both corpora; a number that was not computed has no column."""
    sizes = statistics(pair)
    keys = {head: key for head, key in CORPORA.items() if any(one[key] is not None for one in sizes.values())}
    rows: Rows = [
        (name, *(None if one[key] is None else round(one[key]) for key in keys.values())) for name, one in sizes.items()
    ]
    return ("corpus", *keys), rows


def difference_dict(difference: Difference) -> dict[str, Any]:
    """A difference for a script: its numbers, their intervals, and whether a token's worth is extrapolated."""
    keys = (*DIFFERENCE_NUMBERS, *(f"{key}_interval" for key in DIFFERENCE_NUMBERS))
    return {key: finite(getattr(difference, key)) for key in keys} | {"extrapolates": difference.extrapolates}


def numbers(comparison: Comparison) -> dict[str, Any]:
    """Everything for a script but the findings, which are those of `screen.page.findings`."""
    made: dict[str, Any] = {
        "command": comparison.command,
        "verdict": comparison.verdict.sentence,
        "answer": comparison.verdict.answer,
        "concludes": comparison.verdict.concludes,
        "corpora": statistics(comparison.pair),
        "subset": comparison.pair.subset,
        "run": str(comparison.pair.run.folder) if comparison.pair.run is not None else None,
        "notes": list(comparison.notes),
        "target": None if (aim := comparison.pair.target) is None else _target_numbers(aim),
    }
    if comparison.experiment is None:
        return made
    experiment = comparison.experiment
    design = experiment.design
    return made | {
        "exponent": comparison.verdict.exponent or None,
        "test_sets": {one.test.name: test_numbers(one) for one in comparison.scored},
        "budgets": list(design.budgets),
        "seeds": list(design.seeds),
        "decades": design.decades,
        "interval_level": design.level,
        "preset": experiment.arms.preset.name,
        "trainings": experiment.count(),
        "folder": str(experiment.folder),
        "data": data_numbers(experiment.arms),
        "pools": {name: experiment.arms.tokens(name) for name in experiment.arms.pools},
    }


def _target_numbers(target: Target) -> dict[str, Any]:
    corpus = target.corpus
    return {
        "corpus": corpus.name,
        "digest": corpus.digest,
        "conversations": len(corpus.frame),
        "near_duplicates": target.near,
    }


def data_numbers(arms: Arms) -> dict[str, Any]:
    """The prepared data of an experiment for a script."""
    record = arms.common.record.as_dict()
    del record["identity"]
    return record | {"evaluated": arms.evaluated, "leaks": arms.leaks and asdict(arms.leaks)}


def test_numbers(one: Scored) -> dict[str, Any]:
    """Both arms on a test set for a script."""
    return {
        "says": one.test.about,
        "scored": one.test.scope,
        "tokens": one.test.tokens,
        "conversations": one.test.conversations,
        "clusters": one.test.distinct,
        "effective_conversations": round(one.test.effective, 1),
        **one.laws.as_dict(),
        "notes": list(one.notes),
        "trainings": one.rows.with_columns(pl.col(pl.Float64).round_sig_figs(9)).to_dicts(),
    }


def scored_numbers(one: Scored) -> dict[str, Any]:
    """The level on a test set, and what the choice of the rules did to it, as relative differences of PPL."""
    return {
        "scored_tokens": one.test.tokens,
        **level_numbers("level", one.differences["power"].ln_ratio, one.level_interval),
        **level_numbers("choice", one.choice.ln_ratio, one.choice.interval),
    }


def level_numbers(name: str, ln_ratio: float | None, ends: tuple[float, float] | None) -> dict[str, Any]:
    """A relative difference of PPL and its interval."""
    interval = None if ends is None else tuple(math.expm1(end) for end in ends)
    return {name: None if ln_ratio is None else math.expm1(ln_ratio), f"{name}_interval": interval}
