"""`refine score`: bits per byte of causal language models on an experiment's test sets, beside what it trained."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.text import Text

from pipeline.compare.verdict import BETTER, NONE, UNCLEAR, WORSE, WORTH_KNOWING, relative_change
from pipeline.experiments.formats import change, finite, number, share, with_interval
from pipeline.experiments.train import check_device
from pipeline.models.work import TextSet, bits, open_work, read_texts
from pipeline.store import RunFolderError
from pipeline.terminal import ProgressReporter, console, safe, say, table
from stages.files import save_json
from trainer.causal import ModelError
from trainer.prepare.split import MIN_CONVERSATIONS

DRAWS = 2000
"""Number of bootstrap draws of the test set's clusters."""
LEVEL = 0.95
"""Level of the intervals."""
ALONE = "Intervals are over test conversations alone: they do not hold how much two training runs on one corpus differ."
SCOPES = ("everything", "replies")


@dataclass(frozen=True)
class ScoreOptions:
    """The options of `refine score`, which its help describes."""

    models: tuple[str, ...] = ()
    adapters: tuple[Path, ...] = ()
    on: Path | None = None
    text: str | None = None
    test: str | None = None
    context: int | None = None
    device: str = "cpu"
    limit: int | None = None
    training_texts: Path | None = None


@dataclass(frozen=True)
class Difference:
    """A model against the first one, on one scope: the difference of ln PPL per token, with its interval.

    Tokens are those of the experiment's tokenizer, or without an experiment those of the first model.
    """

    ln_ratio: float
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class Row:
    """A model's results on a test set; those of replies are None without any.

    Attributes:
        name: of the model.
        trained: whether the experiment trained it.
        bits_per_byte: of everything.
        replies_bits_per_byte: of replies.
        ppl_per_token: per token of the experiment's tokenizer, of everything; None without an experiment.
        own_ppl: per token of its own tokenizer; None for a model that the experiment trained.
        differences: by scope, against the first model; empty for that.
        revision: commit of a model of the hub.
    """

    name: str
    trained: bool
    bits_per_byte: float
    replies_bits_per_byte: float | None
    ppl_per_token: float | None
    own_ppl: float | None
    differences: dict[str, Difference]
    revision: str = ""


@dataclass(frozen=True)
class ScoreTable:
    """The outcome of `score`: a row per model, the models first; `scope` is what the sentences are about."""

    test: str
    conversations: int
    effective: float
    scope: str
    rows: tuple[Row, ...]
    sentences: tuple[str, ...]
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """The table as JSON values."""
        values: dict[str, Any] = finite(asdict(self))
        return values


def score(options: ScoreOptions) -> ScoreTable | None:
    """Score models on a test set, and compare each with the first; None if only training texts are written.

    Raises:
        RunFolderError, SourceError: the experiment or the corpus cannot be read.
        ModelError: a model cannot be loaded or does not suit.
    """
    if (options.on is None) == (options.text is None):
        raise RunFolderError("name the folder of an experiment with --on, or a corpus with --text")
    if options.adapters and len(options.models) != 1:
        raise ModelError(f"--adapter needs one MODEL that it is of, and {len(options.models)} are named")
    _check_effect(options)
    work = None if options.on is None else open_work(options.on)
    if options.training_texts is not None:
        if work is None:
            raise RunFolderError("--training-texts writes those of an experiment: name its folder with --on")
        for path, count in work.write_training_texts(options.training_texts).items():
            say(f"{path}: {count:,} training conversations")
        if not options.models:
            return None
    check_device(options.device)
    test = read_texts(str(options.text), options.limit) if work is None else work.test(options.test)
    names: list[tuple[str, Path | None]] = [(name, None) for name in options.models]
    names += [(options.models[0], adapter) for adapter in options.adapters]
    return tabulate(test, names, options.context, options.device)


def _check_effect(options: ScoreOptions) -> None:
    """Refuse an option that has no effect, and a model that is named twice."""
    for name, value, needed, there in (
        ("--test", options.test, "an experiment (--on)", options.on is not None),
        ("--limit", options.limit, "--text", options.text is not None),
        ("--context", options.context, "a MODEL", bool(options.models)),
    ):
        if value is not None and not there:
            raise ModelError(f"{name} is {value}, which has an effect with {needed} alone: omit it")
    names = [*options.models, *map(str, options.adapters)]
    if twice := [name for i, name in enumerate(names) if name in names[:i]]:
        raise ModelError(f"{twice[0]} is named twice: name each model once")


