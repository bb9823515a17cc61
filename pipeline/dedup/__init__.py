"""`refine dedup`: near-duplicates of one column of a file, without a run."""

import contextlib
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipeline.dedup.explain import explanation, in_words, measure_recall, summary
from pipeline.dedup.output import WRITERS, Result, write_removed
from pipeline.dedup.texts import Columns, Ids, TextColumn, Texts, listed
from pipeline.sources import SourceError
from stages.dedup.bands import Matching
from stages.dedup.keep import GIVEN, keep_best
from stages.files import save
from stages.stage import StageParameterError, StageRefusedError
from stages.text.shards import cores

BUCKET = 10_000
"""Maximum number of kept texts that a text is compared with in one bucket."""
PATIENCE = 3.0
"""Seconds before progress is shown."""
MIN_SUSPICIOUS = 1000
"""Number of texts below which a cluster never stops the command."""


@dataclass(frozen=True)
class DedupOptions:
    """Options of `refine dedup`; see its help."""

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
        """Check what can be checked before anything is read; raises `StageParameterError`."""
        if not 0 < self.threshold <= 1:
            raise StageParameterError(f"--threshold is {self.threshold:g}, expected a Jaccard above 0, up to 1")
        self.matching.check("refine dedup")
        if self.kept and self.kept.suffix not in WRITERS:
            raise StageParameterError(
                f"--kept is {self.kept}, expected a file that ends in .parquet or .jsonl (the kept rows) or .txt "
                f"(their ids)"
            )
        if self.removed and self.removed.suffix != ".parquet":
            raise StageParameterError(f"--removed is {self.removed}, expected a file that ends in .parquet")
        for out in filter(None, (self.kept, self.removed)):
            if not out.parent.is_dir():
                raise StageParameterError(f"{out.parent} is not a folder: make it, or write {out.name} elsewhere")
            if out.exists() and out.samefile(self.file):
                raise StageParameterError(f"{out} is the file that is read: write elsewhere")
            if self.file.is_dir() and out.resolve().is_relative_to(self.file.resolve()):
                raise StageParameterError(f"{out} is in the folder that is read, and the next time it would be, too")

    @property
    def writes_ids(self) -> bool:
        """Whether rows are written by their ids alone."""
        return self.removed is not None or (self.kept is not None and self.kept.suffix == ".txt")

    @property
    def matching(self) -> Matching:
        """The parameters of the search for duplicates."""
        return Matching.for_threshold(self.threshold, BUCKET)


class _Progress(contextlib.ExitStack):
    """Rows read, on stderr, once that has taken some seconds: a short command needs neither progress nor rich."""

    def __init__(self) -> None:
        super().__init__()
        self._began, self._last, self._pass = time.monotonic(), 0, 1
        self._reporter: Callable[[str, int, int], None] | None = None

    def __call__(self, done: int) -> None:
        """`done` rows are read."""
        if done < self._last:
            self._pass += 1
        self._last = done
        if self._reporter is None and time.monotonic() - self._began > PATIENCE:
            from pipeline.terminal import ProgressReporter

            self._reporter = self.enter_context(ProgressReporter())
        if self._reporter:
            self._reporter(("reading", "comparing")[self._pass > 1], done, 0)


def dedup(options: DedupOptions, *, explain: bool, as_json: bool) -> None:
    """Find duplicates, write the files that were asked for, and print a summary.

    Raises:
        SourceError: the file cannot be read, or lacks a column.
        StageParameterError: an option cannot have its value, or nothing would be written or explained.
        StageRefusedError: one cluster is too large.
    """
    out = options.kept or options.removed
    if not (out or explain or as_json):
        raise StageParameterError(
            "nothing would be written: name a file with --kept or --removed, or ask for the figures alone with "
            "--explain or --json"
        )
    began, matching = time.perf_counter(), options.matching
    corpora, ids, notes = _corpora(options)
    columns = corpora[-1].columns
    with (
        _Progress() as progress,
        tempfile.TemporaryDirectory(prefix=".dedup-", dir=out.parent if out else None) as scratch,
    ):
        texts = Texts(corpora, tell=progress)

        def ranks(words: NDArray[np.uint32]) -> NDArray[np.int64]:
            start = sum(texts.counts[:-1])
            return np.concatenate([np.full(start, GIVEN), _ranks(options.order, columns, words[start:])])

        kept = keep_best(texts, options.threshold, matching, ranks, Path(scratch), options.workers or cores())
    texts.tell = None
    result = Result(texts, ids, kept)
    figures = {**summary(matching, options.threshold, result), "order": options.order, "notes": notes}
    _guard(options, figures)
    if explain:
        figures["injected"] = measure_recall(texts, matching, options.threshold)
    if kept_file := options.kept:
        save(kept_file, lambda path: WRITERS[kept_file.suffix](result, path))
    if options.removed:
        save(options.removed, lambda path: write_removed(result, path))
    figures["seconds"] = round(time.perf_counter() - began, 3)
    if as_json:
        sys.stdout.write(json.dumps(figures, indent=2) + "\n")
    else:
        sys.stdout.write(
            in_words(figures, matching.bucket) + (explanation(figures, matching.permutations) if explain else "")
        )


