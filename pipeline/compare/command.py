"""`refine compare`: two corpora in; a verdict, a page and every number out."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from pipeline.compare import corpora, data, page
from pipeline.compare import design as designing
from pipeline.compare import scored as scoring
from pipeline.compare import screen as screening
from pipeline.compare.checks import comparison_checks, corpora_checks, screen_checks
from pipeline.compare.corpora import HubOptions, Pair
from pipeline.compare.data import TrainingOptions, folder_word
from pipeline.compare.design import Experiment
from pipeline.compare.result import Comparison, RunFindings
from pipeline.compare.scored import Scored
from pipeline.compare.screen import Screened, power
from pipeline.compare.screen.verdict import screen_verdict
from pipeline.compare.verdict import NetworkFinding, Verdict, agreement, decides, too_few, verdict
from pipeline.experiments.schedule import arm_names, carry_out
from pipeline.report import folder as folders
from pipeline.report.folder import REPORTS, build
from pipeline.report.parts import Check
from pipeline.report.run.checks import SHARE, Bounds, check
from pipeline.report.run.frame import kinds, read_run
from pipeline.store import Store
from pipeline.terminal import say
from trainer.experiment.jobs import order_seed
from trainer.experiment.kinds import networks
from trainer.prepare.arms import ArmsError, Union

UNTRAINED = Verdict("Nothing was trained (--no-train), so nothing is concluded.", concludes=False)


@dataclass(frozen=True)
class CompareOptions:
    """The options of `refine compare`; its help describes each."""

    first: str = "raw"
    second: str = "refined"
    run: Path | None = None
    out: Path | None = None
    limit: int | None = None
    train: bool = True
    training: TrainingOptions = field(default_factory=TrainingOptions)
    hub: HubOptions = field(default_factory=HubOptions)
    bounds: Bounds = field(default_factory=Bounds)
    words: tuple[str, ...] = ()
    """The command as it was typed, for the report; by default the two corpora."""
    target: str | None = None

    @property
    def command(self) -> str:
        """The command that makes this comparison."""
        return shlex.join(("refine", *(self.words or ("compare", self.first, self.second))))


def refuse_untrained_target(target: str | None, *, train: bool) -> None:
    """Raise `ArmsError` if there is a target and nothing is trained."""
    if target is not None and not train:
        raise ArmsError("--target is a test set for models, and --no-train trains none: omit one of them")


def compare(options: CompareOptions) -> Comparison:
    """Compare two corpora by the scaling laws of models trained on them, and write the report.

    Training runs that are already there are not repeated. Progress is reported on stderr.

    Raises:
        SourceError, RunFolderError: a corpus cannot be read, or a folder is in use or of something else.
        ReportError: the folder of the report holds something else.
        TrainerError: an option or a corpus does not suit the training.
    """
    if options.out is not None:
        folders.check(options.out)
    options.training.check()
    refuse_untrained_target(options.target, train=options.train)
    limit = options.limit
    both = options.first, options.second, options.run, limit
    pair = corpora.pair(*both, grouped=options.train, hub=options.hub, target=options.target)
    run = None if pair.run is None else run_findings(pair.run, options.bounds)
    suffix = "-corpora" if not options.train else "-screen" if options.training.screen else ""
    place = options.out or REPORTS / f"{pair_name(pair)}-compare{suffix}"
    notes = pair.notes
    if run is not None and limit is not None and limit < len(run.read.keep):
        folder = run.read.store.folder
        notes += (f"--limit {limit} compares the first rows of {folder}; the run's own figures are of all rows",)
    announce(place, options.command, notes)
    run_checks = [] if run is None else run.checks
    result = Comparison(
        *(pair, UNTRAINED, [*corpora_checks(pair), *run_checks], None, []),
        *(run, notes, options.command, place / "index.html"),
        worth_knowing=options.training.worth_knowing,
    )
    if options.train:
        with options.training.folder(pair_name(pair), pair.digests) as folder:
            if options.training.screen:
                screened = screening.screen(pair, pair.union, options.training, folder, imitated=[pair.names])
                checks = [*screen_checks(pair, screened.arms), *run_checks]
                result = replace(
                    result,
                    screened=screened,
                    scored=screened.scored,
                    primary=screened.primary,
                    beside=screened.beside,
                    checks=checks,
                    verdict=screen_verdict(screened, failures(checks), result.worth_knowing),
                )
            else:
                experiment = train_arms(pair.union, options.training, folder, pair, imitated=[pair.names])
                result = conclude(result, experiment, run_checks)
    build(page.page(result), place)
    return result


def conclude(untrained: Comparison, experiment: Experiment, run_checks: Sequence[Check] = ()) -> Comparison:
    """Score finished training runs on all test sets, check them and their run, and conclude."""
    pair = untrained.pair
    screened = screening.of_arms(pair, experiment.arms, experiment.screen, experiment.folder)
    scored = [scoring.scored(experiment, test, pair.names) for test in screened.tests]
    known = (one for one in scored if one.test is screened.primary_test)
    primary = next(known, None) or scoring.scored(experiment, screened.primary_test, pair.names)
    beside = None
    if screened.primary_test.scope == "replies":
        beside = scoring.scored(experiment, replace(primary.test, scope="everything"), pair.names)
    found = network_findings(experiment, screened, primary)
    checks = [*comparison_checks(pair, experiment), *run_checks]
    lacks, failed = experiment.design.lacks(), failures(checks)
    outcome = verdict(
        *(scored, primary, pair.names, lacks, failed), beside=beside, worth_knowing=untrained.worth_knowing
    )
    several = len(found) > 1 and not (lacks or failed or too_few([primary]))
    return replace(
        untrained,
        experiment=experiment,
        scored=scored,
        checks=checks,
        verdict=outcome,
        screened=screened,
        primary=primary,
        beside=beside,
        networks=found,
        agreement=agreement(found, pair.names[1]) if several else "",
    )


def network_findings(experiment: Experiment, screened: Screened, primary: Scored) -> list[NetworkFinding]:
    """What each network of an experiment finds; `primary` are the models of the first on the primary test set."""
    found = []
    for kind in experiment.design.networks:
        one = primary
        if kind != primary.networks[0]:
            one = scoring.scored(experiment, primary.test, screened.names, (kind,))
        found.append(NetworkFinding(kind, one.differences.get("power"), one.choice))
    return found


def announce(place: Path, command: str, notes: Sequence[str]) -> None:
    """Print notes, and whether the report will replace another one; a folder of something else is a `ReportError`."""
    folders.check(place)
    for note in filter(None, [*notes, folders.replacement_note(place, command)]):
        say(f"refine: {note}")


def failures(checks: Sequence[Check]) -> list[str]:
    """The failed checks that forbid a conclusion: all but that of the share kept, which only judges plausibility."""
    return [one.name for one in checks if one.passed is False and one.name != SHARE]


def pair_name(pair: Pair) -> str:
    """The name of a comparison's folders."""
    return folder_word(pair.run.folder.resolve().name if pair.run is not None else "-".join(pair.names))


