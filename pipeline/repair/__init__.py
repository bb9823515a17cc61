"""Repair: messages at fault are removed before anything is measured, and recorded so that the original comes back."""

import json
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import polars as pl

from pipeline.engine import Engine, Needs
from pipeline.plan import REPAIR_VERSION
from pipeline.repair.edits import repaired, restore
from pipeline.store import Store, read_json
from stages.files import exists, footer, present, read_frame, remove, save_conversations, sizes_in

__all__ = ["repair", "repaired", "restore"]


def repair(
    trims: Sequence[str],
    store: Store,
    engine: Engine,
    shards: Sequence[str],
    tell: Callable[[int], None] = lambda _rows: None,
) -> Counter[str]:
    """Write the repaired shards that are missing or of other repairs; without repairs, remove those that are there.

    Returns the numbers of repaired conversations by repair, and under "" of all. The manifest is removed before
    anything changes, because decisions and output belong to the shards that were there. `tell` is called with the
    number of conversations done so far.
    """
    if not trims:
        if exists(store.repaired("")):
            remove(store.manifest)
            for name in sizes_in(store.repaired("")):
                remove(store.repaired(name))
            shutil.rmtree(store.repaired(""), ignore_errors=True)
        return Counter()
    task = _Task(tuple(trims), store)
    before = {shard: task.counted(shard) for shard in shards}
    missing = [shard for shard, counts in before.items() if counts is None]
    total = sum((counts for counts in before.values() if counts is not None), Counter[str]())
    size = {str(shard["name"]): int(shard["rows"]) for shard in read_json(store.shard_list)["shards"]}
    done = sum(size[shard] for shard in shards if shard not in missing)
    tell(done)
    if missing:
        remove(store.manifest)
    for shard, counts in _each(task, engine, missing):
        total += counts
        done += size[shard]
        tell(done)
    sizes_in(store.repaired(""), anew=True)
    return total


def _each(task: "_Task", engine: Engine, shards: Sequence[str]) -> Iterator[tuple[str, Counter[str]]]:
    """Apply the task to shards; the first one shows whether workers are worth it for the others."""
    start = time.perf_counter()
    yield from engine.map(task, shards[:1])
    seconds = (time.perf_counter() - start) * (len(shards) - 1)
    yield from engine.map(task, shards[1:], Needs(seconds=seconds))


@dataclass(frozen=True)
class _Task:
    """Repairs one shard; picklable."""

    trims: tuple[str, ...]
    store: Store

    @property
    def digest(self) -> str:
        """What a shard's file says about its repairs."""
        return repr((REPAIR_VERSION, self.trims))

    def counted(self, shard: str) -> Counter[str] | None:
        """What these repairs have done in a shard; None if they were not made."""
        path = self.store.repaired(shard)
        metadata = footer(path) if present(path) else {}
        done = metadata.get("refine.repairs") == self.digest
        return Counter(json.loads(metadata["refine.repaired"])) if done else None

    def __call__(self, shard: str) -> Counter[str]:
        self.store.mount()
        frame = repaired(read_frame(self.store.raw(shard)), self.trims)
        changes = frame["repairs"].drop_nulls()
        kinds = changes.list.eval(pl.element().struct.field("trim").unique()).explode()
        counts = Counter(dict(kinds.value_counts().iter_rows())) + Counter({"": len(changes)})
        numbers = json.dumps(counts, sort_keys=True)
        save_conversations(
            self.store.repaired(shard), frame, {"refine.repairs": self.digest, "refine.repaired": numbers}
        )
        return counts
