"""The test sets of an experiment's folder as texts, for models that were trained elsewhere."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipeline.compare.design import Design
from pipeline.experiments import corpus as corpora
from pipeline.ownership import CLAIM
from pipeline.store import RunFolderError, read_json
from stages.files import save
from trainer import presets
from trainer.experiment.jobs import Job
from trainer.experiment.kinds import KINDS, baselines
from trainer.experiment.records import read, scores
from trainer.prepare import arms as arming
from trainer.prepare import prepared as preparing
from trainer.prepare import split as splitting
from trainer.prepare import streams, vocabulary
from trainer.prepare.arms import Arms
from trainer.prepare.prepared import ExperimentData
from trainer.prepare.template import CLASSES, DOCUMENT, REPLY, TEXT
from trainer.prepare.vocabulary import ROLES

BOTH = "both"
"""Name of the test set of all test conversations of a comparison."""


@dataclass(frozen=True, eq=False)
class TextSet:
    """K conversations that models are scored on; arrays by class are of other text and of replies.

    Attributes:
        name: for a reader.
        conversations: K rows with the columns text and turns.
        clusters: int64 [K], equal for near-duplicates.
        bytes: UTF-8 bytes of the messages by class, int64 [2, K].
        tokens: scored tokens of the experiment's own tokenizer by class, int64 [2, K]; None without an experiment.
        trained: nats by class [2, K] of the models that the experiment trained, by label.
    """

    name: str
    conversations: pl.DataFrame
    clusters: NDArray[np.int64]
    bytes: NDArray[np.int64]
    tokens: NDArray[np.int64] | None
    trained: Mapping[str, NDArray[np.float64]]

    def effective(self, *, replies: bool) -> float:
        """Effective sample size (Kish) in clusters of near-duplicates, weighted by bytes."""
        sizes = self.bytes[1] if replies else self.bytes.sum(axis=0)
        there = sizes > 0
        return splitting.effective(sizes[there], self.clusters[there]) if there.any() else 0.0


@dataclass(frozen=True, eq=False)
class Work:
    """A folder of `refine compare`, `train` or `scale`: its data, and its arms if it compares corpora."""

    folder: Path
    data: ExperimentData
    arms: Arms | None

    def test(self, name: str | None) -> TextSet:
        """A test set by the name of its corpus, or `BOTH`; by default that of the verdict.

        Raises:
            RunFolderError: there is no such test set.
        """
        stream = self.data.test
        which = np.ones(len(stream), np.bool_)
        label = "test set"
        if self.arms is None:
            if name is not None:
                raise RunFolderError(f"--test is {name!r}, and {self.folder} has one test set: omit it")
        else:
            tests, chosen = self.arms.tests, name or self._cleaner()
            if chosen != BOTH and chosen not in tests:
                raise RunFolderError(f"--test is {name!r}, expected {', '.join(tests)} or {BOTH}")
            label = "all test conversations" if chosen == BOTH else f"{chosen}-test"
            which = np.any(list(tests.values()), axis=0) if chosen == BOTH else tests[chosen]
        rows = np.flatnonzero(which)
        if not len(rows):
            raise RunFolderError(f"the {label} of {self.folder} holds no conversation: take another --test")
        words = vocabulary.load(self.data.folder / "tokenizer.json")
        return TextSet(
            label,
            streams.decode(stream.take(rows), words),
            self.data.clusters[rows],
            stream.by_class(stream.target_bytes())[:, rows].astype(np.int64),
            stream.target_counts()[:, rows],
            {label: nats[:, rows] for label, nats in self._trained()},
        )

    def conversations(self, part: Literal["pool", "validation"]) -> pl.DataFrame:
        """The texts and turns of the training pool or the validation set."""
        words = vocabulary.load(self.data.folder / "tokenizer.json")
        return streams.decode(getattr(self.data, part), words)

    def _cleaner(self) -> str:
        """The corpus whose test set the verdict is about: the one that another contains, else both."""
        assert self.arms is not None  # noqa: S101  its caller has looked
        masks = [np.concatenate([self.arms.pools[name], self.arms.tests[name]]) for name in self.arms.pools]
        for i, name in reversed(list(enumerate(self.arms.pools))):
            if all(not (masks[i] & ~other).any() for other in masks):
                return name
        return BOTH

    def _trained(self) -> Iterator[tuple[str, NDArray[np.float64]]]:
        """Label and nats by class and test conversation of finished models: of a comparison, the largest budgets."""
        runs = self.folder / "trainings"
        if self.arms is None:
            labels = set[str]()
            for record in sorted(runs.glob("*/record.json")):
                found = read(record.parent)
                if found.get("data") == self.data.digest:
                    label = f"{_label(found['kind'])}, {found['tokens']:,} tokens"
                    label += f", seed {found['seed']}" if found["seed"] else ""
                    label += f" ({record.parent.name[-6:]})" if label in labels else ""  # other settings
                    labels.add(label)
                    yield label, scores(record.parent)[0]
            return
        for (kind, arm), jobs in self._jobs().items():
            done = [job for job in jobs if job.seed == 0 and (runs / job.name / "record.json").exists()]
            if done:
                job = max(done, key=lambda one: one.budget)
                yield f"{_label(kind)}, {arm}, {job.budget:,} tokens", scores(runs / job.name)[0]

    def _jobs(self) -> dict[tuple[str, str], list[Job]]:
        """The training runs of the comparison's designs, by kind and arm."""
        made: dict[tuple[str, str], list[Job]] = {}
        records = [read_json(path) for path in sorted(self.folder.glob("trainings/*/record.json"))[:1]]
        for path in sorted(self.folder.glob("design-*.json")) if records else ():
            plan = read_json(path)
            preset = presets.find(records[0]["preset"]).trained_on(plan["loss"])
            precision = plan.get("precision", "float32")  # a design of an earlier version does not name it
            preset = replace(preset, phase2=replace(preset.phase2, precision=precision))
            arms = arming.load(self.data.folder, preset)
            if arms is None or arms.evaluated != plan["evaluated"]:
                continue
            networks = tuple(plan["networks"])
            design = Design(tuple(plan["budgets"]), tuple(plan["seeds"]), baselines(networks), networks)
            for key, jobs in design.jobs(arms, plan["corpora"], "cpu").items():
                made.setdefault(key, []).extend(jobs)
        return made

    def write_training_texts(self, folder: Path) -> dict[str, int]:
        """Write the training conversations of each corpus as JSON lines; returns their numbers.

        None of them has a near-duplicate in a test set, so a model that is trained on them can be scored.
        """
        words = vocabulary.load(self.data.folder / "tokenizer.json")
        every = {"training": np.ones(len(self.data.pool), np.bool_)} if self.arms is None else self.arms.pools
        folder.mkdir(parents=True, exist_ok=True)
        counts = {}
        for name, mask in every.items():
            frame = streams.decode(self.data.pool.take(np.flatnonzero(mask)), words)
            lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records(frame))
            path = folder / f"{name.replace('/', '-')}.jsonl"
            save(path, lambda aside, lines=lines: aside.write_text(lines, encoding="utf-8"))  # type: ignore[misc]
            counts[str(path)] = len(frame)
        return counts


