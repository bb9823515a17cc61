"""Named checks of a run, made on its files: what must hold for the output to be what it claims to be."""

from dataclasses import dataclass
from pathlib import Path

import polars as pl

from pipeline.report.folder import ReportError
from pipeline.report.parts import Check
from pipeline.report.run.duplicates import Kind, both
from pipeline.report.run.frame import FinishedRun
from pipeline.rules import KeepBest
from stages.files import read_frame
from stages.files import rows as rows_of

SHARE = "refined share within bounds"
"""Name of the one check that judges plausibility rather than integrity; it never blocks a conclusion."""


@dataclass(frozen=True)
class Bounds:
    """The share of conversations that a plausible run keeps."""

    least: float = 0.05
    most: float = 1.0

    def __post_init__(self) -> None:
        """Refuse bounds that no share can meet.

        Raises:
            ReportError: `least` is above `most`.
        """
        if self.least > self.most:
            raise ReportError(
                f"--min-kept {self.least:g} is above --max-kept {self.most:g}, so no share can pass: swap them"
            )


@dataclass
class _Files:
    """Counts of rows in the output folders."""

    refined: int = 0
    rejected: int = 0
    quarantined: int = 0
    misplaced: int = 0
    """Shards whose refined and rejected ids are not those of the decisions."""
    unreasoned: int = 0
    """Rejected rows whose reason is null or not one of the plan."""
    null: int = 0
    """Rows in which a prompt, a content or the list of messages is null."""


def check(run: FinishedRun, kinds: list[Kind], bounds: Bounds) -> list[Check]:
    """All checks, the most important first."""
    files = _count_files(run)
    counts = run.manifest.counts
    total = files.refined + files.rejected + files.quarantined
    n = run.rows.height
    twice = n - run.rows["id"].n_unique()
    share = files.refined / n if n else 0.0
    return [
        Check(
            "counts add up",
            (total, files.refined, files.rejected) == (counts.ingested, counts.refined, counts.rejected),
            f"{counts.ingested:,} in = {files.refined:,} refined + {files.rejected:,} rejected + "
            f"{files.quarantined:,} quarantined",
        ),
        Check("ids are unique", twice == 0, f"{n:,} conversations, {twice:,} ids occur twice"),
        Check(
            "each conversation is where its decision says",
            files.misplaced == 0,
            f"{files.misplaced:,} of {len(run.store.shards()):,} shards differ from the decisions",
        ),
        Check(
            "every dropped row has a reason",
            files.unreasoned == 0,
            f"{files.unreasoned:,} of {files.rejected:,} rejected rows have none of the plan's reasons",
        ),
        Check("no text is null", files.null == 0, f"{files.null:,} rows with a null in prompt or messages"),
        *_duplicates(run, kinds),
        Check(
            SHARE,
            bounds.least <= share <= bounds.most,
            f"{share:.1%} kept, expected {bounds.least:.0%} to {bounds.most:.0%}",
        ),
    ]


def _duplicates(run: FinishedRun, kinds: list[Kind]) -> list[Check]:
    """No two kept conversations are duplicates, and every dropped duplicate has a kept one."""
    ruled = {rule.pairs for rule in run.plan.rules if isinstance(rule, KeepBest)}
    if not any(kind.name in ruled for kind in kinds):
        why = "this plan has no keep_best rule; the stage dedup with its rule adds this check"
        return [Check("no two kept duplicates", None, why)]
    checks = []
    for kind in kinds:
        pairs = both(kind, run.rows["id"], run.rows["keep"])
        finding = f"{pairs:,} of the detected pairs at Jaccard {kind.at_least:g} or above are both kept"
        checks.append(Check(f"no two kept duplicates ({kind.name})", pairs == 0, finding))
    dropped = run.rows.filter(pl.col("duplicate_of").is_not_null())
    kept = run.rows.filter(pl.col("keep")).select("id")
    lost = dropped.join(kept, left_on="duplicate_of", right_on="id", how="anti").height
    finding = f"{lost:,} of {dropped.height:,} dropped duplicates name a conversation that is not kept"
    return [*checks, Check("every dropped duplicate has a kept one", lost == 0, finding)]


def _count_files(run: FinishedRun) -> _Files:
    """Count the rows of the output folders, one shard at a time."""
    files = _Files()
    for shard in run.store.shards():
        decided = run.rows.filter(pl.col("in_shard") == int(Path(shard).stem)).select("id", "keep")
        refined = _count_shard(files, run.store.refined(shard), ["id"])
        rejected = _count_shard(files, run.store.rejected(shard), ["id", "reason"])
        files.refined += refined.height
        files.rejected += rejected.height
        right = refined["id"].equals(decided.filter("keep")["id"])
        files.misplaced += not (right and rejected["id"].equals(decided.filter(~pl.col("keep"))["id"]))
        files.unreasoned += rejected.filter(~pl.col("reason").is_in(run.reasons).fill_null(value=False)).height
        if (quarantined := run.store.quarantine(shard)).exists():
            files.quarantined += rows_of(quarantined)
    return files


def _count_shard(files: _Files, path: Path, columns: list[str]) -> pl.DataFrame:
    """Columns of an output shard; rows with a null in their text are counted in `files`."""
    frame = read_frame(path, [*columns, "prompt", "messages"])
    content = pl.col("messages").list.eval(pl.element().struct.field("content").is_null()).list.any()
    null = pl.col("prompt").is_null() | pl.col("messages").is_null() | content.fill_null(value=False)
    files.null += frame.select(null.sum()).item()
    return frame.select(columns)
