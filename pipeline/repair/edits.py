"""The edits of a repair: which conversations change is found by columns, and a loop changes these.

It loops over them because each one changes in its own way.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import polars as pl

from pipeline.sources.fields import loads
from pipeline.sources.messages import as_json
from pipeline.sources.shapes import prompt_id
from stages.heuristics.turns import ASSISTANT, USER, stops_short
from stages.text.messages import spoken

CHANGES = pl.List(pl.Struct({"trim": pl.String, "turn": pl.Int64, "removed": pl.String, "now": pl.Int64}))
"""Type of the column `repairs`: the changes of a conversation in order, null if there is none. A change has put `now`
messages, none or one, at `turn`, counted from 0, in place of those in `removed`, a JSON list with all their fields."""

Row = dict[str, Any]


def restore(messages: Sequence[Row], changes: Iterable[Mapping[str, Any]]) -> list[Row]:
    """The messages as they came, from those of a repaired conversation and its changes."""
    original = list(messages)
    for change in reversed(list(changes)):
        turn = change["turn"]
        original[turn : turn + change["now"]] = json.loads(change["removed"])
    return original


def repaired(raw: pl.DataFrame, trims: Sequence[str]) -> pl.DataFrame:
    """A raw shard with these repairs made, and the column `repairs`; rows in the same order."""
    frame = raw.with_columns(repairs=pl.lit(None, CHANGES))
    if "empty" in trims:
        frame = _without_empty(frame)
    ends = [trim for trim in trims if trim != "empty"]
    return _trimmed(frame, ends) if ends else frame


def _without_empty(frame: pl.DataFrame) -> pl.DataFrame:
    """The frame without empty turns; see `pipeline.plan.TRIMS`."""
    turns = spoken(frame).with_columns(
        plain=pl.all_horizontal(pl.col("reasoning", "calls").is_null(), pl.col("media") == 0),
        empty=pl.col("role").is_in([USER, ASSISTANT])
        & (pl.col("content").str.strip_chars() == "")
        & pl.col("calls").is_null()
        & (pl.col("media") == 0),
    )
    some = turns.group_by("row", maintain_order=True).agg("role", "plain", "empty").filter(pl.col("empty").list.any())
    return _replaced(frame, some, _drop_empty)


def _drop_empty(row: Row, turns: Row) -> Row | None:
    """A conversation without its empty turns, or None if no reply to a user would remain."""
    messages, details = row["messages"], row.get("details") or [None] * len(row["messages"])
    groups: list[list[int]] = []  # each becomes one message; a group of empty turns alone becomes none
    pending: list[int] = []
    for at, (role, empty) in enumerate(zip(turns["role"], turns["empty"], strict=True)):
        if empty:
            pending.append(at)
            continue
        last = groups[-1][-1] if groups else at
        joins = pending and groups and turns["role"][last] == role and not (details[last] or details[at])
        if joins and turns["plain"][last] and turns["plain"][at]:
            groups[-1] += [*pending, at]
        else:
            groups += [pending, [at]] if pending else [[at]]
        pending = []
    groups += [pending] if pending else []
    kept = [[at for at in group if not turns["empty"][at]] for group in groups]
    if not _answered([turns["role"][ats[0]] for ats in kept if ats]):
        return None
    changes, place = [], 0
    for group, ats in zip(groups, kept, strict=True):
        if len(group) > 1 or not ats:
            changes.append(_change("empty", place, [(messages[at], details[at]) for at in group], int(bool(ats))))
        place += bool(ats)
    first = [ats[0] for ats in kept if ats]
    said = ["\n".join(messages[at]["content"] for at in ats) for ats in kept if ats]
    new = [{**messages[at], "content": content} for at, content in zip(first, said, strict=True)]
    return _with(row, new, [details[at] for at in first], changes)


def _trimmed(frame: pl.DataFrame, trims: Sequence[str]) -> pl.DataFrame:
    """The frame with the ends of its conversations trimmed; see `pipeline.plan.TRIMS`."""
    reply, role, content = pl.col("role") == ASSISTANT, pl.col("role"), pl.col("content")
    left = reply.cast(pl.Int64).cum_sum(reverse=True).over("row")  # replies from here to the end
    turns = spoken(frame).with_columns(
        said=reply & pl.col("calls").is_null() & (content.str.strip_chars() != ""),
        last=reply & (left == 1),
        unanswered=("unanswered" in trims) & reply.any().over("row") & ((left == 0) & (role == USER)).any().over("row"),
        ends=((left == 0).any().over("row")).not_(),
        cut=pl.lit(value=False),
    )
    if "truncated" in trims:
        turns = _cut(turns, pl.col("last") & (pl.col("ends") | pl.col("unanswered")))
        turns = _cut(turns, pl.col("cut").any().over("row"))  # the replies before a cut one may be cut as well
    changes = pl.col("unanswered").any() | pl.col("cut").any()
    some = turns.group_by("row", maintain_order=True).agg("role", "cut", changes=changes).filter("changes")
    return _replaced(frame, some, partial(_trim, trims=trims))


def _cut(turns: pl.DataFrame, among: pl.Expr) -> pl.DataFrame:
    """The messages with `cut`: whether a reply among these stops short, as the signal `truncated_last` has it."""
    at = turns.select(among & pl.col("said")).to_series().arg_true()
    return turns.with_columns(turns["cut"].scatter(at, stops_short(turns["content"].gather(at))))


def _trim(row: Row, turns: Row, trims: Sequence[str]) -> Row | None:
    """A conversation trimmed until its end is sound, or until no reply to a user would remain; None if unchanged."""
    roles, cut, details = turns["role"], turns["cut"], row.get("details") or [None] * len(turns["role"])
    replies = [at for at, role in enumerate(roles) if role == ASSISTANT]
    asked = roles.index(USER) if USER in roles else len(roles)
    answered = next((at for at in replies if at > asked), len(roles))
    changes, end = [], len(roles)
    while replies:
        last = replies[-1]
        if last == end - 1 and cut[last]:
            trim, to = "truncated", replies[-2] + 1 if len(replies) > 1 else 0
            replies.pop()
        elif "unanswered" in trims and USER in roles[last + 1 : end]:
            trim, to = "unanswered", last + 1
        else:
            break
        if to <= answered:
            break
        changes.append(_change(trim, to, zip(row["messages"][to:end], details[to:end], strict=True), 0))
        end = to
    return _with(row, row["messages"][:end], details[:end], changes) if changes else None


def _answered(roles: Sequence[str]) -> bool:
    """Whether there is a reply to a user."""
    return USER in roles and ASSISTANT in roles[roles.index(USER) :]


def _change(trim: str, turn: int, removed: Iterable[tuple[Row, Row | None]], now: int) -> Row:
    whole = [{**message, **(loads(detail["fields"]) if detail else {})} for message, detail in removed]
    return {"trim": trim, "turn": turn, "removed": as_json(whole), "now": now}


def _with(row: Row, messages: list[Row], details: list[Row | None], changes: list[Row]) -> Row:
    """A conversation with other messages; its prompt follows, if it is the first message of a user."""
    before, after = (
        next((one["content"] for one in some if one["role"] == USER), "") for some in (row["messages"], messages)
    )
    new: Row = {"messages": messages, "text": "\n".join(one["content"] for one in messages)}
    if "details" in row:
        new["details"] = details if any(details) else None
    if row["prompt"] == before != after:
        own = row["prompt_id"] != prompt_id(before)
        new |= {"prompt": after, "prompt_id": row["prompt_id"] if own else prompt_id(after)}
    return {**row, **new, "repairs": [*(row["repairs"] or ()), *changes]}


def _replaced(frame: pl.DataFrame, some: pl.DataFrame, edit: Callable[[Row, Row], Row | None]) -> pl.DataFrame:
    """The frame with some rows edited; `some` has their number `row` and what the edit needs of their messages."""
    turns = some.iter_rows(named=True)
    edited = {of["row"]: edit(row, of) for row, of in zip(frame[some["row"]].iter_rows(named=True), turns, strict=True)}
    edited = {at: row for at, row in edited.items() if row is not None}
    others = frame.with_row_index("at").filter(~pl.col("at").is_in(list(edited)))
    own = pl.DataFrame(list(edited.values()), frame.schema, orient="row").insert_column(
        0, pl.Series("at", list(edited), pl.UInt32)
    )
    return pl.concat([others, own]).sort("at").drop("at")
