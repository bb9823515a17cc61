"""The findings of a screen as sections of a page, as tables, and as JSON."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, cast

import polars as pl

from pipeline.compare.design import LOOK
from pipeline.compare.figures import placebos
from pipeline.compare.numbers import (
    SCOPES,
    HeadAndRows,
    Rows,
    data_numbers,
    difference_dict,
    difference_rows,
    law_rows,
    level_numbers,
    scored_numbers,
    test_numbers,
)
from pipeline.compare.scored import TestSet
from pipeline.compare.screen import Screened
from pipeline.compare.screen.power import POWER, forecast
from pipeline.compare.screen.verdict import used_up_sentence
from pipeline.compare.sections import EFFECTIVE_SIZE, differences, joined, law_figure, scored_sentence, test_table
from pipeline.compare.verdict import too_few
from pipeline.experiments.formats import change, coverage, finite, interval, share, token_worth_parts, with_interval
from pipeline.report.parts import Figure, Panel, Section, Table, Tile
from pipeline.report.text import visible

if TYPE_CHECKING:
    from pipeline.compare.result import Comparison
    from trainer.experiment.screen import UsedUp

TERMS = (
    "N-gram models (interpolated modified Kneser-Ney, order 5) learn growing parts of each corpus, cut into pieces of "
    "conversations, in many random orders. PPL is their perplexity on held-out conversations, and PPL = A tokens^alpha "
    "is fitted. They see what five tokens show, so this is a screen; without --screen, networks are trained. Placebo "
    "rules drop as many tokens at random."
)
"""Explanation of the terms of the headline."""


def tiles(comparison: Comparison) -> tuple[Tile, ...]:
    """The findings as tiles."""
    screened, primary = comparison.screened, comparison.primary
    if screened is None or primary is None or "power" not in primary.differences:
        return ()
    first, second = (visible(name, 30) for name in screened.names)
    power, test = primary.differences["power"], visible(primary.test.name, 30)
    worth, brackets = token_worth_parts(power)
    label = f"PPL of {SCOPES[primary.test.scope]} at {power.budget:,.0f} tokens, {second}"
    chosen = [primary.choice] if primary.of_rules else []
    made = [
        *(_tile(choice.ln_ratio, choice.interval, f"{label} beyond random rules, on {test}") for choice in chosen),
        _tile(power.ln_ratio, primary.level_interval, f"{label} against {first}, on {test}"),
        Tile(worth, f"tokens of {first} that one of {second} is worth{f': {brackets}' if brackets else ''}"),
    ]
    if "power" in screened.primary.differences:
        tokens, found, ceiling = screened.screen.tokens, screened.used_up, screened.ceiling
        made += [
            _tile(*found.best, f"PPL with {second} if both are read to their ends (n-grams)"),
            Tile(
                _millions(found.crossing),
                f"tokens of {first} that all {_millions(tokens[screened.names[1]])} of {second} are worth; "
                f"{first} has {_millions(tokens[screened.names[0]])}",
            ),
        ]
        if ceiling is not None:
            made.append(Tile(share(ceiling), "PPL can fall by at most, if what was dropped is worth nothing"))
    return tuple(made)


def answers(comparison: Comparison) -> tuple[tuple[str, str], ...]:
    """How sure the verdict is, and what it would take to know more."""
    return (("How sure?", visible(how_sure(comparison))), ("To know more", visible(_to_know_more(comparison))))


def how_sure(comparison: Comparison) -> str:
    """The interval of the level, what it comes from, and how many placebo rules do as much."""
    screened, primary = comparison.screened, comparison.primary
    if screened is None:
        return "No model was trained: only sizes and mixes are compared."
    if primary is None or (ends := primary.choice.interval) is None:
        return "There is no interval; the headline says why."
    pairs = f"{len(screened.screen.nats[screened.names[0]])} pairs of n-gram models"
    if comparison.experiment is not None:
        pairs = f"{len(comparison.experiment.design.pairs)} pairs of networks"
    test, placebos = primary.test, primary.placebos.values()
    level = primary.differences["power"].level
    early = "The experiment stopped early, because it was decided. " if level == 1 - LOOK else ""
    found = f"{early}The {coverage(level)} interval of the headline is {interval(ends, change)}, from {pairs} on "
    found += f"{test.conversations:,} test conversations, which weigh as much as {test.effective:,.0f} of equal length."
    rules = sum(len(one.effects) for one in placebos)
    if not rules:
        return found
    as_far = sum(one.as_far for one in placebos)
    found += f" Of {rules} placebo rules, which drop as many tokens at random, {as_far or 'none'}"
    return f"{found} changed the PPL of n-gram models as far from their mean."


def _to_know_more(comparison: Comparison) -> str:
    screened, experiment = comparison.screened, comparison.experiment
    if screened is None:
        return "The same command with --screen in place of --no-train gives a verdict in about a minute."
    if comparison.primary is not None and too_few([comparison.primary]):
        return "A larger test set comes first: from a larger corpus, or with --test-tokens."
    if experiment is None:
        return (
            "N-gram models see what five tokens show. The same command without --screen trains networks, which takes "
            "about half an hour with the default budgets."
        )
    now, then = (share(forecast(experiment, screened, times).level) for times in (1, 4))
    return (
        f"This experiment finds differences of PPL from {now} on in {POWER:.0%} of the cases; one with four times the "
        f"seeds (--seeds) would find those from {then} on."
    )


def _millions(tokens: float) -> str:
    return f"{tokens / 1e6:,.2f} M" if tokens >= 1e6 else f"{tokens:,.0f}"  # noqa: PLR2004


def _tile(ln_ratio: float, ends: tuple[float, float] | None, label: str) -> Tile:
    brackets = with_interval(ln_ratio, ends, change).partition(" (")[2]
    return Tile(change(ln_ratio), f"{label}: {brackets.rstrip(')')}" if brackets else label)


def sections(screened: Screened) -> list[Section]:
    """The sections of differences, placebo rules, both corpora used up, laws and the design."""
    first, second = map(visible, screened.names)
    scored, notes = screened.scored, dict.fromkeys(note for one in screened.scored for note in one.notes)
    apart = screened.apart
    if apart is not None:
        brackets = with_interval(apart.ln_ratio, apart.ln_ratio_interval, change)
        notes[f"if copies do not stay together, a budget holds fewer of them, and PPL differs by {brackets}"] = None
    return [
        Section(
            "difference",
            "The difference per token",
            f"{second} compared with {first} after equally many tokens, with 95 % intervals over orders and test "
            f"conversations; the headline takes off the mean of placebo rules. {scored_sentence(scored[0].test)} "
            f"A token's worth is the number of tokens of {first} that lower PPL as much as one of "
            f"{second}.",
            tuple(filter(None, [differences(scored)])),
            (joined(scored, difference_rows),),
            missing=tuple(f"{visible(note, 300)}." for note in notes),
        ),
        *shared_sections(screened),
        Section(
            "laws",
            "Scaling laws",
            "The power law is PPL = A tokens^alpha; the saturating law adds a floor. A point is a model. In brackets "
            "are 95 % intervals. Held-out error: that of a law at the largest budget if it is fitted without it.",
            (law_figure(scored, "power"),),
            (joined(scored, law_rows),),
        ),
        Section(
            "experiment",
            "The screen",
            f"The training data, the test sets and the protocol. {EFFECTIVE_SIZE}",
            tables=(test_table(scored),),
            texts=(("Plan of the screen", visible("\n".join(_plan(screened)))),),
            missing=tuple(f"{visible(note)}." for note in screened.arms.common.record.notes),
        ),
    ]


def shared_sections(screened: Screened) -> list[Section]:
    """The sections of placebo rules and of both corpora used up, which an experiment with networks has too."""
    return [
        *_placebo_section(screened),
        Section(
            "used-up",
            "The difference if each corpus is read to its end",
            f"By n-gram models. {visible(used_up_sentence(screened), 300)} The forecast adds to the difference per "
            "token what the difference of their sizes is worth at the mean exponent.",
            tables=(_table(used_up_rows(screened)),),
        ),
    ]


def _plan(screened: Screened) -> list[str]:
    data, made = screened.arms.common.record, screened.screen
    pools = ", ".join(f"{name} {tokens:,} tokens" for name, tokens in screened.screen.tokens.items())
    return [
        "models: interpolated modified Kneser-Ney of order 5",
        f"budgets: {', '.join(f'{budget:,}' for budget in made.budgets)} tokens, nested within an order",
        f"orders: {len(made.nats[screened.names[0]])}, the same for both corpora",
        f"unit: pieces of at most {screened.arms.preset.piece} tokens; near-duplicates stay together",
        f"tokenizer: {data.tokenizer}, trained on the union of both training pools unless it is given",
        "split: by near-duplicate clusters of the union of both corpora, before anything else",
        f"training pools: {pools}",
    ]


def _placebo_section(screened: Screened) -> list[Section]:
    found = screened.primary.placebos
    if not found:
        return []
    frame = pl.concat(
        pl.DataFrame({"null": null, "value": one.effects * 100, "real": False}) for null, one in found.items()
    )
    real = pl.concat(
        pl.DataFrame({"null": [null], "value": [one.effect * 100], "real": [True]}) for null, one in found.items()
    )
    rows = pl.concat([frame, real])
    panel = Panel("", placebos(rows), rows)
    return [
        Section(
            "placebo",
            "Beside random rules",
            "By n-gram models. Placebo rules drop as many tokens as the real ones, of random conversations or of "
            "random conversations of the same lengths. A real effect lies outside their range. In a corpus with copies "
            "their mean is not 0, because they leave fewer of them; it is taken off the difference.",
            (
                Figure(
                    "placebo",
                    "The real rules and placebo rules",
                    "One mark is one rule, at the largest budget.",
                    (panel,),
                ),
            ),
            (_table(placebo_rows(screened)),),
        )
    ]


def _table(rows: HeadAndRows) -> Table:
    return Table(rows[0], tuple(rows[1]))


def placebo_rows(screened: Screened) -> HeadAndRows:
    """The real effect beside those of placebo rules, a row per kind of placebo."""
    head = ("placebo rules drop", "rules", "their mean", "sd", "the real ones", "p")
    rows: Rows = [
        (
            f"{null} conversations" if null == "random" else f"conversations {null}",
            len(one.effects),
            change(one.mean),
            share(one.sd),
            change(one.effect),
            f"{one.p:.2f}",
        )
        for null, one in screened.primary.placebos.items()
    ]
    return head, rows


def used_up_rows(screened: Screened) -> HeadAndRows:
    """Both corpora at their own sizes: a row for the first, and one for the second on each test set."""
    first, second = screened.names
    head = (
        "corpus",
        "tokens",
        "without copies",
        "test set",
        "PPL differs by (forecast)",
        "measured on the whole pools",
    )
    sizes = {
        name: (visible(name, 40), f"{screened.screen.tokens[name]:,}", f"{screened.screen.unique[name]:,}")
        for name in screened.names
    }
    rows: Rows = [(*sizes[first], "", "", "")]
    for test in used_up_tests(screened):
        found = screened.used_up_on(test)
        measured = "-" if found.measured is None else with_interval(found.measured, found.measured_interval, change)
        forecast = with_interval(found.ln_ratio, found.interval, change)
        rows.append((*sizes[second], visible(test.name, 40), forecast, measured))
    return head, rows


def used_up_tests(screened: Screened) -> list[TestSet]:
    """The test sets on which both corpora are read to their ends: the primary one, and beside a target all."""
    others = [test for test in screened.tests if test is not screened.primary_test]
    return [screened.primary_test, *(others if screened.primary_test.of_target else [])]


def findings(comparison: Comparison) -> dict[str, Any]:
    """The findings of a comparison for a script; differences of PPL are relative, below 0 if the second is better."""
    screened, primary = comparison.screened, comparison.primary
    if screened is None or primary is None:
        return {}
    power = primary.differences.get("power")
    made: dict[str, Any] = {"primary_test_set": primary.test.name, "worth_knowing": comparison.worth_knowing}
    made |= {"scored": primary.test.scope}
    if power is not None:
        made |= {"budget": power.budget, **scored_numbers(primary), **_by_scope(comparison)}
        made |= {key: value for key, value in difference_dict(power).items() if "ln_A" not in key}
    if "power" in screened.primary.differences:
        made |= screen_numbers(screened)
    made |= _by_network(comparison)
    if comparison.experiment is None:
        made |= {
            "test_sets": {one.test.name: test_numbers(one) for one in screened.scored},
            "budgets": list(screened.screen.budgets),
            "seeds": len(screened.screen.nats[screened.names[0]]),
            "preset": screened.arms.preset.name,
            "folder": str(screened.folder),
            "data": data_numbers(screened.arms),
        }
    return cast("dict[str, Any]", finite(made))


def _by_scope(comparison: Comparison) -> dict[str, Any]:
    """The difference on replies (null if they are too few) and on all messages, in the primary test set."""
    made: dict[str, Any] = {"replies": None, "everything": None}
    for one in (comparison.primary, comparison.beside):
        if one is not None and (power := one.differences.get("power")) is not None:
            alpha = {key: getattr(power, key) for key in ("delta_alpha", "delta_alpha_interval")}
            made[one.test.scope] = {**scored_numbers(one), **alpha}
    return made


def _by_network(comparison: Comparison) -> dict[str, Any]:
    """What each network finds, and whether they agree; empty for a screen."""
    if not comparison.networks:
        return {}
    found = {
        one.kind: {
            **level_numbers("level", power.ln_ratio, power.ln_ratio_interval),
            **level_numbers("choice", one.choice.ln_ratio, one.choice.interval),
            **{key: getattr(power, key) for key in ("delta_alpha", "delta_alpha_interval")},
        }
        for one in comparison.networks
        if (power := one.difference) is not None
    }
    return {"networks": found, "agreement": comparison.agreement or None}


def screen_numbers(screened: Screened) -> dict[str, Any]:
    """The findings of a screen beside the difference per token."""
    found, apart = screened.used_up, screened.apart
    return {
        "ceiling": screened.ceiling,
        "placebo": {
            null.replace(" ", "_"): {
                "level": math.expm1(one.effect),
                "mean": math.expm1(one.mean),
                "sd": one.sd,
                "rules": len(one.effects),
                "p": one.p,
            }
            for null, one in screened.primary.placebos.items()
        },
        "per_corpus": {
            **_used_up_levels(found),
            "alpha": found.alpha,
            "tokens": dict(screened.screen.tokens),
            "unique_tokens": dict(screened.screen.unique),
            "crossing_tokens": found.crossing,
            "test_sets": {test.name: _used_up_levels(screened.used_up_on(test)) for test in used_up_tests(screened)},
        },
        "apart": None if apart is None else level_numbers("level", apart.ln_ratio, apart.ln_ratio_interval),
    }


def _used_up_levels(found: UsedUp) -> dict[str, Any]:
    forecast = level_numbers("level", found.ln_ratio, found.interval)
    return forecast | level_numbers("measured_level", found.measured, found.measured_interval)
