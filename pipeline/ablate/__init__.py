"""`refine ablate`: which rule of a run changed the exponent? Each rule is left out in turn, and applied alone."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

from pipeline import plan as planning
from pipeline import rules
from pipeline.ablate import page
from pipeline.ablate.result import Ablation, Contrast
from pipeline.compare import corpora
from pipeline.compare import scored as scoring
from pipeline.compare import screen as screening
from pipeline.compare import verdict as verdicts
from pipeline.compare.checks import comparison_checks, screen_checks
from pipeline.compare.command import (
    announce,
    failures,
    pair_name,
    refuse_untrained_target,
    run_findings,
    train_arms,
)
from pipeline.compare.corpora import Pair
from pipeline.compare.data import TrainingOptions
from pipeline.compare.mixes import words_of
from pipeline.compare.scored import Scored
from pipeline.compare.show import print_checks, print_json, print_rows, print_verdict
from pipeline.experiments.formats import change, with_interval
from pipeline.report import folder as folders
from pipeline.report.folder import REPORTS, build
from pipeline.report.run.checks import Bounds
from pipeline.signals import RuleInputs
from pipeline.store import RunFolderError

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class AblateOptions:
    """The options of `refine ablate`; its help describes each."""

    run: Path
    out: Path | None = None
    train: bool = True
    training: TrainingOptions = field(default_factory=TrainingOptions)
    bounds: Bounds = field(default_factory=Bounds)
    words: tuple[str, ...] = ()
    """The command as it was typed, for the report; by default the run alone."""
    target: str | None = None


def ablate(options: AblateOptions) -> Ablation:
    """Find out which rule of a run changed the exponent, and write the report.

    Training runs that are already there are not repeated. Progress is reported on stderr.

    Raises:
        RunFolderError: the run is not complete, or its decisions are not those of its plan.
        ReportError: the folder of the report holds something else.
        RuleError, TrainerError: a rule, an option or the corpus does not serve.
    """
    if options.out is not None:
        folders.check(options.out)
    options.training.check()
    refuse_untrained_target(options.target, train=options.train)
    pair = corpora.pair("raw", "refined", options.run, None, grouped=options.train, target=options.target)
    assert pair.run is not None  # noqa: S101  raw and refined are parts of a run
    suffix = "-rules" if not options.train else "-screen" if options.training.screen else ""
    place = options.out or REPORTS / f"{pair_name(pair)}-ablate{suffix}"
    members, contrasts, skipped = arms_of(pair)
    command = shlex.join(("refine", *(options.words or ("ablate", str(options.run)))))
    announce(place, command, [*page.target_notes(pair), *skipped])
    nothing = (
        "Nothing was trained (--no-train)." if contrasts else "No rule of this run drops anything: nothing to compare."
    )
    checks = run_findings(pair.run, options.bounds).checks
    result = Ablation(pair, contrasts, skipped, None, {}, checks, nothing, command, place / "index.html")
    if options.train and contrasts:
        result = _train(result, members, options.training)
    build(page.page(result), place)
    return result


def arms_of(pair: Pair) -> tuple[dict[str, Mask], list[Contrast], list[str]]:
    """The arms of an ablation as parts of raw, the contrasts between them, and sentences on those that are skipped.

    Decisions are recomputed from the run's signals, for each rule without it and with it alone; no model is rerun.

    Raises:
        RunFolderError: signals are missing, or the decisions in the run are not those of its plan.
    """
    store = pair.run
    assert store is not None  # noqa: S101  raw and refined are parts of a run
    plan = planning.load(store.plan)
    if plan.repairs:
        raise RunFolderError(
            f"the plan of {store.folder} repairs conversations, so that refined is no subset of raw, and an ablation "
            "needs one: run the plan without its [[repair]] tables into another folder, and ablate that"
        )
    inputs, ids = RuleInputs.read(plan, store), pair.union.frame["id"]
    raw, refined = (pair.union.members[name] for name in pair.names)
    if not np.array_equal(_keep_mask(inputs, plan.rules, ids), refined):
        raise RunFolderError(
            f"{store.decisions('')} does not match the plan of the run: start `refine decide {store.folder}`"
        )
    members, contrasts, skipped = {"raw": raw, "refined": refined}, list[Contrast](), list[str]()
    words = words_of(pair.union.frame).to_numpy()
    for rule in plan.rules:
        without = _keep_mask(inputs, [one for one in plan.rules if one is not rule], ids)
        alone = _keep_mask(inputs, [rule], ids)
        for how, name, first, second in (
            ("alone", f"only {rule.reason}", raw, alone),
            ("on top", f"without {rule.reason}", without, refined),
        ):
            if np.array_equal(first, second):
                skipped.append(f"{rule.reason} {how} drops nothing: skipped")
                continue
            members[name] = alone if how == "alone" else without
            arms = ("raw", name) if how == "alone" else (name, "refined")
            dropped, added = int((first & ~second).sum()), int((second & ~first).sum())
            contrasts.append(Contrast(rule.reason, how, *arms, dropped, added, int(words[first & ~second].sum())))
    return members, contrasts, skipped


def _keep_mask(inputs: RuleInputs, chosen: Sequence[rules.Rule], ids: pl.Series) -> Mask:
    """Which conversations these rules keep, in the order of `ids`."""
    decisions = pl.concat(decided.select("id", "keep") for decided in inputs.decide(chosen))
    kept = ids.to_frame("id").join(decisions, on="id", how="left", maintain_order="left")["keep"]
    mask: Mask = kept.fill_null(value=False).to_numpy()
    return mask


def _train(untrained: Ablation, members: Mapping[str, Mask], options: TrainingOptions) -> Ablation:
    """Train all arms and compare those of each contrast."""
    pair, contrasts = untrained.pair, untrained.contrasts
    union, imitated = replace(pair.union, members=members), [(one.first, one.second) for one in contrasts]
    with options.folder(pair_name(pair), pair.digests) as folder:
        if options.screen:
            screened = screening.screen(pair, union, options, folder, imitated=imitated)
            arms, of_arms, experiment, lacks = screened.arms, screen_checks(pair, screened.arms), None, ""
            score = screened.scored_on
        else:
            experiment = train_arms(union, options, folder, pair, imitated=imitated, baselines=False)
            arms, of_arms, lacks = experiment.arms, comparison_checks(pair, experiment), experiment.design.lacks()
            score = partial(scoring.scored, experiment)
        primary, tests = scoring.test_sets_in_scope(pair, arms)
        tests += [] if primary in tests else [primary]
        scored = {one.key: [score(test, (one.first, one.second)) for test in tests] for one in contrasts}
        checks = [*of_arms, *untrained.checks]
    on_primary = {key: next(one for one in each if one.test is primary) for key, each in scored.items()}
    sentence = verdict(on_primary, contrasts, lacks, failures(checks))
    return replace(untrained, experiment=experiment, scored=scored, checks=checks, sentence=sentence)


def verdict(
    scored: Mapping[tuple[str, str], Scored],
    contrasts: Sequence[Contrast],
    lacks: str,
    failed: Sequence[str],
) -> str:
    """One sentence: which rules changed the level, then which the exponent, or why none can be said to have.

    Of all contrasts together at most 5 % of those that are named are named by chance (Benjamini and Hochberg 1995).
    The level is less the mean of random rules that drop as much, and its interval contains their spread.
    `scored` are the contrasts on the primary test set, `lacks` is why the design allows no conclusion, and `failed` are
    the checks that failed.
    """
    if lacks:
        return f"Nothing is concluded, because {lacks}."
    if failed:
        return f"Nothing can be concluded, because a check failed: {', '.join(failed)}."
    if few := verdicts.too_few([scored[contrasts[0].key]]):  # the test set is the same for all contrasts
        return f"Nothing can be concluded, {few}."
    known = [one for one in contrasts if scored[one.key].choice.interval]
    unknown = [f"{one.reason} {one.how}" for one in contrasts if one not in known]
    open_ended = f" There is no interval for {', '.join(unknown)}." if unknown else ""
    if not known:
        return f"Nothing can be concluded.{open_ended}"
    differences = [scored[one.key].differences["power"] for one in known]
    choices = [scored[one.key].choice for one in known]
    levels = discoveries([(one.ln_ratio, one.interval) for one in choices])
    alphas = discoveries([(one.delta_alpha, one.delta_alpha_interval) for one in differences])
    changed = [
        f"{one.reason} {one.how} makes PPL {'lower' if choice.ln_ratio < 0 else 'higher'} "
        f"({with_interval(choice.ln_ratio, choice.interval, change)})"
        for one, choice, found in zip(known, choices, levels, strict=True)
        if found
    ]
    bent = [
        f"{one.reason} {one.how} makes it {'steeper' if power.delta_alpha < 0 else 'flatter'}"
        for one, power, found in zip(known, differences, alphas, strict=True)
        if found
    ]
    of = scored[contrasts[0].key].test
    test = f"replies of {of.name}" if of.scope == "replies" else of.name
    test += ", beyond random rules that drop as much" if scored[contrasts[0].key].placebos else ""
    level = "; ".join(changed) or "no rule can be said to have changed the level"
    exponent = "; ".join(bent) or "no rule can be said to have changed it"
    return (
        f"Level on {test}: {level}. Exponent: {exponent} ({len(known)} contrasts, false discovery rate 5%).{open_ended}"
    )


def discoveries(estimates: Sequence[tuple[float, tuple[float, float] | None]], rate: float = 0.05) -> list[bool]:
    """Which estimates with 95 % intervals differ from 0 at a false discovery rate (Benjamini and Hochberg 1995).

    P values are those of a normal distribution with the interval's width.
    """
    p_values = np.ones(len(estimates))
    for i, (value, ends) in enumerate(estimates):
        if ends is not None and ends[1] > ends[0]:
            p_values[i] = 2 * ndtr(-abs(value) / ((ends[1] - ends[0]) / 2 / ndtri(0.975)))
    order = np.argsort(p_values, kind="stable")
    passing = np.flatnonzero(p_values[order] <= rate * np.arange(1, len(order) + 1) / len(order))
    found = np.zeros(len(order), np.bool_)
    found[order[: passing[-1] + 1 if len(passing) else 0]] = True
    return [bool(one) for one in found]


def print_ablation(result: Ablation, *, as_json: bool) -> None:
    """Print the table of an ablation, its checks and its verdict, or its report as JSON."""
    if as_json:
        print_json(result.page)
        return
    print_rows("What each rule does", page.contrast_rows(result), 2)
    print_checks(result.checks)
    print_verdict(result.sentence, result.page)