def _corpora(options: DedupOptions) -> tuple[list[TextColumn], list[Ids | None], list[str]]:
    """The texts of the earlier corpus, if any, and of the file, the ids of both, and notes on both."""
    corpora = [TextColumn.of(Columns.of(file), options.column) for file in (options.against, options.file) if file]
    _check_columns(options, corpora[-1].columns)
    notes, all_ids = [corpus.columns.note for corpus in corpora], list[Ids | None]()
    for corpus in corpora:
        columns, named = corpus.columns, options.id if corpus is corpora[-1] else None
        name = named or ("id" if "id" in columns.schema else None)
        ids = Ids(columns, name) if name else None
        if ids and options.writes_ids and (fault := ids.fault()):
            if named:
                raise SourceError(
                    f"{columns.name}: the column {name!r} {fault}: name another one with --id, or omit it"
                )
            notes.append(f"the column {name!r} of {columns.name} {fault}: its rows are numbered from 0 instead")
            ids = None
        all_ids.append(ids)
    return corpora, all_ids, list(filter(None, notes))


def _check_columns(options: DedupOptions, columns: Columns) -> None:
    schema, order = columns.schema, _term(options.order)[0]
    there = listed(schema)
    if options.id is not None and options.id not in schema:
        raise SourceError(f"{columns.name} has no column {options.id!r}: name one with --id (there are {there})")
    if order is not None and order not in schema:
        raise SourceError(f"{columns.name} has no column {order!r} to order by; there are {there}, and longest, first")
    if options.kept and options.kept.suffix == ".jsonl" and "Binary" in str(schema):
        raise SourceError(f"{columns.name} has a column of bytes, which JSON cannot hold: write --kept to .parquet")


def _term(order: str) -> tuple[str | None, bool]:
    """The column of an order (none for "longest" and "first"), and whether its largest value is the best."""
    if order in {"longest", "first"}:
        return None, order == "longest"
    name, _, way = order.rpartition(" ") if order.upper().endswith((" ASC", " DESC")) else (order, "", "ASC")
    return name, way.upper() == "DESC"


def _ranks(order: str, columns: Columns, words: NDArray[np.uint32]) -> NDArray[np.int64]:
    """The rank of each text, the smallest for the best; ties by row."""
    name, down = _term(order)
    if name is None:
        return -words.astype(np.int64) if down else np.zeros(len(words), np.int64)
    kind = columns.schema[name]
    schema = pl.Schema({name: pl.Float64() if kind == pl.Unknown else kind})
    try:
        values = pl.concat([part[name] for part in columns.parts(schema)])
    except SourceError as error:  # the texts have been read, so it is the type of this column
        raise SourceError(
            f"{columns.name}: the column {name!r} to order by holds more than numbers: name another"
        ) from error
    best_first = values.to_frame().with_row_index().sort(name, "index", descending=[down, False], nulls_last=True)
    ranks = np.empty(len(words), np.int64)
    ranks[best_first["index"].to_numpy()] = np.arange(len(words))
    return ranks


def _guard(options: DedupOptions, figures: dict[str, Any]) -> None:
    for cluster in figures["largest_clusters"][:1]:
        size, total = cluster["texts"], figures["texts"]
        if size >= MIN_SUSPICIOUS and size > options.max_cluster * total:
            raise StageRefusedError(
                f"{size:,} of {total:,} texts are duplicates of one, {cluster['id']!r} ({cluster['example']!r}), more "
                f"than a share of {options.max_cluster:g}: look at them, and if they may go, allow it with "
                f"--max-cluster {min(1, size / total + 0.005):.2f}"
            )
