"""Trials: the screen of candidates against raw on the development part of the target, one batch after the other."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.compare import data
from pipeline.compare import scored as scoring
from pipeline.compare.corpora import Pair
from pipeline.compare.data import TrainingOptions
from pipeline.compare.scored import TestSet
from pipeline.compare.screen import Screened
from pipeline.search.candidates import Candidate
from pipeline.search.findings import Finding, Trial
from pipeline.store import RunFolderError
from stages.files import save
from trainer.experiment import screen as screening
from trainer.experiment.screen import Screen
from trainer.prepare.arms import Arms, ArmsError, Union

ORDERS = 8
"""Orders of each candidate."""
RAW, SELECTED = "raw", "selected"
"""Arms of a trial."""

Mask = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Development:
    """Prepared data on which candidates are tried.

    `pair` has the raw corpus alone and the development part of the target, `raw` are n-gram models of that corpus, and
    `path` holds the trials that were made. Masks are of the conversations of the union.
    """

    pair: Pair
    arms: Arms
    budgets: tuple[int, ...]
    raw: Screen
    tests: Mapping[str, TestSet]
    path: Path
    workers: int

    @property
    def context(self) -> str:
        """Digest of everything but the candidate that a trial depends on."""
        about = f"{self.arms.common.digest} {self.budgets} {ORDERS}"
        return hashlib.blake2b(about.encode(), digest_size=8).hexdigest()

    def known(self) -> dict[str, Trial]:
        """The trials that were made on the same data, by key."""
        if not self.path.exists():
            return {}
        try:
            rows = [json.loads(line) for line in self.path.read_text(encoding="utf-8").splitlines()]
            return {row["key"]: Trial.parse(row) for row in rows if row["context"] == self.context}
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise RunFolderError(f"{self.path} is damaged ({error}): remove it, and start again") from None

    def keep(self, trials: Sequence[Trial]) -> None:
        """Add trials to the file."""
        before = self.path.read_text(encoding="utf-8") if self.path.exists() else ""
        text = before + "".join(json.dumps({"context": self.context, **asdict(one)}) + "\n" for one in trials)
        save(self.path, lambda aside: aside.write_text(text, encoding="utf-8"))

    def blank(self, candidate: Candidate, mask: Mask) -> Trial:
        """The trial of a candidate before it is measured, with a note if it is too small to be."""
        tokens, most = _tokens(self.arms, mask), self.budgets[-1]
        note = f"too small: it leaves {tokens:,} training tokens, fewer than {most:,}" if tokens < most else ""
        return Trial(candidate.name, candidate.kind, digest(mask), int(mask.sum()), tokens, note=note)

    def measure(self, blanks: Sequence[Trial], masks: Sequence[Mask]) -> list[Trial]:
        """The trials of one batch."""
        names = [f"{SELECTED} {number}" for number in range(len(blanks))]
        arms, union = _with_arms(self.arms, self.pair.union, dict(zip(names, masks, strict=True)))
        made = _models(arms, union, names, self.budgets, self.workers)
        both = replace(
            made,
            nats={**self.raw.nats, **made.nats},
            whole={**self.raw.whole, **made.whole},
            tokens={**self.raw.tokens, **made.tokens},
            unique={**self.raw.unique, **made.unique},
        )
        return [self._trial(blank, both, arms, name) for blank, name in zip(blanks, names, strict=True)]

    def _trial(self, blank: Trial, made: Screen, arms: Arms, name: str) -> Trial:
        target, raw = self.tests[scoring.TARGET], self.tests[f"{RAW}-test"]
        screened = Screened(arms, made, self.path.parent, (RAW, name), [target, raw], target)
        on_target, on_raw = screened.scored
        finding = Finding.of(on_target, on_raw, screened)
        return replace(blank, finding=finding, note="" if finding else "; ".join(on_target.notes) or "no law fits")


def digest(mask: Mask) -> str:
    """16 hex digits of the conversations that are kept."""
    return hashlib.blake2b(np.flatnonzero(mask).tobytes(), digest_size=8).hexdigest()


def development(pair: Pair, options: TrainingOptions, folder: Path, masks: Sequence[Mask]) -> Development:
    """Prepare the data of the trials, and learn n-gram models of raw.

    The largest budget is half of the smallest candidate that holds enough tokens for a screen; `masks` are those of the
    candidates.

    Raises:
        TrainerError: the corpus or an option does not serve, or every candidate is too small.
    """
    arms = data.arms(pair.union, replace(options, screen=True), folder)
    sizes = [_tokens(arms, mask) for mask in masks]
    fitting = [tokens for tokens in sizes if tokens >= 2 * screening.MIN_TOP]
    if not fitting:
        raise ArmsError(
            f"the largest selection leaves {max(sizes, default=0):,} training tokens, and a screen needs "
            f"{2 * screening.MIN_TOP:,}: take larger shares (--shares) or a larger corpus"
        )
    top = min(screening.TOP, min(fitting) // 2)
    budgets = tuple(top // 2**i for i in reversed(range(screening.RUNGS)))
    workers = options.workers or len(os.sched_getaffinity(0))
    raw = _models(arms, pair.union, [RAW], budgets, workers)
    primary, tests = scoring.test_sets_in_scope(*_with_itself(pair, arms))
    named = {test.name: test for test in (*tests, primary)}
    if f"{RAW}-test" not in named:
        raise ArmsError(
            f"the {primary.scope} of the target are scored, and no test conversation of the corpus has any: take "
            "another corpus or another target"
        )
    return Development(pair, arms, budgets, raw, named, folder / "trials.jsonl", workers)


def _models(arms: Arms, union: Union, names: Sequence[str], budgets: tuple[int, ...], workers: int) -> Screen:
    return screening.screen(arms, union, names, budgets, seeds=ORDERS, workers=workers, scatter=False)


def _tokens(arms: Arms, kept: Mask) -> int:
    """Training tokens of the pool of a part of the union, with an end-of-text token each."""
    return int((arms.common.pool.lengths() + 1)[kept[arms.split.pool]].sum())


def _with_arms(arms: Arms, union: Union, kept: Mapping[str, Mask]) -> tuple[Arms, Union]:
    """Prepared data with more arms, which are parts of raw."""
    members = {**union.members, **kept}
    pools = {name: mask[arms.split.pool] for name, mask in members.items()}
    tests = {name: mask[arms.split.test] for name, mask in members.items()}
    return replace(arms, pools=pools, tests=tests), replace(union, members=members)


def _with_itself(pair: Pair, arms: Arms) -> tuple[Pair, Arms]:
    """A pair of raw with itself, for its test sets."""
    more, union = _with_arms(arms, pair.union, {SELECTED: pair.union.members[RAW]})
    return replace(pair, corpora=dict.fromkeys((RAW, SELECTED), pair.corpora[RAW]), union=union), more
