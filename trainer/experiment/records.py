"""What a finished training leaves: the numbers of its test set, metrics, scores and the record, which comes last."""

from __future__ import annotations

import json
import math
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.files import save
from trainer import TrainerError
from trainer.prepare.streams import Stream

METRICS = "metrics.jsonl"


def reported(nats: np.ndarray, right: np.ndarray, stream: Stream) -> dict[str, float | int]:
    """The numbers of a test set: nats per token, bits per byte, perplexity, accuracy, and how much they are of.

    Args:
        nats: [N - 1] of each target of the stream.
        right: [N - 1], whether a target was the likeliest.
        stream: the test set.

    Raises:
        TrainerError: the loss of a target is not a finite number.
    """
    total = float(nats.sum(dtype=np.float64))
    if not math.isfinite(total):
        raise TrainerError(
            "the loss on the test set is not a finite number: try other embeddings, another seed or another preset"
        )
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
    save_metrics(folder, lines)
    text = json.dumps(record, indent=2, allow_nan=False) + "\n"
    save(folder / "record.json", lambda aside: aside.write_text(text, encoding="utf-8"))


def save_metrics(folder: Path, lines: list[dict[str, Any]]) -> None:
    """All metrics so far; those that came after the checkpoint of a training that goes on will come again."""
    text = "".join(json.dumps(line) + "\n" for line in lines)
    save(folder / METRICS, lambda aside: aside.write_text(text, encoding="utf-8"))


def add_metrics(folder: Path, line: dict[str, Any]) -> None:
    """One more line, there for whoever follows the file."""
    with (folder / METRICS).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


class DamagedError(TrainerError):
    """What a finished training left cannot be read; the message says where and what to do."""


def read(folder: Path) -> dict[str, Any]:
    """The record of a finished training.

    Raises:
        DamagedError: it cannot be read.
    """
    try:
        record: dict[str, Any] = json.loads((folder / "record.json").read_text(encoding="utf-8"))
        for key in ("ppl", "nats", "bits_per_byte", "test_tokens", "tokens", "seed"):
            float(record[key])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedError(_damaged(folder, "record.json", error)) from None
    return record


def scores(folder: Path) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Nats and targets of each test conversation of a finished training.

    Raises:
        DamagedError: they cannot be read.
    """
    try:
        with np.load(folder / "scores.npz", allow_pickle=False) as found:
            return found["nats"], found["targets"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DamagedError(_damaged(folder, "scores.npz", error)) from None


def _damaged(folder: Path, name: str, error: Exception) -> str:
    said = str(error) or type(error).__name__
    return f"{folder / name} cannot be read ({said}): remove {folder}, and that training is done again"
