"""Training by kenlm's own `lmplz`, where it is installed."""

from __future__ import annotations

import io
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

import polars as pl

from stages.ngram import arpa
from stages.ngram.kneser_ney import FALLBACK


class LmplzError(RuntimeError):
    """`lmplz` did not make a model; the message holds the last thing it said."""


def find() -> Path | None:
    """The `lmplz` on the PATH, if there is one."""
    found = shutil.which("lmplz")
    return Path(found) if found else None


def train(
    lmplz: Path, lines: Iterable[pl.Series], out: Path, prune: Sequence[int], memory: str = "1G"
) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    """Sizes of the orders, orders with fallback discounts, and tokens; the model as ARPA in `out`.

    It puts its own files beside `out`. The fallback is always offered: lmplz takes it only for an order whose closed
    form does not hold, and says so.

    Raises:
        LmplzError: it failed.
    """
    said = out.with_name("lmplz.log")
    fallback = [str(value) for value in FALLBACK]
    command = [str(lmplz), "-o", str(len(prune)), "--prune", *map(str, prune), "--discount_fallback", *fallback]
    command += ["-S", memory, "-T", f"{out.parent}/", "--arpa", str(out)]
    tokens = 0
    with (
        said.open("wb") as log,
        suppress(BrokenPipeError),  # it ended early: its exit code and its words say why
        subprocess.Popen(command, stdin=subprocess.PIPE, stderr=log, stdout=log) as process,  # noqa: S603 - no shell
    ):
        for batch in lines:
            tokens += int((batch.str.count_matches(r"[^ ]+") + 1).sum())
            _send(batch, process)
    words = said.read_text(errors="replace").strip().splitlines()
    if process.returncode:
        raise LmplzError(f"{lmplz} ended with {process.returncode}: {' '.join(words[-1:])}")
    orders = [line.split("order ")[1].split(":")[0] for line in words if line.startswith("Substituting")]
    return arpa.sizes(out), tuple(int(order) + 1 for order in orders), tokens


def _send(batch: pl.Series, process: subprocess.Popen[bytes]) -> None:
    lines = io.BytesIO()
    batch.to_frame().write_csv(lines, include_header=False, quote_style="never")
    if process.stdin is not None:
        process.stdin.write(lines.getbuffer())