def tabulate(
    test: TextSet, names: Sequence[tuple[str, Path | None]], context: int | None = None, device: str = "cpu"
) -> ScoreTable:
    """Score models, each with an adapter or None, on a test set."""
    from trainer import causal

    nats, own, notes, revisions = {}, {}, list[str](), dict[str, str]()
    for name, adapter in names:
        model = causal.load(name, adapter, device)
        say(f"scoring {model.name} on {len(test.conversations):,} conversations ...")
        with ProgressReporter("windows") as reporter:
            scores = causal.score(model, test.conversations, context, partial(reporter, model.name))
        nats[model.name], own[model.name] = scores.nats, int(scores.tokens.sum())
        revisions[model.name] = model.revision
        notes += model.notes()
    if names:
        known = "is not known" if len(nats) == 1 else "is not known of any of these models"
        notes.append(f"what it was trained on {known}: a model that has seen the test conversations looks better")
    return table_of(test, nats, own, notes, revisions)


def table_of(
    test: TextSet,
    nats: Mapping[str, NDArray[np.float64]],
    own: Mapping[str, int],
    notes: Sequence[str] = (),
    revisions: Mapping[str, str] = MappingProxyType({}),
) -> ScoreTable:
    """The table of models by name, from their nats by class and conversation [2, K] and their numbers of tokens."""
    every = {**nats, **test.trained}
    if not every:
        raise ModelError("nothing to score: name a MODEL, or an experiment that has trained one")
    first = next(iter(every))
    tokens: NDArray[Any] = test.tokens if test.tokens is not None else _as_tokens(test.bytes, own[first])
    moved = _resampled(every, tokens, test.clusters)
    rows = []
    for name, one in every.items():
        differences = {} if name == first else _differences(every[first], one, tokens, moved, (first, name))
        total = float(one.sum())
        rows.append(
            Row(
                name,
                name not in nats,
                bits(total, int(test.bytes.sum())),
                bits(float(one[1].sum()), int(test.bytes[1].sum())) if test.bytes[1].any() else None,
                None if test.tokens is None else math.exp(min(total / max(int(tokens.sum()), 1), 700.0)),
                math.exp(min(total / max(own[name], 1), 700.0)) if name in own else None,
                differences,
                revisions.get(name, ""),
            )
        )
    scope = "replies" if test.effective(replies=True) >= MIN_CONVERSATIONS else "everything"
    effective = test.effective(replies=scope == "replies")
    sentences = [_sentence(row, first, scope, effective) for row in rows if row.differences and not row.trained]
    if sentences:
        sentences.append(ALONE)
    return ScoreTable(
        test.name, len(test.conversations), round(effective, 1), scope, tuple(rows), tuple(sentences), tuple(notes)
    )


def _as_tokens(size: NDArray[np.int64], count: int) -> NDArray[Any]:
    """Tokens in proportion to bytes, as many as `count` in all."""
    return size * (count / max(int(size.sum()), 1))


Resampled = dict[str, dict[str, NDArray[np.float64]]]


def _resampled(every: dict[str, NDArray[np.float64]], tokens: NDArray[Any], clusters: NDArray[np.int64]) -> Resampled:
    """Ln PPL of each model on bootstrap draws of clusters, the same ones for all, float64 [`DRAWS`], by scope."""
    made: Resampled = {}
    _, of = np.unique(clusters, return_inverse=True)
    for scope in SCOPES:
        classes = slice(None) if scope == "everything" else slice(1, 2)
        sizes = np.bincount(of, tokens[classes].sum(axis=0))
        sums = np.stack([np.bincount(of, one[classes].sum(axis=0)) for one in every.values()])
        there = sizes > 0
        count, generator = int(there.sum()), np.random.default_rng(0)
        if count < 2:  # noqa: PLR2004  one cluster has no spread
            continue
        moved = np.empty((len(every), DRAWS))
        for b in range(DRAWS):
            drawn = np.bincount(generator.integers(0, count, count), minlength=count)
            moved[:, b] = sums[:, there] @ drawn / (sizes[there] @ drawn)
        made[scope] = dict(zip(every, moved, strict=True))
    return made


