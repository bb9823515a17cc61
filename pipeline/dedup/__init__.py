"""`refine dedup`: near-duplicates of one column of a file, without a run."""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipeline.dedup.columns import Columns, Texts
from pipeline.dedup.explain import explained, said, summary
from pipeline.dedup.found import Found, write_ids, write_removed, write_rows
from pipeline.sources import SourceError
from stages.dedup.bands import plan
from stages.dedup.keep import GIVEN, PERMUTATIONS, KeepOptions, keep_best
from stages.dedup.pairs import cores
from stages.files import save
from stages.stage import StageParameterError, StageRefusedError

RECALL, MARGIN = 0.5, 5 / 7
"""Weight of missed pairs in the choice of bands, and where they are placed below the threshold: 0.5 for 0.7."""
PATIENCE = 3.0
"""Seconds without a word."""
SMALL = 1000
"""A cluster of fewer texts stops nothing."""


@dataclass(frozen=True)
class DedupOptions:
    """What a user asks for; see the help of `refine dedup`."""

    file: Path
    kept: Path | None
    removed: Path | None
    column: str
    id: str | None
    threshold: float
    order: str
    against: Path | None
    max_cluster: float
    workers: int

    def __post_init__(self) -> None:
        """Check what can be checked before anything is read.

        Raises:
            StageParameterError: an option cannot have its value.
        """
        if not 0 < self.threshold <= 1:
            raise StageParameterError(f"--threshold is {self.threshold:g}, expected a Jaccard above 0, up to 1")
        if self.removed and self.removed.suffix != ".parquet":
            raise StageParameterError(f"--removed is {self.removed}, expected a file that ends in .parquet")
        for out in filter(None, (self.kept, self.removed)):
            if not out.parent.is_dir():
                raise StageParameterError(f"{out.parent} is not a folder: make it, or write {out.name} elsewhere")
            if out.exists() and out.samefile(self.file):
                raise StageParameterError(f"{out} is the file that is read: write elsewhere")

    def asked(self) -> KeepOptions:
        """How duplicates are found."""
        bands, rows = plan(max(0.1, round(MARGIN * self.threshold, 3)), PERMUTATIONS, RECALL)
        return KeepOptions(self.threshold, bands, rows, self.workers or cores())


class _Progress(contextlib.ExitStack):
    """Rows read, on stderr, once that has taken some seconds: what is done before needs no progress, and no rich."""

    def __init__(self) -> None:
        super().__init__()
        self._began, self._last, self._pass = time.monotonic(), 0, 1
        self._told: Callable[[str, int, int], None] | None = None

    def __call__(self, done: int) -> None:
        """`done` rows are read."""
        if done < self._last:
            self._pass += 1
        self._last = done
        if self._told is None and time.monotonic() - self._began > PATIENCE:
            from pipeline.terminal import ProgressReporter

            self._told = self.enter_context(ProgressReporter())
        if self._told:
            self._told(("reading", "comparing")[self._pass > 1], done, 0)


def dedup(wanted: DedupOptions, *, explain: bool, as_json: bool) -> None:
    """Find duplicates, write what was asked for, say what was found.

    Raises:
        SourceError: the file cannot be read, or lacks a column.
        StageParameterError: an option cannot have its value.
        StageRefusedError: one cluster is too large.
    """
    began, asked = time.perf_counter(), wanted.asked()
    columns, name = _columns(wanted)
    against = [_columns(replace(wanted, file=wanted.against, id=None, order="longest"))] if wanted.against else []
    out = wanted.kept or wanted.removed
    with (
        _Progress() as progress,
        tempfile.TemporaryDirectory(prefix=".dedup-", dir=out.parent if out else None) as scratch,
    ):
        texts = Texts([*(corpus for corpus, _ in against), columns], wanted.column, tell=progress)

        def best(lengths: NDArray[np.uint32]) -> NDArray[np.int64]:
            start = sum(texts.counts[:-1])
            own = _rank(wanted.order, columns, lengths[start:])
            return np.concatenate([np.full(start, GIVEN), own])

        kept = keep_best(texts, asked, best, Path(scratch))
    texts.tell = None
    found = Found(columns, texts, [*(one for _, one in against), name], kept, sum(texts.counts[:-1]))
    told = {**summary(asked, found), "order": wanted.order}
    _guard(wanted, told)
    if explain:
        from pipeline.dedup.explain import injected

        told["injected"] = injected(texts, asked)
    _write(wanted, found)
    told["seconds"] = round(time.perf_counter() - began, 3)
    sys.stdout.write(
        json.dumps(told, indent=2) + "\n" if as_json else said(told) + (explained(told) if explain else "")
    )


