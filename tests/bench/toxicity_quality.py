"""Quality of toxicity, which measures abusive language and not harm: `python -m tests.bench.toxicity_quality`.

Prints ROC-AUC, precision and recall on surge and hatecheck (hatecheck also per functionality), and the share of
messages and conversations flagged in each chat corpus, per role. `--texts CORPUS` prints the highest-scored messages of
one corpus. `--save FOLDER`, then `--against FOLDER` with another model, print paired differences of the areas. With
another checkout first in PYTHONPATH, this file measures that. It reads the real test data (see tests/conftest.py).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.stats import rankdata

from stages.stage import FittedStage, Measure
from stages.toxicity import Toxicity
from tests.conftest import SHARED

CHAT = (
    "ultrachat_small sgd taskmaster4 gpteacher mtbench101 hh_rlhf_harmless_test oasst_100trees arena1k vicuna_identity"
)


def roc_auc(label: NDArray[np.int64], score: NDArray[np.float64]) -> float:
    """Area under the ROC curve, ties counted half (Mann-Whitney)."""
    positive = int(label.sum())
    ranks = rankdata(score)[label == 1].sum()
    return float((ranks - positive * (positive + 1) / 2) / (positive * (len(label) - positive)))


def single(texts: pl.Series) -> pl.DataFrame:
    """Texts as conversations of one user message."""
    struct = pl.DataFrame({"content": texts}).select(pl.struct(pl.lit("user").alias("role"), "content").alias("m"))
    return struct.select(pl.concat_list("m").alias("messages"))


def labelled(measure: Measure, name: str) -> pl.DataFrame:
    """A labelled test set: `label`, `category`, `score` (0 if not scored)."""
    table = pl.read_parquet(SHARED / "data" / "toxicity" / f"{name}.parquet")
    score = measure(single(table["text"]))["toxicity"]
    return table.select(pl.col("label").cast(pl.Int64), "category", "text").with_columns(score=score.fill_null(0.0))


def chat(measure: Measure, name: str) -> pl.DataFrame:
    """Messages of a chat corpus, or of the embedded default: `row`, `role`, `content`, `score`."""
    if name == "chitchat":
        import chitchat_dataset

        talks = [[said for turn in talk["messages"] for said in turn] for talk in chitchat_dataset.Dataset().values()]
        said = [[{"role": "person", "content": one["text"]} for one in talk] for talk in talks]
        table = pl.DataFrame({"messages": said})
    else:
        table = pl.read_parquet(SHARED / "data" / "chat" / f"{name}.parquet", columns=["messages"])
    start = time.process_time()
    scores = measure(table)["toxicity_turns"]
    seconds = time.process_time() - start
    rows = table.with_row_index("row").filter(pl.col("messages").list.len() > 0)
    flat = rows.explode("messages").unnest("messages").with_columns(score=scores.explode(empty_as_null=False))
    rate = f"{table.height / seconds:,.0f} conversations per CPU s"
    sys.stdout.write(f"{name}: {len(flat)} messages in {seconds:.1f} CPU s, {rate}\n")
    return flat


def difference(label: NDArray[np.int64], score: NDArray[np.float64], other: NDArray[np.float64]) -> str:
    """How much larger the area is than that of other scores, with the 95 % interval of a paired bootstrap."""
    draw, found = np.random.default_rng(0), []
    for _ in range(500):
        rows = draw.integers(0, len(label), len(label))
        found.append(roc_auc(label[rows], score[rows]) - roc_auc(label[rows], other[rows]))
    low, high = np.quantile(found, [0.025, 0.975])
    return f"{roc_auc(label, score) - roc_auc(label, other):+.4f} ({low:+.4f} to {high:+.4f})"


def quality(measure: Measure, threshold: float, save: Path | None, against: Path | None) -> float:
    """Print the measures on surge and hatecheck; return the score that gives a recall of 0.6 on surge."""
    level = 0.0
    for name in ("surge", "hatecheck"):
        table = labelled(measure, name)
        if save:
            table.select("score").write_parquet(save / f"{name}.parquet")
        label, score = table["label"].to_numpy(), table["score"].to_numpy()
        flagged = score > threshold
        at = np.quantile(score[label == 1], 0.4)
        level = level or float(at)
        if against:
            other = pl.read_parquet(against / f"{name}.parquet")["score"].to_numpy()
            sys.stdout.write(f"{name}: ROC-AUC {difference(label, score, other)} against {against}\n")
        sys.stdout.write(
            f"{name}: ROC-AUC {roc_auc(label, score):.4f}; at > {threshold}: precision {label[flagged].mean():.3f}, "
            f"recall {flagged[label == 1].mean():.3f}; recall 0.6 at >= {at:.3f}, "
            f"precision {label[score >= at].mean():.3f}\n"
        )
    groups = pl.col("category").str.split("|").list.first()
    per = table.group_by(groups).agg(
        pl.len(),
        hateful=pl.col("label").first(),
        flagged=(pl.col("score") > threshold).mean(),
        median=pl.median("score"),
    )
    with pl.Config(tbl_rows=50):
        sys.stdout.write(f"{per.sort('hateful', 'category')}\n")
    return level


def main() -> None:
    """Print all measures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--threshold", type=float, default=0.5)
    parser.add_argument("--texts")
    parser.add_argument("--model", default="fast")
    parser.add_argument("--only", nargs="*", default=[*CHAT.split(), "chitchat"])
    parser.add_argument("--save", type=Path, help="folder for the scores of surge and hatecheck")
    parser.add_argument("--against", type=Path, help="folder with scores that another model or checkout saved")
    given = parser.parse_args()
    stage = Toxicity(model=given.model)
    folder = Path(tempfile.mkdtemp())
    if isinstance(stage, FittedStage):  # in earlier checkouts
        stage.fit((), folder)
    measure = stage.open(folder)
    if given.texts:
        table = chat(measure, given.texts).filter(pl.col("score").is_not_null()).sort("score", descending=True)
        for row in table.head(110).iter_rows(named=True):
            sys.stdout.write(f"{row['score']:.3f} {row['role']}: {row['content'][:300]!r}\n")
        return
    level = quality(measure, given.threshold, given.save, given.against)
    for name in given.only:
        flat = chat(measure, name).with_columns(hit=(pl.col("score") > given.threshold).fill_null(value=False))
        roles = flat.group_by("role").agg(100 * pl.col("hit").mean()).sort("role").rows()
        hits, talks = flat["hit"].to_numpy(), flat.group_by("row").agg(pl.col("hit").any())["hit"].to_numpy()
        sys.stdout.write(
            f"   at recall 0.6 on surge: {(flat['score'].fill_null(0) >= level).sum()} messages; "
            f"flagged: messages {100 * hits.mean():.3f} % ({hits.sum()}), conversations {100 * talks.mean():.3f} %; "
            f"{', '.join(f'{role} {share:.3f} %' for role, share in roles[:3])}; "
            f"not scored {100 * flat['score'].is_null().to_numpy().mean():.2f} %\n"
        )


if __name__ == "__main__":
    main()
