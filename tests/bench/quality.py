"""The stage `quality` beside fastText as its authors ship it: `python -m tests.bench.quality [--fasttext PYTHON]`.

The corpus is all of ../shared/data/chat but one file, which is the examples `like`. `--fasttext` names the Python of a
venv with fasttext-wheel 0.9.2 and numpy below 2. What the stage hands to fastText, two files of texts and its settings,
is handed to the package too: each trains on one file and scores the other, with one thread. Printed are CPU seconds of
both trainings, texts scored per CPU second, the held-out ROC-AUC and the differences of the probabilities; then CPU
seconds of the stage: its fit with clusters, texts and calibration, and its signals.
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

ROOT = Path(__file__).parents[2]
CHATS = ROOT.parent / "shared" / "data" / "chat"
LIKE = "ultrachat_small"


def stage(folder: Path) -> dict[str, Any]:
    """The stage from raw shards to signals; what it hands to fastText stays in the folder."""
    import fasttext

    from pipeline import sources
    from pipeline.ingest import Limits, ingest
    from pipeline.store import Store
    from stages.files import read_frame, read_json
    from stages.value.quality import Quality

    store = Store(folder / "run")
    ingest(sources.find(str(folder / "corpus")), store, Limits())
    raw = [store.raw(shard) for shard in store.shards()]
    given: dict[str, dict[str, Any]] = {}
    train = fasttext.train_supervised

    def trains(**settings: Any) -> Any:
        file = Path(settings.pop("input"))
        given[file.name] = settings
        (folder / file.name).write_bytes(file.read_bytes())
        return train(input=str(file), **settings)

    fasttext.train_supervised = trains
    one = Quality(like=str(CHATS / f"{LIKE}.parquet"))
    start = time.process_time()
    one.fit(raw, folder / "fitted")
    fitted = time.process_time()
    measure = one.open(folder / "fitted")
    rows = sum(measure(read_frame(path, list(one.reads))).height for path in raw)
    done = time.process_time()
    (folder / "settings.json").write_text(json.dumps(given))
    auc = read_json(folder / "fitted" / "quality.json")["auc"]
    return {"fit": fitted - start, "measure": done - fitted, "rows": rows, "auc": auc}


def package(folder: Path) -> dict[str, Any]:
    """Training on each file and scores of the other, by fastText alone."""
    import fasttext

    given = json.loads((folder / "settings.json").read_text())
    names = sorted(given)
    start = time.process_time()
    models = [fasttext.train_supervised(input=str(folder / name), **given[name]) for name in names]
    trained = time.process_time()
    truth, scores = [], []
    for name, model in zip(reversed(names), models, strict=True):
        lines = [line.split(" ", 1) for line in (folder / name).read_text("utf-8").splitlines()]
        truth += [label == "__label__like" for label, _ in lines]
        for labels, p in zip(*model.predict([text for _, text in lines], k=-1), strict=True):
            scores.append(dict(zip(labels, map(float, p), strict=True))["__label__like"])
    return {"train": trained - start, "score": time.process_time() - trained, "scores": scores, "truth": truth}


PARTS = {"stage": stage, "package": package}


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(formatter_class=argparse.RawDescriptionHelpFormatter, description=__doc__)
    parser.add_argument("--fasttext")
    parser.add_argument("--part", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.part:
        sys.stdout.write("\n" + json.dumps(PARTS[given.part[0]](Path(given.part[1]))))
        return

    def run(python: str, part: str) -> dict[str, Any]:
        command = [python, __file__, "--part", part, name]
        env = {**os.environ, "PYTHONPATH": str(ROOT), "POLARS_MAX_THREADS": "1"}
        done = subprocess.run(command, env=env, cwd=name, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True)
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return found

    with tempfile.TemporaryDirectory() as name:
        Path(name, "corpus").mkdir()
        for path in CHATS.glob("*.parquet"):
            if path.stem != LIKE:
                Path(name, "corpus", path.name).symlink_to(path)
        ours = run(sys.executable, "stage")
        says = f"{ours['rows']:,} conversations: fit {ours['fit']:.2f} CPU s, signals {ours['measure']:.2f}"
        sys.stdout.write(f"the stage: {says}, held-out ROC-AUC {ours['auc']:.4f}\n")
        found = {"fastText of the stage": run(sys.executable, "package")}
        if given.fasttext:
            found["fasttext-wheel"] = run(given.fasttext, "package")
    for which, one in found.items():
        n = len(one["scores"])
        both = zip(one["scores"], found["fastText of the stage"]["scores"], strict=True)
        apart = sorted(abs(theirs - own) for theirs, own in both)
        sys.stdout.write(
            f"{which}: training on {n:,} texts {one['train']:.2f} CPU s, scoring {n / one['score']:,.0f} per CPU s, "
            f"held-out ROC-AUC {roc_auc(one['scores'], one['truth']):.4f}; probabilities differ by at most "
            f"{apart[-1]:.1e}, half of them by at most {apart[n // 2]:.1e}\n"
        )


def roc_auc(scores: list[float], truth: list[bool]) -> float:
    """Share of the pairs of an example and another text that the scores order rightly."""
    from scipy.stats import mannwhitneyu

    like = [score for score, one in zip(scores, truth, strict=True) if one]
    other = [score for score, one in zip(scores, truth, strict=True) if not one]
    return float(mannwhitneyu(like, other).statistic) / (len(like) * len(other))


if __name__ == "__main__":
    main()
