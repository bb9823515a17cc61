"""Calibrate toxicity on chat: `python -m tests.bench.toxicity_calibrate` prints the constants of its Platt scaling.

`toxicity_labels.csv` holds the labels of 318 messages of the dialogues of the embedded corpus that no model is trained
on. They were drawn by strata of the fast logit, and shuffled, and one reader labelled them without seeing the score: 1
for an insult, contempt, a threat or harassment, 0.5 for what could be read so, 0 for the rest, among it complaints
about things ("that sucks"). `weight` is how many messages of the corpus one stands for. The script also prints, for
bands of the probability, how many messages there are and the share of abusive ones, expected and as labelled.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.optimize import minimize

from stages.toxicity import MIN_KNOWN_SHARE, UNCERTAIN, encoder, mix, words
from stages.toxicity.words import Model

LABELS = Path(__file__).with_name("toxicity_labels.csv")
BANDS = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0)


def labelled() -> pl.DataFrame:
    """The labelled messages: `text`, `label`, `weight`."""
    import chitchat_dataset

    talks = json.loads(Path(chitchat_dataset.__file__).with_name("dataset.json").read_bytes())
    table = pl.read_csv(LABELS)
    texts = [
        "\n".join(one["text"] for one in talks[key]["messages"][turn])
        for key, turn in table.select("id", "turn").rows()
    ]
    return table.with_columns(text=pl.Series(texts))


def platt(logit: NDArray[np.float64], label: NDArray[np.float64], weight: NDArray[np.float64]) -> tuple[float, float]:
    """Platt scaling (Platt 1999): slope and offset that turn logits into calibrated ones."""

    def loss(at: NDArray[np.float64]) -> float:
        z = at[0] * logit + at[1]
        return float(np.average(np.logaddexp(0, z) - label * z, weights=weight))

    slope, offset = minimize(loss, np.array([1.0, 0.0])).x
    return round(float(slope), 2), round(float(offset), 2)


def worst(row: NDArray[np.int64], logit: NDArray[np.float64], rows: int) -> NDArray[np.float64]:
    """The highest logit of each text; -inf for one without windows."""
    out = np.full(rows, -np.inf)
    np.maximum.at(out, row, logit)
    return out


def report(name: str, logit: NDArray[np.float64], table: pl.DataFrame) -> None:
    """Print the scaling of the messages with a logit, and its bands."""
    read = np.isfinite(logit)
    label, weight = table["label"].to_numpy()[read], table["weight"].to_numpy()[read]
    slope, offset = platt(logit[read], label, weight)
    probability = 1 / (1 + np.exp(-(slope * logit[read] + offset)))
    sys.stdout.write(f"{name} = ({slope}, {offset})\n")
    band = np.searchsorted(BANDS, probability)
    for number in np.unique(band):
        here = band == number
        sys.stdout.write(
            f"  up to {BANDS[number]:4}: {here.sum():4} labelled, expected "
            f"{np.average(probability[here], weights=weight[here]):.3f}, "
            f"labelled {np.average(label[here], weights=weight[here]):.3f}\n"
        )


def main() -> None:
    """Print both scalings."""
    table = labelled()
    windows = Model.load(words.MODEL).windows(table["text"])
    read = windows.known >= MIN_KNOWN_SHARE
    report("FAST_SCALE", worst(windows.row[read], mix(windows)[read], len(table)), table)
    again = np.flatnonzero(read & (mix(windows) > UNCERTAIN))
    careful = mix(windows, again, encoder.Encoder.load().logits(windows.texts(again)))
    report("CAREFUL_SCALE", worst(windows.row[again], careful, len(table)), table)


if __name__ == "__main__":
    main()