def _differences(
    first: NDArray[np.float64],
    second: NDArray[np.float64],
    tokens: NDArray[Any],
    moved: Resampled,
    names: tuple[str, str],
) -> dict[str, Difference]:
    made = {}
    for scope in SCOPES:
        classes = slice(None) if scope == "everything" else slice(1, 2)
        size = float(tokens[classes].sum())
        if not size:
            continue
        ends = None
        if scope in moved:
            a, b = (moved[scope][name] for name in names)
            low, high = np.quantile(b - a, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
            ends = (float(low), float(high))
        made[scope] = Difference(float((second[classes] - first[classes]).sum()) / size, ends)
    return made


def _sentence(row: Row, first: str, scope: str, effective: float) -> str:
    """What may be concluded about a model against the first one."""
    one = row.differences[scope]
    if effective < MIN_CONVERSATIONS or one.interval is None:
        return (
            f"Nothing can be concluded about {row.name}: the test set has an effective sample size of {effective:.1f} "
            f"conversations, and {MIN_CONVERSATIONS} are needed."
        )
    low, high = (math.expm1(end) for end in one.interval)
    what = "perplexity on replies" if scope == "replies" else "perplexity"
    bounds = f"{share(max(-low, 0))} lower and {share(max(high, 0))} higher"
    answer = BETTER if high < 0 else WORSE if low > 0 else NONE if max(-low, high) < WORTH_KNOWING else UNCLEAR
    if answer in {BETTER, WORSE}:
        found = relative_change(math.expm1(one.ln_ratio), (low, high))
        return f"{row.name} is {answer} than {first}: its {what} is {found}."
    if answer == NONE:
        return f"There is no difference above {WORTH_KNOWING:.1%}: the {what} of {row.name} is at most {bounds}."
    return f"Nothing can be told yet: the {what} of {row.name} is at most {bounds} than that of {first}."


def check_file(out: Path | None, options: ScoreOptions) -> None:
    """Refuse a place of the result that is no file or has no effect, before anything is scored."""
    if out is not None and out.is_dir():
        raise RunFolderError(f"--out is {out}, which is a folder: name a file")
    if out is not None and options.training_texts is not None and not options.models:
        raise ModelError(f"--out is {out}, which has an effect with a MODEL alone: omit it")


def print_scores(made: ScoreTable, out: Path | None, *, as_json: bool) -> None:
    """Print the table of scores and what may be concluded, or everything as JSON; `out` is a file for the JSON."""
    if out is not None:
        save_json(out, made.as_dict())
    if as_json:
        sys.stdout.write(json.dumps(made.as_dict(), indent=2) + "\n")
        return
    title, head, rows = cells(made)
    shown = console()
    shown.print(table(title, head, rows, frozenset(range(1, len(head)))))
    for line in (*made.notes, *made.sentences):
        shown.print(Text(safe(line)))


def cells(made: ScoreTable) -> tuple[str, tuple[str, ...], list[tuple[object, ...]]]:
    """Title, head and rows of the table of scores; all columns but the first are numbers."""
    of = "replies" if made.scope == "replies" else "everything"
    head = ("", "bits per byte", "of replies", f"PPL of {of} differs by", "PPL per token", "per own token")
    rows: list[tuple[object, ...]] = [
        (
            *(row.name, f"{row.bits_per_byte:.4f}"),
            "-" if row.replies_bits_per_byte is None else f"{row.replies_bits_per_byte:.4f}",
            *(_difference(row, of), _number(row.ppl_per_token), _number(row.own_ppl)),
        )
        for row in made.rows
    ]
    title = f"\n{made.test}: {made.conversations:,} conversations; differences are from the first model, 95 % intervals"
    return title, head, rows


def _difference(row: Row, scope: str) -> str:
    one = row.differences.get(scope)
    if one is None:
        return "-"
    return with_interval(one.ln_ratio, one.interval, _times if abs(one.ln_ratio) > math.log(3) else change)


def _times(ln_ratio: float) -> str:
    return f"x {number(math.exp(min(ln_ratio, 700.0)))}"


def _number(value: float | None) -> str:
    return "-" if value is None else number(value)
