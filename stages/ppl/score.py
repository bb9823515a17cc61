"""Scores of lines of tokens by the `kenlm` library, summed over messages and conversations."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from stages.ppl.tokens import tokenise
from stages.stage import MissingModelError
from stages.text.messages import by_row

SIGNALS = pl.Schema(
    {
        "ppl_tokens": pl.UInt32(),
        **dict.fromkeys(("ppl", "ppl_user", "ppl_assistant", "ppl_worst_turn"), pl.Float64()),
        "ppl_worst_role": pl.String(),
        "ppl_worst_index": pl.UInt32(),
    }
)

Scorer = Callable[[str], float]
"""Returns the log10 probability of a line of tokens, its end included."""

MAX_READ = 1 << 26
"""Size in bytes up to which a process reads a binary model into memory of its own, in large pages, where look-ups take
a quarter less time. A larger one is mapped, and shared by all processes of the machine."""

UNIT = 1e6
"""Scores are summed as integer millionths, so that the order of summation does not matter."""


def load(path: Path) -> Scorer:
    """Load a model and return its scoring function; `MissingModelError` if KenLM cannot read the file."""
    import kenlm

    config = kenlm.Config()
    config.show_progress = False
    config.arpa_complain = kenlm.ARPALoadComplain.NONE
    try:
        small = path.stat().st_size <= MAX_READ
        config.load_method = kenlm.LoadMethod.READ if small else kenlm.LoadMethod.LAZY
        model = kenlm.Model(str(path), config)
    except (OSError, RuntimeError) as error:
        last = str(error).strip().splitlines()[-1:]
        raise MissingModelError(f"language model {str(path)!r} cannot be loaded: {' '.join(last)}") from error
    score: Scorer = model.score
    return score


def measure(
    turns: pl.DataFrame, sides: NDArray[np.uint8], scorers: Sequence[Scorer | None], turn_tokens: int
) -> pl.DataFrame:
    """The signals of conversations: `turns` are their messages (`row`, `role`, `content`), `sides` their halves.

    The scorers are those of the two halves, None if no model could be trained.
    """
    turn = pl.int_range(pl.len(), dtype=pl.UInt32).over("row")
    turns = turns.with_columns(half=pl.Series(sides).gather(turns["row"]), turn=turn)
    lines = tokenise(turns["content"])
    lines = lines.with_columns(half=turns["half"].gather(lines["at"]))
    sums = pl.col("score", "n").sum()
    per_turn = score_lines(lines, scorers).group_by("at", maintain_order=True).agg(sums)
    scored = turns.drop("content").with_row_index("at").join(per_turn, on="at", how="inner", maintain_order="left")
    return by_row(len(sides), _conversations(scored, turn_tokens)).select(SIGNALS.names())


def score_lines(lines: pl.DataFrame, scorers: Sequence[Scorer | None]) -> pl.DataFrame:
    """Lines (`line`, `half` and more) with their `score`, the log10 probability in millionths.

    `scorers` are those of the halves, None for a half without a model, whose lines are omitted.
    """
    parts = [pl.DataFrame(schema={"line": pl.String, "score": pl.Int64, "half": pl.UInt8})]
    for half, score in enumerate(scorers):
        distinct = lines.filter(half=half).select("line").unique(maintain_order=True)
        if score is None or not distinct.height:
            continue
        # A loop, because kenlm takes one line per call; each distinct line is scored once.
        scores = pl.Series("score", [score(line) for line in distinct["line"].to_list()], pl.Float64)
        whole = (scores * UNIT).round().cast(pl.Int64)
        parts.append(distinct.with_columns(whole, half=pl.lit(half, pl.UInt8)))
    return lines.join(pl.concat(parts), on=["half", "line"], how="inner", maintain_order="left")


def _perplexity(score: pl.Expr, tokens: pl.Expr) -> pl.Expr:
    return pl.when(tokens > 0).then(10 ** (-score / UNIT / tokens))


def _conversations(turns: pl.DataFrame, turn_tokens: int) -> pl.DataFrame:
    """Signals of conversations from scored messages (`row`, `turn`, `role`, `score`, `n`)."""
    score, n = pl.col("score"), pl.col("n")
    by_role = {
        f"ppl_{role}": _perplexity(score.filter(pl.col("role") == role).sum(), n.filter(pl.col("role") == role).sum())
        for role in ("user", "assistant")
    }
    worst = pl.col("of_turn").arg_max()
    return (
        turns.with_columns(of_turn=pl.when(n >= turn_tokens).then(_perplexity(score, n)))
        .group_by("row", maintain_order=True)
        .agg(
            ppl_tokens=n.sum(),
            ppl=_perplexity(score.sum(), n.sum()),
            **by_role,
            ppl_worst_turn=pl.col("of_turn").max(),
            ppl_worst_role=pl.col("role").get(worst),
            ppl_worst_index=pl.col("turn").get(worst),
        )
    )
