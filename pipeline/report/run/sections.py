"""The page of a run: its figures by section, and notes on stages that were not part of the run."""

import json
import shlex
from collections.abc import Sequence
from dataclasses import asdict

from pipeline.manifest import HubSplit, Manifest
from pipeline.plant.audit import UNTOUCHED, audit
from pipeline.report.parts import Check, Examples, Figure, Page, Section, Table, Tile
from pipeline.report.run import figures, tables, value
from pipeline.report.run.bands import BandedRun, crossing
from pipeline.report.run.examples import examples
from pipeline.report.text import visible
from pipeline.store import Store, read_json

MISSING = {
    "ppl": "Perplexity was not measured in this run: the stage ppl adds it.",
    "tox": "Toxicity was not measured in this run: the stage toxicity adds it.",
    "dup": "Duplicates were not measured in this run: the stage dedup adds them.",
    "prompt": "Lengths and first prompts were not measured in this run: the stage heuristics adds them.",
    "lang": "Languages were not measured in this run: the stage language adds them.",
}
"""Notes on bands that were not measured, by the band's key."""


def page(run: BandedRun, checks: list[Check]) -> Page:
    """The report of one run."""
    counts = run.manifest.counts
    total, kept, tokens = counts.ingested, counts.refined, counts.refined_tokens + counts.rejected_tokens
    warnings = [] if kept else ["Nothing was kept: every conversation was dropped, so the refined side is empty."]
    applied = [check for check in checks if check.passed is not None]
    return Page(
        title=visible(run.manifest.source.rstrip("/").rpartition("/")[2], 80),
        kicker=f"refine report · {visible(run.store.folder.name, 60)}",
        headline=_headline(run.manifest),
        tiles=(
            Tile(f"{total:,}", "conversations in"),
            Tile(f"{kept / total:.1%}" if total else "none", f"of the conversations kept: {kept:,}"),
            Tile(
                f"{counts.refined_tokens / tokens:.1%}" if tokens else "none",
                f"of the tokens kept: {counts.refined_tokens:,} words and punctuation marks",
            ),
            Tile(f"{counts.rejected:,}", f"dropped, and {counts.quarantined:,} unreadable"),
            Tile(f"{sum(bool(check.passed) for check in applied)} of {len(applied)}", "checks passed"),
        ),
        warnings=(*warnings, *failed(checks)),
        checks=tuple(checks),
        sections=(
            *of_run(run),
            Section(
                "origin",
                "Plan and origin",
                "On one type of processor the same source, plan, versions and shard size give the same files, byte for "
                "byte. Elsewhere the scores of Detoxify and of encoders may differ in the 7th digit, and figures that "
                "rank them too.",
                texts=origin(run),
            ),
        ),
        examples=cell_examples(run),
        numbers={
            "run": str(run.store.folder),
            "counts": asdict(counts),
            "by_rule": run.manifest.by_rule,
            **({"figure_rows": run.rows.height} if run.sample_note else {}),
            "kept_share": kept / total if total else None,
            **({"sample": asdict(run.manifest.sample)} if run.manifest.sample else {}),
            "kept_token_share": counts.refined_tokens / tokens if tokens else None,
        },
    )


def failed(checks: Sequence[Check]) -> list[str]:
    """A warning if checks failed."""
    many = sum(check.passed is False for check in checks)
    return [f"{many} check{'s' * (many > 1)} failed."] if many else []


def _headline(manifest: Manifest) -> str:
    """Conversations ingested and kept, the three reasons that dropped most, and the size of what they dropped."""
    counts = manifest.counts
    total, kept, dropped = counts.ingested, counts.refined, counts.rejected
    share = f" ({kept / total:.1%})" if total else ""
    of = f", {manifest.sample}," if manifest.sample else ""
    unread = f", {counts.quarantined:,} could not be read" if counts.quarantined else ""
    text = f"{total:,} conversations{of} came in{unread}, {kept:,}{share} were kept and {dropped:,} dropped"
    most = [(reason, n) for reason, n in sorted(manifest.by_rule.items(), key=lambda item: -item[1])[:3] if n]
    if not most:
        return f"{text}."
    tokens = max(counts.refined_tokens + counts.rejected_tokens, 1)
    reasons = [f"{visible(reason, 40)} ({n:,})" for reason, n in most]
    part = "all" if sum(n for _, n in most) == dropped else "most"
    size = f"{dropped / total:.1%} of the conversations, and {counts.rejected_tokens / tokens:.1%} of the tokens"
    return f"{text}, {part} of them for {_listed(reasons)}. What was dropped is {size}."


def cell_examples(run: BandedRun) -> Examples:
    """The conversations that a click on a figure of these sections shows."""
    return Examples(examples(run), f"refine show {shlex.quote(str(run.store.folder))} --full --id")


