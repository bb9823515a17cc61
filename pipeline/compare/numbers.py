"""The numbers of a comparison: rows of its tables, for a terminal and for the page, and what `--json` prints."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import polars as pl

from pipeline.compare.corpora import Pair
from pipeline.compare.mixes import statistics
from pipeline.compare.scored import Scored
from pipeline.compare.verdict import alpha_said, efficiency_said, ratio_said, signed
from pipeline.experiments import laws
from pipeline.experiments.scale import lost_to
from trainer.experiment.kinds import CVFP, KINDS
from trainer.prepare.arms import Arms
from trainer.scaling import Law, Points

if TYPE_CHECKING:
    from pipeline.compare.result import Compared, Trained

Rows = list[tuple[str | int | float | None, ...]]
Interval = tuple[float, float]


def law_rows(one: Scored) -> tuple[tuple[str, ...], Rows]:
    """Each arm's laws on a test set, and how far off each foretells the largest budget without it."""
    head = ("corpus", "law", "alpha", "A", "floor", "R2", "foretells")
    return head, [
        _law(arm, law, one) for (arm, _), law in sorted(one.laws.items(), key=lambda item: _place(one, item[0]))
    ]


def _place(one: Scored, key: tuple[str, str]) -> tuple[int, str]:
    return list(one.points).index(key[0]), key[1]


def _law(arm: str, law: Law, one: Scored) -> tuple[str, ...]:
    held = one.held_out.get(arm)
    error = None if held is None else held.power_error if law.kind == "power" else held.saturating_error
    best = ", the better" if held is not None and held.preferred == law.kind and held.clear else ""
    return (
        arm,
        law.kind,
        signed(law.alpha, ".4f") + _in(law.alpha_interval, lambda x: signed(x, ".4f")),
        _level(law.ln_A) + _in(law.ln_A_interval, _level),
        number(law.floor) + _in(law.floor_interval, number) if law.kind == "saturating" else "-",
        "-" if law.r2 is None else f"{law.r2:.4f}",
        "-" if error is None else f"{signed(100 * error, '.1f')} %{best}",
    )


def difference_rows(one: Scored) -> tuple[tuple[str, ...], Rows]:
    """The second arm against the first on a test set, by law."""
    head = ("law", "delta alpha", "delta ln A", "PPL differs by", "a token's worth")
    rows: Rows = [
        (
            kind,
            alpha_said(found),
            signed(found.delta_ln_A, ".3f") + _in(found.delta_ln_A_interval, lambda x: signed(x, ".3f")),
            ratio_said(found),
            efficiency_said(found),
        )
        for kind, found in one.differences.items()
    ]
    return head, rows


def _in(interval: Interval | None, said: Callable[[float], str]) -> str:
    return "" if interval is None else f" ({between(interval, said)})"


def _level(ln_A: float) -> str:  # noqa: N803  as the law has it
    """A as it can be compared: whole where it is large."""
    value = math.exp(min(ln_A, 700.0))
    return f"{value:,.0f}" if 100 <= value < 1e9 else number(value)  # noqa: PLR2004


def baselines(one: Scored) -> tuple[tuple[str, ...], Rows]:
    """PPL on a test set by budget, all of seed 0: the same tokens in the same order."""
    budgets = sorted(one.rows["tokens"].unique().to_list())
    head = ("corpus", "model", *(f"{budget:,}" for budget in budgets))
    first = one.rows.filter(pl.col("seed") == 0).select("arm", "kind", "tokens", "ppl")
    found = {(arm, kind, tokens): ppl for arm, kind, tokens, ppl in first.iter_rows()}
    order = sorted(
        {key[:2] for key in found}, key=lambda key: (list(one.points).index(key[0]), list(KINDS).index(key[1]))
    )
    rows: Rows = [
        (arm, KINDS[kind].label, *(number(found[arm, kind, budget]) for budget in budgets)) for arm, kind in order
    ]
    return head, rows


def standing(one: Scored) -> list[str]:
    """Which baselines are below the network on a test set, and at how many budgets: of each arm that has them all."""
    arms = {arm: one.rows.filter(pl.col("arm") == arm) for arm in one.points}
    most = max(rows["kind"].n_unique() for rows in arms.values())
    return [
        f"{one.test.name}, {arm}: {lost_to(rows)}" for arm, rows in arms.items() if rows["kind"].n_unique() == most > 1
    ]


