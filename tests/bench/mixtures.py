"""Selections of real mixtures for a target: `python -m tests.bench.mixtures [--dsir PYTHON] [--share 0.1] [NAME ...]`.

A mixture is the embedded corpus and files of ../shared/data/chat, as they are; its target is a file that is not in it,
divided by clusters of near-duplicates: on one part the stages `target` and `quality` are fitted, and models are scored
on another. The selections keep the same share of the conversations: by either stage, at random, and as DSIR's own
package draws it; `--dsir` names the Python of a venv with data-selection 1.0.3. The package gets the same texts and the
same part of the target. Each selection is compared with the whole mixture by n-gram models in 24 orders.
With `--write FOLDER` the mixture of one target is written there, for `refine search`, and nothing is measured.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("POLARS_MAX_THREADS", "1")

ROOT = Path(__file__).parents[2]
CHATS = ROOT.parent / "shared" / "data" / "chat"
EVERYTHING = (
    *("arena1k", "gpteacher", "hh_rlhf_harmless_test", "mtbench101", "oasst_100trees", "sgd", "taskmaster4"),
    *("ultrachat_small", "vicuna_identity"),
)
MIXTURES = {
    "ultrachat_small": EVERYTHING,
    "mtbench101": EVERYTHING,
    "gpteacher": ("arena1k", "hh_rlhf_harmless_test", "oasst_100trees", "sgd", "ultrachat_small"),
    "hh_rlhf_harmless_test": ("gpteacher", "mtbench101", "sgd", "taskmaster4", "arena1k", "oasst_100trees"),
}
"""Target -> the files of the mixture, beside the embedded corpus; the target itself is left out."""
SEEDS = 3
"""Random selections."""


def package(folder: Path, count: int) -> None:
    """Select conversations of raw.jsonl by the package; in its own Python."""
    import numpy as np
    from data_selection import HashedNgramDSIR

    np.random.seed(0)  # noqa: NPY002  the package draws from the global generator
    paths = [[str(folder / f"{name}.jsonl")] for name in ("raw", "fit")]
    dsir = HashedNgramDSIR(*paths, cache_dir=str(folder / "cache"), num_proc=1)
    dsir.fit_importance_estimator(num_tokens_to_fit="auto")
    dsir.compute_importance_weights()
    dsir.resample(out_dir=str(folder / "out"), num_to_sample=count, cache_dir=str(folder / "resampled"))
    lines = [line for path in sorted((folder / "out").rglob("*.jsonl")) for line in path.open(encoding="utf-8")]
    (folder / "ids.json").write_text(json.dumps([json.loads(line)["id"] for line in lines]))


def write(target: str, folder: Path) -> None:
    """Write the mixture: links to the files of chats, and the embedded corpus."""
    import polars as pl

    from pipeline import sources
    from pipeline.ingest import Limits, ingest
    from pipeline.store import Store
    from stages.files import read_frame, save_frame

    folder.mkdir()
    for name in MIXTURES[target]:
        if name != target:
            (folder / f"{name}.parquet").symlink_to(CHATS / f"{name}.parquet")
    with tempfile.TemporaryDirectory(prefix="refine-mixtures-") as aside:
        embedded = Store(Path(aside) / "run")
        ingest(sources.find("chitchat"), embedded, Limits())
        shards = [embedded.raw(shard) for shard in embedded.shards()]
        rows = pl.concat(read_frame(shard, ["prompt", "messages", "source"]) for shard in shards)
    save_frame(folder / "chitchat.parquet", rows)


def run(target: str, folder: Path) -> tuple[Any, Any, Any]:
    """The parts of the target, the plan without rules, and the run of the mixture with its signals."""
    from pipeline import plan as planning
    from pipeline import sources
    from pipeline.engine.local import Local
    from pipeline.ingest import Limits
    from pipeline.run import ActiveRun
    from pipeline.search import parts
    from pipeline.search.candidates import base
    from pipeline.store import Store

    write(target, folder / "corpus")
    divided = parts.divide(str(CHATS / f"{target}.parquet"), folder / "target")
    plan = base(planning.read({"stage": [{"use": "heuristics"}]}, "bench"), divided.file("fit"))
    store, source = Store(folder / "run"), sources.find(str(folder / "corpus"))
    ActiveRun(store, plan, Local(1), lambda *_: None, lambda _: None).carry_out(source, Limits())
    return divided, plan, store


def selections(plan: Any, store: Any, share: float) -> dict[str, Any]:
    """Which conversations each selection keeps."""
    import polars as pl

    from pipeline.rules import KeepTop
    from pipeline.search.candidates import DSIR, LUCK, REASON, SIGNALS
    from pipeline.signals import RuleInputs

    tops = {by: KeepTop(REASON, by, share=share) for by in SIGNALS}
    tops["target_weight DESC, gumbel = 1"] = replace(DSIR, share=share)
    for seed in range(SEEDS):
        tops[f"random, seed {seed}"] = KeepTop(REASON, LUCK, share=share, gumbel=1.0, seed=seed)
    masks = {}
    for name, top in tops.items():
        inputs = RuleInputs.read(replace(plan, rules=(top,)), store)
        masks[name] = pl.concat(decided["keep"] for decided in inputs.decide([top])).to_numpy()
    return masks


def peer(dsir: str, divided: Any, store: Any, count: int, folder: Path) -> Any:
    """Which conversations the package keeps."""
    import polars as pl

    from stages.files import read_frame

    raw = pl.concat(read_frame(store.raw(shard), ["id", "text"]) for shard in store.shards())
    raw.write_ndjson(folder / "raw.jsonl")
    messages = pl.read_parquet(divided.file("fit"))["messages"]
    messages.list.eval(pl.element().struct["content"]).list.join("\n").to_frame("text").write_ndjson(
        folder / "fit.jsonl"
    )
    command = [dsir, __file__, "--part", str(folder), str(count)]
    subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True, stdout=sys.stderr)
    return raw["id"].is_in(json.loads((folder / "ids.json").read_text())).to_numpy()


def mixture(target: str, share: float, dsir: str | None, folder: Path) -> None:
    """Print the table of one mixture."""
    import numpy as np

    from pipeline.compare.data import TrainingOptions
    from pipeline.search import raw_pair, trials
    from pipeline.search.candidates import Candidate

    trials.ORDERS = 24
    divided, plan, store = run(target, folder)
    masks = selections(plan, store, share)
    if dsir:
        masks["data-selection 1.0.3"] = peer(dsir, divided, store, int(masks["quality DESC"].sum()), folder)
    pair = raw_pair(store, divided, "test")
    none = np.zeros(len(pair.union.frame) - len(masks["quality DESC"]), np.bool_)
    whole = [np.append(mask, none) for mask in masks.values()]
    made = trials.development(pair, TrainingOptions(workers=1), folder / "models", whole)
    blanks = [made.blank(Candidate("selection"), mask) for mask in whole]
    raw, test = made.raw.tokens[trials.RAW], made.tests["target"]
    sys.stdout.write(
        f"\n{target}: {made.pair.union.members[trials.RAW].sum():,} conversations, {raw:,} training tokens; "
        f"{test.tokens:,} scored tokens ({test.scope}) of {test.conversations:,} test conversations; at "
        f"{made.budgets[-1]:,} tokens\n"
        "| selection | tokens | PPL on the target | a token's worth | used up | on raw-test |\n"
        "| --- | --- | --- | --- | --- | --- |\n"
    )
    for name, trial in zip(masks, made.measure(blanks, whole), strict=True):
        cells = " | ".join(trial.finding.cells) if trial.finding else trial.note
        sys.stdout.write(f"| {name} | {trial.tokens:,} | {cells} |\n")
    sys.stdout.flush()


def main() -> None:
    """Print a table for each mixture."""
    parser = argparse.ArgumentParser(formatter_class=argparse.RawDescriptionHelpFormatter, description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"targets, by default all: {', '.join(MIXTURES)}")
    parser.add_argument("--dsir")
    parser.add_argument("--share", type=float, default=0.1)
    parser.add_argument("--write", type=Path, metavar="FOLDER")
    parser.add_argument("--part", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.part:
        package(Path(given.part[0]), int(given.part[1]))
        return
    if given.write:
        write(given.names[0], given.write)
        return
    for name in given.names or MIXTURES:
        with tempfile.TemporaryDirectory(prefix="refine-mixtures-") as folder:
            mixture(name, given.share, given.dsir, Path(folder))


if __name__ == "__main__":
    main()
