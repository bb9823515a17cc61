"""Training by kenlm's `lmplz`, if it is installed."""

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
    """`lmplz` failed; the message has the last line of its output."""


def find() -> Path | None:
    """The `lmplz` on the PATH, if any."""
    path = shutil.which("lmplz")
    return Path(path) if path else None


def train(
    lmplz: Path, lines: Iterable[pl.Series], out: Path, prune: Sequence[int], memory: str = "1G"
) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    """Train a model and write it to `out` as ARPA.

    lmplz writes temporary files beside `out`. It uses the fallback discounts only for an order whose closed form fails,
    and logs it.

    Returns:
        Sizes of the orders, orders with fallback discounts, number of tokens.

    Raises:
        LmplzError: lmplz failed.
    """
    output = out.with_name("lmplz.log")
    fallback = [str(value) for value in FALLBACK]
    command = [str(lmplz), "-o", str(len(prune)), "--prune", *map(str, prune), "--discount_fallback", *fallback]
    command += ["-S", memory, "-T", f"{out.parent}/", "--arpa", str(out)]
    tokens = 0
    with (
        output.open("wb") as log,
        suppress(BrokenPipeError),  # lmplz ended early; its exit code and output say why
        subprocess.Popen(command, stdin=subprocess.PIPE, stderr=log, stdout=log) as process,  # noqa: S603 - no shell
    ):
        for batch in lines:
            tokens += int((batch.str.count_matches(r"[^ ]+") + 1).sum())
            _send(batch, process)
    messages = output.read_text(errors="replace").strip().splitlines()
    if process.returncode:
        raise LmplzError(f"{lmplz} failed with exit code {process.returncode}: {' '.join(messages[-1:])}")
    orders = [line.split("order ")[1].split(":")[0] for line in messages if line.startswith("Substituting")]
    return arpa.sizes(out), tuple(int(order) + 1 for order in orders), tokens


def _send(batch: pl.Series, process: subprocess.Popen[bytes]) -> None:
    lines = io.BytesIO()
    batch.to_frame().write_csv(lines, include_header=False, quote_style="never")
    if process.stdin is not None:
        process.stdin.write(lines.getbuffer())
