"""`refine transfer apply`: a difference on another model, beside the baselines that it must beat, and one sentence."""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray
from rich.text import Text

from pipeline import VERSION
from pipeline.experiments.formats import finite
from pipeline.models.extract import KEY, RECORD, check_out
from pipeline.models.score import DRAWS, LEVEL, ScoreTable, print_scores, table_of
from pipeline.models.work import TextSet, bits, far_from, open_work, read_texts
from pipeline.terminal import console, safe, say
from stages.files import save_json
from trainer.causal import CausalModel, ModelError
from trainer.prepare.split import MIN_CONVERSATIONS
from trainer.transfer.adapter import Adapter
from trainer.transfer.apply import Relation, Transfer
from trainer.transfer.weights import Checkpoint, WeightsError

SCALES = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25)
"""Scales that are tried on validation; 0 is the target alone."""
SHARES = (0.6, 0.8)
"""Ends of the shares of a corpus that is trained on, and that chooses the scale; the rest is the test set."""
MAX_VALIDATION = 64
"""Maximum number of conversations that choose the scale."""
SPACES = ("auto", "weights", "function", "representation")
MAPS = ("orthogonal", "least-squares")


@dataclass(frozen=True)
class ApplyOptions:
    """The options of `refine transfer apply`, which its help describes."""

    adapter: Path
    target: str
    out: Path
    space: str = "auto"
    scale: float | None = None
    on: str | None = None
    rank: int = 8
    steps: int = 300
    as_: str = "adapter"
    source: str | None = None
    score: Path | None = None
    map_: str = "orthogonal"
    seed: int = 0
    limit: int | None = None


@dataclass(frozen=True)
class Applied:
    """The outcome of `apply_adapter`.

    Attributes:
        space: in which the difference was applied.
        relation: of the target to the base of the adapter.
        scale: of the difference.
        validation: bits per byte on validation by scale; empty if the scale was given, or without texts.
        ladder: the target, the adapter and the baselines on the test set; None without texts.
        carried: share of the source's gain that carries over, and its interval; None without texts.
        sentence: what may be concluded.
        folder: where the result is; None if nothing was written.
    """

    space: str
    relation: str
    scale: float
    validation: dict[str, float]
    ladder: ScoreTable | None
    carried: tuple[float, float, float] | None
    sentence: str
    folder: str | None


@dataclass(frozen=True, eq=False)
class Texts:
    """Conversations to train on, to choose the scale by, and to test on."""

    train: pl.DataFrame
    validation: pl.DataFrame
    test: TextSet


def apply_adapter(options: ApplyOptions, command: str = "") -> Applied:
    """Apply the difference of an adapter to another model, and measure what carries over.

    Raises:
        TrainerError: a model, the adapter or an option does not serve.
        RunFolderError, SourceError: a folder or the texts cannot be read.
    """
    from trainer.transfer import apply as applying
    from trainer.transfer import representation

    check_options(options)
    adapter = Adapter.open(options.adapter, options.source)
    check_out(options.out, options.adapter, options.target, adapter.base)
    applying.check_adapter(adapter)
    source = adapter.base
    base, target = Checkpoint.open(source), Checkpoint.open(options.target)
    relation = applying.relation(base, target)
    space = options.space
    if space == "auto":
        space = "weights" if relation.related else "function"
    if space == "weights" and relation.distance is None:
        raise WeightsError(f"{relation.why}, so weights have no difference in common: take --space function")
    if space == "representation":
        for one in (base, target):
            representation.check_type(str(one.config.get("model_type")), one.name)
    say(f"in the space of {space}: {relation.why}")
    texts = split_texts(options)
    aside = options.out.with_name(f".{options.out.name}.{os.getpid()}.tmp")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        if space == "weights":
            transfer = applying.open_transfer(adapter, base, target)
            made = _in_weights(options, source, transfer, relation, texts, aside)
        elif space == "representation":
            made = _in_representation(options, source, relation, texts, aside)
        else:
            made = _in_function(options, source, relation, texts, aside)
        if made.folder is not None:
            save_json(aside / RECORD, finite({KEY: VERSION, "command": command, **asdict(made)}))
            if options.out.exists():
                shutil.rmtree(options.out)
            aside.rename(options.out)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return made


