"""The page of one corpus: which figures it has, and what is said where a stage was not part of the run."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import asdict

from pipeline.manifest import HubSplit, Manifest
from pipeline.report.parts import Check, Examples, Figure, Page, Section, Table, Tile
from pipeline.report.run import flows, heatmaps
from pipeline.report.run.bands import BandedRun, crossing
from pipeline.report.run.examples import examples
from pipeline.report.text import visible

MISSING = {
    "ppl": "Perplexity was not measured in this run: the stage ppl adds it, and with it deciles of perplexity.",
    "tox": "Toxicity was not measured in this run: the stage toxicity adds its bands.",
    "dup": "Duplicates were not looked for in this run: the stage dedup adds them.",
    "prompt": "Lengths and first prompts were not measured in this run: the stage heuristics adds them.",
    "lang": "Languages were not measured in this run: the stage language adds them.",
}


def page(sorted_: BandedRun, checks: list[Check]) -> Page:
    """The report of one run."""
    run, counts = sorted_.run, sorted_.run.manifest.counts
    total, kept = counts.ingested, counts.refined
    warnings = [] if kept else ["Nothing was kept: every conversation was dropped, so that the refined side is empty."]
    warnings += failed(checks)
    return Page(
        title=visible(run.manifest.source.rstrip("/").rpartition("/")[2], 80),
        kicker=f"refine report · {visible(run.store.folder.name, 60)}",
        headline=_headline(run.manifest),
        tiles=_tiles(run.manifest, checks),
        warnings=tuple(warnings),
        checks=tuple(checks),
        sections=(*of_run(sorted_), _origin(sorted_)),
        examples=clicked(sorted_),
        numbers={
            "run": str(run.store.folder),
            "counts": asdict(counts),
            "by_rule": run.manifest.by_rule,
            "kept_share": kept / total if total else None,
        },
    )


def failed(checks: Sequence[Check]) -> list[str]:
    """A warning where checks failed."""
    many = sum(check.passed is False for check in checks)
    return [f"{many} check{'s' * (many > 1)} failed."] if many else []


def _headline(manifest: Manifest) -> str:
    """What came in, what is left, and the three reasons that took most."""
    counts = manifest.counts
    total, kept = counts.ingested, counts.refined
    share = f" ({kept / total:.1%})" if total else ""
    said = f"{total:,} conversations came in, {kept:,}{share} were kept and {total - kept:,} dropped"
    most = [(reason, n) for reason, n in sorted(manifest.by_rule.items(), key=lambda item: -item[1])[:3] if n]
    if not most:
        return f"{said}."
    reasons = [f"{visible(reason, 40)} ({n:,})" for reason, n in most]
    listed = " and ".join([", ".join(reasons[:-1]), reasons[-1]] if len(reasons) > 1 else reasons)
    return f"{said}, {'all' if sum(n for _, n in most) == total - kept else 'most'} of them for {listed}."


def _tiles(manifest: Manifest, checks: list[Check]) -> tuple[Tile, ...]:
    counts = manifest.counts
    total = counts.ingested
    share = f"{counts.refined / total:.1%}" if total else "none"
    asked = [check for check in checks if check.passed is not None]
    return (
        Tile(f"{total:,}", "conversations in"),
        Tile(share, f"kept: {counts.refined:,}"),
        Tile(f"{counts.rejected:,}", f"dropped, and {counts.quarantined:,} unreadable"),
        Tile(f"{counts.refined_tokens:,}", "tokens kept"),
        Tile(f"{sum(bool(check.passed) for check in asked)} of {len(asked)}", "checks passed"),
    )


def clicked(sorted_: BandedRun) -> Examples:
    """The conversations that a click on these sections' figures shows."""
    return Examples(examples(sorted_), f"refine show {shlex.quote(str(sorted_.run.store.folder))} --full --id")


def of_run(sorted_: BandedRun) -> list[Section]:
    """What was kept and dropped, heatmaps, rules, distributions and mixes: raw, refined and the difference."""
    distributions = _some(flows.distributions(sorted_))
    mix = _some(flows.mix(sorted_))
    return [
        Section("kept", "Kept and dropped", "From what came in to what is left.", (flows.retention(sorted_),)),
        _heatmaps(sorted_),
        _rules(sorted_),
        Section("distributions", "Distributions", "Every signal that rules or readers look at.", distributions),
        _signals(sorted_),
        Section(
            "mix",
            "Mix",
            "Languages, lengths and sources before and after.",
            mix,
            missing=_lacking(sorted_, "prompt", "lang"),
        ),
    ]


