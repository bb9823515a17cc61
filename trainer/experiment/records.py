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
from trainer.prepare.template import REPLY, UNSCORED

METRICS = "metrics.jsonl"


def summarise(nats: np.ndarray, right: np.ndarray | None, stream: Stream) -> dict[str, Any]:
    """Results on the scored targets of a test set, or a TrainerError if a loss is not finite.

    `nats` and `right` are [N - 1]; the latter tells whether a target had the highest probability, None if unknown.
    "replies" are the results on replies alone, None without any.
    """
    if not math.isfinite(float(nats.sum(dtype=np.float64))):
        raise TrainerError(
            "the loss on the test set is not a finite number: try other embeddings, another seed or another preset"
        )
    width, of = stream.target_bytes(), stream.classes[1:]

    def on(which: NDArray[np.bool_]) -> dict[str, float | int | None]:
        total, count = float(nats[which].sum(dtype=np.float64)), max(int(which.sum()), 1)
        return {
            "nats": total / count,
            "bits_per_byte": total / math.log(2) / max(int(width[which].sum(dtype=np.int64)), 1),
            "ppl": math.exp(min(total / count, 700.0)),
            "accuracy": None if right is None else float(right[which].mean()),
            "test_tokens": int(which.sum()),
        }

    replies = on(of == REPLY) if stream.replies else None
    return {**on(of != UNSCORED), "test_conversations": len(stream), "replies": replies}


def write(folder: Path, record: dict[str, Any], lines: list[dict[str, Any]], nats: np.ndarray, stream: Stream) -> None:
    """Write scores.npz, metrics.jsonl and, last, record.json."""
    sums, targets = stream.by_class(nats.astype(np.float64)), stream.target_counts()

    def scores(aside: Path) -> None:
        with aside.open("wb") as file:
            np.savez(file, nats=sums, targets=targets)

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
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DamagedError(_read_error(folder, "record.json", error)) from None
    return record


def scores(folder: Path) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Read nats and number of targets by class and test conversation, both [2, K], or raise a DamagedError."""
    try:
        with np.load(folder / "scores.npz", allow_pickle=False) as arrays:
            return arrays["nats"], arrays["targets"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DamagedError(_read_error(folder, "scores.npz", error)) from None


def _read_error(folder: Path, name: str, error: Exception) -> str:
    why = str(error) or type(error).__name__
    return f"{folder / name} cannot be read ({why}): remove {folder} to repeat that training run"
