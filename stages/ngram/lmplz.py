"""Training by kenlm's `lmplz`, if it is installed."""

import io
import re
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

import polars as pl

from stages.ngram.kneser_ney import FALLBACK


class LmplzError(RuntimeError):
    """`lmplz` failed; the message has the last line of its output."""


def find() -> Path | None:
    """The `lmplz` on the PATH, if any."""
    path = shutil.which("lmplz")
    return Path(path) if path else None


def train(
    lmplz: Path, lines: Iterable[pl.Series], out: Path, prune: Sequence[int]
) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    """Write a model to `out` as ARPA; return the sizes of its orders, those with fallback discounts, and the tokens.

    lmplz writes temporary files beside `out`. It uses the fallback discounts only for an order whose closed form fails,
    and logs it.
    """
    output = out.with_name("lmplz.log")
    fallback = [str(value) for value in FALLBACK]
    command = [str(lmplz), "-o", str(len(prune)), "--prune", *map(str, prune), "--discount_fallback", *fallback]
    command += ["-S", "1G", "-T", f"{out.parent}/", "--arpa", str(out)]
    tokens = 0
    with (
        output.open("wb") as log,
        suppress(BrokenPipeError),  # lmplz ended early; its exit code and output say why
        subprocess.Popen(command, stdin=subprocess.PIPE, stderr=log, stdout=log) as process,  # noqa: S603 - no shell
    ):
        for batch in lines:
            tokens += int((batch.str.count_matches(r"[^ ]+") + 1).sum())
            text = io.BytesIO()
            batch.to_frame().write_csv(text, include_header=False, quote_style="never")
            if process.stdin is not None:
                process.stdin.write(text.getbuffer())
    messages = output.read_text(errors="replace").strip().splitlines()
    if process.returncode:
        raise LmplzError(f"{lmplz} failed with exit code {process.returncode}: {' '.join(messages[-1:])}")
    orders = [line.split("order ")[1].split(":")[0] for line in messages if line.startswith("Substituting")]
    return _sizes(out), tuple(int(order) + 1 for order in orders), tokens


def _sizes(path: Path) -> tuple[int, ...]:
    """Number of n-grams of each order, from the header of an ARPA file."""
    with path.open("rb") as file:
        return tuple(map(int, re.findall(rb"^ngram \d+=(\d+)", file.read(1 << 12), re.MULTILINE)))
