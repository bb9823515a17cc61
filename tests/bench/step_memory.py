"""Peak memory of the steps that look at a whole corpus, each alone, on copies of the signals of a run.

    python -m tests.bench.step_memory RUN 50 --steps ppl dedup decide report

RUN is a run folder with the stages `dedup` and `ppl`. Its shards are copied, each time with ids, keys and perplexities
of their own, so that a copy has no duplicate in another one.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl

from stages.files import read_frame, save_frame
from tests.conftest import ROOT
from tests.pipeline.test_memory import IDS, WATCH

STEP = f"""{WATCH}
import time
from pipeline.report.run.frame import have_duplicates, kinds, read_run
from pipeline.signals import RuleInputs, measured_plan
from pipeline.store import Store
from pipeline.write import save_decisions

name, store = sys.argv[1], Store(Path(sys.argv[2]))
plan, shards = measured_plan(store), store.shards()

def merge():
    stage = next(one for one in plan.stages if one.name == name)
    folder = store.stage(stage.key)
    stage.stage.merge([store.raw(one) for one in shards], [folder / one for one in shards], folder)

def decide():
    decisions = RuleInputs.read(plan, store).decide(plan.rules)
    save_decisions(store, plan.rules, zip(shards, decisions, strict=True))

def report():
    run = read_run(store.folder)
    for kind in kinds(plan, store):
        have_duplicates(kind, run.keep)

begin = time.process_time()
most = peak({{"decide": decide, "report": report}}.get(name, merge))
print(f"{{name}}: {{most / 1e6:.0f}} MB, {{time.process_time() - begin:.1f}} CPU s")
"""


def copies(frame: pl.DataFrame, times: int, rows: int) -> Iterator[pl.DataFrame]:
    """Copies of a frame of a run of so many rows, each with ids and keys of its own."""
    named = [name for name in IDS if name in frame.columns]
    keys = [name for name, kind in frame.schema.items() if kind in {pl.UInt64, pl.List(pl.UInt32)}]
    for at, mask in enumerate(np.random.default_rng(0).integers(1, 1 << 32, times, np.uint32)):
        number = pl.col(named).str.tail(9).cast(pl.Int64) + at * rows
        one = frame.with_columns(pl.col(named).str.head(17) + number.cast(pl.String).str.zfill(9))
        for name in keys if at else []:
            whole = frame[name].explode().to_numpy()
            values = pl.Series(name, whole ^ whole.dtype.type(mask))
            width = len(whole) // max(frame.height, 1)
            one = one.with_columns(values if width == 1 else values.reshape((-1, width)).arr.to_list())
        yield one.with_columns(pl.col("^ppl$") * (1 + at * 1e-4))


def multiply(run: Path, out: Path, times: int) -> None:
    """A run that holds copies of another one."""
    shards = json.loads((run / "raw" / "shards.json").read_text())
    rows, count = int(shards["rows"]), len(shards["shards"])
    for path in run.rglob("*"):
        to = out / path.relative_to(run)
        if path.is_dir() or {"refined", "rejected"} & set(path.parts):
            continue
        to.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix != ".parquet":
            to.write_bytes(path.read_bytes())
        elif path.stem.isdigit():
            for at, one in enumerate(copies(read_frame(path), times, rows)):
                save_frame(to.with_name(f"{at * count + int(path.stem):05}.parquet"), one, {})
        else:
            save_frame(to, pl.concat(copies(read_frame(path), times, rows)))
    names = [f"{at:05}.parquet" for at in range(times * count)]
    shards["shards"] = [{**shards["shards"][at % count], "name": name} for at, name in enumerate(names)]
    (out / "raw" / "shards.json").write_text(json.dumps(shards | {"rows": rows * times}))
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["counts"] = {name: number * times for name, number in manifest["counts"].items()}
    (out / "manifest.json").write_text(json.dumps(manifest))


def main() -> None:
    """Print the peak of each step."""
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("run", type=Path)
    asked.add_argument("times", type=int, help="number of copies")
    asked.add_argument("--steps", nargs="+", default=["ppl", "dedup", "decide", "report"])
    given = asked.parse_args()
    with tempfile.TemporaryDirectory(dir=given.run.parent) as folder:
        multiply(given.run, Path(folder), given.times)
        for step in given.steps:
            subprocess.run([sys.executable, "-c", STEP, step, folder], check=True, cwd=ROOT)


if __name__ == "__main__":
    main()
