"""`refine.score`, `refine.transfer_extract`, `refine.transfer_apply`: models trained elsewhere, from Python."""

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import polars as pl

from pipeline import terminal
from pipeline.api.compare import text as name_of
from pipeline.api.compare import words
from pipeline.api.run import Run
from pipeline.api.tables import Display, Summary
from pipeline.models import apply as applying
from pipeline.models import extract as extracting
from pipeline.models import score as scoring
from pipeline.models.apply import Applied, ApplyOptions
from pipeline.models.extract import HEAD, Extracted
from pipeline.models.score import ScoreOptions, ScoreTable
from pipeline.store.bucket import check_local
from stages.files import save_json
from trainer.transfer.extract import options_of


@dataclass(frozen=True, repr=False)
class Scores(Display, ScoreTable):
    """Scores of models on one test set: a row per model, what may be concluded, and notes."""

    @property
    def frame(self) -> pl.DataFrame:
        """A row per model.

        Columns: name, trained (by the experiment), bits_per_byte, replies_bits_per_byte, ppl_per_token, own_ppl,
        revision; and the difference of ln PPL from the first model, ln_ratio, _low and _high, of everything and of
        replies. What is not known is null.
        """
        rows = []
        for row in self.rows:
            values = asdict(row)
            del values["differences"]
            for scope in scoring.SCOPES:
                one = row.differences.get(scope)
                ends = (None, None) if one is None or one.interval is None else one.interval
                values[f"{scope}_ln_ratio"] = None if one is None else one.ln_ratio
                values[f"{scope}_low"], values[f"{scope}_high"] = ends
            rows.append(values)
        return pl.DataFrame(rows, infer_schema_length=None)

    def summaries(self) -> Sequence[Summary]:
        """Return the table of scores, and what may be concluded."""
        return [summary(self, (*self.notes, *self.sentences))]


@dataclass(frozen=True, repr=False)
class Adapter(Display, Extracted):
    """The difference of two models: `folder` holds the adapter, `found` what changed in each tensor.

    `folder` and `page` are None if nothing differs.
    """

    @property
    def frame(self) -> pl.DataFrame:
        """A row per tensor of the base, in the order of layers; the columns are those of record.json."""
        return pl.DataFrame([asdict(one) for one in self.found.tensors], infer_schema_length=None)

    def summaries(self) -> Sequence[Summary]:
        """Return what changed by part, the scores, and the folder."""
        if self.folder is None:
            return [Summary("", (), (), note=extracting.nothing(self.found))]
        rows = [extracting.cells(row) for row in extracting.by_part(self.found)]
        notes = "\n".join((*self.found.notes, extracting.headline(self.found), f"{self.folder}", f"{self.page}"))
        parts = Summary("\nWhat training changed", HEAD, rows, frozenset(range(1, len(HEAD))), notes)
        return [parts] if self.scores is None else [summary(self.scores), parts]


@dataclass(frozen=True, repr=False)
class Transfer(Display, Applied):
    """A difference on another model: `carried` is the share of the source's gain, with its interval."""

    def summaries(self) -> Sequence[Summary]:
        """Return the ladder of baselines and the sentence."""
        lines = (f"in the space of {self.space}: {self.relation}", self.sentence, self.folder or "")
        if self.ladder is None:
            return [Summary("", (), (), note="\n".join(filter(None, lines)))]
        return [summary(self.ladder, tuple(filter(None, lines)))]


def score(
    models: str | Path | Sequence[str | Path] | None = None,
    *,
    on: Path | str | None = None,
    text: Run | Path | str | None = None,
    adapter: Path | str | Sequence[Path | str] | None = None,
    test: str | None = None,
    context: int | None = None,
    device: str = "cpu",
    limit: int | None = None,
    training_texts: Path | str | None = None,
    out: Path | str | None = None,
    progress: bool = False,
) -> Scores | None:
    """Score causal language models on a test set as `refine score` does, and compare each with the first.

    Args:
        models: folders or hub ids of causal language models, or folders of adapters; one, or a list.
        on: folder of an experiment, whose test set and models are used.
        text: score this corpus instead: a run, a file, a folder, a hub id.
        adapter: adapters of PEFT with which the one model is scored too; one, or a list.
        test: test set of a comparison: raw, refined, or both; by default that of its verdict.
        context: tokens of a window; by default 512, or the model's positions.
        device: torch device.
        limit: number of rows of `text` to read; by default all.
        training_texts: folder to write the training conversations of each corpus of the experiment to.
        out: file for the result as JSON.
        progress: show notes on stderr.

    Returns:
        The scores; None if only training texts are written.

    Raises:
        RefineError: a model, the experiment or the corpus does not serve; the message says why and what to do.
    """
    check_local(training_texts, out)
    options = ScoreOptions(
        tuple(map(str, _several(models))),
        tuple(map(Path, _several(adapter))),
        None if on is None else Path(on),
        None if text is None else name_of(text),
        *(test, context, device, limit),
        None if training_texts is None else Path(training_texts),
    )
    place = None if out is None else Path(out)
    scoring.check_file(place, options)
    with terminal.progress(show=progress):
        made = scoring.score(options)
    if made is None:
        return None
    if place is not None:
        save_json(place, made.as_dict())
    return Scores(**_values(made))


