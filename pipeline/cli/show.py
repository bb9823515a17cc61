"""`refine show`: conversations of a run with the reason for the decision, and duplicates beside what was kept."""

import difflib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
from rich.console import Console
from rich.text import Text

from pipeline import plan as planning
from pipeline.api.run import open_run
from pipeline.cli.runs import print_json
from pipeline.signals import decisions_of, signals_of
from pipeline.store import RunFolderError, Store
from pipeline.terminal import console, safe
from stages.files import read_frame

MAX_CHARACTERS = 400
"""Maximum number of characters shown of a message without --full."""

MAX_WORDS = 5_000
"""Maximum number of words of a conversation that are compared with its duplicate; the comparison is quadratic."""

CONTEXT = 4
"""Number of equal words shown on each side of a difference."""


@dataclass(frozen=True)
class ShowOptions:
    """The options of `refine show`, which its help describes."""

    reason: str | None
    id: str | None
    kept: bool
    repaired: bool
    n: int
    seed: int
    full: bool


def print_conversations(folder: Path, options: ShowOptions, *, as_json: bool) -> None:
    """Print conversations of a run; raises `RunFolderError` if the run is not complete, or has no such reason or id."""
    run = open_run(folder)
    store = run.store
    if options.kept and (options.reason or options.id):
        raise RunFolderError("--kept goes with neither --reason nor --id: a kept conversation has no reason")
    if options.repaired and not run.manifest.repairs:
        raise RunFolderError(f"{folder} has no repairs: add [[repair]] to its plan, and start `refine run` again")
    rows = [_whole(store, options.id)] if options.id else list(_sample(store, options, list(run.manifest.by_rule)))
    _add_partners(store, rows)
    if as_json:
        columns = {"values", "extra"}  # these hold JSON
        print_json([{key: _parse(value) if key in columns else value for key, value in row.items()} for row in rows])
        return
    for row in rows:
        _print(console(), row, None if options.full else MAX_CHARACTERS)


