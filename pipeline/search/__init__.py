"""`refine search`: plans are tried on one part of a target, and the best of them is confirmed on another."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import polars as pl

from pipeline import sources
from pipeline.compare import command as comparing
from pipeline.compare.command import CompareOptions
from pipeline.compare.corpora import HubOptions, Pair, with_target
from pipeline.compare.data import TEST_TOKENS, TrainingOptions, folder_word
from pipeline.compare.result import Comparison
from pipeline.engine.local import Local
from pipeline.experiments import corpus as corpora
from pipeline.experiments.train import EXPERIMENTS
from pipeline.ingest import Limits
from pipeline.ownership import experiment_claimed
from pipeline.plan import Plan, PlanError
from pipeline.report import folder as folders
from pipeline.report.folder import REPORTS, build
from pipeline.run import ActiveRun
from pipeline.search import candidates as proposing
from pipeline.search import page, parts
from pipeline.search import trials as trying
from pipeline.search.candidates import Candidate
from pipeline.search.findings import Confirmation, Estimate, Finding, Goal, Trial, best
from pipeline.search.parts import Parts
from pipeline.search.result import Search
from pipeline.search.trials import RAW, Development, Mask
from pipeline.signals import RuleInputs
from pipeline.sources import Source
from pipeline.sources.rows import SourceError
from pipeline.store import RunFolderError, Store, read_json
from pipeline.terminal import ProgressReporter, say
from stages.files import read_frame, save, save_json
from trainer.prepare.arms import ArmsError, Union, distinct

BATCH = 6
"""Candidates whose models are learned together; between batches the time is looked at."""
REFINEMENTS = 2
"""Rounds in which shares around the best one are tried."""
SEED = 1
"""Seed of the split of raw in the trials; that of the confirmation is 0."""
LUCK = 3
"""Random plans of each share."""
SHARES = (0.2, 0.1, 0.4, 0.05)
"""Default shares, in the order in which they are tried."""


@dataclass(frozen=True)
class SearchOptions:
    """The options of `refine search`; its help describes each."""

    source: Source
    target: str
    minutes: float = 10.0
    candidates: int | None = None
    plan: Path | None = None
    shares: tuple[float, ...] = SHARES
    goal: Goal = "token"
    limits: Limits = field(default_factory=Limits)
    out: Path | None = None
    training: TrainingOptions = field(default_factory=TrainingOptions)
    """Of the confirmation; with `screen`, it is by n-gram models too."""
    words: tuple[str, ...] = ()
    """The command as it was typed."""

    def __post_init__(self) -> None:
        """Refuse a number out of its range by a PlanError."""
        if self.candidates is not None and self.candidates < 1:
            raise PlanError(f"--candidates is {self.candidates}, expected at least 1")
        if not self.minutes >= 0:
            raise PlanError(f"--minutes is {self.minutes:g}, expected at least 0")

    @property
    def command(self) -> str:
        """The command that makes this search."""
        return shlex.join(("refine", *(self.words or ("search", self.source.name, "--target", self.target))))


def search(options: SearchOptions) -> Search:
    """Try plans, pick one, confirm it, and write plan.toml, search.json and the report.

    What is done is not repeated: the run, the trials and the training runs of the confirmation stay in the folder.

    Raises:
        SourceError, RunFolderError: a corpus cannot be read, or a folder is in use or of something else.
        PlanError, RuleError, StageParameterError: the plan does not serve.
        TrainerError: an option or a corpus does not suit the training.
    """
    shares = proposing.check(options.shares)
    own = proposing.load(options.plan)
    options.training.check()
    names = [folder_word(Path(name).name) for name in (options.source.name, options.target)]
    out = options.out or EXPERIMENTS / f"{'-for-'.join(names)}-search"
    place = REPORTS / f"{folder_word(out.resolve().name.removesuffix('-search'))}-search"
    folders.check(place)
    digests = options.source.digest(), sources.find(options.target).digest()
    if digests[0] == digests[1]:
        raise SourceError(f"the target {options.target} is the corpus itself: name conversations of what you train for")
    claim = {"corpus": f"{options.source.name} for {options.target}", "digest": " ".join(digests)}
    with experiment_claimed(out, claim, "--out") as folder:
        divided = parts.divide(options.target, folder / "target")
        base = proposing.base(own, divided.file("fit"))
        store = _measure(options, base, folder / "run")
        grid = proposing.grid(own, shares, LUCK)
        pair = raw_pair(store, divided)
        made = Trials(options, base, store, pair, folder / "development", grid)
        made.carry_out()
        picked = best(made.trials, options.goal)
        if picked is None:
            raise ArmsError(f"no plan could be measured: {'; '.join({one.note for one in made.trials})}")
        plan = proposing.with_top(base, made.candidates[picked.name], own)
        _decide(store, plan)
        compared = confirm(options, store, divided, folder, place)
        return _finish(options, made, divided, picked, plan, compared, folder, place)


def _measure(options: SearchOptions, base: Plan, folder: Path) -> Store:
    """Measure the signals of all candidates in one run, whose decisions are those of the rules alone."""
    store = Store(folder)
    for measured in base.stages:
        measured.stage.models()
    with ProgressReporter() as reporter:
        engine = Local(options.training.workers or len(os.sched_getaffinity(0)))
        try:
            ActiveRun(store, base, engine, reporter, reporter.warn).carry_out(options.source, options.limits)
        finally:
            engine.close()
    return store


def _decide(store: Store, plan: Plan) -> None:
    with ProgressReporter() as reporter:
        ActiveRun(store, plan, Local(1), reporter, reporter.warn).decide_again()


def raw_pair(store: Store, divided: Parts, part: str = "development") -> Pair:
    """The raw corpus of a run alone, with a part of a target."""
    raw = corpora.read_part(store, "raw")
    keys, groups = distinct(corpora.keys(raw.frame["text"])), corpora.groups(raw.frame["text"])
    union = Union(raw.frame, keys, groups, {RAW: np.ones(len(raw.frame), np.bool_)})
    union, aim = with_target(union, corpora.read(str(divided.file(part))))
    for note in aim.notes:
        say(f"refine: {note}")
    return Pair({RAW: raw}, store, union, aim.notes, target=aim)


class Trials:
    """The loop of a search: candidates in order, until time, their number or new ones come to an end."""

    def __init__(  # noqa: PLR0917  what it is made of
        self, options: SearchOptions, base: Plan, store: Store, pair: Pair, folder: Path, grid: Sequence[Candidate]
    ) -> None:
        self.options, self.base, self.store, self.pair, self.folder = options, base, store, pair, folder
        self.grid = list(grid)
        self.candidates: dict[str, Candidate] = {}
        self.trials: list[Trial] = []
        self.left = 0
        self.stopped = ""
        self.budget = 0

    def carry_out(self) -> None:
        """Try candidates; those that are known from an earlier call are not measured again."""
        masks = self._masks(self.grid)  # of all, so that the budgets do not depend on how many are tried
        training = self.options.training  # raw has other test conversations than in the confirmation
        training = replace(training, work=None, choices=replace(training.choices, split_seed=SEED))
        made = trying.development(self.pair, training, self.folder, list(masks.values()))
        self.budget = made.budgets[-1]
        known, begun, rounds = made.known(), time.monotonic(), 0
        queue = self.grid[: self.options.candidates]
        say(f"{len(queue)} plans are tried on {self.budget:,} tokens in {trying.ORDERS} orders each ...")
        while queue and not self.stopped:
            for start in range(0, len(queue), BATCH):
                if self._is_over(begun):
                    break
                self._try(made, {one.name: one for one in queue[start : start + BATCH]}, masks, known)
            done = set(self.candidates)
            self.left = sum(one.name not in done for one in queue)
            self.stopped = self.stopped or self._reached()
            queue = [] if rounds == REFINEMENTS else self._more()
            masks, rounds = self._masks(queue), rounds + 1
        self.stopped = self.stopped or "all plans were tried"

    def _is_over(self, begun: float) -> bool:
        timed = self.options.candidates is None and bool(self.trials)  # one batch is tried in any case
        if timed and time.monotonic() - begun > 60 * self.options.minutes:
            self.stopped = f"after {self.options.minutes:g} minutes (--minutes)"
        return bool(self.stopped)

    def _reached(self) -> str:
        count = self.options.candidates
        return f"{count} plans were asked for (--candidates)" if count and len(self.trials) >= count else ""

    def _more(self) -> list[Candidate]:
        """Candidates around the best one; as many as are asked for."""
        top = best(self.trials, self.options.goal)
        made = [] if top is None else proposing.between(self.candidates[top.name], list(self.candidates.values()))
        new = [one for one in made if one.name not in self.candidates]
        return new if self.options.candidates is None else new[: self.options.candidates - len(self.trials)]

    def _try(
        self,
        made: Development,
        batch: Mapping[str, Candidate],
        masks: Mapping[str, Mask],
        known: dict[str, Trial],
    ) -> None:
        self.candidates |= batch
        blanks = {name: made.blank(one, masks[name]) for name, one in batch.items()}
        new = {one.key: name for name, one in blanks.items() if not one.note and one.key not in known}
        if new:
            found = made.measure([blanks[name] for name in new.values()], [masks[name] for name in new.values()])
            made.keep(found)
            known |= {one.key: one for one in found}
        for blank in blanks.values():
            trial = replace(known.get(blank.key, blank), name=blank.name, kind=blank.kind)
            self.trials.append(trial)
            say(page.line(trial))

    def _masks(self, candidates: Sequence[Candidate]) -> dict[str, Mask]:
        """Which conversations of the union each candidate keeps."""
        masks, size = {}, len(self.pair.union.frame)
        for start in range(0, len(candidates), BATCH):  # a ranking takes 20 bytes per conversation
            batch = candidates[start : start + BATCH]
            tops = {one.name: replace(one.top, reason=f"candidate {i}") for i, one in enumerate(batch) if one.top}
            plan = replace(self.base, rules=(*self.base.rules, *tops.values())).check()
            inputs = RuleInputs.read(plan, self.store)
            for one in batch:
                rules = [*self.base.rules, *([tops[one.name]] if one.name in tops else [])]
                keep = pl.concat(decided["keep"] for decided in inputs.decide(rules)).to_numpy()
                masks[one.name] = np.append(keep, np.zeros(size - len(keep), np.bool_))
        return masks


def confirm(options: SearchOptions, store: Store, divided: Parts, folder: Path, place: Path) -> Comparison:
    """Compare raw with what the plan of a run selects, on the test part of the target."""
    test = str(divided.file("test"))
    words = ("compare", "raw", "refined", "--run", str(store.folder), "--target", test, *_flags(options.training))
    kept = read_json(store.manifest)["counts"]
    say(f"refine: {kept['refined']:,} of {kept['ingested']:,} conversations are selected; now the test of that ...")
    name = trying.digest(_refined(store))
    training = replace(options.training, work=folder / f"confirmation-{name}", force=True)
    return comparing.compare(
        CompareOptions(
            run=store.folder,
            out=place.with_name(f"{place.name}-confirmation"),
            training=training,
            hub=HubOptions(),
            words=words,
            target=test,
        )
    )


def _flags(training: TrainingOptions) -> tuple[str, ...]:
    """The options of a confirmation as `refine compare` takes them, but for those that have their default."""
    tokens = training.choices.test_tokens
    given = {
        "--budgets": ",".join(map(str, training.budgets or ())),
        "--seeds": training.seeds,
        "--test-tokens": tokens if tokens != TEST_TOKENS else None,
    }
    flags = [word for flag, value in given.items() if value for word in (flag, str(value))]
    return (*flags, "--screen") if training.screen else tuple(flags)


def _refined(store: Store) -> Mask:
    keep: Mask = pl.concat(read_frame(store.decisions(one), ["keep"]) for one in store.shards())["keep"].to_numpy()
    return keep


def _finish(  # noqa: PLR0917  what a search is made of
    options: SearchOptions,
    made: Trials,
    divided: Parts,
    picked: Trial,
    plan: Plan,
    compared: Comparison,
    folder: Path,
    place: Path,
) -> Search:
    confirmed = confirmation(picked, compared)
    result = Search(
        source=options.source.name,
        target=divided,
        goal=options.goal,
        trials=made.trials,
        left=made.left,
        stopped=made.stopped,
        budget=made.budget,
        picked=picked,
        confirmed=confirmed,
        before=remember(confirmed, folder / "confirmations.json"),
        comparison=compared,
        plan=plan,
        cut=_cut(made.store),
        folder=folder,
        page=place / "index.html",
        command=options.command,
        notes=made.pair.notes,
    )
    text = page.commented(result)
    save(result.file, lambda aside: aside.write_text(text, encoding="utf-8"))
    save_json(folder / "search.json", page.numbers(result))
    build(page.page(result), place)
    return result


def _cut(store: Store) -> float | None:
    """The value of the last conversation that a selection takes; None without one, or if each group has its own."""
    cuts: set[float] = set()
    for shard in store.shards():
        decisions = read_frame(store.decisions(shard))
        cuts |= set(decisions["cut"].drop_nulls().to_list() if "cut" in decisions.columns else [])
    return cuts.pop() if len(cuts) == 1 else None


def confirmation(picked: Trial, compared: Comparison) -> Confirmation:
    """What a comparison found of the picked plan."""
    primary, screened = compared.primary, compared.screened
    assert primary is not None  # noqa: S101  models were trained
    assert screened is not None  # noqa: S101
    raw = next((one for one in compared.scored if one.test.name == f"{RAW}-test"), None)
    network = compared.networks[0].kind if compared.networks else None
    finding, choice = Finding.of(primary, raw, screened), primary.choice
    beyond, power = Estimate(choice.ln_ratio if finding else None, choice.interval), primary.differences.get("power")
    budget = None if power is None else round(power.budget)
    return Confirmation(picked.key, picked.name, network, finding, beyond, compared.verdict.sentence, budget)


def remember(confirmed: Confirmation, path: Path) -> list[Confirmation]:
    """Keep a confirmation, and return those of other plans: each was a look at the same test part."""
    try:
        earlier = [Confirmation.parse(row) for row in read_json(path)["confirmations"]] if path.exists() else []
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise RunFolderError(f"{path} is damaged ({error}): remove it, and start the same command again") from None
    earlier = [one for one in earlier if (one.key, one.network) != (confirmed.key, confirmed.network)]
    save_json(path, {"confirmations": [asdict(one) for one in (*earlier, confirmed)]})
    return [one for one in earlier if one.key != confirmed.key]
