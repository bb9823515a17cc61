"""The plans that a search tries: selections by signals and shares, random ones, and the rules of the plan alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline import plan as planning
from pipeline.plan import Plan, PlanError, PlannedStage
from pipeline.rules import KeepTop
from pipeline.search.findings import Kind
from stages.value.quality import Quality
from stages.value.target import Target

REASON = "not_selected"
"""Reason of the selection of each candidate."""
SIGNALS = ("target_weight_mean DESC", "quality DESC")
"""Orders of the selections if the plan has no `[[keep_top]]`."""
DSIR = KeepTop(REASON, "target_weight DESC", gumbel=1.0)
"""A selection as DSIR draws it (Xie et al. 2023), tried beside these."""
LUCK = "COALESCE(0 * target_weight_mean, 0) DESC"
"""Order of a random selection: noise alone."""
NEAR = 1.1
"""Ratio of two shares that are too near to try one between them."""
MIN_SHARE = 0.01
"""The smallest share that is tried."""


@dataclass(frozen=True)
class Candidate:
    """A plan that is tried: the rules of the base plan, and its `top`; without one these alone."""

    kind: Kind
    top: KeepTop | None = None

    @property
    def name(self) -> str:
        """The candidate for a reader."""
        if self.top is None:
            return "the rules alone"
        share = f"{self.top.share:.3g}{f' of each {self.top.per}' if self.top.per else ''}"
        if self.kind == "random":
            return f"{share} at random, seed {self.top.seed}"
        return f"{share} {'drawn ' if self.top.gumbel else ''}by {self.top.by.removesuffix(' DESC')}"

    @property
    def order(self) -> tuple[str, str, float]:
        """What it ranks by, whatever the share."""
        return ("", "", 0.0) if self.top is None else (self.top.by, self.top.per, self.top.gumbel)


def base(plan: Plan, examples: Path) -> Plan:
    """A plan without its selections, with the stages `target` and `quality` fitted on the examples.

    Such a stage that the plan has is fitted on these too, so that it has not seen what the plans are judged by; a
    `quality` with a `model` of its own stays as it is.
    """
    chosen, there = [], set()
    for measured in plan.stages:
        stage = measured.stage
        there.add(type(stage))
        if isinstance(stage, Target):
            stage = replace(stage, target=str(examples))
        elif isinstance(stage, Quality) and not stage.model:
            stage = replace(stage, like=str(examples))
        chosen.append(PlannedStage(measured.name, stage))
    if Target not in there:
        chosen.append(PlannedStage("target", Target(target=str(examples))))
    if Quality not in there:
        chosen.append(PlannedStage("quality", Quality(like=str(examples))))
    rules = tuple(rule for rule in plan.rules if not isinstance(rule, KeepTop))
    return replace(plan, stages=tuple(chosen), rules=rules).check()


def with_top(plan: Plan, candidate: Candidate, own: Plan) -> Plan:
    """The base plan with a candidate's selection; of the stages, those of the user's `own` plan and what it reads."""
    tops = () if candidate.top is None else (candidate.top,)
    names = {each.name for each in own.stages}
    read = {column for top in tops for column in top.columns()}
    kept = tuple(each for each in plan.stages if each.name in names or read & set(each.signals))
    return replace(plan, stages=kept, rules=(*plan.rules, *tops)).check()


def grid(plan: Plan, shares: Sequence[float], luck: int) -> list[Candidate]:
    """All candidates in the order in which they are tried, with `luck` random plans of each share.

    What is ranked by is what the `[[keep_top]]` rules of the plan rank by, else `SIGNALS` and `DSIR`. A small number of
    candidates has each kind: shares come one after the other, and the first random plan of each is among its own.
    """
    own = [rule for rule in plan.rules if isinstance(rule, KeepTop)]
    tops = own or [*(KeepTop(REASON, by) for by in SIGNALS), DSIR]
    made = [Candidate("rules")]
    for share in shares:
        made += [Candidate("selection", _sized(top, share)) for top in tops]
        made.append(random(share, 0))
    return [*made, *(random(share, seed) for seed in range(1, luck) for share in shares)]


def random(share: float, seed: int) -> Candidate:
    """A random selection of a share."""
    return Candidate("random", KeepTop(REASON, LUCK, share=share, gumbel=1.0, seed=seed))


def between(best: Candidate, known: Sequence[Candidate]) -> list[Candidate]:
    """Candidates like the best one, with shares between its own and the nearest that were tried, and random ones."""
    if best.top is None or best.kind != "selection":
        return []
    tried = sorted({one.top.share for one in known if one.top is not None and one.order == best.order})
    at = tried.index(best.top.share)
    lower, upper = tried[at - 1] if at else best.top.share / 2, tried[at + 1] if at + 1 < len(tried) else 1.0
    made = []
    for other in (lower, upper):
        share = float(f"{math.sqrt(best.top.share * other):.2g}")
        apart = max(share, best.top.share) / min(share, best.top.share)
        if apart >= NEAR and MIN_SHARE <= share < 1 and share not in tried:
            made += [Candidate("selection", _sized(best.top, share)), random(share, 0)]
    return made


def _sized(top: KeepTop, share: float) -> KeepTop:
    return replace(top, reason=REASON, share=share, conversations=0, tokens=0, because="")


def check(shares: Sequence[float]) -> tuple[float, ...]:
    """The shares, each once, in the order of the user; a PlanError if one is none."""
    if not shares or not all(0 < share < 1 for share in shares):
        raise PlanError(f"--shares is {', '.join(map(str, shares)) or 'empty'}, expected numbers above 0 and below 1")
    return tuple(dict.fromkeys(shares))


def load(path: Path | None) -> Plan:
    """The plan of a file, by default the default plan."""
    return planning.load(planning.DEFAULT if path is None else path)
