"""The memory of a step grows with the corpus as pipeline/README.md and stages/README.md say, at two sizes."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from stages.files import read_frame
from tests.conftest import ROOT, start

WATCH = """
import sys, threading
from pathlib import Path

def peak(step, *given):
    most, done = [0], threading.Event()
    def watch():
        while not done.wait(0.002):
            status = Path("/proc/self/status").read_text()
            most[0] = max(most[0], int(status.split("RssAnon:")[1].split()[0]) * 1024)
    thread = threading.Thread(target=watch)
    thread.start()
    step(*given)
    done.set()
    thread.join()
    return most[0]
"""
"""What prints the growth of a step's own memory, RssAnon: `peak` is its peak in bytes."""
PEAK = f"""{WATCH}
from pipeline.report.run.checks import Bounds, check
from pipeline.report.run.frame import kinds, read_run
from pipeline.signals import RuleInputs, measured_plan
from pipeline.store import Store
from pipeline.write import save_decisions

def decide(folder):
    store = Store(folder)
    plan = measured_plan(store)
    decisions = RuleInputs.read(plan, store).decide(plan.rules, most=2_000)
    save_decisions(store, plan.rules, zip(store.shards(), decisions, strict=True))

def report(folder):
    run = read_run(folder, most=5_000)
    check(run, kinds(run.plan, run.store), Bounds())

step = {{"decide": decide, "report": report}}[sys.argv[1]]
small, large = map(Path, sys.argv[2:])
step(small)
print(peak(step, large) - peak(step, small))
"""
TRAIN = f"""{WATCH}
import numpy, polars
from stages import ngram
from stages.ngram import counts, sentences

counts.IN_MEMORY, counts.PARTITION, counts.CHUNK, sentences.PART_BYTES = 1 << 16, 1 << 15, 1 << 12, 1 << 17
drawn = numpy.random.default_rng(0).integers(0, 3_000, (80_000, 25))

def train(lines):
    parts = (polars.Series(drawn[i : i + 1_000]).cast(polars.Array(polars.String, 25)) for i in range(0, lines, 1_000))
    model = ngram.train((part.arr.join(" ") for part in parts), Path(sys.argv[1]), prune=(0,))
    assert sum(model.sizes) > 2.5 * model.tokens  # nearly every 3-gram is a new one

train(2_000)
print(peak(train, 80_000) - peak(train, 16_000))
"""
READ = f"""{WATCH}
import json
from stages import readers

def read(records):
    path = Path(sys.argv[1])
    held = ({{"id": i, "text": "some words " * 100}} for i in range(records))
    with path.open("w") as file:
        file.write('{{"about": "this corpus", "data": [')
        file.writelines((", " if i else "") + json.dumps(one) for i, one in enumerate(held))
        file.write("]}}")
    assert sum(len(batch) for _, batch in readers.lines(path, 1 << 20)) == records

read(100)
print(peak(read, 25_000) - peak(read, 5_000))
"""
PLACE = f"""{WATCH}
import numpy, polars
from stages.ppl import places

def parts(rows):
    draw = numpy.random.default_rng(0)
    for _ in range(rows // 5_000):
        ppl, tokens = numpy.exp(draw.normal(4, 1, 5_000)), draw.integers(1, 2_000, 5_000)
        sources = polars.Series(draw.integers(0, 3, 5_000)).cast(polars.String)
        yield polars.DataFrame({{"ppl": ppl, "ppl_tokens": tokens, "source": sources}})

def place(rows):
    placed = places.place(parts(rows), [5_000] * (rows // 5_000), Path(sys.argv[1]))
    assert sum(part["ppl_z"].count() for part in placed) == rows

place(40_000)
print(peak(place, 400_000) - peak(place, 100_000))
"""
MERGE = f"""{WATCH}
import numpy, polars
from stages.dedup import Dedup
from stages.dedup.merge import merge
from stages.stage import RAW

def write(folder, shards):
    draw, paths = numpy.random.default_rng(0), []
    for at in range(shards):
        keys = {{name: draw.integers(0, 2**64, 5_000, numpy.uint64) for name in ("text_key", "text_check")}}
        for key in keys.values():
            key[2_500:] = key[:2_500]
        bands = draw.integers(0, 2**32, (5_000, 25), numpy.uint32)
        frame = polars.DataFrame({{"id": [f"id-{{at:04}}-{{i:04}}" for i in range(5_000)], **keys}}).with_columns(
            prompt_key=keys["text_key"], prompt_check=keys["text_check"],
            band_keys=polars.Series(bands, dtype=polars.Array(polars.UInt32, 25)),
            dedup_words=polars.lit(100, polars.UInt32),
        )
        frame = frame.cast(dict(Dedup.writes))
        paths.append(folder / f"{{at:05}}.parquet")
        frame.with_columns(text="id", details=polars.lit(None, RAW["details"])).write_parquet(paths[-1])
    return paths

def dedup(shards):
    folder = Path(sys.argv[1]) / str(len(shards))
    how = {{"cluster": 0.75, "max_cluster": 0.05, "turn_jaccard": 0.75}}
    merge(shards, shards, folder, Dedup().matching, **how)

folder = Path(sys.argv[1])
shards = write(folder, 24)
dedup(shards[:3])
print(peak(dedup, shards) - peak(dedup, shards[:6]))
"""
ROWS, SMALL, LARGE = 4_000, 10, 50
"""Rows of a shard, and shards of the two corpora."""
IDS = ("id", "other", "duplicate_of", "dedup_copy_of", "prompt_copy_of", "cluster")
PLAN = """
[[stage]]
use = "dedup"
[[drop]]
reason = "short"
where = "dedup_words < 5"
[[keep_best]]
reason = "near"
pairs = "dedup"
at_least = 0.75
"""


