"""Named checks of a run, made on its files: what must hold for the output to be what it claims to be."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl

from pipeline.report.folder import ReportError
from pipeline.report.parts import Check
from pipeline.report.run.frame import FinishedRun, Kind, both
from pipeline.rules import KeepBest, KeepTop, measure_of
from pipeline.signals import decisions_of
from stages.files import read_frame
from stages.files import rows as rows_of
from stages.stage import require

SHARE = "refined share within bounds"
"""Name of the one check that judges plausibility rather than integrity; it never blocks a conclusion."""


@dataclass(frozen=True)
class Bounds:
    """The share of conversations that a plausible run keeps."""

    least: float = 0.05
    most: float = 1.0

    def __post_init__(self) -> None:
        """Refuse bounds that are no shares by a StageParameterError, or that no share can meet by a ReportError."""
        require("--min-kept", self.least, 0 <= self.least <= 1, "a share from 0 to 1")
        require("--max-kept", self.most, 0 <= self.most <= 1, "a share from 0 to 1")
        if self.least > self.most:
            raise ReportError(
                f"--min-kept {self.least:g} is above --max-kept {self.most:g}, so no share can pass: swap them"
            )


def check(run: FinishedRun, kinds: list[Kind], bounds: Bounds) -> list[Check]:
    """All checks, the most important first."""
    files = _count_files(run)
    refined, rejected, quarantined = files["refined"], files["rejected"], files["quarantined"]
    counts = run.manifest.counts
    n, twice = len(run.keep), files["twice"]
    share = refined / (n + quarantined) if n else 0.0
    return [
        Check(
            "counts add up",
            (refined + rejected + quarantined, refined, rejected) == (counts.ingested, counts.refined, counts.rejected),
            f"{counts.ingested:,} in = {refined:,} refined + {rejected:,} rejected + {quarantined:,} quarantined",
        ),
        Check("ids are unique", twice == 0, f"{n:,} conversations, {twice:,} ids occur twice"),
        Check(
            "each conversation is where its decision says",
            files["misplaced"] == 0,
            f"{files['misplaced']:,} of {len(run.store.shards()):,} shards differ from the decisions",
        ),
        Check(
            "every dropped row has a reason",
            files["unreasoned"] == 0,
            f"{files['unreasoned']:,} of {rejected:,} rejected rows have none of the plan's reasons",
        ),
        Check("no text is null", files["null"] == 0, f"{files['null']:,} rows with a null in prompt or messages"),
        *_duplicates(run, kinds, files),
        Check(
            SHARE,
            bounds.least <= share <= bounds.most,
            f"{share:.1%} kept, expected {bounds.least:.0%} to {bounds.most:.0%}",
        ),
    ]


def _duplicates(run: FinishedRun, kinds: list[Kind], files: Mapping[str, int]) -> list[Check]:
    """No two kept conversations are duplicates, and every dropped duplicate has a kept one."""
    if not any(isinstance(rule, KeepBest) for rule in run.plan.rules):
        why = "this plan has no keep_best rule; the stage dedup with its rule adds this check"
        return [Check("no two kept duplicates", None, why)]
    checks = []
    for kind in kinds:
        pairs = both(kind, run.keep)
        finding = f"{pairs:,} of the detected pairs at {measure_of(kind.name)} {kind.at_least:g} or above are both kept"
        checks.append(Check(f"no two kept duplicates ({kind.name})", pairs == 0, finding))
    lost, dropped = files["lost"], files["duplicates"]
    finding = f"{lost:,} of {dropped:,} dropped duplicates name a conversation that is not kept"
    if any(isinstance(rule, KeepTop) for rule in run.plan.rules):
        finding += ", apart from what keep_top dropped afterwards"
    return [*checks, Check("every dropped duplicate has a kept one", lost == 0, finding)]


def _count_files(run: FinishedRun) -> Counter[str]:
    """Count the rows of the output folders, one shard at a time, with 24 bytes of memory per conversation.

    Returns:
        Rows that are refined, rejected and quarantined; shards whose ids are misplaced, since they are not those of the
        decisions; rejected rows that are unreasoned, without a reason of the plan; rows with a null in their text; ids
        that occur twice; duplicates, and those that are lost, since the conversation that they name is not kept, but
        for a `KeepTop` rule. Ids are compared by 64-bit hashes.
    """
    files: Counter[str] = Counter()
    ids, others, standing = ([np.empty(0, np.uint64)] for _ in range(3))
    tops = [rule.reason for rule in run.plan.rules if isinstance(rule, KeepTop)]  # these come after keep_best
    content = pl.col("messages").list.eval(pl.element().struct.field("content").is_null()).list.any()
    null = pl.col("prompt").is_null() | pl.col("messages").is_null() | content.fill_null(value=False)
    for shard in run.store.shards():
        decided = decisions_of(run.store, shard)
        ids.append(decided["id"].hash().to_numpy())
        standing.append(decided.filter(pl.col("keep") | pl.col("reason").is_in(tops))["id"].hash().to_numpy())
        others.append(decided["duplicate_of"].drop_nulls().hash().to_numpy())
        refined = read_frame(run.store.refined(shard), ["id", "prompt", "messages"])
        rejected = read_frame(run.store.rejected(shard), ["id", "reason", "prompt", "messages"])
        as_decided = refined["id"].equals(decided.filter("keep")["id"])
        as_decided &= rejected["id"].equals(decided.filter(~pl.col("keep"))["id"])
        files["refined"] += refined.height
        files["rejected"] += rejected.height
        files["misplaced"] += not as_decided
        files["unreasoned"] += rejected.filter(~pl.col("reason").is_in(run.reasons).fill_null(value=False)).height
        files["null"] += sum(frame.select(null.sum()).item() for frame in (refined, rejected))
        if (quarantined := run.store.quarantine(shard)).exists():
            files["quarantined"] += rows_of(quarantined)
    every, named = np.concatenate(ids), np.concatenate(others)
    kept = np.append(np.sort(np.concatenate(standing)), np.uint64(0))  # the last stands for what is beyond all
    files["duplicates"] = len(named)
    files["lost"] = int(np.count_nonzero(kept[np.searchsorted(kept[:-1], named)] != named))
    every.sort()
    files["twice"] = int(np.count_nonzero(every[1:] == every[:-1]))
    return files
