"""Repair: messages at fault are removed before anything is measured, and recorded so that the original comes back."""

import json
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from pipeline.engine import Engine
from pipeline.plan import REPAIR_VERSION
from pipeline.repair.edits import repaired, restore
from pipeline.store import Store
from stages.files import exists, footer, read_frame, remove, save_frame, sizes_in

__all__ = ["repair", "repaired", "restore"]


def repair(trims: Sequence[str], store: Store, engine: Engine, shards: Sequence[str]) -> Counter[str]:
    """Write the repaired shards that are missing or of other repairs; without repairs, remove those that are there.

    Returns the numbers of repaired conversations by repair, and under "" of all. The manifest is removed before
    anything changes, because decisions and output belong to the shards that were there.
    """
    if not trims:
        for name in sizes_in(store.repaired("")):
            remove(store.manifest)
            remove(store.repaired(name))
        shutil.rmtree(store.repaired(""), ignore_errors=True)  # the empty folder
        return Counter()
    task = _Task(tuple(trims), store)
    if any(task.counted(shard) is None for shard in shards):
        remove(store.manifest)
    total = Counter[str]()
    for _, counts in engine.map(task, shards):
        total.update(counts)
    sizes_in(store.repaired(""), anew=True)
    return total


@dataclass(frozen=True)
class _Task:
    """Repairs one shard, unless that is done; picklable."""

    trims: tuple[str, ...]
    store: Store

    @property
    def digest(self) -> str:
        """What a shard's file says about its repairs."""
        return repr((REPAIR_VERSION, self.trims))

    def counted(self, shard: str) -> Counter[str] | None:
        """What these repairs have done in a shard; None if they were not made."""
        path = self.store.repaired(shard)
        metadata = footer(path) if exists(path) else {}
        done = metadata.get("refine.repairs") == self.digest
        return Counter(json.loads(metadata["refine.repaired"])) if done else None

    def __call__(self, shard: str) -> Counter[str]:
        self.store.mount()
        if (before := self.counted(shard)) is not None:
            return before
        frame = repaired(read_frame(self.store.raw(shard)), self.trims)
        changes = frame["repairs"].drop_nulls()
        kinds = changes.list.eval(pl.element().struct.field("trim").unique()).explode()
        counts = Counter(dict(kinds.value_counts().iter_rows())) + Counter({"": len(changes)})
        numbers = json.dumps(counts, sort_keys=True)
        save_frame(self.store.repaired(shard), frame, {"refine.repairs": self.digest, "refine.repaired": numbers})
        return counts
