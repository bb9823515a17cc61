"""`refine distill`: a recurrent student of a transformer, beside the teacher and the controls it must beat."""

from __future__ import annotations

import copy
import hashlib
import json
import math
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from rich.text import Text

from pipeline import VERSION
from pipeline.compare.data import folder_word
from pipeline.experiments import corpus as corpora
from pipeline.experiments.formats import change, finite, with_interval
from pipeline.experiments.train import EXPERIMENTS, check_device
from pipeline.models.apply import Texts, gain_share
from pipeline.models.extract import KEY, RECORD
from pipeline.models.score import Difference, Row, ScoreTable, print_scores, table_of
from pipeline.models.work import far_from, open_work, text_set
from pipeline.ownership import CLAIM, check_experiment, experiment_claimed
from pipeline.store import RunFolderError, read_json
from pipeline.terminal import console, safe, say
from stages.files import save, save_json
from trainer.causal import CausalModel, Scores
from trainer.experiment.records import add_metrics, save_metrics
from trainer.prepare import arms
from trainer.prepare import split as splitting
from trainer.prepare.split import MIN_CONVERSATIONS

if TYPE_CHECKING:
    from trainer.distill import training
    from trainer.distill.losses import Batch
    from trainer.distill.student import Student

CHECKPOINTS = "checkpoints"
BYTES_PER_TOKEN = 4
"""Bytes of a token, about, by which a corpus is divided before it is tokenised."""
FIT_TOKENS = 3000
"""Tokens that the least squares read, about."""
STUDENT, TEACHER = "the student", "the teacher"
SOLVED, FLOOR = "the student by least squares alone", "mixers that give the mean"
FROZEN, ONWARD = "mixers frozen at the mean, the rest trained", "the teacher, trained on"
SCRATCH = "the same network from scratch, on the texts alone"
ORDER = (STUDENT, TEACHER, SOLVED, FLOOR, FROZEN, SCRATCH, ONWARD)


@dataclass(frozen=True)
class DistillOptions:
    """The options of `refine distill`, which its help describes."""

    teacher: str
    source: str
    out: Path | None = None
    student: str = "auto"
    tokens: int = 1_000_000
    stages: str = "auto"
    alpha: float = 0.5
    temperature: float = 1.0
    hidden: float | None = None
    context: int | None = None
    batch: int | None = None
    rate: float | None = None
    seed: int = 0
    device: str = "cpu"
    compare: bool = False
    score: Path | None = None
    limit: int | None = None


@dataclass(frozen=True)
class Distilled:
    """The outcome of `distill`.

    Attributes:
        student: its kind.
        parameters: its number of scalars.
        tokens: targets that it was trained on.
        passes: over the training texts.
        best: step and validation loss, in nats, of the weights that are kept.
        stages: of the training, with the step at which each ended.
        table: all models on the test set, the student first.
        closed: share of the gap between mixers that give the mean and the teacher, with its interval; None if the
            student has none of the teacher's layers, or if the gap may be none.
        sentence: what may be concluded.
        notes: for a reader.
        folder: where the student is.
    """

    student: str
    parameters: int
    tokens: int
    passes: float
    best: tuple[int, float]
    stages: dict[str, int]
    table: ScoreTable
    closed: tuple[float, float, float] | None
    sentence: str
    notes: tuple[str, ...]
    folder: str


DISTILLED = tuple(one.name for one in fields(Distilled))


def distill(options: DistillOptions, command: str = "") -> Distilled:
    """Train a student of a teacher on a corpus, score it beside its controls, and write it for transformers.

    The same command goes on where it was stopped, and only reads a finished folder.

    Raises:
        TrainerError: a model, an option or a corpus does not serve.
        RunFolderError, SourceError: a folder or the corpus cannot be read.
    """
    from trainer import causal
    from trainer.distill import training

    stages = training.check_stages(options.stages)
    out = options.out or EXPERIMENTS / f"{folder_word(Path(options.teacher).name)}-on-{folder_word(options.source)}"
    check_experiment(out, "--out")
    check_device(options.device)
    teacher, student = load_pair(options, stages)
    context = teacher.context(options.context)
    texts, digest, notes = read_corpus(options.source, options.score, options.limit)
    notes = (*notes, *teacher.notes())
    settings = settings_of(options, teacher, stages)
    origin = origin_of(options, settings, teacher, digest, context)
    check_same(out, origin)
    with experiment_claimed(out, origin, "--out") as folder:
        if (folder / RECORD).exists():
            done = load_distilled(folder)
            say(f"{folder} is complete: nothing is trained")
            return done
        cut = (training.pieces(teacher, one, context) for one in (texts.train, texts.validation))
        course = Course(folder, teacher, student, texts, training.Texts(*cut), settings)
        for note in (*notes, *course.notes()):
            say(f"refine: {note}")
        with causal.quiet():
            made = course.carry_out(compare=options.compare)
        made = replace(made, notes=(*notes, *made.notes))
        _finish(folder, made, options, digest, command)
        course.tidy()
    return made