def _lacking(sorted_: BandedRun, *keys: str) -> tuple[str, ...]:
    """What to say of the bands that were not measured."""
    return tuple(MISSING[key] for key in keys if key not in sorted_.bands)


def _heatmaps(sorted_: BandedRun) -> Section:
    """Perplexity by toxicity; what comes nearest to it where one of them was not measured."""
    found, words = [], []
    if bands := crossing(sorted_):
        words = [band.word for band in bands]
        found.append(heatmaps.conversations(sorted_, *bands))
        if sorted_.at_least is not None:
            found.append(heatmaps.duplicates(sorted_, *bands))
    dup = (MISSING["dup"],) if sorted_.at_least is None else ()
    words[1:1] = ["duplicates"] if found and not dup else []
    return Section(
        "heatmaps",
        (", ".join(words[:-1]) + f" and {words[-1]}").capitalize() if words else "Heatmaps",
        "Where the corpus is dense, where it repeats itself, and what refining changed.",
        tuple(found),
        missing=(*_lacking(sorted_, "ppl", "tox"), *dup),
    )


def _rules(sorted_: BandedRun) -> Section:
    """What the rules do, and the rules as written, with where they say they come from."""
    along = next(sorted_.bands[key] for key in ("ppl", "length", "source") if key in sorted_.bands)
    rows = [
        (
            *(visible(rule.reason, 200), visible(rule.where, 200)),
            *(rule.dropped, rule.fired, rule.nulls),
            visible(rule.because, 300),
        )
        for rule in sorted_.run.manifest.rules
    ]
    return Section(
        "rules",
        "What the rules do",
        "Which rule removes what, and which rules agree.",
        _some(heatmaps.removed(sorted_, along), heatmaps.together(sorted_)),
        (Table(("reason", "drops where", "dropped", "fires on", "unknown for", "because"), tuple(rows)),),
    )


def _signals(sorted_: BandedRun) -> Section:
    there = sorted_.bands
    by = [there[key] for key in ("source", "prompt") if key in there and len(there[key].labels) > 1]
    return Section(
        "signals",
        "Signals by source and length",
        "Which parts of the corpus differ, and which signals say the same.",
        _some(*(heatmaps.levels(sorted_, band) for band in by), heatmaps.correlations(sorted_)),
        missing=() if by else (MISSING["prompt"],),
    )


def _some(*found: Figure | None) -> tuple[Figure, ...]:
    return tuple(figure for figure in found if figure is not None)


def _origin(sorted_: BandedRun) -> Section:
    return Section(
        "origin",
        "Plan and origin",
        "On one type of processor the same source, plan, versions and shard size give the same files, byte for byte. "
        "Elsewhere the scores of neural models (toxicity) may differ in the 7th digit, and figures that rank them too.",
        texts=origin(sorted_),
    )


def origin(sorted_: BandedRun) -> tuple[tuple[str, str], ...]:
    """The command that makes a run again, its plan and its manifest, each with a heading."""
    run = sorted_.run
    manifest = json.dumps(run.manifest.to_json(), indent=2, ensure_ascii=False)
    plan = run.store.plan.read_text(encoding="utf-8")
    return (
        ("The command that makes this run again", command(run.manifest, str(run.store.folder), _limit(sorted_))),
        ("Plan", visible(plan)),
        ("Manifest", visible(manifest)),
    )


def _limit(sorted_: BandedRun) -> int | None:
    said = json.loads(sorted_.run.store.source.read_text(encoding="utf-8")).get("limit")
    return int(said) if said else None


def command(manifest: Manifest, folder: str, limit: int | None) -> str:
    """The command line that makes this run again, and the digest of the source that it was made from."""
    words = ["refine", "run", manifest.source, "--plan", f"{folder}/plan.toml", "--out", f"{folder}-again"]
    if manifest.inputs and isinstance(hub := manifest.inputs[0], HubSplit):
        words[2:3] = [hub.hub, "--revision", hub.revision, "--split", hub.split]
    elif manifest.source == "chitchat":
        del words[2]
    words += ["--limit", str(limit)] if limit else []
    return f"{visible(shlex.join(words))}\n# source digest {manifest.digest}, records of shape {manifest.shape}"
