"""Conversations that the page shows: a few of each cell that can be clicked, cut, and bounded in bytes all together."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import orjson
import polars as pl

from pipeline.report.run.bands import BandedRun, crossing
from pipeline.report.text import short, visible
from stages.files import read_frame

EACH = 2
"""Kept, and dropped, conversations of each cell."""
MOST = 700
BYTES = 1_600_000
"""All examples together, as JSON."""
MESSAGES = 8
CUT = 320
"""Characters of a message; of a conversation four times as many."""
_SEED = 3


def drawn(sorted_: BandedRun) -> pl.DataFrame:
    """The rows of the examples: a few of each cell, kept and dropped, the same for the same run.

    One order of all conversations, drawn by seed, serves every figure, so that one example stands in many cells.
    """
    rows = sorted_.rows.with_row_index("in_row").sort(pl.col("id").hash(_SEED)).with_row_index("in_turn")
    found: dict[int, None] = {}
    for columns in _cells(sorted_):
        place = pl.col("in_turn").rank("ordinal").over([*columns, "keep"])
        some = rows.filter(pl.all_horizontal(pl.col(columns).is_not_null())).filter(place <= EACH)
        found |= dict.fromkeys(some["in_row"].to_list())
    for first, second in _rules(sorted_):
        some = rows.filter(pl.col(first) & pl.col(second)).head(EACH)
        found |= dict.fromkeys(some["in_row"].to_list())
    for i in range(len(sorted_.run.signals)):
        some = rows.unique([f"in_s{i}", "keep"], keep="first", maintain_order=True)
        found |= dict.fromkeys(some["in_row"].to_list())
    chosen = list(found)[:MOST]
    twins = sorted_.rows[chosen]["duplicate_of"].drop_nulls()
    kept = rows.filter(pl.col("id").is_in(twins.implode()))["in_row"].to_list()
    chosen = list(dict.fromkeys([*chosen[: MOST // 2], *kept[: MOST // 4], *chosen]))
    return sorted_.rows[chosen].with_row_index("in_rank").sort("in_shard", maintain_order=True)


def _cells(sorted_: BandedRun) -> Iterator[list[str]]:
    """The columns whose values name the cells of a figure, the most telling figures first."""
    yield ["reason"]
    if bands := crossing(sorted_):
        both = [f"in_{band.key}" for band in bands]
        yield both
        yield ["reason", both[0]]
        if sorted_.at_least is not None:
            yield [*both, "in_dup"]
    for key in sorted_.bands:
        yield [f"in_{key}"]


def _rules(sorted_: BandedRun) -> Iterator[tuple[str, str]]:
    names = [f"in_rule{i}" for i in range(len(sorted_.run.reasons))]
    for i, first in enumerate(names):
        for second in names[: i + 1]:
            yield first, second


def examples(sorted_: BandedRun) -> list[dict[str, Any]]:
    """The examples as the page reads them, in the order of the corpus.

    Where their JSON would be more than `BYTES` the least telling ones are left out.
    """
    found: list[tuple[int, dict[str, Any]]] = []
    for (shard,), some in drawn(sorted_).group_by("in_shard", maintain_order=True):
        path = sorted_.run.store.raw(f"{shard:05}.parquet")
        texts = read_frame(path, ["id", "messages"]).filter(pl.col("id").is_in(some["id"].implode()))
        messages = dict(texts.iter_rows())
        found += [(row["in_rank"], _one(sorted_, row, messages[row["id"]])) for row in some.iter_rows(named=True)]
    left, told = BYTES, []
    for _, one in sorted(found, key=lambda ranked: ranked[0]):
        left -= len(orjson.dumps(one)) + 5 * sum(said.count(c) for _, said, _ in one["messages"] for c in "<>&")
        if left < 0:
            break
        told.append(one)
    return sorted(told, key=lambda one: str(one["id"]))


def _one(sorted_: BandedRun, row: dict[str, Any], messages: list[dict[str, str]] | None) -> dict[str, Any]:
    """One example."""
    reasons = sorted_.run.reasons
    one = {
        "id": row["id"],
        "source": visible(row["source"], 60),
        "kept": row["keep"],
        "in": _tokens(sorted_, row),
        "values": _values(sorted_, row),
        **_told(messages),
    }
    if row["reason"]:
        one |= {"reason": row["reason"], "rule": sorted_.run.plan.rules[reasons.index(row["reason"])].where}
        one["also"] = [name for i, name in enumerate(reasons) if row[f"in_rule{i}"] and name != row["reason"]]
    if row["duplicate_of"]:
        one |= {"duplicate_of": row["duplicate_of"], "jaccard": round(row["jaccard"], 3)}
    return one


def _tokens(sorted_: BandedRun, row: dict[str, Any]) -> list[str]:
    """Everything that a click can ask for and that is true of this conversation."""
    run = sorted_.run
    said = [f"{key}:{row[f'in_{key}']}" for key in sorted_.bands]
    said += [f"s{i}:{row[f'in_s{i}']}" for i in range(len(run.signals)) if row[f"in_s{i}"] is not None]
    said += [f"rule:{i}" for i in range(len(run.reasons)) if row[f"in_rule{i}"]]
    said += [f"reason:{run.reasons.index(row['reason'])}"] if row["reason"] else []
    return [*said, *(["dup:1"] if row.get("in_dup") else []), "kept" if row["keep"] else "dropped"]


def _values(sorted_: BandedRun, row: dict[str, Any]) -> list[tuple[str, str]]:
    """The most telling signals."""
    return [(one.name, short(row[one.name])) for one in sorted_.run.signals[:8] if row[one.name] is not None]


def _told(messages: list[dict[str, str]] | None) -> dict[str, Any]:
    """Messages of a conversation, cut: role, text, and how many characters are left out."""
    said, left = [], 4 * CUT
    for message in (messages or [])[:MESSAGES]:
        content = message["content"] or ""
        take = min(CUT, left)
        if take <= 0:
            break
        left -= min(len(content), take)
        said.append((visible(message["role"] or "?", 20), visible(content[:take]), max(len(content) - take, 0)))
    return {"messages": said, "more": len(messages or []) - len(said)}
