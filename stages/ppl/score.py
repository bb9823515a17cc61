"""Text as lines of tokens, and their scores by the `kenlm` library, summed over messages and conversations."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import polars as pl

from stages.stage import MissingModelError
from stages.text.messages import by_row

_SPACELESS = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
"""Scripts without spaces between words. Each letter is a token; otherwise a sentence would be one unknown word."""

TOKEN = rf"[{_SPACELESS}]|[\w--[{_SPACELESS}]]+|[^\w\s\p{{Cc}}]"
"""A word, or a punctuation mark. Control characters are neither: kenlm stops at NUL."""

_NOT_LETTERS = r"[^\p{L}\p{M}\p{N}]+"

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

_UNIT = 1e6  # scores are summed as integer millionths, so that the order of summation does not matter


def tokenise(text: pl.Series) -> pl.DataFrame:
    """Sentences of texts: the lines that have a token, as in CCNet (cc_net/perplexity.py, DocLM).

    Columns, in order: `at`, the row of the text (UInt32); `line`, its tokens in lower case, with 0 for each digit,
    joined by spaces; `n`, the number of tokens, the end of the sentence included (UInt32).
    """
    lines = pl.DataFrame({"at": pl.int_range(len(text), dtype=pl.UInt32, eager=True), "line": text.str.split("\n")})
    tokens = pl.col("line").str.to_lowercase().str.replace_all(r"\d", "0").str.extract_all(TOKEN)
    return (
        lines.explode("line")
        .with_columns(tokens)
        .filter(pl.col("line").list.len() > 0)
        .select("at", pl.col("line").list.join(" "), n=pl.col("line").list.len() + 1)
    )


def halves(text: pl.Series) -> pl.Series:
    """0 or 1 for each text (UInt8), by a hash of its letters and digits.

    It ignores case, spaces, punctuation and the values of digits, so that copies and trivial variants stay together.
    """
    bare = text.str.to_lowercase().str.replace_all(r"\d", "0").str.replace_all(_NOT_LETTERS, "")
    bare = pl.select(pl.when(bare.str.len_bytes() > 0).then(bare).otherwise(text)).to_series()
    # A loop, because the hash of polars may change between versions, and the halves must never change.
    sides = [hashlib.blake2b(one.encode(), digest_size=1).digest()[0] & 1 for one in bare]
    return pl.Series("half", sides, pl.UInt8)


def load(path: Path) -> Scorer:
    """Load a model and return its scoring function; `MissingModelError` if KenLM cannot read the file."""
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


def measure(turns: pl.DataFrame, text: pl.Series, scorers: Sequence[Scorer | None], turn_tokens: int) -> pl.DataFrame:
    """The signals of conversations: `turns` are their messages (`row`, `role`, `content`), `text` their whole texts.

    The scorers are those of the two halves, None if no model could be trained.
    """
    turn = pl.int_range(pl.len(), dtype=pl.UInt32).over("row")
    turns = turns.with_columns(half=halves(text).gather(turns["row"]), turn=turn)
    lines = tokenise(turns["content"])
    lines = lines.with_columns(half=turns["half"].gather(lines["at"]))
    sums = pl.col("score", "n").sum()
    per_turn = _score_lines(lines, scorers).group_by("at", maintain_order=True).agg(sums)
    scored = turns.drop("content").with_row_index("at").join(per_turn, on="at", how="inner", maintain_order="left")
    return by_row(len(text), _conversations(scored, turn_tokens)).select(SIGNALS.names())


def _score_lines(lines: pl.DataFrame, scorers: Sequence[Scorer | None]) -> pl.DataFrame:
    """Lines with their `score` in millionths, without lines that have no model."""
    parts = [pl.DataFrame(schema={"line": pl.String, "score": pl.Int64, "half": pl.UInt8})]
    for half, score in enumerate(scorers):
        distinct = lines.filter(half=half).select("line").unique(maintain_order=True)
        if score is None or not distinct.height:
            continue
        # A loop, because kenlm takes one line per call; each distinct line is scored once.
        scores = pl.Series("score", [score(line) for line in distinct["line"]], pl.Float64)
        whole = (scores * _UNIT).round().cast(pl.Int64)
        parts.append(distinct.with_columns(whole, half=pl.lit(half, pl.UInt8)))
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