def check_options(options: ApplyOptions) -> None:
    """Refuse an unknown value of an option."""
    for name, value, known in (
        ("--space", options.space, SPACES),
        ("--as", options.as_, ("adapter", "model")),
        ("--map", options.map_, MAPS),
    ):
        if value not in known:
            raise WeightsError(f"{name} is {value!r}, expected {', '.join(known)}")
    if options.scale is not None and not math.isfinite(options.scale):
        raise WeightsError(f"--scale is {options.scale}, expected a number such as 0.5")
    if options.limit is not None and options.on is None:
        raise WeightsError("--limit is the number of rows of --on to read, and there is no --on: omit it")
    if options.space == "representation" and options.on is None and options.score is None:
        raise WeightsError(
            "--space representation compares states on texts: name them with --on, or an experiment with --score"
        )


def split_texts(options: ApplyOptions) -> Texts | None:
    """The texts of the options: a corpus in three parts by clusters, or an experiment's own split; None without any.

    If the test set is that of an experiment, no near-duplicate of it is in the other parts.
    """
    if options.on is None and options.score is None:
        return None
    work = None if options.score is None else open_work(options.score)
    if options.on is None:
        assert work is not None  # noqa: S101  one of the two is given
        return Texts(work.conversations("pool"), work.conversations("validation"), replace(work.test(None), trained={}))
    whole, known = read_texts(options.on, options.limit), None if work is None else work.test(None)
    if known is not None:
        whole = _far_from(known, whole, options)
    place = np.random.default_rng(0).random(int(whole.clusters.max()) + 1)[whole.clusters]
    parts = [place < SHARES[0], (place >= SHARES[0]) & (place < SHARES[1]), place >= SHARES[1]]
    if any(not part.any() for part in parts):
        raise ModelError(
            f"{options.on} has {len(np.unique(whole.clusters))} conversations that are no near-duplicates of each "
            "other, too few for three parts: take a larger corpus"
        )
    train, validation, test = (whole.conversations.filter(pl.Series(part)) for part in parts)
    held = replace(
        whole, conversations=test, clusters=whole.clusters[parts[2]], bytes=whole.bytes[:, parts[2]], trained={}
    )
    return Texts(train, validation, held if known is None else replace(known, trained={}))


def _far_from(test: TextSet, whole: TextSet, options: ApplyOptions) -> TextSet:
    """The conversations that have no near-duplicate in a test set; a ModelError if there are none."""
    far, _ = far_from(test, whole.conversations["text"])
    if not far.any():
        raise ModelError(
            f"every conversation of {options.on} is near the test set of {options.score}: take other texts"
        )
    if not far.all():
        say(f"{(~far).sum():,} conversations of {options.on} are near the test set: they are left out")
    rows = whole.conversations.filter(pl.Series(far))
    return replace(whole, conversations=rows, clusters=whole.clusters[far], bytes=whole.bytes[:, far])


Nats = NDArray[np.float64]


def _choose(
    options: ApplyOptions, texts: Texts | None, at: Callable[[float], CausalModel] | None = None
) -> tuple[float, dict[str, float]]:
    """The scale: the one that was given, or the best on validation, or 1 without texts."""
    from trainer import causal

    if options.scale is not None or texts is None or at is None:
        return (1.0 if options.scale is None else options.scale), {}
    some = texts.validation.head(MAX_VALIDATION)
    size = int(some["text"].str.len_bytes().sum())
    found = {}
    for scale in SCALES:
        found[scale] = bits(float(causal.score(at(scale), some).nats.sum()), size)
        say(f"scale {scale}: {found[scale]:.4f} bits per byte on validation")
    return min(found, key=lambda scale: (found[scale], scale)), {f"{scale}": value for scale, value in found.items()}


