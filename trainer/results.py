"""What a finished training leaves: the numbers of its test set, metrics, scores and the record, which comes last."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from stages.saved import save
from trainer.tokens import Stream


def reported(nats: np.ndarray, right: np.ndarray, stream: Stream) -> dict[str, float | int]:
    """The numbers of a test set: nats per token, bits per byte, perplexity, accuracy, and how much they are of.

    Args:
        nats: [N - 1] of each target of the stream.
        right: [N - 1], whether a target was the likeliest.
        stream: the test set.
    """
    total = float(nats.sum(dtype=np.float64))
    scored = int(stream.target_bytes().sum(dtype=np.int64))
    return {
        "nats": total / len(nats),
        "bits_per_byte": total / math.log(2) / max(scored, 1),
        "ppl": math.exp(min(total / len(nats), 700.0)),
        "accuracy": float(right.mean()),
        "test_tokens": len(nats),
        "test_conversations": len(stream),
    }


def write(folder: Path, record: dict[str, Any], lines: list[dict[str, Any]], nats: np.ndarray, stream: Stream) -> None:
    """Leave a finished training in its folder; record.json comes last."""
    bounds = stream.bounds()
    sums = np.concatenate([[0.0], np.cumsum(nats, dtype=np.float64)])

    def scores(aside: Path) -> None:
        with aside.open("wb") as file:
            np.savez(file, nats=np.diff(sums[bounds]), targets=np.diff(bounds))

    save(folder / "scores.npz", scores)
    metrics = "".join(json.dumps(line) + "\n" for line in lines)
    save(folder / "metrics.jsonl", lambda aside: aside.write_text(metrics, encoding="utf-8"))
    text = json.dumps(record, indent=2) + "\n"
    save(folder / "record.json", lambda aside: aside.write_text(text, encoding="utf-8"))