def run_findings(store: Store, bounds: Bounds) -> RunFindings:
    """Read a complete run and check its files, before any training."""
    read = read_run(store.folder)
    duplicates = kinds(read.plan, store)
    return RunFindings(read, duplicates, check(read, duplicates, bounds))


def train_arms(
    union: Union,
    options: TrainingOptions,
    folder: Path,
    pair: Pair,
    *,
    imitated: Sequence[tuple[str, str]],
    baselines: bool = True,
) -> Experiment:
    """Prepare the data of all arms of a union in `folder`/data, and do the training runs that are not done yet.

    Placebo rules are learned for the pairs of arms in `imitated`. With `baselines`, the experiment stops at the first
    look that decides.

    Raises:
        TrainerError: a corpus or an option does not serve, the experiment could find nothing, or a run failed.
    """
    arms = data.arms(union, options, folder)
    design = designing.design(arms, options.budgets, options.seeds, networks(options.network))
    design = design if baselines else replace(design, baselines=())
    made = screening.learn(
        *(arms, union, design.budgets, options),
        imitated=imitated,
        seeds=screening.CONTROL_SEEDS,
        own=[(budget, order_seed(budget, seed)) for budget, seed in design.pairs],
    )
    experiment = Experiment(arms, design, design.jobs(arms, list(union.members), options.device), folder, made)
    if not baselines:
        _carry_out(experiment, options)
        return experiment
    screened = screening.of_arms(pair, arms, made, folder)
    power.register(experiment, screened, worth_knowing=options.worth_knowing, force=options.force)
    for look in design.looks():
        part = experiment.at(look)
        _carry_out(part, options)
        ends = scoring.scored(part, screened.primary_test, pair.names).choice.interval
        if decides(ends, options.worth_knowing) and look.seeds != design.seeds:
            say(f"stopped after {len(look.pairs)} of {len(design.pairs)} pairs of training runs, which decide")
            break
    return part


def _carry_out(experiment: Experiment, options: TrainingOptions) -> None:
    carry_out(experiment.runs, experiment.every(), options.workers, options.device, arm_names(experiment.jobs))