def _in_weights(  # noqa: PLR0917  what `apply_adapter` knows
    options: ApplyOptions, source: str, transfer: Transfer, relation: Relation, texts: Texts | None, place: Path
) -> Applied:
    """Add the difference to the target's weights."""
    from trainer import causal
    from trainer.transfer import apply as applying
    from trainer.transfer import function

    target = causal.load(options.target) if texts is not None else None
    if texts is None or target is None:
        scale, validation = _choose(options, None)
        ladder, carried = None, None
    else:
        scale, validation = _choose(options, texts, lambda scale: applying.move(target, transfer, scale))
        tuned, base = causal.load(str(options.adapter), source=source), causal.load(source)
        function.check_vocabularies([target, tuned, base])
        shown = scale or 1.0
        models = {
            "target alone": target,
            "random adapter of the same norm": applying.move(target, transfer, shown, random=True),
            f"the adapter at {shown:g}": applying.move(target, transfer, shown),
            "the difference at decoding": function.proxy(target, tuned, base, shown),
        }
        ladder, carried = _ladder(texts.test, models, base, tuned, f"the adapter at {shown:g}")
    folder = None
    if scale or options.scale is not None:
        folder = str(options.out)
        (applying.write_model if options.as_ == "model" else applying.write_adapter)(transfer, scale, place)
    sentence = _sentence(ladder, carried, scale, given=options.scale is not None)
    return Applied("weights", relation.why, scale, validation, ladder, carried, sentence, folder)


def _in_function(options: ApplyOptions, source: str, relation: Relation, texts: Texts | None, place: Path) -> Applied:
    """Train a LoRA of the target on the difference of functions."""
    from trainer import causal
    from trainer.transfer import function

    target, tuned, base = (
        causal.load(options.target),
        causal.load(str(options.adapter), source=source),
        causal.load(source),
    )
    function.check_vocabularies([target, tuned, base])
    scale, validation = _choose(options, texts, lambda scale: function.proxy(target, tuned, base, scale))
    shown = scale or 1.0
    lora = function.LoraOptions(options.rank, options.steps, options.seed)
    pieces = function.write_texts(tuned, options.seed) if texts is None else function.pieces(target, texts.train)
    at_decoding = function.proxy(target, tuned, base, shown)
    say(f"training a LoRA of rank {lora.rank} on the difference, {lora.steps} steps ...")
    student = function.train_lora(target, pieces, lora, at_decoding, say)
    if texts is not None and options.scale is None and scale:
        some = texts.validation.head(MAX_VALIDATION)
        if causal.score(student, some).nats.sum() >= causal.score(target, some).nats.sum():
            scale = 0.0  # the difference helps at decoding, and the LoRA has not learned it
    ladder, carried = None, None
    if texts is not None:
        say("and one on the texts themselves ...")
        models = {
            "target alone": target,
            "random adapter of the same norm": function.randomised(student),
            f"the adapter at {shown:g}": student,
            "the difference at decoding": at_decoding,
            "a LoRA trained on the texts themselves": function.train_lora(target, pieces, lora, None, say),
        }
        ladder, carried = _ladder(texts.test, models, base, tuned, f"the adapter at {shown:g}")
    folder = None
    if scale or options.scale is not None:
        folder = str(options.out)
        if options.as_ == "model":
            student.network.merge_and_unload().save_pretrained(str(place))
            causal.load_tokenizer(options.target).save_pretrained(str(place))
        else:
            function.save_lora(student, options.target, place)
    sentence = _sentence(ladder, carried, scale, given=options.scale is not None)
    return Applied("function", relation.why, scale, validation, ladder, carried, sentence, folder)


def _in_representation(
    options: ApplyOptions, source: str, relation: Relation, texts: Texts | None, place: Path
) -> Applied:
    """Change the target's last matrices so that its states move as the source's did (experimental)."""
    from trainer import causal
    from trainer.transfer import function, representation

    assert texts is not None  # noqa: S101  the options are checked
    target = causal.load(options.target)
    pieces = representation.first(function.pieces(target, texts.train))
    say(f"states of three models at {sum(map(len, pieces)):,} tokens ...")
    streams = []
    for name in (source, str(options.adapter)):  # one model at a time beside the target
        one = causal.load(name, source=source)
        function.check_vocabularies([target, one])
        streams.append(representation.states(one, pieces))
    before, after = streams
    additions = representation.mapped(before, after, representation.states(target, pieces), options.map_)
    del streams, before, after

    def fit(scale: float) -> representation.Fit:
        return representation.fit(target, pieces, additions, scale, options.rank)

    scale, validation = _choose(options, texts, lambda scale: fit(scale).model if scale else target)
    shown = scale or 1.0
    fitted = fit(shown)
    tuned, base = causal.load(str(options.adapter), source=source), causal.load(source)
    models = {
        "target alone": target,
        "random adapter of the same norm": representation.randomised(target, fitted),
        f"the adapter at {shown:g}": fitted.model,
        "the difference at decoding": function.proxy(target, tuned, base, shown),
    }
    ladder, carried = _ladder(texts.test, models, base, tuned, f"the adapter at {shown:g}")
    folder = None
    if scale or options.scale is not None:
        folder = str(options.out)
        if options.as_ == "model":
            (fitted if scale else fit(0.0)).model.network.save_pretrained(str(place))
            causal.load_tokenizer(options.target).save_pretrained(str(place))
        else:
            representation.save(fitted if scale else fit(0.0), Checkpoint.open(options.target), place)
    sentence = _sentence(ladder, carried, scale, given=options.scale is not None)
    return Applied("representation", relation.why, scale, validation, ladder, carried, sentence, folder)


