"""Scores of lines by the `kenlm` library, summed over messages and conversations."""

from collections.abc import Callable, Sequence
from pathlib import Path

import polars as pl

from stages.ppl.lines import halves, tokenise
from stages.stage import MissingModelError

SIGNALS = pl.Schema(
    {
        "ppl_tokens": pl.UInt32(),
        "ppl": pl.Float64(),
        "ppl_user": pl.Float64(),
        "ppl_assistant": pl.Float64(),
        "ppl_worst_turn": pl.Float64(),
        "ppl_worst_role": pl.String(),
        "ppl_worst_index": pl.UInt32(),
    }
)

Scorer = Callable[[str], float]
"""Returns the log10 probability of a line of tokens, its end included."""

_UNIT = 1e6  # scores are summed as integer millionths, so that the order of summation does not matter


def load(path: Path) -> Scorer:
    """Load a model and return its scoring function.

    Raises:
        MissingModelError: the file is missing, or KenLM cannot read it.
    """
    import kenlm

    config = kenlm.Config()
    config.show_progress = False
    config.arpa_complain = kenlm.ARPALoadComplain.NONE
    try:
        model = kenlm.Model(str(path), config)
    except (OSError, RuntimeError) as error:
        last = str(error).strip().splitlines()[-1:]
        raise MissingModelError(f"language model {str(path)!r} cannot be loaded: {' '.join(last)}") from error
    score: Scorer = model.score
    return score


def measure(batch: pl.DataFrame, scorers: Sequence[Scorer | None], turn_tokens: int) -> pl.DataFrame:
    """The signals of a batch.

    Args:
        batch: `text` and `messages`.
        scorers: scorers of the conversations of half 0 and of half 1; None if no model could be trained.
        turn_tokens: minimum number of tokens of the worst turn.
    """
    turns = _turns(batch)
    lines = tokenise(turns["content"]).join(
        turns.select("half").with_row_index("at"), on="at", how="left", maintain_order="left"
    )
    sums = pl.col("score", "n").sum()
    per_turn = _score_lines(lines, scorers).group_by("at", maintain_order=True).agg(sums)
    scored = turns.drop("content").with_row_index("at").join(per_turn, on="at", how="inner", maintain_order="left")
    rows = pl.DataFrame({"row": pl.int_range(batch.height, dtype=pl.UInt32, eager=True)})
    return rows.join(_conversations(scored, turn_tokens), on="row", how="left", maintain_order="left").select(
        SIGNALS.names()
    )


def _turns(batch: pl.DataFrame) -> pl.DataFrame:
    """One row per message: `row` and `half` of its conversation, `turn`, `role`, `content`."""
    numbered = batch.select(
        "messages",
        half=halves(batch["text"]),
        row=pl.int_range(pl.len(), dtype=pl.UInt32),
        turn=pl.int_ranges(pl.col("messages").list.len(), dtype=pl.UInt32),
    ).filter(pl.col("messages").list.len() > 0)
    return numbered.explode("messages", "turn").unnest("messages").with_columns(pl.col("content").fill_null(""))


def _score_lines(lines: pl.DataFrame, scorers: Sequence[Scorer | None]) -> pl.DataFrame:
    """Lines with their `score` in millionths, without lines that have no model."""
    parts = []
    for half, score in enumerate(scorers):
        distinct = lines.filter(half=half).select("line").unique(maintain_order=True)
        if score is None or not distinct.height:
            continue
        # A loop, because kenlm takes one line per call; each distinct line is scored once.
        scores = pl.Series("score", [score(line) for line in distinct["line"]], pl.Float64)
        whole = (scores * _UNIT).round().cast(pl.Int64)
        parts.append(distinct.with_columns(whole, half=pl.lit(half, pl.UInt8)))
    if not parts:
        return lines.clear().with_columns(score=pl.lit(0, pl.Int64))
    return lines.join(pl.concat(parts), on=["half", "line"], how="inner", maintain_order="left")


def _perplexity(score: pl.Expr, tokens: pl.Expr) -> pl.Expr:
    return pl.when(tokens > 0).then(10 ** (-score / _UNIT / tokens))


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