def _parse(value: Any) -> Any:  # noqa: ANN401  any JSON value
    try:
        return json.loads(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _sample(store: Store, options: ShowOptions, reasons: list[str]) -> Iterator[dict[str, Any]]:
    """Draw conversations by the seed."""
    if options.reason is not None and options.reason not in reasons:
        raise RunFolderError(f"no rule of this run gives the reason {options.reason!r}; there are {', '.join(reasons)}")
    dropped = options.reason is not None or not options.repaired
    paths = [store.refined] if options.kept else [store.rejected] if dropped else [store.refined, store.rejected]
    which = "kept" if options.kept else f"dropped as {options.reason}" if options.reason else "dropped" * dropped
    files = [path(shard) for shard in store.shards() for path in paths]
    condition = pl.lit(value=True) if options.reason is None else pl.col("reason") == options.reason
    if options.repaired:
        condition, which = condition & pl.col("repairs").is_not_null(), f"{which} and repaired".removeprefix(" and ")
    columns = ["id", *["reason"] * (options.reason is not None), *["repairs"] * options.repaired]
    ids = pl.concat(read_frame(path, columns).filter(condition).select("id", file=pl.lit(str(path))) for path in files)
    if ids.is_empty():
        raise RunFolderError(f"{store.folder}: no conversation was {which}")
    drawn = ids.sample(min(options.n, ids.height), seed=options.seed, shuffle=True).sort("id")
    for (file,), some in drawn.group_by(["file"], maintain_order=True):
        yield from read_frame(Path(str(file))).filter(pl.col("id").is_in(some["id"].to_list())).to_dicts()


def _whole(store: Store, identity: str) -> dict[str, Any]:
    """One conversation with its decision and all its signals."""
    plan = planning.load(store.plan)
    for shard in store.shards():
        raw = read_frame(store.measured(shard, plan.trims)).filter(pl.col("id") == identity)
        if raw.is_empty():
            continue
        decision = decisions_of(store, shard).filter(pl.col("id") == identity).to_dicts()[0]
        signals = signals_of(plan, store, shard, list(plan.signals)).filter(pl.col("id") == identity).drop("id")
        fired = [rule.reason for rule in plan.rules if decision.pop(rule.reason)]
        return {**raw.drop("text").to_dicts()[0], **decision, "fired": fired, "signals": signals.to_dicts()[0]}
    for path in sorted(store.quarantine("").glob("*.parquet")):
        if rows := read_frame(path).filter(pl.col("id") == identity).to_dicts():
            raise RunFolderError(
                f"{identity} could not be read: {rows[0]['file']}, row {rows[0]['row']}: {rows[0]['reason']}"
            )
    raise RunFolderError(f"{store.folder} holds no conversation {identity!r}; ids look like {_example(store)}")


def _example(store: Store) -> str:
    ids = [one for shard in store.shards()[:1] for one in read_frame(store.raw(shard), ["id"])["id"].head(1)]
    return ids[0] if ids else "nothing: it is empty"


def _add_partners(store: Store, rows: list[dict[str, Any]]) -> None:
    """Add to each duplicate the conversation kept instead, as `kept`, and the words that differ, as `differences`."""
    partners = _conversations(store, {row["duplicate_of"] for row in rows if row.get("duplicate_of")})
    for row in rows:
        if partner := partners.get(row.get("duplicate_of") or ""):
            row["kept"] = partner
            hunks = _align(_words(row), _words(partner))
            row["differences"] = [{"dropped": " ".join(a), "kept": " ".join(b)} for same, a, b in hunks if not same]


def _conversations(store: Store, ids: set[str]) -> dict[str, dict[str, Any]]:
    """The conversations with these ids; only the shards that hold one are read whole."""
    found: dict[str, dict[str, Any]] = {}
    for shard in store.shards() if ids else []:
        if ids & set(read_frame(store.raw(shard), ["id"])["id"]):
            rows = read_frame(store.raw(shard), ["id", "source", "messages"]).filter(pl.col("id").is_in(sorted(ids)))
            found |= {row["id"]: row for row in rows.to_dicts()}
    return found


def _words(row: dict[str, Any]) -> list[str]:
    return " ".join(message["content"] for message in row["messages"]).split()[:MAX_WORDS]


def _align(dropped: list[str], kept: list[str]) -> list[tuple[bool, list[str], list[str]]]:
    """Runs of words: whether they are the same, those of the dropped conversation and those of the kept one."""
    matcher = difflib.SequenceMatcher(None, dropped, kept, autojunk=False)
    return [(op == "equal", dropped[a:b], kept[c:d]) for op, a, b, c, d in matcher.get_opcodes()]


def _print(out: Console, row: dict[str, Any], cut: int | None) -> None:
    out.print(Text(safe(f"{row['id']}  ({row['source']})"), style="bold"))
    if row.get("reason"):
        rule = f" [{row['rule']}]" if "rule" in row else ""
        out.print(Text(safe(f"dropped: {row['reason']}{rule}"), style="red"))
        if row.get("values"):
            out.print(Text(safe(f"values:  {row['values']}")))
    if "signals" in row:
        if row["fired"]:
            out.print(Text(safe(f"rules that fire: {', '.join(row['fired'])}")))
        values = {k: f"{v:.4g}" if isinstance(v, float) else v for k, v in row["signals"].items()}
        short = ", ".join(f"{k}={v}" for k, v in values.items() if not isinstance(v, list))  # --json has all
        out.print(Text(safe(f"signals: {short}")))
    _print_messages(out, row["messages"], cut)
    for change in row.get("repairs") or ():
        out.print(Text(safe(f"repaired: {change['trim']}, at turn {change['turn']} were:"), style="green"))
        _print_messages(out, json.loads(change["removed"]), cut)
    if row.get("duplicate_of"):
        measure = "jaccard" if row.get("cosine") is None else "cosine"
        out.print(Text(safe(f"kept instead: {row['duplicate_of']} ({measure} {row[measure]:.3f})"), style="green"))
        if "kept" in row:
            _print_messages(out, row["kept"]["messages"], cut)
            out.print(_difference(_words(row), _words(row["kept"])))
    out.print()


def _print_messages(out: Console, messages: Iterable[dict[str, Any]], cut: int | None) -> None:
    for message in messages:
        calls = [
            f"{call['function']['name']} {call['function']['arguments']}" for call in message.get("tool_calls") or ()
        ]
        content = "\n".join([message["content"]] * bool(message["content"] or not calls) + calls)
        more = f" … (+{len(content) - cut:,} characters)" if cut and len(content) > cut else ""
        line = Text(safe(f"  {message['role']}: "), style="cyan")
        out.print(line.append(Text(safe(content[:cut]) + more, style="default")))


def _difference(dropped: list[str], kept: list[str]) -> Text:
    """The differing words in their context: [-dropped-] {+kept+}, as wdiff marks them."""
    hunks = _align(dropped, kept)
    if all(same for same, _, _ in hunks):
        return Text(f"same words{f' in the first {MAX_WORDS:,}' if len(dropped) == MAX_WORDS else ''}")
    line = Text("differing words: ")
    for same, ours, theirs in hunks:
        if same and len(ours) > 2 * CONTEXT:
            line.append(safe(" ".join([*ours[:CONTEXT], "…", *ours[-CONTEXT:]])) + " ")
        elif same:
            line.append(safe(" ".join(ours)) + " ")
        for mark, words, style in (("[-{}-] ", ours, "red"), ("{{+{}+}} ", theirs, "green")):
            if words and not same:
                line.append(mark.format(safe(" ".join(words))), style=style)
    return line
