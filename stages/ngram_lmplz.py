"""Training by kenlm's own `lmplz`, where it is installed."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

import polars as pl

from stages import arpa
from stages.ngram_discounts import FALLBACK


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
    said, tokens = out.with_name("lmplz.log"), 0
    fallback = [str(value) for value in FALLBACK]
    command = [str(lmplz), "-o", str(len(prune)), "--prune", *map(str, prune), "--discount_fallback", *fallback]
    with said.open("wb") as log:
        options = ["-S", memory, "-T", f"{out.parent}/", "--arpa", str(out)]
        with subprocess.Popen([*command, *options], stdin=subprocess.PIPE, stderr=log, stdout=log) as process:  # noqa: S603 - the user's own lmplz, no shell
            tokens = _feed(process, lines)
    words = said.read_text(errors="replace")
    if process.returncode:
        raise LmplzError(f"{lmplz} ended with {process.returncode}: {words.strip().splitlines()[-1:]}")
    orders = [line.split("order ")[1].split(":")[0] for line in words.splitlines() if line.startswith("Substituting")]
    return arpa.sizes(out), tuple(int(order) + 1 for order in orders), tokens


def _feed(process: subprocess.Popen[bytes], lines: Iterable[pl.Series]) -> int:
    tokens = 0
    if process.stdin is None:
        return tokens
    try:
        for batch in lines:
            tokens += int((batch.str.count_matches(r"[^ ]+") + 1).sum())
            batch.to_frame().write_csv(process.stdin, include_header=False, quote_style="never")
        process.stdin.close()
    except BrokenPipeError:  # it ended early; its exit code and its words say why
        pass
    return tokens
