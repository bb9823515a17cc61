"""Students of a Llama beside their controls: `python -m tests.bench.distill TEACHER FOLDER`.

TEACHER is the Llama of the tour in trainer/README.md, trained for 300 steps instead of 60: 0.3 million parameters, 500
ids. It is distilled into a Mamba-2 student on 20,000 tokens of the embedded corpus that it has not seen: as
`refine distill` does it by default, with the stages of MOHAWK, without least squares, from scratch without and with the
teacher's logits, and with mixers frozen at the mean. Each arm has three seeds. FOLDER keeps each result, so the same
command goes on. Perplexity is on 120 test conversations; CPU seconds are of training alone.
"""

from __future__ import annotations

import json
import math
import shutil
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.experiments import corpus as corpora
from pipeline.terminal import say
from trainer import causal
from trainer.distill import initial, training
from trainer.distill.losses import Weights
from trainer.distill.student import Student, build, check_stages
from trainer.distill.training import Lesson, Settings
from trainer.prepare import arms as arming
from trainer.prepare import split as splitting

SEEN = 1000
"""Conversations of the embedded corpus that the tour takes."""
CONTEXT, TOKENS, BATCH, RATE = 128, 20_000, 512, 1e-3
SEEDS = (0, 1, 2)
USUAL = Weights()
TESTED = 120


class Bench:
    """A teacher and texts; each arm is a student and a lesson, trained and scored."""

    def __init__(self, teacher: str, folder: Path) -> None:
        self.folder, self.teacher = folder, causal.load(teacher)
        frame = corpora.read("chitchat").frame[SEEN:]
        keys, groups = arming.distinct(corpora.keys(frame["text"])), corpora.groups(frame["text"])
        sizes = frame["text"].str.len_bytes().to_numpy().astype(np.int64)
        parts = splitting.split(sizes, splitting.renumber(groups), keys)
        self.test = frame[parts.test].head(TESTED)
        cut = [training.pieces(self.teacher, frame[rows], CONTEXT) for rows in (parts.pool, parts.validation)]
        self.texts = training.Texts(*cut)
        start = training.batch_of(self.texts.train[:40], torch.device("cpu"))
        self.start = start.inputs, start.own

    def ppl(self, network: Any) -> float:
        """Perplexity on the test set."""
        scores = causal.score(replace(self.teacher, network=network), self.test, CONTEXT)
        return math.exp(float(scores.nats.sum() / scores.tokens.sum()))

    def student(self, seed: int, start: str = "solved") -> Student:
        """A student with drawn weights, or the teacher's, and its mixers copied, solved for, or at the mean."""
        made = build(self.teacher, "auto", seed)
        if start != "drawn":
            initial.copy_weights(self.teacher, made)
        if start in {"solved", "mean"}:
            initial.fit_outputs(self.teacher, made, *self.start, mean=start == "mean")
        return made

    def train(self, lesson: Lesson, settings: Settings, name: str) -> tuple[float, float]:
        """Perplexity after a lesson, and its CPU seconds; kept in the folder."""
        path = self.folder / f"{name} {settings.seed}.json"
        if path.exists():
            ppl, seconds = json.loads(path.read_text())
            return ppl, seconds
        began = time.process_time()
        training.train(lesson, self.texts, settings, self.folder / "checkpoints" / name, lambda _: None)
        seconds = time.process_time() - began
        shutil.rmtree(self.folder / "checkpoints" / name)
        found = self.ppl(lesson.network), seconds
        path.write_text(json.dumps(found))
        say(f"{name}, seed {settings.seed}: PPL {found[0]:.2f}, {seconds:.0f} CPU s")
        return found


def arms(bench: Bench) -> dict[str, Callable[[int], tuple[float, float]]]:
    """Each way to a student, by name, as what trains it with a seed."""

    def way(name: str, start: str, which: tuple[int, ...] = (3,), weights: Weights = USUAL) -> None:
        def go(seed: int) -> tuple[float, float]:
            settings, student = Settings(TOKENS, BATCH, RATE, which, weights, seed), bench.student(seed, start)
            check_stages(student, bench.teacher, which)
            lesson = training.student_lesson(bench.teacher, student, settings, frozen=start == "mean")
            if name == "scratch, CE":
                lesson = training.text_lesson("scratch", student.network, bench.teacher.ids)
            return bench.train(lesson, settings, name)

        made[name] = go

    made = dict[str, Callable[[int], tuple[float, float]]]()
    way("auto", "solved")
    way("scratch, CE", "drawn")
    way("scratch, CE + KL", "drawn", weights=Weights(0.5, 1.0, 0.0))
    way("copied, CE + KL", "copied", weights=Weights(0.5, 1.0, 0.0))
    way("copied, stages 2,3", "copied", (2, 3))
    way("copied, stages 1,2,3", "copied", (1, 2, 3))
    way("mixers frozen at the mean", "mean")
    return made


def main(teacher: str, folder: Path) -> None:
    """Print the fixed points, and each arm's perplexity by seed."""
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    with causal.quiet():
        bench = Bench(teacher, folder)
        size = sum(p.numel() for p in bench.student(0).network.parameters())
        say(f"student of {size:,} parameters, {TOKENS:,} tokens; teacher: {bench.ppl(bench.teacher.network):.2f}")
        for start in ("mean", "copied", "solved"):
            say(f"without training, mixers {start}: {bench.ppl(bench.student(0, start).network):.2f}")
        ways = arms(bench)
        found = {(name, seed): way(seed) for seed in SEEDS for name, way in ways.items()}
    for name in ways:
        ppl = [found[name, seed][0] for seed in SEEDS]
        cost = statistics.median(found[name, seed][1] for seed in SEEDS)
        each = ", ".join(f"{one:.2f}" for one in ppl)
        say(f"{name}: median PPL {statistics.median(ppl):.2f} ({each}), {cost:.0f} CPU s")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
