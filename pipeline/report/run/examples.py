"""Example conversations for the page: a few per clickable cell, truncated, and bounded in total size."""

from collections.abc import Iterator
from typing import Any

import orjson
import polars as pl

from pipeline.report.run.bands import BandedRun, crossing
from pipeline.report.text import short, visible
from stages.files import read_frame

EACH = 2
"""Number of kept, and of dropped, conversations per cell."""
MAX_EXAMPLES = 700
"""Maximum number of examples."""
MAX_BYTES = 1_600_000
"""Maximum size of all examples as JSON, in bytes."""
MAX_MESSAGES = 8
"""Maximum number of messages per example."""
MAX_CHARACTERS = 320
"""Maximum length of a message in characters; of a conversation, four times as many."""
_SEED = 3


def draw(run: BandedRun) -> pl.DataFrame:
    """The rows of the examples: a few per cell, kept and dropped, the same for the same run.

    Every figure draws in the same random order, so that one example serves many cells.
    """
    rows = run.rows.with_row_index("in_row").sort(pl.col("id").hash(_SEED)).with_row_index("in_turn")
    picks: dict[int, None] = {}
    for columns in _cells(run):
        place = pl.col("in_turn").rank("ordinal").over([*columns, "keep"])
        some = rows.filter(pl.all_horizontal(pl.col(columns).is_not_null())).filter(place <= EACH)
        picks |= dict.fromkeys(some["in_row"].to_list())
    for first, second in _rules(run):
        some = rows.filter(pl.col(first) & pl.col(second)).head(EACH)
        picks |= dict.fromkeys(some["in_row"].to_list())
    for i in range(len(run.signals)):
        some = rows.unique([f"in_s{i}", "keep"], keep="first", maintain_order=True)
        picks |= dict.fromkeys(some["in_row"].to_list())
    chosen = list(picks)[:MAX_EXAMPLES]
    twins = run.rows[chosen]["duplicate_of"].drop_nulls()
    kept = rows.filter(pl.col("id").is_in(twins.implode()))["in_row"].to_list()
    chosen = list(dict.fromkeys([*chosen[: MAX_EXAMPLES // 2], *kept[: MAX_EXAMPLES // 4], *chosen]))
    return run.rows[chosen].with_row_index("in_rank").sort("in_shard", maintain_order=True)


def _cells(run: BandedRun) -> Iterator[list[str]]:
    """The columns that identify the cells of a figure, the most informative figures first."""
    yield ["reason"]
    if bands := crossing(run):
        both = [f"in_{band.key}" for band in bands]
        yield both
        yield ["reason", both[0]]
        if run.at_least is not None:
            yield [*both, "in_dup"]
    for key in run.bands:
        yield [f"in_{key}"]


def _rules(run: BandedRun) -> Iterator[tuple[str, str]]:
    names = [f"in_rule{i}" for i in range(len(run.reasons))]
    for i, first in enumerate(names):
        for second in names[: i + 1]:
            yield first, second


def examples(run: BandedRun) -> list[dict[str, Any]]:
    """The examples for the page, in the order of the corpus; the last ranked beyond `MAX_BYTES` are omitted."""
    ranked: list[tuple[int, dict[str, Any]]] = []
    for (shard,), some in draw(run).group_by("in_shard", maintain_order=True):
        path = run.store.raw(f"{shard:05}.parquet")
        texts = read_frame(path, ["id", "messages"]).filter(pl.col("id").is_in(some["id"].implode()))
        messages = dict(texts.iter_rows())
        ranked += [(row["in_rank"], _one(run, row, messages[row["id"]])) for row in some.iter_rows(named=True)]
    left, fitting = MAX_BYTES, []
    for _, one in sorted(ranked, key=lambda pair: pair[0]):
        left -= len(orjson.dumps(one)) + 5 * sum(text.count(c) for _, text, _ in one["messages"] for c in "<>&")
        if left < 0:
            break
        fitting.append(one)
    return sorted(fitting, key=lambda one: str(one["id"]))


def _one(run: BandedRun, row: dict[str, Any], messages: list[dict[str, str]] | None) -> dict[str, Any]:
    reasons = run.reasons
    one = {
        "id": row["id"],
        "source": visible(row["source"], 60),
        "kept": row["keep"],
        "in": _tokens(run, row),
        "values": _values(run, row),
        **_messages(messages),
    }
    if row["reason"]:
        one |= {"reason": row["reason"], "rule": run.plan.rules[reasons.index(row["reason"])].where}
        one["also"] = [name for i, name in enumerate(reasons) if row[f"in_rule{i}"] and name != row["reason"]]
    if row["duplicate_of"]:
        one |= {"duplicate_of": row["duplicate_of"], "jaccard": round(row["jaccard"], 3)}
    return one


def _tokens(run: BandedRun, row: dict[str, Any]) -> list[str]:
    """Everything that a click can select and that is true of this conversation."""
    tokens = [f"{key}:{row[f'in_{key}']}" for key in run.bands]
    tokens += [f"s{i}:{row[f'in_s{i}']}" for i in range(len(run.signals)) if row[f"in_s{i}"] is not None]
    tokens += [f"rule:{i}" for i in range(len(run.reasons)) if row[f"in_rule{i}"]]
    tokens += [f"reason:{run.reasons.index(row['reason'])}"] if row["reason"] else []
    return [*tokens, *(["dup:1"] if row.get("in_dup") else []), "kept" if row["keep"] else "dropped"]


def _values(run: BandedRun, row: dict[str, Any]) -> list[tuple[str, str]]:
    return [(one.name, short(row[one.name])) for one in run.signals[:8] if row[one.name] is not None]


def _messages(messages: list[dict[str, str]] | None) -> dict[str, Any]:
    """Messages of a conversation, truncated: role, text, and the number of omitted characters."""
    parts, left = [], 4 * MAX_CHARACTERS
    for message in (messages or [])[:MAX_MESSAGES]:
        content = message["content"] or ""
        take = min(MAX_CHARACTERS, left)
        if take <= 0:
            break
        left -= min(len(content), take)
        parts.append((visible(message["role"] or "?", 20), visible(content[:take]), max(len(content) - take, 0)))
    return {"messages": parts, "more": len(messages or []) - len(parts)}
