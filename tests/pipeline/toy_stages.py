"""Stages for tests of the core: cheap, and each of one kind."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from stages.files import read_frame, save_frame, save_json
from stages.stage import FittedStage, GlobalStage, Measure, MissingModelError, Stage


@dataclass(frozen=True)
class Words(Stage):
    """words: white-space separated words of the text."""

    summary = "words"
    writes = pl.Schema({"words": pl.Int64()})
    at_least: int = 0

    def measure(self, batch: pl.DataFrame) -> pl.DataFrame:
        return batch.select(words=pl.col("text").str.count_matches(r"\S+").cast(pl.Int64))


@dataclass(frozen=True)
class Longest(FittedStage):
    """share_of_longest: length of the text as a share of the corpus's longest."""

    summary = "needs the corpus first, in two parts"
    writes = pl.Schema({"share_of_longest": pl.Float64()})
    fit_parts = ("even", "odd")

    def fit_part(self, part: str, raw: Sequence[Path], folder: Path) -> None:
        some = raw[self.fit_parts.index(part) :: 2]
        lengths = [read_frame(path, ["text"])["text"].str.len_chars().max() or 0 for path in some]
        save_json(folder / f"{part}.json", {"characters": max(lengths, default=0)})

    def fit(self, raw: Sequence[Path], folder: Path) -> None:
        for part in self.fit_parts:
            if not (folder / f"{part}.json").exists():
                self.fit_part(part, raw, folder)
        longest = max(json.loads((folder / f"{part}.json").read_text())["characters"] for part in self.fit_parts)
        save_json(folder / "longest.json", {"characters": longest})

    def open(self, folder: Path) -> Measure:
        longest = json.loads((folder / "longest.json").read_text())["characters"]
        return lambda batch: batch.select(share_of_longest=pl.col("text").str.len_chars() / max(longest, 1))


@dataclass(frozen=True)
class Copies(GlobalStage):
    """copy_of: the first conversation with this very text; near pairs: same first ten characters, Jaccard 0.8."""

    summary = "needs all shards"
    writes = pl.Schema({"characters": pl.Int64()})
    merges = pl.Schema({"copy_of": pl.String()})
    pairs = {"copies": "copy_of"}  # noqa: RUF012  a constant of the class

    def measure(self, batch: pl.DataFrame) -> pl.DataFrame:
        return batch.select(characters=pl.col("text").str.len_chars().cast(pl.Int64))

    def merge(self, raw: Sequence[Path], measured: Sequence[Path], folder: Path) -> None:
        texts = pl.concat(
            read_frame(path, ["id", "text"]).with_columns(shard=pl.lit(path.name)) for path in raw
        ).with_columns(copy_of=pl.col("id").first().over("text"))
        for path in measured:
            part = texts.filter(pl.col("shard") == path.name).select("id", "copy_of")
            save_frame(folder / "merged" / path.name, part)
        start = texts.filter(pl.col("id") == pl.col("copy_of")).with_columns(start=pl.col("text").str.head(10))
        near = start.join(start, on="start", suffix="_other").filter(pl.col("id") < pl.col("id_other"))
        near = near.select("id", other="id_other", jaccard=pl.lit(0.8, pl.Float32)).sort("id", "other")
        save_frame(folder / "copies.parquet", near)


@dataclass(frozen=True)
class Killed(Words):
    """Its worker is killed by the system."""

    def measure(self, batch: pl.DataFrame) -> pl.DataFrame:
        if multiprocessing.parent_process() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return Words.measure(self, batch)


@dataclass(frozen=True)
class KilledFit(Longest):
    """The worker of a part of its fit is killed by the system."""

    def fit_part(self, part: str, raw: Sequence[Path], folder: Path) -> None:
        if multiprocessing.parent_process() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        Longest.fit_part(self, part, raw, folder)


@dataclass(frozen=True)
class Slow(Words):
    """It takes its time."""

    def measure(self, batch: pl.DataFrame) -> pl.DataFrame:
        time.sleep(0.3)
        return Words.measure(self, batch)


@dataclass(frozen=True)
class Failing(Words):
    """It raises what nobody promised."""

    def measure(self, batch: pl.DataFrame) -> pl.DataFrame:
        del batch
        raise KeyError("no such thing")


@dataclass(frozen=True)
class Lying(Words):
    """It writes a row less than it was given."""

    def measure(self, batch: pl.DataFrame) -> pl.DataFrame:
        return Words.measure(self, batch).head(-1)


@dataclass(frozen=True)
class Modelled(Words):
    """It needs a model that is not there."""

    def models(self) -> tuple[Path, ...]:
        raise MissingModelError("the model toy.bin is not there: put it in the folder models/")
