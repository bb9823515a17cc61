"""Files of a finished training run: metrics, scores and, written last, the record with the results."""

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


def summarise(nats: np.ndarray, right: np.ndarray, stream: Stream) -> dict[str, float | int]:
    """Results on a test set, or a TrainerError if a loss is not finite.

    `nats` and `right` are [N - 1]; the latter tells whether a target had the highest probability.
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
    """Write scores.npz, metrics.jsonl and, last, record.json."""
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
    """Write metrics.jsonl anew; a resumed run drops the lines after its checkpoint, because they will be repeated."""
    text = "".join(json.dumps(line) + "\n" for line in lines)
    save(folder / METRICS, lambda aside: aside.write_text(text, encoding="utf-8"))


def add_metrics(folder: Path, line: dict[str, Any]) -> None:
    """Append a line to metrics.jsonl."""
    with (folder / METRICS).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


class DamagedError(TrainerError):
    """The files of a finished training run cannot be read."""


def read(folder: Path) -> dict[str, Any]:
    """Read the record of a finished training run, or raise a DamagedError."""
    try:
        record: dict[str, Any] = json.loads((folder / "record.json").read_text(encoding="utf-8"))
        for key in ("ppl", "nats", "bits_per_byte", "test_tokens", "tokens", "seed"):
            float(record[key])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedError(_read_error(folder, "record.json", error)) from None
    return record


def scores(folder: Path) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Read nats and number of targets of each test conversation, or raise a DamagedError."""
    try:
        with np.load(folder / "scores.npz", allow_pickle=False) as arrays:
            return arrays["nats"], arrays["targets"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DamagedError(_read_error(folder, "scores.npz", error)) from None


def _read_error(folder: Path, name: str, error: Exception) -> str:
    why = str(error) or type(error).__name__
    return f"{folder / name} cannot be read ({why}): remove {folder} to repeat that training run"
