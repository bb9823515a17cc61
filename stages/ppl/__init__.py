"""Perplexity of conversations under a KenLM language model, by default one trained on the other half of the corpus."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import polars as pl

from stages import ngram
from stages.files import fitted, read_frame, read_json, save_json, seal
from stages.ngram import lmplz
from stages.ppl import place, score
from stages.ppl.lines import halves, tokenise
from stages.ppl.reference import batches, files
from stages.stage import Axis, FittedStage, GlobalStage, Measure, MissingModelError, StageParameterError


@dataclass(frozen=True)
class Perplexity(FittedStage, GlobalStage):
    """Perplexity per token, sentence ends counted: 10^(-log10 p / (tokens + lines)); a sentence is a line, as in CCNet.

    By default cross-fitted: the corpus is halved by a hash of each text's letters, so that copies stay together; a
    5-gram modified Kneser-Ney model of each half, singletons of order 3 and above pruned, scores the other half.

    Measured, null where there is nothing to score or no model for it:
        ppl_tokens: tokens and line ends scored.
        ppl: perplexity of all messages.
        ppl_user, ppl_assistant: of one role's messages.
        ppl_worst_turn: of the message with the highest, among those of at least `turn_tokens` tokens.
        ppl_worst_role, ppl_worst_index: that message's role and position from 0.
    Merged over the corpus:
        ppl_percentile: 0 (most expected) to 100; equal ones share their mean rank.
        ppl_bucket: "head", "middle", "tail", parted at the 30th and 60th percentile (CCNet, cc_net/perplexity.py:258).
        ppl_z: standard deviations of ln ppl above the median of conversations of the same source about as long, robust
            (median distance); null where fewer than 100 were scored.

    Alone neither `ppl` nor a percentile nor `ppl_z` marks junk: a level holds for one corpus only, a percentile drops
    its share of the cleanest, and in templated corpora the farthest out are the most human. Rules join level and place.

    Attributes:
        reference: train on this instead of the corpus: a text file (a line is a sentence), JSONL or Parquet with a
            column `text` or `messages`, or a folder of such files.
        model: ask this .arpa or KenLM .bin instead; its words must be lower-case, with digits as 0.
        order: words in the longest n-gram.
        prune: n-grams seen this often or less are left out, a value for each order, the last for all that follow.
        turn_tokens: shorter messages ("Thanks!") are never the worst turn.
    """

    summary: ClassVar[str] = "perplexity under a KenLM 5-gram model of the other half of the corpus"
    reads: ClassVar[tuple[str, ...]] = ("text", "messages")
    writes: ClassVar[pl.Schema] = score.SIGNALS
    merges: ClassVar[pl.Schema] = place.SIGNALS
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

    def __post_init__(self) -> None:
        if self.reference and self.model:
            raise StageParameterError("reference and model are both given: name the one that ppl shall be measured by")
        if self.turn_tokens < 1:
            raise StageParameterError(f"turn_tokens is {self.turn_tokens}, expected at least 1")
        try:
            ngram.thresholds(self.order, self.prune)
        except ngram.NgramError as error:
            raise StageParameterError(str(error)) from error

    def models(self) -> tuple[Path, ...]:
        """The model; else the reference, and the `lmplz` on the PATH, whose models differ from ours in last digits."""
        if self.model:
            model = Path(self.model).expanduser()
            if not model.is_file():
                raise MissingModelError(
                    f"no language model at {self.model!r}: give ppl the path of a KenLM .arpa or .bin as `model`, or "
                    f"leave it out to train on the corpus itself"
                )
            return (model,)
        executable = lmplz.find()
        return (*files(self.reference), *((executable,) if executable else ()))

    def fit(self, raw: Sequence[Path], folder: Path) -> None:
        """Train a model of the reference, or of each half; `models.json` says by what and how large.

        Raises:
            StageParameterError: the reference has no text.
        """
        if self.model:
            return
        sources = {"reference": lambda: _reference(self.reference)}
        if not self.reference:
            sources = {f"half{half}": partial(_half, raw, half) for half in (0, 1)}
        trained = {name: self._train(lines, folder / f"{name}.arpa") for name, lines in sources.items()}
        if self.reference and not trained["reference"]:
            raise StageParameterError(f"reference {self.reference!r} holds no text to train a language model on")
        save_json(folder / "models.json", trained, indent=1, end="")
        seal(folder, ["models.json", *(f"{name}.arpa" for name, model in trained.items() if model)])

    def _train(self, lines: Callable[[], Iterator[pl.Series]], out: Path) -> dict[str, Any] | None:
        """What `models.json` says of a model, or None where there is no line to train it on."""
        failed: dict[str, Any] = {}
        options: dict[str, Any] = {"order": self.order, "prune": self.prune}
        try:
            try:
                model = ngram.train(lines(), out, lmplz=lmplz.find(), **options)
            except lmplz.LmplzError as error:
                failed = {"lmplz": str(error)}
                model = ngram.train(lines(), out, **options)
        except ngram.NoLineError:
            return None
        return {**asdict(model), "path": out.name} | failed

    def open(self, folder: Path) -> Measure:
        """Load the models, once a process.

        Raises:
            MissingModelError: `model` is gone, or is none.
            CorruptInputError: a model that `fit` left is gone, or another.
        """
        if self.model:
            model = score.load(Path(self.model).expanduser())
            return partial(score.measure, scorers=(model, model), turn_tokens=self.turn_tokens)
        fitted(folder)
        names = [name for name, model in read_json(folder / "models.json").items() if model]
        loaded = {name: score.load(folder / f"{name}.arpa") for name in names}
        scorers = [loaded.get("reference") or loaded.get(f"half{1 - half}") for half in (0, 1)]
        return partial(score.measure, scorers=scorers, turn_tokens=self.turn_tokens)

    def merge(self, raw: Sequence[Path], measured: Sequence[Path], folder: Path) -> None:
        """Places in the corpus; 40 bytes of memory a conversation."""
        place.merge(raw, measured, folder)


def _half(raw: Sequence[Path], half: int) -> Iterator[pl.Series]:
    for path in raw:
        shard = read_frame(path, ["text", "messages"])
        mine = shard.filter(halves(shard["text"]) == half)
        yield tokenise(mine["messages"].explode(empty_as_null=False).struct.field("content"))["line"]


def _reference(path: str) -> Iterator[pl.Series]:
    for texts in batches(path):
        yield tokenise(texts)["line"]
