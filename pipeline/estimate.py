"""Estimate: how long a run will take, measured on a sample of its first shard."""

import time
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from pipeline.engine import Engine
from pipeline.plan import Plan, PlannedStage
from pipeline.store import Store
from pipeline.terminal import duration
from stages.files import read_frame, save_frame, scratch, sizes_in
from stages.stage import FittedStage, Measure

SIZES = (4, 16, 64, 256)
"""Conversations of the samples that a stage measures, one after the other."""
ENOUGH = 0.2
"""Seconds of a sample after which no larger one is measured."""
WORTH_SAYING = 10.0
"""Seconds below which an estimate is not reported."""
FIT = ": fit"
"""What is added to the name of a stage for its fit."""


@dataclass(frozen=True)
class Estimate:
    """About how long the stages will take for a corpus.

    Attributes:
        seconds: of one process for the whole corpus, by "stage" and "stage: fit".
        left: share of the corpus that is still to be measured, by stage.
        unknown: stages that could not be estimated.
        parts: number of parts of a fit that can be done at the same time, by stage; by default 1.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    left: dict[str, float] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)
    parts: dict[str, int] = field(default_factory=dict)

    def wall(self, engine: Engine, shards: int, factor: float = 1.0) -> dict[str, float]:
        """Seconds by stage for a corpus so many times as large, in so many shards; the longest stage first."""
        wall = dict.fromkeys(self.left, 0.0)
        for step, of_one in self.seconds.items():
            stage = step.removesuffix(FIT)
            seconds = factor * of_one * self.left[stage]
            tasks = shards if step == stage else self.parts.get(stage, 1)
            wall[stage] += seconds / engine.processes(tasks, seconds)
        return dict(sorted(wall.items(), key=lambda item: -item[1]))

    def sentence(self, engine: Engine, shards: int, rows: int) -> str:
        """How long a run of so many conversations takes, and which stages take how much of it; empty if not long."""
        stages = self.wall(engine, shards)
        total = sum(stages.values())
        if total < WORTH_SAYING:
            return ""
        parts = ", ".join(f"{stage} {seconds / total:.0%}" for stage, seconds in stages.items())
        unknown = f"; without {', '.join(self.unknown)}, which cannot be estimated" if self.unknown else ""
        return f"about {duration(total)} for {rows:,} conversations: {parts}{unknown}"


def estimate(plan: Plan, store: Store, *, everything: bool) -> Estimate:
    """Try the stages on a sample of the first shard: those with something left to measure, or all.

    What a stage does with the sample is thrown away, and so is its error: it may refuse so few conversations.
    """
    made, raw = Estimate(), sizes_in(store.raw(""))
    sizes = {shard: raw.get(shard, 0) for shard in store.shards()}
    shard = next(iter(sizes))
    first = read_frame(store.raw(shard))
    sample = first.gather_every(max(first.height // SIZES[-1], 1)).head(SIZES[-1])
    scale = first.height * sum(sizes.values()) / sizes[shard]
    with scratch(store.stage(""), "estimate") as folder:
        for planned in plan.stages if sample.height else ():
            own = store.stage(planned.key)
            there = sizes_in(own)
            left = sum(size for shard, size in sizes.items() if everything or shard not in there)
            if not left:
                continue
            try:
                made.seconds.update(_steps(planned, sample, scale, own, folder / planned.key))
                made.left[planned.name] = left / sum(sizes.values())
                if isinstance(planned.stage, FittedStage) and planned.stage.fit_parts:
                    made.parts[planned.name] = len(planned.stage.fit_parts)
            except Exception:  # noqa: BLE001  see above
                made.unknown.append(planned.name)
    return made


def _steps(planned: PlannedStage, sample: pl.DataFrame, scale: float, folder: Path, aside: Path) -> dict[str, float]:
    """Seconds of the steps of a stage, whose folder is `folder`, for `scale` conversations."""
    stage, seconds = planned.stage, {}
    if isinstance(stage, FittedStage) and stage.fits_corpus:
        seconds[planned.name + FIT] = scale * _fit(stage, sample, aside)
        folder = aside
    return {**seconds, planned.name: scale * _measure(stage.open(folder), sample.select(stage.reads))}


def _measure(measure: Measure, sample: pl.DataFrame) -> float:
    """Seconds a conversation, of the largest sample that is worth it; the first one is for what is loaded late."""
    for size in SIZES:
        part = sample.gather_every(max(sample.height // size, 1)).head(size)
        start = time.perf_counter()
        measure(part)
        spent = time.perf_counter() - start
        if size > SIZES[0] and spent > ENOUGH:
            break
    return spent / part.height


def _fit(stage: FittedStage, sample: pl.DataFrame, folder: Path) -> float:
    """Seconds a conversation: of the sample, less those of a few conversations."""
    few, spent = SIZES[0], []
    for part in (sample.head(few), sample):
        folder.mkdir(parents=True, exist_ok=True)
        raw = folder / "sample" / "00000.parquet"
        save_frame(raw, part, {})
        start = time.perf_counter()
        stage.fit([raw], folder)
        spent.append(time.perf_counter() - start)
    return max(spent[1] - spent[0], 0.0) / max(sample.height - few, 1)