def growth(program: str, *words: str) -> int:
    """What a program prints, in a process that returns freed memory at once and has one thread for polars."""
    environment = {**os.environ, "_RJEM_MALLOC_CONF": "dirty_decay_ms:0,muzzy_decay_ms:0", "POLARS_MAX_THREADS": "1"}
    command = [sys.executable, "-c", program, *words]
    return int(subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT, env=environment).stdout)


def multiply(run: Path, out: Path, times: int) -> Path:
    """A run whose shards are the one of another run, each under ids of its own."""
    names = [f"{at:05}.parquet" for at in range(times)]
    for path in run.rglob("*.parquet"):
        frame = read_frame(path)
        named = [name for name in IDS if name in frame.columns]
        copies = [frame.with_columns(pl.col(named).str.replace("-00000", f"-{at:05}")) for at in range(times)]
        folder = out / path.parent.relative_to(run)
        folder.mkdir(parents=True, exist_ok=True)
        if path.stem.isdigit():
            for name, copy in zip(names, copies, strict=True):
                copy.write_parquet(folder / name)
        else:
            pl.concat(copies).write_parquet(folder / path.name)
    shards = json.loads((run / "raw" / "shards.json").read_text())
    shards["shards"] = [{**shards["shards"][0], "name": name} for name in names]
    (out / "raw" / "shards.json").write_text(json.dumps(shards))
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["counts"] = {name: count * times for name, count in manifest["counts"].items()}
    (out / "manifest.json").write_text(json.dumps(manifest))
    for name in ("plan.toml", "source.json"):
        (out / name).write_bytes((run / name).read_bytes())
    return out


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A small run and a large one, in which a tenth of the conversations have a copy."""
    here = tmp_path_factory.mktemp("memory")
    draw = random.Random(0)
    texts = [" ".join(str(draw.randrange(1 << 30)) for _ in range(12)) for _ in range(ROWS)]
    for i in range(0, ROWS, 10):
        texts[i + 5] = texts[i]
    (here / "corpus.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    (here / "plan.toml").write_text(PLAN)
    how = ("--plan", "plan.toml", "--out", "run", "--shard-rows", ROWS, "--workers", 1)
    done = start("run", "corpus.jsonl", *how, cwd=here)
    assert done.returncode == 0, done.stderr
    return multiply(here / "run", here / "small", SMALL), multiply(here / "run", here / "large", LARGE)


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of memory from /proc")
@pytest.mark.parametrize(("step", "bytes_each"), [("decide", 16), ("report", 24 + 400 * 0.2)])
def test_memory_grows_as_documented(runs: tuple[Path, Path], step: str, bytes_each: float) -> None:
    """Five times the shards; a fifth of the conversations have a copy or are one, in bins of 2,000 for `decide`."""
    assert growth(PEAK, step, *map(str, runs)) < bytes_each * ROWS * (LARGE - SMALL)


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of memory from /proc")
def test_the_memory_of_percentiles_does_not_grow_with_the_corpus(tmp_path: Path) -> None:
    """Four times the conversations: 16 bytes at most for each more, where what is sorted takes 48 in files."""
    assert growth(PLACE, str(tmp_path)) < 16 * 300_000


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of memory from /proc")
def test_the_memory_of_duplicates_grows_as_documented(tmp_path: Path) -> None:
    """Four times the conversations, each with a copy: what is sorted, 200 bytes for each, is in files."""
    assert growth(MERGE, str(tmp_path)) < 16 * 90_000


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of memory from /proc")
def test_a_json_object_is_read_record_by_record(tmp_path: Path) -> None:
    """Of 22 MB more of it, on one line, a tenth at most is in memory."""
    assert growth(READ, str(tmp_path / "a.json")) < 0.1 * 20_000 * 1_100


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of memory from /proc")
def test_the_memory_of_training_does_not_grow_with_the_distinct_ngrams(tmp_path: Path) -> None:
    """Five times the tokens and n-grams: not even a byte more for every second token. Columns are in files."""
    assert growth(TRAIN, str(tmp_path / "model.bin")) < 0.5 * 64_000 * 25