def _ladder(
    test: TextSet, models: Mapping[str, CausalModel], base: CausalModel, tuned: CausalModel, adapter: str
) -> tuple[ScoreTable, tuple[float, float, float]]:
    """All models on the test set, and the share of the source's gain that the adapter brings to the target."""
    from trainer import causal

    nats, own = {}, {}
    for name, model in {**models, "the adapter's own base": base, "the base with the adapter": tuned}.items():
        say(f"scoring {name} ...")
        scores = causal.score(model, test.conversations)
        nats[name], own[name] = scores.nats, int(scores.tokens.sum())
    source = nats["the adapter's own base"] - nats["the base with the adapter"]
    gain = nats["target alone"] - nats[adapter]
    return table_of(test, nats, own), gain_share(gain.sum(axis=0), source.sum(axis=0), test.clusters)


def gain_share(gain: Nats, source: Nats, clusters: NDArray[np.int64]) -> tuple[float, float, float]:
    """The ratio of two gains and its interval over draws of clusters; NaN if the source's own gain may be none."""
    _, of = np.unique(clusters, return_inverse=True)
    sums = np.stack([np.bincount(of, one) for one in (gain, source)])
    count, generator = sums.shape[1], np.random.default_rng(0)
    drawn = generator.multinomial(count, np.full(count, 1 / count), DRAWS) @ sums.T
    if np.quantile(drawn[:, 1], (1 - LEVEL) / 2) <= 0:
        return float("nan"), float("nan"), float("nan")
    low, high = np.quantile(drawn[:, 0] / drawn[:, 1], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(sums[0].sum() / sums[1].sum()), float(low), float(high)


def _sentence(
    ladder: ScoreTable | None, carried: tuple[float, float, float] | None, scale: float, *, given: bool
) -> str:
    """What carries over, honestly."""
    if ladder is None or carried is None:
        return f"Nothing was measured: the difference is applied at scale {scale:g}; texts measure it (--on, --score)."
    value, low, high = carried
    if not scale and not given:
        return (
            "Nothing carries over: on validation no scale of the difference beats the target alone. Nothing is written."
        )
    if ladder.effective < MIN_CONVERSATIONS:
        return (
            f"Nothing can be concluded: the test set has an effective sample size of {ladder.effective:.1f} "
            f"conversations, and {MIN_CONVERSATIONS} are needed."
        )
    return _conclusion(value, low, high, scale)


def _conclusion(value: float, low: float, high: float, scale: float) -> str:
    """What an interval of the share that carries over says."""
    if value != value:  # noqa: PLR0124  NaN
        return "Nothing can be told: on these texts the interval of the source's own gain holds 0."
    if low <= 0 <= high:
        return f"Nothing carries over: the interval holds 0 ({low:.0%} to {high:.0%} of the source's gain)."
    if high < 0:
        return f"The difference does harm: {value:.0%} of the source's gain ({low:.0%} to {high:.0%})."
    return f"{value:.0%} of the source's gain carries over ({low:.0%} to {high:.0%}), at scale {scale:g}."


def print_applied(made: Applied, *, as_json: bool) -> None:
    """Print the ladder and the sentence, or everything as JSON."""
    if as_json:
        sys.stdout.write(json.dumps(finite(asdict(made)), indent=2) + "\n")
        return
    if made.ladder is not None:
        print_scores(replace(made.ladder, sentences=(), notes=()), None, as_json=False)
    shown: Sequence[str] = (
        f"\nin the space of {made.space}: {made.relation}",
        made.sentence,
        *filter(None, [made.folder]),
    )
    for line in shown:
        console().print(Text(safe(line)))