def load_pair(options: DistillOptions, stages: tuple[int, ...]) -> tuple[CausalModel, Student]:
    """The teacher, and a student of it with drawn weights."""
    from trainer import causal
    from trainer.distill import student as building

    if (Path(options.teacher) / causal.ADAPTER).is_file():
        raise building.DistillError(
            f"{options.teacher} is an adapter, and a teacher is a model: make one of it and its base by refine "
            "transfer apply, with --as model --scale 1"
        )
    with causal.quiet():
        teacher = causal.load(options.teacher, None, options.device)
    student = building.build(teacher, options.student, options.seed)
    building.check_stages(student, teacher, stages)
    return teacher, student


def settings_of(options: DistillOptions, teacher: CausalModel, stages: tuple[int, ...]) -> training.Settings:
    """How the student is trained."""
    from trainer.distill import training
    from trainer.distill.losses import Weights
    from trainer.distill.student import CVFP, CVFP_PRESET, DistillError

    if not 0 <= options.alpha <= 1:
        raise DistillError(f"--alpha is {options.alpha:g}, expected a weight of the teacher's logits from 0 to 1")
    if options.rate is not None and not 0 < options.rate < math.inf:
        raise DistillError(f"--lr is {options.rate:g}, expected a learning rate above 0, such as 0.001")
    if not (0 < options.temperature < math.inf and 0 <= (options.hidden or 0) < math.inf):
        raise DistillError(
            f"--temperature is {options.temperature:g} and --hidden {options.hidden or 0:g}, expected one above 0, and "
            "one of 0 or more"
        )
    width = teacher.network.config.get_text_config().hidden_size
    rate = CVFP_PRESET.phase2.rate if options.student == CVFP else training.default_rate(width)
    return training.Settings(
        options.tokens,
        options.batch or training.default_batch(options.tokens),
        options.rate or rate,
        stages,
        Weights(options.alpha, options.temperature, _hidden(options)),
        options.seed,
    )


def _hidden(options: DistillOptions) -> float:
    """The weight of the states after each layer; a CVFP has no layers that could be those of its teacher."""
    from trainer.distill.losses import Weights
    from trainer.distill.student import CVFP, DistillError

    if options.student != CVFP:
        return Weights.hidden if options.hidden is None else options.hidden
    if options.hidden:
        raise DistillError(
            f"--hidden is {options.hidden:g}, and a {CVFP} student has no layers to match with the teacher's: omit it"
        )
    return 0.0


