"""Perplexity of conversations under a KenLM language model, by default one trained on the other half of the corpus."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import polars as pl
from numpy.typing import NDArray

from stages import ngram
from stages.files import check_fitted, read_frame, read_json, rows, save_frame, save_json, scratch, seal
from stages.ngram import Sentences
from stages.ppl import score
from stages.ppl.places import place
from stages.ppl.tokens import halves, tokenise
from stages.readers import RECORDS, TEXT
from stages.stage import Axis, FittedStage, GlobalStage, Measure, MissingModelError, StageParameterError, require
from stages.text.corpus import Corpus
from stages.text.messages import PROSE, check_reading, messages, prose_messages

HALVES = ("half0", "half1")
"""Names of the halves' models."""


@dataclass(frozen=True)
class Perplexity(FittedStage, GlobalStage):
    """Perplexity per token, sentence ends counted: 10^(-log10 p / (tokens + lines)); a sentence is a line, as in CCNet.

    By default cross-fitted: a hash of each text's letters splits the corpus in two halves, so that copies stay
    together. A 5-gram modified Kneser-Ney model of each half, without singletons of order 3 and above, scores the
    other half.

    Measured (null if there is nothing to score, or no model):
        ppl_tokens: tokens and line ends scored.
        ppl: perplexity of all messages.
        ppl_user, ppl_assistant: perplexity of the messages of one role.
        ppl_worst_turn: highest perplexity of a message with at least `turn_tokens` tokens.
        ppl_worst_role, ppl_worst_index: role of that message, and its position, counted from 0.
    Merged over the corpus:
        ppl_percentile: 0 (most predictable) to 100; ties share their mean rank.
        ppl_bucket: "head", "middle" or "tail", split at percentiles 30 and 60 (CCNet, cc_net/perplexity.py:258).
        ppl_z: robust standard deviations of ln ppl above the median of conversations of the same source and of similar
            length (by the median distance); null if fewer than 100 were scored.

    None of `ppl`, a percentile or `ppl_z` marks junk by itself: a level holds for one corpus only, a percentile drops
    the same share of a clean corpus, and in templated corpora the outliers are the most human conversations. A rule
    should combine a level with a rank.

    Attributes:
        reference: a corpus to train on instead: a text file (a sentence per line), JSON or Parquet with a column
            `text`, `messages`, `conversations` or `data`, a folder of such files, or a run folder of refine.
        model: a .arpa or KenLM .bin file to use instead; its words must be in lower case, with 0 for each digit.
        order: number of words in the longest n-gram, at most 6.
        prune: n-grams that occur at most this often are omitted; one value per order, the last one for all that follow.
        turn_tokens: minimum number of tokens of the worst turn; a shorter one, such as "Thanks!", is never the worst.
        roles: roles whose messages are read; by default all but tools.
        read: what is read of a message: `content`, `reasoning`, `calls` (names and arguments of tool calls).
    """

    summary: ClassVar[str] = "perplexity under a KenLM 5-gram model of the other half of the corpus"
    reads: ClassVar[tuple[str, ...]] = ("messages", "details")
    writes: ClassVar[pl.Schema] = score.SIGNALS
    merges: ClassVar[pl.Schema] = pl.Schema(
        {"ppl_percentile": pl.Float64(), "ppl_bucket": pl.String(), "ppl_z": pl.Float64()}
    )
    axes: ClassVar[Mapping[str, Axis]] = {
        "ppl": Axis("perplexity per token", log=True, rank=10),
        "ppl_z": Axis("robust deviations of ln ppl", rank=110),
        "ppl_assistant": Axis("perplexity of the replies", log=True, rank=200),
        "ppl_worst_turn": Axis("perplexity of the worst turn", log=True, rank=210),
        "ppl_tokens": Axis("tokens scored", log=True, rank=220),
    }

    reference: str = ""
    model: str = ""
    order: int = 5
    prune: tuple[int, ...] = (0, 0, 1)
    turn_tokens: int = 8
    roles: tuple[str, ...] = ()
    read: tuple[str, ...] = (PROSE,)

    def __post_init__(self) -> None:
        if self.reference and self.model:
            raise StageParameterError("reference and model are both given: give one of them")
        check_reading("ppl", self.read)
        require("order", self.order, self.order <= ngram.MAX_ORDER, f"at most {ngram.MAX_ORDER}, as kenlm is built")
        require("turn_tokens", self.turn_tokens, self.turn_tokens > 0, "at least 1")
        try:
            ngram.thresholds(self.order, self.prune)
        except ngram.NgramError as error:
            raise StageParameterError(str(error)) from error

    def models(self) -> tuple[Path, ...]:
        """The model, or the files of the reference."""
        if self.model:
            model = Path(self.model).expanduser()
            if not model.is_file():
                raise MissingModelError(
                    f"no language model at {self.model!r}: give ppl the path of a KenLM .arpa or .bin as `model`, or "
                    f"omit it to train on the corpus itself"
                )
            return (model,)
        return tuple(_corpus(self.reference).files())

    def notes(self) -> tuple[str, ...]:
        return _corpus(self.reference).notes()

    @property
    def fits_corpus(self) -> bool:
        return not (self.model or self.reference)

    @property
    def fit_parts(self) -> tuple[str, ...]:
        return HALVES if self.fits_corpus else ()

    def fit_part(self, part: str, raw: Sequence[Path], folder: Path) -> None:
        """Train the model of a half; `<part>.json`, written last, is its entry in `models.json`.

        Memory: one shard, what `Sentences` holds of the half, and what `ngram.estimate` needs.
        """
        if not (folder / f"{part}.json").exists():
            self._train(part, self._half(HALVES.index(part), raw), folder)

    def fit(self, raw: Sequence[Path], folder: Path) -> None:
        """Train a model on the reference, or on each half, in KenLM's binary format; `models.json` lists their sizes.

        Memory: as for a part.
        """
        if self.model:
            return
        for part in self.fit_parts:
            self.fit_part(part, raw, folder)
        if self.reference:
            self._train("reference", (batch["text"] for batch in _corpus(self.reference).batches()), folder)
        names = self.fit_parts or ("reference",)
        trained = {name: read_json(folder / f"{name}.json") for name in names}
        if self.reference and not trained["reference"]:
            raise StageParameterError(f"reference {self.reference!r} holds no text to train a language model on")
        save_json(folder / "models.json", trained, indent=1, end="")
        seal(folder, ["models.json", *(f"{name}.bin" for name, model in trained.items() if model)])
        for name in names:
            (folder / f"{name}.json").unlink()

    def _half(self, half: int, raw: Sequence[Path]) -> Iterator[pl.Series]:
        for path in raw:
            shard = read_frame(path, self.reads)
            yield self._messages(shard.filter(pl.Series(_sides(shard["messages"]) == half)))["content"]

    def _train(self, name: str, texts: Iterable[pl.Series], folder: Path) -> None:
        """Write a model and its entry in `models.json`, which is null if there is no line to train on."""
        with scratch(folder, name) as aside:
            sentences = Sentences(aside / "words")
            for some in texts:
                sentences.add(tokenise(some)["line"])
            try:
                model = ngram.estimate(sentences, aside, folder / f"{name}.bin", order=self.order, prune=self.prune)
                entry: dict[str, Any] | None = {**asdict(model), "path": model.path.name}
            except ngram.NoLineError:
                entry = None
        save_json(folder / f"{name}.json", entry, indent=1, end="")

    def open(self, folder: Path) -> Measure:
        if self.model:
            model = score.load(Path(self.model).expanduser())
            return partial(self._score, scorers=(model, model))
        check_fitted(folder)
        trained = read_json(folder / "models.json")
        loaded = {name: score.load(folder / model["path"]) for name, model in trained.items() if model}
        scorers = [loaded.get("reference") or loaded.get(f"half{1 - half}") for half in (0, 1)]
        return partial(self._score, scorers=scorers)

    def _score(self, batch: pl.DataFrame, scorers: Sequence[score.Scorer | None]) -> pl.DataFrame:
        return score.measure(self._messages(batch), _sides(batch["messages"]), scorers, self.turn_tokens)

    def _messages(self, batch: pl.DataFrame) -> pl.DataFrame:
        return prose_messages(batch, self.roles, self.read)

    def merge(self, raw: Sequence[Path], measured: Sequence[Path], folder: Path) -> None:
        """Rank the corpus; memory as in `place`."""
        columns = zip(raw, measured, strict=True)
        parts = (read_frame(of, ["ppl", "ppl_tokens"]).hstack(read_frame(path, ["source"])) for path, of in columns)
        for path, placed in zip(measured, place(parts, [rows(path) for path in measured], folder), strict=True):
            save_frame(folder / "merged" / path.name, read_frame(path, ["id"]).hstack(placed))


def _sides(conversations: pl.Series) -> NDArray[np.uint8]:
    """The half of each conversation, by its whole text."""
    return halves(messages(conversations)["content"], conversations.list.len().fill_null(0).to_numpy())


def _corpus(reference: str) -> Corpus:
    return Corpus(reference, "reference corpus", (*TEXT, *RECORDS))
