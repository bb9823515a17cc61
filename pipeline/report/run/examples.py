"""Example conversations for the page: a few per clickable cell, truncated, and bounded in total size."""

from typing import Any

import orjson
import polars as pl

from pipeline.report.run.bands import BandedRun, crossing
from pipeline.report.text import short, visible
from pipeline.rules import KeepBest
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


def _draw(run: BandedRun) -> pl.DataFrame:
    """The rows of the examples: a few per cell, kept and dropped, the same for the same run.

    Every figure draws in the same random order, so that one example serves many cells.
    """
    rows = run.rows.with_row_index("in_row").sort(pl.col("id").hash(seed=3)).with_row_index("in_turn")
    cells = [["reason"]]
    if bands := crossing(run):
        both = [f"in_{band.key}" for band in bands]
        cells += [both, ["reason", both[0]]]
        cells += [[*both, "in_dup"]] if run.at_least is not None else []
    cells += [["reason", "in_planted"]] if "planted" in run.bands else []
    cells += [[f"in_{key}"] for key in run.bands]
    picks: list[int] = []
    for columns in cells:  # the most informative figures first
        place = pl.col("in_turn").rank("ordinal").over([*columns, "keep"])
        picks.extend(rows.drop_nulls(columns).filter(place <= EACH)["in_row"])
    rules = [f"in_rule{i}" for i in range(len(run.reasons))]
    for i, first in enumerate(rules):
        for second in rules[: i + 1]:
            picks.extend(rows.filter(pl.col(first) & pl.col(second)).head(EACH)["in_row"])
    for i in range(len(run.signals)):
        picks.extend(rows.unique([f"in_s{i}", "keep"], keep="first", maintain_order=True)["in_row"])
    chosen = list(dict.fromkeys(picks))[:MAX_EXAMPLES]
    twins = run.rows[chosen]["duplicate_of"].drop_nulls()
    kept = rows.filter(pl.col("id").is_in(twins.implode()))["in_row"].to_list()
    chosen = list(dict.fromkeys([*chosen[: MAX_EXAMPLES // 2], *kept[: MAX_EXAMPLES // 4], *chosen]))
    return run.rows[chosen].with_row_index("in_rank").sort("in_shard", maintain_order=True)


def examples(run: BandedRun) -> list[dict[str, Any]]:
    """The examples for the page, in the order of the corpus; the last ranked beyond `MAX_BYTES` are omitted."""
    ranked: dict[int, dict[str, Any]] = {}
    for (shard,), some in _draw(run).group_by("in_shard", maintain_order=True):
        path = run.store.measured(f"{shard:05}.parquet", run.plan.trims)
        texts = read_frame(path, ["id", "messages"]).filter(pl.col("id").is_in(some["id"].implode()))
        if redaction := run.plan.redaction:
            texts, _ = redaction.frame(texts, ["messages"])
        messages = dict(texts.iter_rows())
        ranked |= {row["in_rank"]: _one(run, row, messages[row["id"]]) for row in some.iter_rows(named=True)}
    left, fitting = MAX_BYTES, []
    for _, one in sorted(ranked.items()):
        left -= len(orjson.dumps(one)) + 5 * sum(text.count(c) for _, text, _ in one["messages"] for c in "<>&")
        if left < 0:
            break
        fitting.append(one)
    return sorted(fitting, key=lambda one: str(one["id"]))


def _one(run: BandedRun, row: dict[str, Any], messages: list[dict[str, str]] | None) -> dict[str, Any]:
    reasons = run.reasons
    fired = [i for i in range(len(reasons)) if row[f"in_rule{i}"]]
    picks = [f"{key}:{row[f'in_{key}']}" for key in run.bands]
    picks += [f"s{i}:{row[f'in_s{i}']}" for i in range(len(run.signals)) if row[f"in_s{i}"] is not None]
    picks += [f"rule:{i}" for i in fired]
    one = {
        "id": row["id"],
        "source": visible(row["source"], 60),
        "kept": row["keep"],
        "in": picks,
        "values": [
            (signal.name, short(row[signal.name])) for signal in run.signals[:8] if row[signal.name] is not None
        ],
        **_messages(messages),
    }
    if row["reason"]:
        number = reasons.index(row["reason"])
        picks.append(f"reason:{number}")
        one |= {"reason": row["reason"], "rule": run.plan.rules[number].where}
        one["also"] = [reasons[i] for i in fired if i != number]
    if row["duplicate_of"]:
        rule = next(rule for rule in run.plan.rules if rule.reason == row["reason"])
        assert isinstance(rule, KeepBest)  # noqa: S101  only these name a duplicate
        alike = f"{rule.measure} {round(row[rule.column], 3)}"
        one |= {"duplicate_of": row["duplicate_of"], "alike": alike}
    picks += ["dup:1"] if row.get("in_dup") else []
    picks.append("kept" if row["keep"] else "dropped")
    return one


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
