"""How much a reply owes to its prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

import numpy as np
import polars as pl

from stages.files import check_fitted, exists, read_frame, read_json, save_json, seal
from stages.follows.exchanges import Score, exchanges
from stages.stage import Axis, FittedStage, Measure, require
from stages.text.messages import by_row

CLEAR = 0.6
"""Share of replies that a model must prefer their own prompt for, so that its signals tell replies apart."""
_SUMMARY = "follows.json"


@dataclass(frozen=True)
class Follows(FittedStage):
    """Instruction-following difficulty (IFD): perplexity of a reply given its prompt over that of the reply alone.

    Li et al. 2024, "Superfiltering" (arXiv:2402.00530), after "From Quantity to Quality" (arXiv:2308.12032). Below 1
    the prompt helps to predict the reply; near 1 the reply hardly depends on it; above 1 it does not seem to answer it.
    These papers take examples of a high IFD below 1. Read are the first prompt of the user and the first reply to it.

    A causal language model computes it. With `model` that is one of a folder or of the hub. By default it is the small
    transformer of `refine compare`, which the run trains on the conversations of the other half of the corpus (a hash
    of the text's letters decides, as in `ppl`). It knows little: `follows.json` in the stage's folder has the share of
    replies for which it finds their own prompt more helpful than another conversation's, and a run prints it. At 50 %
    its signals say nothing about prompts. If there are too few replies to train on, all signals are null.

    Signals, null if there is no prompt with a reply, or no model:
        follows_tokens: tokens of the reply that were scored: at most 64, or half the context of `model`, at most 512.
        follows_nats: nats per token of the reply given its prompt.
        follows_alone_nats: the same of the reply alone.
        follows_ifd: exp(follows_nats - follows_alone_nats), the ratio of the perplexities.

    Attributes:
        model: a causal language model: the folder of one for transformers, or "organisation/name" on the hub, which is
            downloaded once. With a chat template the prompt is a user's message.
        tokens: about how many tokens of each half the transformer is trained on.
    """

    model: str = ""
    tokens: int = 100_000

    summary: ClassVar[str] = "how much a reply owes to its prompt: its perplexity with and without it (IFD)"
    reads: ClassVar[tuple[str, ...]] = ("text", "messages", "details")
    writes: ClassVar[pl.Schema] = pl.Schema(
        {
            "follows_tokens": pl.UInt32(),
            **dict.fromkeys(("follows_nats", "follows_alone_nats", "follows_ifd"), pl.Float32()),
        }
    )
    axes: ClassVar[Mapping[str, Axis]] = {"follows_ifd": Axis("perplexity with the prompt over that without", rank=380)}

    def __post_init__(self) -> None:
        require("follows: tokens", self.tokens, self.tokens > 0, "at least 1")

    @property
    def fits_corpus(self) -> bool:
        return False  # the training takes most of it, and is as long for any corpus

    @property
    def uses_gpu(self) -> bool:
        """Whether the model is one of a folder or of the hub."""
        return bool(self.model)

    def models(self) -> tuple[Path, ...]:
        from stages.follows import causal

        return causal.files(self.model) if self.model else ()

    def remarks(self, folder: Path) -> tuple[str, ...]:
        """Whether a model could be trained, and how well it knows a reply's own prompt."""
        if self.model or not exists(folder / _SUMMARY):
            return ()
        found = read_json(folder / _SUMMARY)
        if not found["files"]:
            return (f"too few replies to train a model on ({found['pairs']:,}), so all signals are null",)
        if found["preference"] is None:
            return ()
        told = (
            f"its own prompt helps to predict a held-out reply more than another's for {found['preference']:.0%} of "
            f"{found['judged']:,}"
        )
        weak = " (50 % is chance: this model is too weak to rank by; give a causal language model as `model`)"
        return (told + (weak if found["preference"] < CLEAR else ""),)

    def fit(self, raw: Sequence[Path], folder: Path) -> None:
        """Train a transformer on each half; memory is a shard, and 40 bytes per trained token."""
        if self.model:
            return
        from stages.follows import trained

        found = trained.fit((read_frame(path, self.reads) for path in raw), folder, self.tokens)
        save_json(folder / _SUMMARY, found, indent=1, end="")
        seal(folder, [_SUMMARY, *found["files"]])

    def open(self, folder: Path) -> Measure:
        if self.model:
            from stages.follows import causal

            return partial(_measure, score=causal.load(self.model))
        check_fitted(folder)
        if not read_json(folder / _SUMMARY)["files"]:
            return self.measure
        from stages.follows import trained

        return partial(_measure, score=trained.load(folder))

    def measure(self, batch: pl.DataFrame) -> pl.DataFrame:
        return pl.DataFrame(schema=self.writes).clear(batch.height)


def _measure(batch: pl.DataFrame, score: Score) -> pl.DataFrame:
    from stages.ppl.tokens import halves

    first = exchanges(batch).unique("row", keep="first", maintain_order=True)
    sides = halves(batch["text"])[first["row"].to_numpy()]
    tokens, given, alone = score(first, sides).T
    columns = {"tokens": tokens, "nats": given, "alone_nats": alone, "ifd": np.exp(given - alone)}
    scored = first.select("row").with_columns(pl.Series(f"follows_{name}", each) for name, each in columns.items())
    scored = scored.filter(pl.col("follows_tokens") > 0, pl.col("follows_ifd").is_finite())
    return by_row(batch.height, scored).select(Follows.writes.names()).cast(Follows.writes)
