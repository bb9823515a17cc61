"""The stage `target` beside DSIR's own package: `python -m tests.bench.target [--dsir PYTHON]`.

The corpus is all of ../shared/data/chat but one file, which is the target. `--dsir` names the Python of a venv with
data-selection 1.0.3 and polars; each reads the same texts with its own words and hashes, with one process. Printed are
conversations per CPU second (fit and weights), Spearman's correlation of the weights per word, how many of the best
1,000 by that order both have, and the largest difference of the weights where the package's estimator gets the stage's
own buckets.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ["POLARS_MAX_THREADS"] = "1"

import polars as pl

ROOT = Path(__file__).parents[2]
CHATS = ROOT.parent / "shared" / "data" / "chat"
TARGET = "gpteacher"
BUCKETS = 10_000


def texts(path: Path) -> pl.DataFrame:
    """Texts of at least 20 words."""
    joined = pl.col("messages").list.eval(pl.element().struct.field("content")).list.join("\n")
    table = pl.read_parquet(path, columns=["messages"]).select(text=joined)
    return table.filter(pl.col("text").str.count_matches(r"\w+") >= 20)


def stage(folder: Path) -> tuple[list[float], float]:
    """Weights per word and pair by the stage, and the CPU seconds."""
    from stages.value.target import count, log_ratio, weigh

    raw, target = (pl.read_ndjson(folder / f"{name}.jsonl")["text"] for name in ("raw", "target"))
    start = time.process_time()
    weights = log_ratio(count([target], BUCKETS), count([raw], BUCKETS))
    mean = weigh(raw, weights)["target_weight_mean"]
    return mean.to_list(), time.process_time() - start


def package(folder: Path) -> tuple[list[float], float]:
    """The same by the package's own functions."""
    from data_selection import HashedNgramDSIR
    from data_selection.hashed_ngram_dsir import get_ngram_counts

    start = time.process_time()
    paths = [str(folder / name) for name in ("raw.jsonl", "target.jsonl")]
    dsir = HashedNgramDSIR(paths[:1], paths[1:], str(folder / "cache"), num_proc=1)
    dsir.fit_importance_estimator("all")
    lines = Path(paths[0]).read_text(encoding="utf-8").splitlines()
    each = [get_ngram_counts(json.loads(line)["text"]) for line in lines]
    mean = [float(dsir.importance_estimator(one) / one.sum()) for one in each]
    return mean, time.process_time() - start


def same(folder: Path) -> float:
    """The largest difference of weights if the package's estimator gets the stage's buckets."""
    import numpy as np
    from data_selection import HashedNgramDSIR

    found = np.load(folder / "features.npz")
    dsir = HashedNgramDSIR([], [], str(folder / "cache"), num_proc=1)
    dsir.raw_probs, dsir.target_probs = (found[name] / found[name].sum() for name in ("raw", "target"))
    dsir.log_diff = np.log(dsir.target_probs + 1e-8) - np.log(dsir.raw_probs + 1e-8)
    return float(np.abs(dsir.importance_estimator(found["rows"].T) - found["weights"]).max())


def features(folder: Path) -> None:
    """Save the stage's buckets of the first 500 texts, its counts and its weights."""
    import numpy as np

    from stages.value.target import count, log_ratio, weigh
    from stages.value.target import features as buckets

    raw, target = (pl.read_ndjson(folder / f"{name}.jsonl")["text"] for name in ("raw", "target"))
    here, wanted = count([raw], BUCKETS), count([target], BUCKETS)
    rows = np.zeros((500, BUCKETS), np.int64)
    for found, row in buckets(raw.head(500), BUCKETS):
        np.add.at(rows, (row, found), 1)
    weights = weigh(raw.head(500), log_ratio(wanted, here))["target_weight"].to_numpy()
    np.savez(folder / "features.npz", raw=here, target=wanted, rows=rows, weights=weights)


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(formatter_class=argparse.RawDescriptionHelpFormatter, description=__doc__)
    parser.add_argument("--dsir")
    parser.add_argument("--part", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.part:
        part, folder = given.part[0], Path(given.part[1])
        sys.stdout.write("\n" + json.dumps({"stage": stage, "package": package, "same": same}[part](folder)))
        return

    def run(python: str, part: str) -> Any:
        command = [python, __file__, "--part", part, name]
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, env=env, cwd=name, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True)
        return json.loads(done.stdout.splitlines()[-1])

    with tempfile.TemporaryDirectory() as name:
        raw = pl.concat([texts(path) for path in sorted(CHATS.glob("*.parquet")) if path.stem != TARGET])
        raw.write_ndjson(Path(name, "raw.jsonl"))
        texts(CHATS / f"{TARGET}.parquet").write_ndjson(Path(name, "target.jsonl"))
        ours, seconds = run(sys.executable, "stage")
        sys.stdout.write(f"stage: {raw.height / seconds:,.0f} conversations per CPU s\n")
        if given.dsir:
            theirs, seconds = run(given.dsir, "package")
            sys.stdout.write(f"data-selection: {raw.height / seconds:,.0f} conversations per CPU s\n")
            both = pl.DataFrame({"ours": ours, "theirs": theirs}).with_row_index()
            rank = both.select(pl.corr("ours", "theirs", method="spearman")).item()
            best = [set(both.top_k(1000, by=column)["index"]) for column in ("ours", "theirs")]
            sys.stdout.write(f"Spearman {rank:.4f}; of the best 1,000 both have {len(best[0] & best[1])}\n")
            features(Path(name))
            sys.stdout.write(f"same buckets: weights differ by at most {run(given.dsir, 'same'):.2e}\n")


if __name__ == "__main__":
    main()
