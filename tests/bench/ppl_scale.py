"""Cost of the stage `ppl`, and what training on a sample would change: `python -m tests.bench.ppl_scale SOURCE COPIES`.

SOURCE is a run folder, or a file of conversations (UltraChat's columns). The corpus is the source and, for more than
one copy, copies in each of which a tenth of the words is replaced by other words of the corpus. `ppl` scores all of it
with models that are trained on a share of its conversations, those with the lowest hashes of their ids. A row per
share: tokens of the larger half, CPU seconds and peak memory of a process that fits and of one that measures (RssAnon,
memory that is not a mapped file), size of both models, perplexity of the corpus, and Spearman's rank correlation of
conversations with the scores of the models that were trained on all.
"""

from __future__ import annotations

import hashlib
import math
import multiprocessing
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from stages.files import read_frame, read_json, save_frame
from stages.ppl import Perplexity
from stages.stage import RAW

_EDITED, _ROWS, _SHARES = 0.1, 2_000, (1.0, 0.8, 0.5, 0.25)


def edited(source: Path, copies: int) -> Iterator[pl.DataFrame]:
    """Raw rows of a source, then of its edited copies."""
    frame = pl.read_parquet(source / "raw/*.parquet" if source.is_dir() else source)
    turns = frame.with_row_index("row").select("row", "messages").explode("messages").unnest("messages")
    turns = turns.with_columns(content=pl.col("content").fill_null(""))
    parts = turns["content"].str.extract_all(r"\s+|\w+|[^\w\s]+")
    flat = parts.explode(empty_as_null=True)
    turn = np.repeat(np.arange(turns.height), np.maximum(parts.list.len().to_numpy(), 1))
    words = flat.str.contains(r"^\w").fill_null(value=False).arg_true().to_numpy()
    rng = np.random.default_rng(0)
    for copy in range(copies):
        chosen = words[rng.random(len(words)) < _EDITED * (copy > 0)]
        text = flat.scatter(chosen, flat.gather(words[rng.integers(0, len(words), len(chosen))]))
        content = pl.DataFrame({"turn": turn, "text": text}).group_by("turn", maintain_order=True)
        made = turns.with_columns(content=content.agg(pl.col("text").str.join(""))["text"])
        rows = made.group_by("row", maintain_order=True).agg(
            messages=pl.struct("role", "content"), text=pl.col("content").str.join("\n")
        )
        ids, none = pl.format("bench-{}-{}", pl.lit(copy), "row"), pl.lit(None, RAW["details"])
        yield rows.select(id=ids, messages="messages", text="text", source=pl.lit(source.stem), details=none)


def sample(corpus: pl.DataFrame, share: float) -> pl.DataFrame:
    """The conversations with the lowest hashes of their ids, in order."""
    hashes = pl.Series([hashlib.blake2b(one.encode(), digest_size=8).digest() for one in corpus["id"]])
    return corpus.filter(hashes.rank("ordinal") <= share * corpus.height)


def shards(corpus: pl.DataFrame, folder: Path) -> list[Path]:
    paths = [folder / f"{start:09}.parquet" for start in range(0, corpus.height, _ROWS)]
    for at, path in enumerate(paths):
        save_frame(path, corpus[at * _ROWS : (at + 1) * _ROWS])
    return paths


class Watch(threading.Thread):
    """The highest RssAnon of this process, in bytes, seen every 20 ms."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak, self.over = 0, threading.Event()

    def run(self) -> None:
        while not self.over.wait(0.02):
            status = Path("/proc/self/status").read_text()
            self.peak = max(self.peak, int(status.split("RssAnon:")[1].split()[0]) * 1024)


def _aside(task: Callable[..., Any], *arguments: Any) -> tuple[float, int]:
    """CPU seconds and peak memory (bytes) of a task in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_cost, (task, *arguments))


def _cost(task: Callable[..., Any], *arguments: Any) -> tuple[float, int]:
    watch, start = Watch(), time.process_time()
    watch.start()
    task(*arguments)
    seconds = time.process_time() - start
    watch.over.set()
    return seconds, watch.peak


def _measure(stage: Perplexity, raw: list[Path], folder: Path) -> None:
    measure = stage.open(folder)
    for path in raw:
        save_frame(folder / path.name, measure(read_frame(path, stage.reads)))


def _perplexity(signals: pl.DataFrame) -> float:
    nats = pl.col("ppl").log() * pl.col("ppl_tokens")
    return math.exp(signals.select(nats.sum() / pl.col("ppl_tokens").sum()).item())


def main() -> None:
    """One row per share."""
    source, copies = Path(sys.argv[1]), int(sys.argv[2])
    with tempfile.TemporaryDirectory() as name:
        corpus, whole = pl.concat(edited(source, copies)), pl.Series()
        size = int(corpus["text"].str.len_bytes().sum())
        sys.stdout.write(f"{source.stem}: {corpus.height:,} conversations, {size / 1e6:.1f} MB of text\n")
        raw = shards(corpus, Path(name) / "raw")
        for share in map(float, sys.argv[3:] or _SHARES):
            folder, stage = Path(name) / f"{share}", Perplexity()
            fit, fit_memory = _aside(stage.fit, shards(sample(corpus, share), folder / "raw"), folder)
            seconds, memory = _aside(_measure, stage, raw, folder)
            signals = pl.concat([read_frame(folder / path.name, ["ppl", "ppl_tokens"]) for path in raw])
            whole = signals["ppl"] if share == 1 else whole
            models = sum(path.stat().st_size for path in folder.glob("*.bin"))
            tokens = max(model["tokens"] for model in read_json(folder / "models.json").values())
            both = pl.DataFrame({"all": whole, "ppl": signals["ppl"]})
            sys.stdout.write(
                f"{share:4.0%}: {tokens / 1e6:.2f} M tokens a half, fit {fit:.1f} s {fit_memory >> 20} MiB, measure "
                f"{seconds:.1f} s {memory >> 20} MiB, models {models >> 20} MiB, perplexity "
                f"{_perplexity(signals):.2f}, rank correlation "
                f"{both.select(pl.corr('all', 'ppl', method='spearman')).item():.4f}\n"
            )
            sys.stdout.flush()


if __name__ == "__main__":
    main()
