"""Known damage, planted into a corpus, so that an audit can say which of it a plan finds."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

import numpy as np
import polars as pl

from pipeline.plant.kinds import KINDS, Kind
from pipeline.plant.material import MissingTextError, Texts
from pipeline.plant.near_copies import Messages
from stages.text.shingles import WORD

TRUTH = ("planted_kind", "planted_of")
"""Columns of the truth, null for untouched rows: the kind of damage, and the id of the original of an added copy."""
MIN_WORDS = 5
"""Minimum number of words, as `dedup` counts them, of a conversation that is damaged."""

FIRST = (
    pl.col("messages")
    .list.eval(pl.element().filter(pl.element().struct.field("role") == "user").struct.field("content"))
    .list.first()
    .fill_null("")
)
"""The first message of the user, which is the prompt of most records."""


RECIPE = 1
"""Version of the damage; raised by hand when the same corpus and options give other rows."""


class PlantError(Exception):
    """Damage cannot be planted as asked; the message says why and what to do."""


@dataclass(frozen=True)
class PlantOptions:
    """What to plant, and how much of it.

    Raises:
        PlantError: a kind is unknown, or the share is not above 0 and up to 1, or the seed negative.
    """

    kinds: tuple[str, ...] = ()
    """Names of kinds; by default all."""
    share: float = 0.02
    """Share of the conversations that each kind damages or copies."""
    seed: int = 0
    evals: str = ""
    """Evaluation sets, for the kind `eval_item`; a file or a folder."""

    def __post_init__(self) -> None:
        if unknown := [name for name in self.kinds if name not in KINDS]:
            raise PlantError(f"--kinds names {unknown[0]!r}, expected some of {', '.join(KINDS)}")
        if not 0 < self.share <= 1:
            raise PlantError(f"--share is {self.share:g}, expected a share above 0 and up to 1, such as 0.02")
        if self.seed < 0:
            raise PlantError(f"--seed is {self.seed}, expected at least 0")

    @property
    def chosen(self) -> list[Kind]:
        """The kinds, in the order of `KINDS`."""
        return [kind for name, kind in KINDS.items() if not self.kinds or name in self.kinds]


@dataclass(frozen=True)
class Plot:
    """How much of one kind was planted, and why it is less than asked for, if it is."""

    kind: Kind
    planted: int
    note: str = ""


@dataclass(frozen=True, eq=False)
class DamagedCorpus:
    """A damaged corpus.

    Attributes:
        rows: one row per conversation, in the order of the source, each added copy at a place drawn by the seed: id
            (that of a run of the source; a copy has a suffix), prompt, prompt_id, messages, source, extra, and `TRUTH`.
        plots: what was planted, by kind.
        conversations: number of conversations of the source.
    """

    rows: pl.DataFrame
    plots: tuple[Plot, ...]
    conversations: int


def plant(raw: pl.DataFrame, options: PlantOptions) -> DamagedCorpus:
    """Plant damage into a corpus; the same corpus and options give the same rows.

    Only conversations of at least `MIN_WORDS` words are damaged or copied, and none that has a user but no reply, or
    messages with more than a role and text; none more than once. Memory: the corpus, twice.

    Args:
        raw: conversations as ingest writes them; see `stages.stage.RAW`.
        options: what to plant.

    Raises:
        PlantError: nothing can be planted.
    """
    wanted = max(1, round(options.share * raw.height))
    bed = _Bed(raw, options.seed)
    if not bed.fit:
        raise PlantError(
            f"nothing can be planted into {raw.height:,} conversations: none has {MIN_WORDS} words and, if a user "
            "speaks, a reply, and no tool calls or other details; take another corpus"
        )
    plots = [_plot(kind, bed, wanted, options.evals) for kind in options.chosen]
    if not any(plot.planted for plot in plots):
        raise PlantError(
            f"nothing can be planted into {raw.height:,} conversations: {plots[0].kind.name}: {plots[0].note}"
        )
    return DamagedCorpus(bed.rows(), tuple(plots), raw.height)


def _plot(kind: Kind, bed: _Bed, wanted: int, evals: str) -> Plot:
    """Plant one kind."""
    try:
        texts = kind.texts(bed.raw, evals) if kind.texts else ()
    except MissingTextError as error:
        return Plot(kind, 0, str(error))
    planted = bed.damage(kind, texts, wanted)
    note = f"{wanted:,} wanted: no {'other ' if planted else ''}conversation is fit for it"
    return Plot(kind, planted, "" if planted == wanted else note)


class _Bed:
    """A corpus while damage is planted into it."""

    def __init__(self, raw: pl.DataFrame, seed: int) -> None:
        roles = pl.col("messages").list.eval(pl.element().struct.field("role"))
        answered = roles.list.contains("assistant") | ~roles.list.contains("user")
        words = pl.col("text").str.count_matches(WORD) >= MIN_WORDS
        plain = pl.col("details").is_null()
        fit = raw.select((answered & words & plain).fill_null(value=False)).to_series().arg_true().to_numpy()
        self.raw, self._seed, self._random = raw, seed, np.random.default_rng(seed)
        self._order: list[int] = self._random.permutation(fit).tolist()
        self._edits: dict[int, tuple[Kind, Messages]] = {}
        self.fit = len(fit)
        """Number of conversations that can be damaged."""

    def damage(self, kind: Kind, texts: Texts, wanted: int) -> int:
        """Damage untouched conversations, and return how many.

        A loop over conversations, because each draws by itself; it reads no more of them than it needs.
        """
        edits: dict[int, Messages] = {}
        for row in (row for row in self._order if row not in self._edits):
            if len(edits) == wanted:
                break
            draw = Random(f"{self._seed} {kind.name} {self.raw['id'][row]}")  # noqa: S311  seeded, no secret
            messages = kind.damage([dict(m) for m in self.raw["messages"][row].to_list()], draw, texts)
            if messages is not None:
                edits[row] = messages
        if kind.together:
            edits = dict(zip(edits, kind.together(list(edits.values())), strict=False))
        self._edits |= {row: (kind, messages) for row, messages in edits.items()}
        return len(edits)

    def rows(self) -> pl.DataFrame:
        """The damaged corpus; see `DamagedCorpus`."""
        rows = self.raw.select("id", "prompt", "prompt_id", "messages", "source", "extra").with_columns(
            place=pl.int_range(pl.len()).cast(pl.Float64), **dict.fromkeys(TRUTH, pl.lit(None, pl.String))
        )
        edits = rows[list(self._edits)]
        messages = pl.Series([messages for _, messages in self._edits.values()], dtype=rows.schema["messages"])
        edits = edits.with_columns(
            messages=messages,
            prompt=pl.when(pl.col("prompt") == FIRST)
            .then(messages.to_frame("messages").select(FIRST).to_series())
            .otherwise("prompt"),
            planted_kind=pl.Series([kind.name for kind, _ in self._edits.values()]),
        )
        added = pl.col("planted_kind").is_in([kind.name for kind in KINDS.values() if kind.adds])
        copies = edits.filter(added).with_columns(
            id=pl.format("{}-{}", "id", "planted_kind"),
            planted_of="id",
            place=pl.Series(self._random.uniform(0, rows.height, edits.select(added.sum()).item())),
        )
        rows = rows.update(edits.filter(~added), on="place")
        return pl.concat([rows, copies]).sort("place", maintain_order=True).drop("place")
