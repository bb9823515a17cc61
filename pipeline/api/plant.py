"""`refine.plant` and `refine.audit`: damage a corpus from Python, and see which of it a run found."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from pipeline import plant as planting
from pipeline import sources
from pipeline.api.run import Run
from pipeline.api.tables import Display, Summary
from pipeline.ingest import Limits, ingest
from pipeline.ownership import run_at
from pipeline.plant import PlantError, PlantOptions, Plot
from pipeline.plant import audit as auditing
from pipeline.plant.audit import UNTOUCHED, Recall
from pipeline.sources.fields import with_fields
from pipeline.store import RunFolderError, Store, read_json
from pipeline.store.bucket import check_local
from stages.files import read_frame, save_frame, scratch

SHARD_ROWS = 100_000
"""Maximum number of rows of a file of a damaged corpus."""


@dataclass(frozen=True, repr=False)
class Damage(Display):
    """A damaged corpus on disk, and what was planted into it.

    Attributes:
        path: its folder of Parquet files, which `refine.run` takes.
        conversations: how many it has.
        omitted: rows of the source that could not be read.
        kinds: what was planted of each kind, and why it is less than was asked for.
    """

    path: Path
    conversations: int
    omitted: int
    kinds: tuple[Plot, ...]

    def summaries(self) -> Sequence[Summary]:
        """Return what was planted, by kind."""
        rows = [(plot.kind.name, plot.planted, plot.kind.says, plot.note) for plot in self.kinds]
        total = sum(plot.planted for plot in self.kinds)
        note = f"\n{self.path}: {self.conversations:,} conversations, {total:,} of them planted"
        note += f"; {self.omitted:,} rows that could not be read are omitted" if self.omitted else ""
        return [Summary("", ("kind", "planted", "what is done to a conversation", "note"), rows, frozenset({1}), note)]


@dataclass(frozen=True, repr=False)
class Audit(Display):
    """What a run found of the damage that was planted into its source.

    Attributes:
        kinds: by kind of damage: how many were planted, dropped and repaired, the interval of the recall, and by which
            rules.
        untouched: the same for conversations that were not damaged: their share is that of false drops, together with
            flaws that the source had before.
        baseline: what a run of the undamaged source drops of them, if it was named.
    """

    kinds: Mapping[str, Recall]
    untouched: Recall
    baseline: auditing.Baseline | None

    def summaries(self) -> Sequence[Summary]:
        """Return recall by kind, and what was dropped besides."""
        every = {**self.kinds, UNTOUCHED: self.untouched}
        some = any(one.repaired for one in every.values())
        head = ("planted", "conversations", "dropped", *["repaired"] * some, "share", "95 % interval", "by which rule")
        rows = [_row(name, one, repaired=some) for name, one in every.items()]
        return [Summary("", head, rows, frozenset({1, 2, 3, 3 + some}), f"\n{self._note()}")]

    def _note(self) -> str:
        if self.baseline is None:
            return (
                "Untouched conversations may have had flaws before: --clean, a run of the undamaged source with the "
                "same plan, tells these from false drops."
            )
        return (
            f"Without the damage, the same plan drops {self.baseline.dropped:,} of the untouched conversations; "
            f"{self.baseline.only_here:,} are dropped only because of it."
        )


def _row(name: str, one: Recall, *, repaired: bool) -> tuple[object, ...]:
    """A row of the table, with the number of those repaired if any of them was."""
    rules = ", ".join(f"{reason} {n:,}" for reason, n in one.by_rule.items())
    numbers = (one.total, one.dropped, *[one.repaired] * repaired, f"{one.share:.1%}")
    return name, *numbers, f"{one.interval[0]:.1%} to {one.interval[1]:.1%}", rules


def plant(
    source: Path | str | None = None,
    *,
    out: Path | str,
    kinds: str | Sequence[str] = (),
    share: float = 0.02,
    seed: int = 0,
    evals: Path | str | None = None,
    split: str | None = None,
    config: str | None = None,
    revision: str | None = None,
    shape: str | None = None,
    limit: int | None = None,
) -> Damage:
    """Plant known damage into a corpus as `refine plant` does, and write the damaged corpus.

    Each row has the column `planted_kind`, null if it is untouched, and `planted_of`, the id of the original of an
    added copy.

    Args:
        source: as for `refine.run`; of a run, its refined corpus.
        out: the folder of the damaged corpus, which must be new or empty.
        kinds: names of kinds of damage, as a list or comma-separated; by default all.
        share: share of the conversations that each kind damages or copies.
        seed: seed of all draws.
        evals: evaluation sets, for the kind `eval_item`; a file or a folder.
        split: split of a hub dataset or a saved DatasetDict.
        config: configuration of a hub dataset.
        revision: revision of a hub dataset.
        shape: shape of the records; recognised by default.
        limit: number of rows to read; by default all.

    Raises:
        RefineError: the damage cannot be planted; the message says why and what to do.
    """
    names = kinds.split(",") if isinstance(kinds, str) else kinds
    chosen = tuple(filter(None, map(str.strip, names)))
    if kinds and not chosen:
        raise PlantError(f"--kinds is {kinds!r}, which names no kind: omit it for all")
    if evals is not None and chosen and "eval_item" not in chosen:
        raise PlantError("--evals is for the kind eval_item, which --kinds does not name: omit one of them")
    options = PlantOptions(chosen, share, seed, "" if evals is None else str(evals))
    place = Path(out)
    check_local(out)
    _check_out(place, source)
    data = sources.find(None if source is None else str(source), split=split, config=config, revision=revision)
    with tempfile.TemporaryDirectory(prefix="refine-plant-") as folder:
        store = Store(Path(folder) / "run")
        omitted = ingest(data, store, Limits(limit=limit, shape=shape))["quarantined"]
        raw = pl.concat([read_frame(store.raw(shard)) for shard in store.shards()])
        corpus = read_json(store.shard_list)
    damaged = planting.plant(raw, options)
    every = damaged.rows.join(raw.select("id", "details", "tools"), on="id", how="left", maintain_order="left")
    every = every.with_columns(messages=with_fields(every["messages"], every["details"], corpus.get("fields", {})))
    every = every.drop("details", *([] if corpus.get("tools") else ["tools"]))
    with scratch(place.resolve().parent, place.name) as aside:
        for number, rows in enumerate(every.iter_slices(SHARD_ROWS)):
            save_frame(aside / f"{number:05d}.parquet", rows)
        aside.rename(place)
    return Damage(place, damaged.rows.height, omitted, damaged.plots)


def _check_out(place: Path, source: Path | str | None) -> None:
    """Refuse a place that holds something, or that would become a part of the source."""
    if place.is_symlink() or (place.exists() and not (place.is_dir() and not any(place.iterdir()))):
        raise PlantError(f"--out is {place}, which is there already: expected a new or empty folder")
    if source is not None and Path(source).is_dir() and place.resolve().is_relative_to(Path(source).resolve()):
        raise PlantError(f"--out is {place}, a folder in the source {source}: choose another place")


def audit(run: Run | Path | str, *, clean: Run | Path | str | None = None) -> Audit:
    """Compare the decisions of a run with the damage that was planted into its source, as `refine audit` does.

    Args:
        run: a run of a damaged corpus, or its folder.
        clean: a run of the undamaged source with the same plan: what it drops too is no false drop.

    Raises:
        RefineError: nothing was planted into the source of the run; the message says why and what to do.
    """
    store = _store(run)
    found = auditing.audit(store, None if clean is None else _store(clean))
    if found is None:
        raise RunFolderError(
            f"{store.folder} is no run of a damaged corpus: `refine plant SOURCE --out damaged` makes one, and `refine "
            "run damaged` refines it"
        )
    return Audit(found.kinds, found.untouched, found.baseline)


def _store(run: Run | Path | str) -> Store:
    return run_at(run.path if isinstance(run, Run) else Path(run))