def open_work(folder: Path) -> Work:
    """The data of an experiment's folder.

    Raises:
        RunFolderError: it is no experiment's folder, or holds no prepared data.
        PreparedError: the data are damaged.
    """
    if not (folder / CLAIM).is_file():
        raise RunFolderError(
            f"{folder} is not the folder of an experiment: name one that `refine compare`, `train` or `scale` made, "
            "such as one in data/experiments/"
        )
    places = [folder / name for name in ("data", "screen") if (folder / name / "prepared.json").is_file()]
    if not places:
        raise RunFolderError(f"{folder} holds no prepared data yet: let its experiment prepare them first")
    arms = arming.load(places[0], presets.HOUSE)
    if arms is None and (places[0].name == "screen" or any(folder.glob("design-*.json"))):
        raise RunFolderError(
            f"{places[0]} does not say which conversations are whose, as of an earlier version: start the same command "
            "again, which repeats no training run"
        )
    return Work(folder, preparing.load(places[0]), arms)


def read_texts(source: str, limit: int | None = None) -> TextSet:
    """The conversations of a corpus, for models alone; a SourceError if it cannot be read."""
    corpus = corpora.read(source, limit=limit)
    return text_set(corpus.name, corpus.frame.select("text", "turns"), corpora.groups(corpus.frame["text"]))


def far_from(test: TextSet, texts: pl.Series) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Whether each text [K] has no near-duplicate in a test set, and the clusters of the texts, int64 [K]."""
    count = len(test.conversations)
    both = corpora.groups(pl.concat([test.conversations["text"], texts]))
    return ~np.isin(both[count:], both[:count]), both[count:]


def text_set(name: str, conversations: pl.DataFrame, groups: NDArray[np.int64]) -> TextSet:
    """Conversations, K rows with the columns text and turns, and their clusters [K] as a test set for models alone."""
    sizes = np.array([_bytes(*row) for row in conversations.iter_rows()], np.int64).T
    return TextSet(name, conversations, splitting.renumber(groups), sizes.reshape(2, -1), None, {})


def _bytes(text: str, turns: list[dict[str, int]]) -> tuple[int, int]:
    """UTF-8 bytes of a conversation's messages: of other text, and of replies."""
    sizes = {TEXT: 0, REPLY: 0}
    ends = np.cumsum([0, *(turn["length"] + 1 for turn in turns)]).tolist()
    for turn, (begin, end) in zip(turns, pairwise(ends), strict=True):
        sizes[int(CLASSES[turn["role"]])] += len(text[begin : end - 1].encode())
    return sizes[TEXT], sizes[REPLY]


def records(frame: pl.DataFrame) -> Iterator[dict[str, object]]:
    """Conversations as records: messages, or the text of a plain document."""
    names = (*ROLES, "text")
    for text, turns in frame.iter_rows():
        if [turn["role"] for turn in turns] in ([], [DOCUMENT]):
            yield {"text": text}
            continue
        ends = np.cumsum([0, *(turn["length"] + 1 for turn in turns)]).tolist()
        messages = [
            {"role": names[turn["role"]], "content": text[begin : end - 1]}
            for turn, (begin, end) in zip(turns, pairwise(ends), strict=True)
        ]
        yield {"messages": messages}


def _label(kind: str) -> str:
    return KINDS[kind].label if kind in KINDS else kind


def bits(nats: float, size: int) -> float:
    """Nats of a text of so many bytes as bits per byte."""
    return nats / math.log(2) / max(size, 1)
