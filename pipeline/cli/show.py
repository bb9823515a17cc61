"""Look at conversations of a run: dropped ones and why, kept ones, or one with everything that was measured."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
from rich.console import Console
from rich.text import Text

from pipeline import plan as planning
from pipeline.manifest import Manifest
from pipeline.signals import decisions_of, signals_of
from pipeline.store import RunFolderError, Store
from pipeline.terminal import console, safe
from stages.files import read_frame

CUT = 400
"""Characters of a message that are shown without --full."""


@dataclass(frozen=True)
class ShowOptions:
    """Which conversations."""

    reason: str | None
    id: str | None
    kept: bool
    n: int
    seed: int
    full: bool


def show(folder: Path, wanted: ShowOptions, *, as_json: bool) -> None:
    """Print conversations of a run.

    Raises:
        RunFolderError: the run is not complete, or holds no such reason or id.
    """
    store = Store(folder)
    if not store.manifest.exists():
        raise RunFolderError(
            f"{folder} is not a complete run: start `refine run` again with its source and --out {folder}"
        )
    if wanted.kept and (wanted.reason or wanted.id):
        raise RunFolderError("--kept goes with neither --reason nor --id: a kept conversation has no reason")
    found = [_whole(store, wanted.id)] if wanted.id else list(_sample(store, wanted))
    if as_json:
        sys.stdout.write(json.dumps(found, indent=2, ensure_ascii=True, default=str) + "\n")
        return
    for one in found:
        _print(console(), one, None if wanted.full else CUT)


def _sample(store: Store, wanted: ShowOptions) -> Iterator[dict[str, Any]]:
    """Conversations drawn by seed: the same ones for the same run and seed."""
    if wanted.reason is not None:
        there = list(Manifest.load(store).by_rule)
        if wanted.reason not in there:
            raise RunFolderError(
                f"no rule of this run gives the reason {wanted.reason!r}; there are {', '.join(there)}"
            )
    path = store.refined if wanted.kept else store.rejected
    ids = pl.concat(
        read_frame(path(shard), ["id"] if wanted.kept else ["id", "reason"]).with_columns(shard=pl.lit(shard))
        for shard in store.shards()
    )
    if wanted.reason is not None and not wanted.kept:
        ids = ids.filter(pl.col("reason") == wanted.reason)
    if ids.is_empty():
        raise RunFolderError(f"{store.folder}: no conversation was {'kept' if wanted.kept else 'dropped'} so")
    drawn = ids.sample(min(wanted.n, ids.height), seed=wanted.seed, shuffle=True).sort("id")
    for (shard,), some in drawn.group_by(["shard"], maintain_order=True):
        yield from read_frame(path(str(shard))).filter(pl.col("id").is_in(some["id"].to_list())).to_dicts()


def _whole(store: Store, identity: str) -> dict[str, Any]:
    """One conversation with its decision, all its signals, and the kept one that it is a duplicate of."""
    plan = planning.load(store.plan)
    for shard in store.shards():
        raw = read_frame(store.raw(shard)).filter(pl.col("id") == identity)
        if raw.is_empty():
            continue
        decision = decisions_of(store, shard).filter(pl.col("id") == identity).to_dicts()[0]
        signals = signals_of(plan, store, shard, list(plan.signals)).filter(pl.col("id") == identity).drop("id")
        fired = [rule.reason for rule in plan.rules if decision.pop(rule.reason)]
        return {**raw.drop("text").to_dicts()[0], **decision, "fired": fired, "signals": signals.to_dicts()[0]}
    for path in sorted(store.quarantine("").glob("*.parquet")):
        if found := read_frame(path).filter(pl.col("id") == identity).to_dicts():
            raise RunFolderError(
                f"{identity} could not be read: {found[0]['file']}, row {found[0]['row']}: {found[0]['reason']}"
            )
    raise RunFolderError(f"{store.folder} holds no conversation {identity!r}; ids look like {_example(store)}")


def _example(store: Store) -> str:
    ids = [one for shard in store.shards()[:1] for one in read_frame(store.raw(shard), ["id"])["id"].head(1)]
    return ids[0] if ids else "nothing: it is empty"


def _print(out: Console, one: dict[str, Any], cut: int | None) -> None:
    out.print(Text(safe(f"{one['id']}  ({one['source']})"), style="bold"))
    if one.get("reason"):
        out.print(Text(safe(f"dropped: {one['reason']}" + (f" [{one['rule']}]" if "rule" in one else "")), style="red"))
        if one.get("values"):
            out.print(Text(safe(f"values:  {one['values']}")))
        if one.get("duplicate_of"):
            out.print(Text(f"kept instead: {one['duplicate_of']} (jaccard {one['jaccard']:.3f})"))
    if "signals" in one:
        if one["fired"]:
            out.print(Text(safe(f"rules that fire: {', '.join(one['fired'])}")))
        told = {key: value for key, value in one["signals"].items() if not isinstance(value, list)}  # --json has all
        out.print(Text(safe("signals: " + ", ".join(f"{k}={_short(v)}" for k, v in told.items()))))
    for message in one["messages"]:
        said = message["content"]
        more = f" … (+{len(said) - cut:,} characters)" if cut and len(said) > cut else ""
        out.print(
            Text(safe(f"  {message['role']}: "), style="cyan").append(Text(safe(said[:cut]) + more, style="default"))
        )
    out.print()


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