def point_rows(one: Scored) -> tuple[tuple[str, ...], Rows]:
    """PPL of every training of the network on a test set, a row a corpus and budget, and the mean of bits a byte."""
    rows = one.rows.filter(pl.col("kind") == CVFP.name)
    seeds = sorted(rows["seed"].unique().to_list())
    found = {
        (arm, tokens, seed): ppl for arm, tokens, seed, ppl in rows.select("arm", "tokens", "seed", "ppl").iter_rows()
    }
    means = rows.group_by("arm", "tokens", maintain_order=True).agg(pl.col("nats", "bits_per_byte").mean())
    head = ("corpus", "tokens", *(f"seed {seed}" for seed in seeds), "nats a token", "bits a byte")
    return head, [
        (arm, f"{tokens:,}", *(number(found[arm, tokens, seed]) for seed in seeds), f"{nats:.4f}", f"{bits:.4f}")
        for arm, tokens, nats, bits in means.iter_rows()
    ]


CORPORA = {
    "corpus": "",
    "conversations": "conversations",
    "words": "words",
    "bytes": "bytes",
    "median words": "median_words",
    "longest": "longest_words",
    "copies": "copies",
    "near-duplicates": "near_duplicates",
    "in both": "shared",
}
"""Columns of the table of corpora, and what `statistics` calls them."""


def corpora_rows(pair: Pair) -> tuple[tuple[str, ...], Rows]:
    """Sizes of both corpora; what was not looked for is no column."""
    told = statistics(pair)
    head = [word for word, key in CORPORA.items() if not key or any(one[key] is not None for one in told.values())]
    keys = [CORPORA[word] for word in head if CORPORA[word]]
    rows: Rows = []
    for name, one in told.items():
        values = [one[key] for key in keys]
        rows.append((name, *(None if value is None else round(value) for value in values)))
    return tuple(head), rows


def numbers(found: Compared) -> dict[str, Any]:
    """Everything for a script; the keys without a test set are those of the first one and of the power law."""
    told: dict[str, Any] = {
        "command": found.command,
        "verdict": found.sentence,
        "concludes": bool(found.trained and found.trained.verdict.concludes),
        "corpora": statistics(found.pair),
        "subset": found.pair.subset,
        "run": str(found.pair.run.folder) if found.pair.run is not None else None,
        "notes": list(found.notes),
    }
    return told | _trained(found.trained) if found.trained is not None else told


def _trained(found: Trained) -> dict[str, Any]:
    first = found.scored[0].differences.get("power")
    told = ("delta_alpha", "delta_ln_A", "ln_ratio", "efficiency")
    keys = ("budget", *told, *(f"{key}_interval" for key in told))
    return {
        **{key: finite(getattr(first, key, None)) for key in keys},
        "extrapolates": None if first is None else first.extrapolates,
        "exponent": found.verdict.exponent or None,
        "level": found.verdict.level or None,
        "test_sets": {one.test.name: _test(one) for one in found.scored},
        "budgets": list(found.design.budgets),
        "seeds": found.design.seeds,
        "decades": found.design.decades,
        "quick": found.design.quick,
        "preset": found.arms.preset.name,
        "trainings": len({job.name for wanted in found.jobs.values() for job in wanted}),
        "folder": str(found.folder),
        "data": _data(found.arms),
        "pools": {name: found.arms.tokens(name) for name in found.arms.pools},
    }


def _data(arms: Arms) -> dict[str, Any]:
    record = arms.common.record.as_dict()
    del record["identity"]
    return record | {"evaluated": arms.evaluated, "leaks": arms.leaks and asdict(arms.leaks)}


def _test(one: Scored) -> dict[str, Any]:
    rows = one.rows.with_columns(pl.col(pl.Float64).round_sig_figs(9)).to_dicts()
    told = laws.as_dict(dict[str | None, Points](one.points.items()), [])
    says = {
        "says": one.test.says,
        "tokens": one.test.tokens,
        "conversations": one.test.conversations,
        "clusters": one.test.distinct,
        "effective_conversations": round(one.test.effective, 1),
    }
    return {**says, **told, "notes": list(one.notes), "trainings": rows}


def finite(value: Any) -> Any:  # noqa: ANN401  a number, a pair of them, or none
    """A value as JSON holds it: what is not finite is null."""
    if isinstance(value, tuple):
        return [finite(one) for one in value]
    return value if value is None or math.isfinite(value) else None


def between(interval: Interval | None, said: Callable[[float], str]) -> str:
    """An interval as text."""
    return "-" if interval is None else f"{said(interval[0])} to {said(interval[1])}"


def number(value: float) -> str:
    """A positive number, as short as it can be read."""
    if value and not 1e-3 <= value < 1e9:  # noqa: PLR2004
        return f"{value:.3g}"
    return f"{value:,.0f}" if value >= 1e4 else f"{value:,.2f}"  # noqa: PLR2004