def read_corpus(source: str, score: Path | None, limit: int | None) -> tuple[Texts, str, tuple[str, ...]]:
    """A corpus in three parts by clusters of near-duplicates, its digest, and notes.

    With `score`, the test set is that of an experiment, and no near-duplicate of it is trained on.

    Raises:
        DistillError: all of the corpus is near the test set, or it is too small for three parts.
    """
    from trainer.distill.student import DistillError

    corpus = corpora.read(source, limit=limit)
    frame, notes, digest = corpus.frame, corpus.notes, corpus.digest
    work = None if score is None else open_work(score)
    known = None if work is None else work.test(None)
    if known is None:
        groups = corpora.groups(frame["text"])
    else:
        far, groups = far_from(known, frame["text"])
        frame, groups = frame.filter(pl.Series(far)), groups[far]
        digest = hashlib.blake2b(f"{digest}{work and work.data.digest}".encode(), digest_size=8).hexdigest()
        if not far.all():
            notes += (f"{(~far).sum():,} conversations of {source} are near the test set: they are left out",)
        if not far.any():
            raise DistillError(f"every conversation of {source} is near the test set of {score}: take other texts")
    sizes = -(-frame["text"].str.len_bytes().to_numpy().astype(np.int64) // BYTES_PER_TOKEN)
    try:
        parts = splitting.split(sizes, splitting.renumber(groups), arms.distinct(corpora.keys(frame["text"])))
    except splitting.SplitError as error:
        raise DistillError(f"{source} is too small to be trained on and tested on: take a larger corpus") from error
    pool = parts.pool if known is None else np.sort(np.concatenate([parts.pool, parts.test]))
    rows = frame.select("text", "turns")
    test = known or text_set("test set", rows[parts.test], groups[parts.test])
    return Texts(rows[pool], rows[parts.validation], test), digest, (*notes, *parts.notes)


def origin_of(
    options: DistillOptions, settings: training.Settings, teacher: CausalModel, digest: str, context: int
) -> dict[str, Any]:
    """The claim of a folder: everything that determines the student."""
    settled = {
        "teacher": _digest(teacher),
        "corpus": digest,
        "student": options.student,
        "stages": ",".join(map(str, settings.stages)),
        "context": context,
        "compare": options.compare,
        "device": options.device,
        **{name: getattr(settings, name) for name in ("tokens", "batch", "rate", "seed")},
        **asdict(settings.weights),
    }
    state = hashlib.blake2b(json.dumps(settled).encode(), digest_size=8).hexdigest()
    return {"corpus": f"{options.source}, distilled", "digest": state, "distilled": settled}


def _digest(model: CausalModel) -> str:
    """16 hex digits of a model's weights."""
    state = hashlib.blake2b(digest_size=8)
    for name, p in model.network.named_parameters():
        state.update(name.encode())
        state.update(p.detach().cpu().contiguous().numpy().data)
    return state.hexdigest()


def check_same(folder: Path, origin: Mapping[str, Any]) -> None:
    """Refuse a folder that was begun with another teacher, corpus or option, and name it."""
    if not (folder / CLAIM).is_file():
        return
    before = read_json(folder / CLAIM).get("distilled")
    if not isinstance(before, dict):
        raise RunFolderError(f"{folder} is the folder of another command: choose another --out")
    for name, value in origin["distilled"].items():
        if before.get(name) != value:
            raise RunFolderError(
                f"{folder} was begun with {name} {before.get(name)}, and this command has {value}: choose another "
                "--out, or repeat its options"
            )


@dataclass(frozen=True, eq=False)
class Course:
    """A teacher, its student and the texts, on the way to a `Distilled` in a folder; `pieces` are the texts as ids."""

    folder: Path
    teacher: CausalModel
    student: Student
    texts: Texts
    pieces: training.Texts
    settings: training.Settings

    @property
    def passes(self) -> float:
        """How often the texts are read."""
        return self.settings.tokens / self.pieces.tokens

    def notes(self) -> tuple[str, ...]:
        """What a reader must know: how often the texts are read, if more than once."""
        from trainer.distill.training import MAX_PASSES

        if self.passes <= 1:
            return ()
        about = f"{self.settings.tokens:,} tokens are {self.passes:.1f} passes over the {self.pieces.tokens:,} of the"
        more = "; that is many: take more texts, or fewer --tokens" if self.passes > MAX_PASSES else ""
        return (f"{about} training texts, and the weights of the best validation are kept{more}",)

    def carry_out(self, *, compare: bool) -> Distilled:
        """Solve, train, score and write the student; with `compare`, train and score the other controls."""
        from trainer.distill import training

        student = self.student
        scores = {TEACHER: self.score(TEACHER, self.teacher.network)}
        states = list[training.State]()
        if student.copied:
            self._solve(mean=True)
            scores[FLOOR] = self.score(FLOOR, student.network)
            if compare:
                lesson = training.student_lesson(self.teacher, student, self.settings, frozen=True)
                states.append(self.train(lesson))
                scores[FROZEN] = self.score(FROZEN, student.network)
        begun = self.begin()
        if student.sites:
            scores[SOLVED] = self.score(SOLVED, student.network)
        learned = self.learn()
        states.append(learned)
        scores[STUDENT] = self.score(STUDENT, student.network)
        for label, lesson in self._controls() if compare else ():
            states.append(self.train(lesson))
            scores[label] = self.score(label, lesson.network)
        save_metrics(self.folder, [*begun, *(line for state in states for line in state.lines)])
        return self._outcome(scores, learned)

    def begin(self) -> list[dict[str, Any]]:
        """Give the student its initial weights; returns the metrics of what it learns without its teacher."""
        if self.student.sites:
            self._solve()
            return []
        return self._begin_cvfp(self.student.network)

    def _begin_cvfp(self, network: Any) -> list[dict[str, Any]]:  # noqa: ANN401  transformers has no types
        from trainer.distill import contexts

        def tell(line: dict[str, Any]) -> None:
            say(f"contexts: pass {line['pass']}, loss {line['loss']:.4f}, {line['converged']:.0%} of them converged")

        return contexts.begin(network, self.pieces, self.settings, self.folder / CHECKPOINTS, tell)

    def learn(self) -> training.State:
        """Train the student, and write it for transformers."""
        from trainer.distill import training

        state = self.train(training.student_lesson(self.teacher, self.student, self.settings))
        self._write_model()
        return state

    def tidy(self) -> None:
        """Remove the checkpoints, which serve no more."""
        shutil.rmtree(self.folder / CHECKPOINTS, ignore_errors=True)

    def _start(self) -> Batch:
        """The first training texts, which the least squares read."""
        from trainer.distill import training

        ends = np.cumsum([len(piece) for piece in self.pieces.train])
        some = self.pieces.train[: int(np.searchsorted(ends, FIT_TOKENS)) + 1]
        return training.batch_of(some, self.teacher.network.device)

    def _solve(self, *, mean: bool = False) -> None:
        """Give the student the teacher's weights and least squares for the rest, or those of the floor."""
        from trainer.distill import initial

        start = self._start()
        initial.copy_weights(self.teacher, self.student)
        initial.fit_outputs(self.teacher, self.student, start.inputs, start.own, mean=mean)

    def _controls(self) -> Iterator[tuple[str, training.Lesson]]:
        """Networks that learn the texts alone."""
        from trainer.distill import student as building
        from trainer.distill import training

        scratch = building.build(self.teacher, self.student.kind, self.settings.seed).network
        if not self.student.sites:
            self._begin_cvfp(scratch)
        yield SCRATCH, training.text_lesson("scratch", scratch, self.teacher.ids, self.student.frozen)
        yield ONWARD, training.text_lesson("teacher", copy.deepcopy(self.teacher.network), self.teacher.ids)

    def train(self, lesson: training.Lesson) -> training.State:
        """Train a lesson's network, and say how it goes."""
        from trainer.distill import training

        say(f"training {lesson.name}, {self.settings.tokens:,} tokens ...")

        def tell(line: dict[str, Any]) -> None:
            add_metrics(self.folder, line)
            if "resumed" in line:
                say(f"{lesson.name}: resumed after step {line['step']:,}")
                return
            loss = "" if line["loss"] is None else f", loss {line['loss']:.4f}"
            at = f"stage {line['stage']}, step {line['step']:,}"
            say(f"{lesson.name}: {at}{loss}, validation {line['validation']:.4f}")

        return training.train(lesson, self.pieces, self.settings, self.folder / CHECKPOINTS, tell)

    def score(self, name: str, network: Any) -> Scores:  # noqa: ANN401  transformers has no types
        """The scores of a network with the teacher's tokenizer on the test set."""
        from trainer import causal

        say(f"scoring {name} ...")
        return causal.score(replace(self.teacher, name=name, network=network), self.texts.test.conversations)

    def _write_model(self) -> None:
        """Write the student and its tokenizer for transformers; each file appears whole."""
        from trainer import causal

        aside = self.folder / ".model.tmp"
        shutil.rmtree(aside, ignore_errors=True)
        with causal.quiet():
            self.student.network.save_pretrained(str(aside))
            causal.load_tokenizer(self.teacher.name).save_pretrained(str(aside))
        mode = (aside / "config.json").stat().st_mode & 0o777  # the mode that the umask gives; safetensors has 0600
        for path in sorted(aside.iterdir()):
            path.chmod(mode)
            path.replace(self.folder / path.name)
        aside.rmdir()

    def _outcome(self, scores: Mapping[str, Scores], done: training.State) -> Distilled:
        nats = {name: scores[name].nats for name in ORDER if name in scores}
        table = table_of(self.texts.test, nats, {name: int(scores[name].tokens.sum()) for name in nats})
        closed = None
        if FLOOR in nats:
            floor, own, aim = (nats[name].sum(axis=0) for name in (FLOOR, STUDENT, TEACHER))
            closed = gain_share(floor - own, floor - aim, self.texts.test.clusters)
        size = sum(p.numel() for p in self.student.network.parameters())
        ends = {str(line["stage"]): int(line["step"]) for line in done.lines}
        best = (done.best_step, done.best)
        of = (self.student.kind, size, self.settings.tokens, self.passes, best, ends)
        return Distilled(*of, table, closed, sentence(closed, table), self.notes(), str(self.folder))


def sentence(closed: tuple[float, float, float] | None, table: ScoreTable) -> str:
    """What may be concluded about a student."""
    if table.effective < MIN_CONVERSATIONS:
        return (
            f"Nothing can be concluded about the student: the test set has an effective sample size of "
            f"{table.effective:.1f} conversations, and {MIN_CONVERSATIONS} are needed."
        )
    if closed is None:
        about = next(row for row in table.rows if row.name == TEACHER).differences[table.scope]
        found = with_interval(-about.ln_ratio, about.interval and (-about.interval[1], -about.interval[0]), change)
        return f"The perplexity of the student differs from that of its teacher by {found}."
    value, low, high = closed
    if value != value:  # noqa: PLR0124  NaN
        return "Nothing can be told: on these texts the teacher may be no better than mixers that give the mean."
    return (
        f"The student closes {value:.0%} ({low:.0%} to {high:.0%}) of the gap in bits per byte between mixers that "
        "give the mean and the teacher."
    )


def _finish(folder: Path, made: Distilled, options: DistillOptions, digest: str, command: str) -> None:
    """Write the card and, last, the record."""
    text = card(made, options, digest)
    save(folder / "README.md", lambda aside: aside.write_text(text, encoding="utf-8"))
    save_json(folder / RECORD, finite({KEY: VERSION, "command": command, **asdict(made)}))


def card(made: Distilled, options: DistillOptions, digest: str) -> str:
    """The model card of a student."""
    rows = [f"| {row.name} | {row.bits_per_byte:.4f} |" for row in made.table.rows]
    ends = ", ".join(f"stage {stage} until step {step:,}" for stage, step in made.stages.items())
    about = (
        f"A {made.student} model of {made.parameters:,} parameters, distilled by refine {VERSION} on {made.tokens:,} "
    )
    about += f"tokens of `{options.source}` (corpus {digest}, {made.passes:.2f} passes): {ends}."
    return "\n".join(
        (
            f"# A student of `{options.teacher}`",
            "",
            about,
            "",
            made.sentence,
            "",
            f"| on {made.table.conversations:,} test conversations | bits per byte |",
            "| --- | --- |",
            *rows,
            "",
            "```python",
            *(("import trainer.cvfp.causal  # refine's own architecture",) if made.student == "cvfp" else ()),
            "from transformers import AutoModelForCausalLM, AutoTokenizer",
            "",
            f'model = AutoModelForCausalLM.from_pretrained("{made.folder}")',
            f'tokenizer = AutoTokenizer.from_pretrained("{made.folder}")',
            "```",
            "",
        )
    )


def load_distilled(folder: Path) -> Distilled:
    """The outcome of a finished folder, from its record; a RunFolderError if that is damaged."""
    try:
        made = _parsed(folder)
        lines(made)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise RunFolderError(
            f"{folder / RECORD} is damaged ({error}): remove it, and start the same command again"
        ) from error
    return made


def _parsed(folder: Path) -> Distilled:
    values = {name: value for name, value in read_json(folder / RECORD).items() if name in DISTILLED}
    rows = []
    for row in values["table"]["rows"]:
        differences = {
            scope: Difference(one["ln_ratio"], one["interval"] and tuple(one["interval"]))
            for scope, one in row["differences"].items()
        }
        rows.append(Row(**{**row, "differences": differences}))
    lists = {name: tuple(values["table"][name]) for name in ("sentences", "notes")}
    table = ScoreTable(**{**values["table"], **lists, "rows": tuple(rows)})
    closed = values["closed"] and tuple(np.nan if one is None else one for one in values["closed"])
    return Distilled(
        **{**values, "table": table, "closed": closed, "best": tuple(values["best"]), "notes": tuple(values["notes"])}
    )


def print_distilled(made: Distilled, *, as_json: bool) -> None:
    """Print the table and the sentence, or everything as JSON."""
    if as_json:
        sys.stdout.write(json.dumps(finite(asdict(made)), indent=2) + "\n")
        return
    print_scores(replace(made.table, sentences=(), notes=()), None, as_json=False)
    for line in ("", *lines(made)):
        console().print(Text(safe(line)))


def lines(made: Distilled) -> tuple[str, ...]:
    """The student, what may be concluded, and where it is."""
    size = f"{made.student}: {made.parameters:,} parameters, {made.tokens:,} tokens, {made.passes:.2f} passes"
    return size, made.sentence, f"{made.folder}: for transformers, with {RECORD}"
