"""The language of a conversation, and turns in another language."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import ClassVar

import numpy as np
import polars as pl

from stages.language.pieces_kernel import PIECE
from stages.stage import Axis, Measure, MissingModelError, Stage
from stages.text.characters import properties
from stages.text.compiled import Kernels
from stages.text.messages import PROSE, by_row, check_reading, prose, prose_messages

LOOPS = Kernels("stages.language.pieces_kernel", {"pieces": "u1* i8* i8* i8 u1* u1* i8* i8* i8**"})
_MIN_SCORE = 0.5  # for a fastText model; CCNet's (cc_net/mine.py)
# eldc is never sure between close relatives with almost the same score, such as Hindi and Marathi; at this score the
# first one is right in 97 of 100 sentences.
_SURE_SCORE = 0.8
_FASTTEXT_CODES = {"nb": "no", "nn": "no", "sh": "sr", "wuu": "zh", "yue": "zh"}

Answers = list[tuple[str | None, float | None]]
Detect = Callable[[list[str]], Answers]
"""The language of each piece (ISO 639-1) and its score, or two nulls if the model is not sure."""


@dataclass(frozen=True)
class Language(Stage):
    """Language of each turn, without code, addresses, numbers and turns of few letters.

    The default model is that of the package `eldc` (60 languages, Apache-2.0). If it is not sure, the signals are null:
    this is so for most text in a language that it does not know.

    Args:
        model: path of a fastText model, such as lid.176.bin (176 languages), to use instead.
        min_letters: minimum number of letters outside of code for a turn to be judged; a Han, kana or Hangul letter
            counts as three.
        roles: roles whose messages are read; by default all but tools.
        read: what is read of a message: `content`, `reasoning`, `calls` (names and arguments of tool calls).

    Signals:
        language: the language of most letters of the judged turns, ISO 639-1; short turns are judged together.
        language_score: the model's mean score for it, from 0 to 1. A fastText model gives a probability (usual
            thresholds: datatrove and DCLM 0.65, CCNet 0.5); with the default model, 0.7 and above is usual.
        user_language, assistant_language: the same for the turns of one role.
        judged_turns: number of judged turns.
        other_language_turns: share of them in another language than the conversation.
        other_language: share of their letters in another language.
    """

    summary: ClassVar[str] = "language of the conversation, of each role, and turns in another one"
    reads: ClassVar[tuple[str, ...]] = ("messages", "details")
    writes: ClassVar[pl.Schema] = pl.Schema(
        {
            "language": pl.String(),
            "language_score": pl.Float64(),
            "user_language": pl.String(),
            "assistant_language": pl.String(),
            "judged_turns": pl.Int64(),
            "other_language_turns": pl.Float64(),
            "other_language": pl.Float64(),
        }
    )
    axes: ClassVar[Mapping[str, Axis]] = {"language_score": Axis("mean score of the language", rank=150)}
    model: str = ""
    min_letters: int = 25
    roles: tuple[str, ...] = ()
    read: tuple[str, ...] = (PROSE,)

    def __post_init__(self) -> None:
        check_reading("language", self.read)

    def models(self) -> tuple[Path, ...]:
        if not self.model:
            return (_eldc_file(),)
        path = Path(self.model).expanduser()
        if not path.is_file():
            raise MissingModelError(
                f"language: no fastText model at {path}: give the path of a lid.176.bin or lid.176.ftz, "
                "or omit `model` to use the default one"
            )
        return (path,)

    def open(self, folder: Path) -> Measure:
        del folder
        (path,) = self.models()
        detect = _fasttext(path) if self.model else _eldc()
        return lambda batch: _signals(
            prose_messages(batch, self.roles, self.read), batch.height, detect, self.min_letters
        )

    def measure(self, batch: pl.DataFrame) -> pl.DataFrame:
        return self.open(Path())(batch)


def _eldc_file() -> Path:
    try:
        native = import_module("eldc._eldc")
    except ImportError as error:
        raise MissingModelError(
            "language: the package eldc, which holds the default model, is not installed: `pip install eldc`, "
            "or set `model` to the path of a lid.176.bin"
        ) from error
    return Path(str(native.__file__))


def _eldc() -> Detect:
    eldc = import_module("eldc")
    eldc.init()
    detector = eldc.instance()
    detector.set_scores(1)

    def detect(pieces: list[str]) -> Answers:
        # eldc takes one text per call, in 1.6 microseconds
        answers: Answers = []
        for each in map(detector.detect_details, pieces):
            score = each.scores.get(each.language, 0.0)
            answers.append((each.language, score) if each.reliable or score >= _SURE_SCORE else (None, None))
        return answers

    return detect


def _fasttext(path: Path) -> Detect:
    import fasttext

    try:
        model = fasttext.load_model(str(path))
    except (ValueError, RuntimeError, MemoryError) as error:
        raise MissingModelError(
            f"language: {path} is not a fastText model ({error}): give the path of a lid.176.bin or lid.176.ftz"
        ) from error

    def detect(pieces: list[str]) -> Answers:
        labels, scores = model.predict(pieces) if pieces else ([], [])
        answers: Answers = []
        for label, score in zip(labels, scores, strict=True):
            sure = len(label) > 0 and score[0] >= _MIN_SCORE
            code = label[0].removeprefix("__label__") if sure else None
            answers.append((_FASTTEXT_CODES.get(code, code), min(1.0, float(score[0]))) if code else (None, None))
        return answers

    return detect


def cut_pieces(messages: pl.DataFrame, min_letters: int) -> tuple[pl.DataFrame, list[str]]:
    """Pieces of prose, one per row: `row`, `turn`, `role`, `letters`; and their texts.

    Turns with too few letters are joined per conversation; their `turn` and `role` are null. A piece is at most 1,000
    characters long: eldc reads no more, and a fastText average over more is less certain.
    """
    (data, offsets), _ = prose(messages["content"])
    rows = messages["row"].cast(pl.Int64).to_numpy()
    text = np.empty(2 * offsets[-1] + len(rows), np.uint8)
    found = np.empty((len(text) // PIECE + 2 * len(rows), 5), np.int64)
    scratch = np.empty(len(rows) + 1, np.int64), np.empty(len(rows), np.int64)
    count = LOOPS.call("pieces", data, offsets, rows, min_letters, properties(), text, *scratch, found)
    begins, ends, letters, row, turn = found[:count].T
    raw = text.tobytes()
    texts = [raw[begin:end].decode() for begin, end in zip(begins.tolist(), ends.tolist(), strict=True)]
    own = pl.Series("turn", turn).replace(-1, None)
    frame = pl.DataFrame({"row": row, "turn": own, "letters": letters}).cast({"row": pl.UInt32, "turn": pl.UInt32})
    return frame.with_columns(role=messages["role"].gather(frame["turn"])), texts


def _main(judged: pl.DataFrame, by: str) -> pl.DataFrame:
    """The language with most letters for each value of `by`, ties in alphabetical order, and its mean score."""
    weight = pl.col("letters")
    return (
        judged.group_by(by, "language")
        .agg(weight.sum(), ((pl.col("score") * weight).sum() / weight.sum()).alias("score"))
        .sort(by, "letters", "language", descending=[False, True, False])
        .unique(by, keep="first", maintain_order=True)
        .drop("letters")
    )


def _signals(messages: pl.DataFrame, height: int, detect: Detect, min_letters: int) -> pl.DataFrame:
    pieces, texts = cut_pieces(messages, min_letters)
    languages, scores = zip(*detect(texts), strict=True) if texts else ((), ())
    codes = pl.Enum(sorted({language for language in languages if language}))  # in the order of ties
    answers = [pl.Series("language", languages, codes), pl.Series("score", scores, pl.Float64)]
    judged = pieces.with_columns(answers).drop_nulls("language")
    whole = _main(judged, "row")
    of_turns = judged.drop_nulls("turn")
    turns = _main(of_turns, "turn").join(of_turns.unique("turn").select("turn", "row"), on="turn")
    other = pl.col("language") != pl.col("main")
    main = whole.select("row", pl.col("language").alias("main"))
    by_turn = turns.join(main, on="row").group_by("row")
    by_letter = of_turns.join(main, on="row").group_by("row")
    frame = by_row(
        height,
        whole.rename({"score": "language_score"}),
        *[
            _main(judged.filter(role=role), "row").select("row", pl.col("language").alias(f"{role}_language"))
            for role in ("user", "assistant")
        ],
        by_turn.agg(pl.len().alias("judged_turns"), other.mean().alias("other_language_turns")),
        by_letter.agg((pl.col("letters").filter(other).sum() / pl.col("letters").sum()).alias("other_language")),
    ).with_columns(pl.col("judged_turns").fill_null(0))
    return frame.select(pl.col(name).cast(kind) for name, kind in Language.writes.items())