def transfer_extract(
    base: Path | str,
    tuned: Path | str,
    *,
    out: Path | str,
    rank: int | str = "auto",
    energy: float = 0.9,
    max_rank: int = 256,
    whole: str | Sequence[str] = "auto",
    embeddings: str = "whole",
    only: str | None = None,
    exclude: str | None = None,
    svd: str = "auto",
    dtype: str = "same",
    score: Path | str | None = None,
    report: Path | str | None = None,
    force: bool = False,
    progress: bool = False,
) -> Adapter:
    """Write what training changed in a model as an adapter of PEFT, as `refine transfer extract` does.

    Args:
        base: folder or hub id of a causal language model.
        tuned: folder or hub id of the model that was trained from it.
        out: folder of the adapter.
        rank: of linear weights: auto (by `energy`), a number, or full.
        energy: share of the squared difference that factors keep.
        max_rank: maximum rank if it is chosen.
        whole: what is no linear weight: auto keeps it as it is, none leaves it out; or ends of names of modules that
            are kept.
        embeddings: the input embedding: whole, or lora, at the same rank or energy.
        only: regular expression that the names of tensors hold.
        exclude: regular expression that they do not hold.
        svd: auto, or lapack.
        dtype: of the adapter: same (as the base), float32, bfloat16 or float16.
        score: folder of an experiment on whose test set base, tuned and adapter are scored.
        report: folder of the report; by default one in reports/.
        force: extract from models that were not trained from one another.
        progress: show notes on stderr.

    Raises:
        RefineError: a model or an option does not serve; the message says why and what to do.
    """
    command = _command("extract", transfer_extract, dict(locals()), ("base", "tuned"))
    check_local(out, report)
    names = whole if isinstance(whole, str) else ",".join(whole) or "none"
    options = options_of(str(rank), energy, max_rank, names, embeddings, only, exclude, svd, dtype, force=force)
    work, page = (None if place is None else Path(place) for place in (score, report))
    with terminal.progress(show=progress):
        made = extracting.extract_adapter(str(base), str(tuned), Path(out), options, work, page, command)
    return Adapter(**_values(made))


def transfer_apply(
    adapter: Path | str,
    target: Path | str,
    *,
    out: Path | str,
    space: str = "auto",
    scale: float | None = None,
    on: Run | Path | str | None = None,
    score: Path | str | None = None,
    rank: int = 8,
    steps: int = 300,
    as_: str = "adapter",
    source: Path | str | None = None,
    map_: str = "orthogonal",
    seed: int = 0,
    limit: int | None = None,
    progress: bool = False,
) -> Transfer:
    """Apply the difference of an adapter to another model, as `refine transfer apply` does.

    Args:
        adapter: folder of an adapter, such as that of `transfer_extract`.
        target: folder or hub id of the other model.
        out: folder of the result.
        space: weights, function, representation (experimental), or auto: weights if the models are related, else
            function.
        scale: of the difference; by default the best on validation, 0 included.
        on: texts to train on, to choose the scale by, and to test on: a run, a file, a folder or a hub id.
        score: folder of an experiment on whose test set is tested; its texts are those of `on` by default.
        rank: of the factors, in the spaces of functions and of representations.
        steps: of training a LoRA, in the space of functions.
        as_: "adapter", or "model" for the target with it.
        source: the model that the adapter is of; by default the one it names.
        map_: between streams of states, in the space of representations: orthogonal, or least-squares.
        seed: of the training.
        limit: number of rows of `on` to read; by default all.
        progress: show notes on stderr.

    Raises:
        RefineError: a model, the texts or an option does not serve; the message says why and what to do.
    """
    command = _command("apply", transfer_apply, dict(locals()), ("adapter", "target"))
    check_local(out)
    options = ApplyOptions(
        *(Path(adapter), str(target), Path(out), space, scale),
        None if on is None else name_of(on),
        *(rank, steps, as_, None if source is None else str(source)),
        None if score is None else Path(score),
        *(map_, seed, limit),
    )
    with terminal.progress(show=progress):
        made = applying.apply_adapter(options, command)
    return Transfer(**_values(made))


def summary(made: ScoreTable, lines: Sequence[str] = ()) -> Summary:
    """The table of scores with lines below it."""
    title, head, rows = scoring.cells(made)
    return Summary(title, head, rows, frozenset(range(1, len(head))), "\n".join(lines))


def _command(verb: str, function: Callable[..., object], given: Mapping[str, object], named: Sequence[str]) -> str:
    """The command line of `refine transfer` that does the same as a call."""
    return shlex.join(("refine", "transfer", *words(verb, function, given, named)))


def _several(names: Path | str | Sequence[Path | str] | None) -> Sequence[Path | str]:
    if names is None:
        return ()
    return (names,) if isinstance(names, str | Path) else names


def _values(made: Any) -> dict[str, Any]:  # noqa: ANN401  a dataclass
    return {one.name: getattr(made, one.name) for one in fields(made)}