def _columns(wanted: DedupOptions) -> tuple[Columns, str | None]:
    """The file, and its column of ids."""
    columns = Columns.of(wanted.file)
    schema = columns.schema()
    there = ", ".join(schema) or "none"
    if wanted.column not in schema:
        hint = "; for conversations: refine run --stages dedup" if "messages" in schema else ""
        raise SourceError(
            f"{wanted.file} has no column {wanted.column!r}: name one with --column (there are {there}{hint})"
        )
    kind = schema[wanted.column]
    if kind.is_nested() or kind.is_numeric():
        raise SourceError(f"{wanted.file}: the column {wanted.column!r} is {kind}, expected text")
    if wanted.id is not None and wanted.id not in schema:
        raise SourceError(f"{wanted.file} has no column {wanted.id!r}: name one with --id (there are {there})")
    name, _ = _term(wanted.order)
    if name and name not in schema:
        raise SourceError(f"{wanted.file} has no column {name!r} to order by; there are {there}, and longest, first")
    return columns, wanted.id or ("id" if "id" in schema else None)


def _term(order: str) -> tuple[str | None, bool]:
    """A column to order by (none for "longest" and "first"), and whether the largest is the best."""
    if order in {"longest", "first"}:
        return None, order == "longest"
    name, _, way = order.rpartition(" ") if order.upper().endswith((" ASC", " DESC")) else (order, "", "ASC")
    return name, way.upper() == "DESC"


def _rank(order: str, columns: Columns, lengths: NDArray[np.uint32]) -> NDArray[np.int64]:
    """The rank of each text, 0 for the best; ties by row."""
    name, down = _term(order)
    if name is None:
        return -lengths.astype(np.int64) if down else np.zeros(len(lengths), np.int64)
    kind = columns.schema()[name]
    schema = pl.Schema({name: pl.Float64() if kind == pl.Unknown else kind})
    values = pl.concat([part[name] for part in columns.parts(schema)])
    best_first = values.to_frame().with_row_index().sort(name, "index", descending=[down, False], nulls_last=True)
    rank = np.empty(len(lengths), np.int64)
    rank[best_first["index"].to_numpy()] = np.arange(len(lengths))
    return rank


def _guard(wanted: DedupOptions, told: dict[str, Any]) -> None:
    for cluster in told["largest_clusters"][:1]:
        size, total = cluster["texts"], told["texts"]
        if size >= SMALL and size > wanted.max_cluster * total:
            raise StageRefusedError(
                f"{size:,} of {total:,} texts are duplicates of one, {cluster['id']!r} ({cluster['example']!r}), more "
                f"than a share of {wanted.max_cluster:g}: look at them, and if they may go, allow it with "
                f"--max-cluster {min(1, size / total + 0.005):.2f}"
            )


def _write(wanted: DedupOptions, found: Found) -> None:
    if wanted.kept:
        write = write_rows if wanted.kept.suffix == ".parquet" else write_ids
        save(wanted.kept, lambda path: write(found, path))
    if wanted.removed:
        save(wanted.removed, lambda path: write_removed(found, path))