def of_run(run: BandedRun) -> list[Section]:
    """The sections of a run: what was kept and dropped, heatmaps, rules, distributions, signals and mixes."""
    along = next(run.bands[key] for key in ("ppl", "length", "source") if key in run.bands)
    by = [run.bands[key] for key in ("source", "prompt") if key in run.bands and len(run.bands[key].labels) > 1]
    return [
        Section("kept", "Kept and dropped", _says(run), (figures.retention(run),)),
        *_planted(run),
        _heatmaps(run),
        Section(
            "rules",
            "What the rules do",
            "Which rule removes what, and which rules agree." + _repaired(run),
            _some(figures.removals(run, along), figures.together(run)),
            (tables.rules(run), *tables.repairs(run)),
        ),
        Section(
            "distributions",
            "Distributions",
            "Every signal that rules or readers look at.",
            _some(figures.distributions(run)),
        ),
        Section(
            "signals",
            "Signals by source and length",
            "Which parts of the corpus differ, and which signals agree.",
            _some(*(figures.levels(run, band) for band in by), figures.correlations(run)),
            missing=() if by else (MISSING["prompt"],),
        ),
        Section(
            "mix",
            "Mix",
            "Languages, lengths and sources before and after.",
            _some(figures.mix(run)),
            missing=tuple(MISSING[key] for key in ("prompt", "lang") if key not in run.bands),
        ),
        *value.sections(run),
    ]


def _repaired(run: BandedRun) -> str:
    """That the rules look at repaired conversations; empty if the plan has no repairs."""
    if not run.manifest.repairs:
        return ""
    return (
        f" {run.manifest.counts.repaired:,} conversations were repaired before: signals, words and figures on this "
        "page are of the repaired ones, also where they say raw."
    )


def _says(run: BandedRun) -> str:
    """What the first section shows, and whether the figures of the others count a sample."""
    return " ".join(["From what came in to what is left.", *filter(None, [run.sample_note])])


def _planted(run: BandedRun) -> list[Section]:
    """What was found of the damage that `refine plant` planted; nothing for another corpus."""
    if "planted" not in run.bands or (findings := audit(run.store)) is None:
        return []
    every = {**findings.kinds, UNTOUCHED: findings.untouched}
    some = any(one.repaired for one in every.values())
    rows: list[tuple[str | int, ...]] = []
    for name, one in every.items():
        shares = (f"{one.share:.1%}", f"{one.interval[0]:.1%} to {one.interval[1]:.1%}")
        rows.append((name, one.total, one.dropped, *[one.repaired] * some, *shares))
    head = ("planted", "conversations", "dropped", *["repaired"] * some, "share", "95 % interval")
    table = Table(head, tuple(rows))
    says = "This corpus was damaged on purpose: which of it did the rules find?"
    return [Section("planted", "Planted damage", says, (figures.planted(run, findings),), (table,))]


def _heatmaps(run: BandedRun) -> Section:
    """Perplexity by toxicity, or substitutes if one of them was not measured."""
    drawn, words = [], ["heatmaps"]
    missing = [MISSING[key] for key in ("ppl", "tox") if key not in run.bands]
    if bands := crossing(run):
        words = [band.word for band in bands]
        drawn.append(figures.conversations(run, *bands))
    if run.at_least is None:
        missing.append(MISSING["dup"])
    elif bands:
        words.insert(1, "duplicates")
        drawn.append(figures.duplicates(run, *bands))
    return Section(
        "heatmaps",
        _listed(words).capitalize(),
        "Where the corpus is dense, where it repeats itself, and what refining changed.",
        tuple(drawn),
        tables.perplexities(run),
        missing=tuple(missing),
    )


def _listed(words: list[str]) -> str:
    """Words joined by commas and "and"."""
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def _some(*drawn: Figure | None) -> tuple[Figure, ...]:
    return tuple(figure for figure in drawn if figure is not None)


def origin(run: BandedRun) -> tuple[tuple[str, str], ...]:
    """The command that repeats a run, its plan and its manifest, each with a heading."""
    manifest = json.dumps(run.manifest.to_json(), indent=2, ensure_ascii=False)
    return (
        ("The command that repeats this run", _command(run.manifest, run.store)),
        ("Plan", visible(run.store.plan.read_text(encoding="utf-8"))),
        ("Manifest", visible(manifest)),
    )


def _command(manifest: Manifest, store: Store) -> str:
    """The command that repeats a run, and the digest of its source."""
    origin = read_json(store.source)
    hub = manifest.inputs[0] if manifest.inputs and isinstance(manifest.inputs[0], HubSplit) else None
    words = ["refine", "run", hub.hub if hub else manifest.source]
    words += ["--plan", f"{store.folder}/plan.toml", "--out", f"{store.name}-again"]
    options = {
        "--revision": hub and hub.revision,
        "--config": hub and hub.config,
        "--split": hub.split if hub else origin.get("split"),
        "--limit": origin.get("limit"),
        "--sample": origin.get("sample"),
        "--shape": origin.get("shape"),
        "--shard-rows": origin.get("rows"),
    }
    for option, named in options.items():
        if named is not None:
            words += [option, str(named)]
    return f"{visible(shlex.join(words))}\n# source digest {manifest.digest}, records of shape {manifest.shape}"
