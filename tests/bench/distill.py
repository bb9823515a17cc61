"""Students of a Llama beside their controls: `python -m tests.bench.distill TEACHER FOLDER`.

TEACHER is the Llama of the tour in trainer/README.md, trained for 300 steps instead of 60: 0.3 million parameters, 500
ids. It is distilled into a Mamba-2 student on 20,000 tokens of the embedded corpus that it has not seen: as
`refine distill` does it by default, with the stages of MOHAWK, without least squares, from scratch without and with the
teacher's logits, and with mixers frozen at the mean. Each arm has three seeds. FOLDER keeps each result, so the same
command goes on. Perplexity is on 120 test conversations; CPU seconds are of training alone.

`speed TEACHER FOLDER KIND [TOKENS]` divides the CPU seconds of a training run, evaluations and checkpoints included, by
those of what no distillation can do without: on the same batches the teacher's forward pass, and a step of the student
by cross entropy. `same TEACHER FOLDER [RUNS]` distils on two random halves of a corpus again and again, and says how
often `refine distill TEACHER A B` finds a difference; FOLDER/rows.jsonl keeps a row a run, so the same command goes on.
"""

from __future__ import annotations

import copy
import json
import math
import shutil
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import binomtest

from pipeline.compare.verdict import BETTER, WORSE
from pipeline.experiments import corpus as corpora
from pipeline.models.distill import DistillOptions
from pipeline.models.distill_corpora import distill_corpora
from pipeline.models.work import records
from pipeline.terminal import say
from trainer import causal
from trainer.distill import contexts, initial, losses, training
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
SPEED = 500
"""Conversations that `speed` takes."""
HALVES, SAME_TOKENS, SAME_SEEDS, SAME_RUNS = 300, 8000, 3, 40
"""Of `same`: conversations in both halves, training tokens and number of students of each half, and runs."""


class Bench:
    """A teacher and texts; each arm is a student and a lesson, trained and scored."""

    def __init__(self, teacher: str, folder: Path, conversations: int | None = None) -> None:
        self.folder, self.teacher = folder, causal.load(teacher)
        frame = corpora.read("chitchat").frame[SEEN:][:conversations]
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


def speed(teacher: str, folder: Path, kind: str, tokens: int) -> None:
    """Print the CPU microseconds per token of training, and of the steps that it cannot do without, by turns."""
    torch.set_num_threads(1)
    with causal.quiet():
        bench = Bench(teacher, folder, SPEED)
        student = build(bench.teacher, kind, 0)
        settings = Settings(tokens, BATCH, RATE, weights=USUAL if student.sites else Weights(hidden=0.0))
        begun = time.process_time()
        if student.sites:
            initial.copy_weights(bench.teacher, student)
            initial.fit_outputs(bench.teacher, student, *bench.start)
        else:
            contexts.begin(student.network, bench.texts, settings, folder / "contexts", lambda _: None)
        start = time.process_time() - begun
        whole, read, step = (1e6 * one / tokens for one in turns(bench, student, settings))
        say(
            f"{student.kind}: training {whole:.0f} us a token, teacher {read:.0f} + student {step:.0f}: "
            f"{whole / (read + step) - 1:+.1%}; before it {1e6 * start / tokens:.0f} us"
        )
        shutil.rmtree(folder / "contexts", ignore_errors=True)


def turns(bench: Bench, student: Student, settings: Settings) -> tuple[float, float, float]:
    """CPU seconds of a training run, and on the same batches of the teacher's reading and of steps by cross entropy.

    They take turns between evaluations, so a busy machine slows both down alike.
    """
    lesson, teacher = training.student_lesson(bench.teacher, student, settings), bench.teacher
    steps = training.plan([len(piece) for piece in bench.texts.train], settings)
    network = copy.deepcopy(student.network)
    learning = [p.requires_grad_() for name, p in network.named_parameters() if lesson.learning[3](name)]
    optimiser = torch.optim.AdamW(learning, RATE, training.BETAS, weight_decay=0.0, fused=True)
    spent, at, begun = [0.0, 0.0, 0.0], 0, 0.0

    def tell(line: dict[str, Any]) -> None:
        nonlocal at, begun
        spent[0] += time.process_time() - begun
        for rows in steps[at : line["step"]]:
            batch = training.batch_of([bench.texts.train[i] for i in rows], torch.device("cpu"))
            clock = [time.process_time()]
            with torch.no_grad():
                teacher.network(input_ids=batch.inputs, use_cache=False)
            clock.append(time.process_time())
            optimiser.zero_grad()
            with torch.enable_grad():  # evaluations have no gradients
                losses.cross_entropy(network, batch, teacher.ids).backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(learning, training.CLIP)
            optimiser.step()
            clock.append(time.process_time())
            spent[1:] = [one + b - a for one, (a, b) in zip(spent[1:], pairwise(clock), strict=True)]
        at, begun = line["step"], time.process_time()

    begun = time.process_time()
    training.train(lesson, bench.texts, settings, bench.folder / "speed", tell)
    spent[0] += time.process_time() - begun
    shutil.rmtree(bench.folder / "speed")
    return spent[0], spent[1], spent[2]


def same(teacher: str, folder: Path, runs: int) -> None:
    """Distil on two random halves, and print how often there is a difference."""
    torch.set_num_threads(1)
    path, frame = folder / "rows.jsonl", corpora.read("chitchat").frame
    done = path.read_text().splitlines() if path.exists() else []
    for run in range(len(done), runs):
        place = folder / "halves"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        chosen = np.random.default_rng(run).permutation(len(frame))[:HALVES]
        for name, rows in zip("ab", np.split(chosen, 2), strict=True):
            lines = (json.dumps(record) + "\n" for record in records(frame.select("text", "turns")[rows]))
            (place / f"{name}.jsonl").write_text("".join(lines))
        options = DistillOptions(
            teacher, str(place / "a.jsonl"), place / "out", tokens=SAME_TOKENS, context=CONTEXT, batch=BATCH, rate=RATE
        )
        began = time.process_time()
        made = distill_corpora(replace(options, seed=SAME_SEEDS * run), str(place / "b.jsonl"), None, SAME_SEEDS)
        row = {"run": run, "answer": made.answer, "ln_ratio": made.ln_ratio, "interval": made.interval}
        row |= {"effective": made.effective, "passes": made.passes, "seconds": time.process_time() - began}
        with path.open("a") as file:
            file.write(json.dumps(row) + "\n")
    found = [json.loads(line) for line in path.read_text().splitlines()][:runs]
    different = sum(row["answer"] in {BETTER, WORSE} for row in found)
    low, high = binomtest(different, len(found)).proportion_ci(method="exact")
    half = statistics.median((row["interval"][1] - row["interval"][0]) / 2 for row in found)
    cost = statistics.median(row["seconds"] for row in found)
    say(
        f"{different} of {len(found)} find a difference, {different / len(found):.1%} ({low:.1%} to {high:.1%}); half "
        f"an interval is {half:.2%}, a run takes {cost:.0f} CPU s"
    )


if __name__ == "__main__":
    name, *given = sys.argv[1:]
    if name == "speed":
        speed(given[0], Path(given[1]), given[2], int(given[3]) if given[3:] else 100_000)
    elif name == "same":
        same(given[0], Path(given[1]), int(given[2]) if given[2:] else SAME_RUNS)
    else:
        main(name, Path(given[0]))
