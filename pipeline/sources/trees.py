"""Tables of messages in which each row names its parent, as in OASST: every path from a root is a conversation."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

from pipeline.sources.messages import as_json
from pipeline.sources.rows import Row, Unreadable

Nodes = dict[Any, Row]


def conversations(rows: Iterable[Row], *, best: bool) -> Iterator[Row]:
    """Rows of conversations, each numbered by its last message, in the order of the table, which is held in memory.

    A conversation is the path from a root to a message without a reply or, if `best`, to the best-ranked reply of the
    best-ranked reply, one per root. `Row.parts` are the rows of its messages. A message that cannot be read, or that no
    root leads to, is `Unreadable`.
    """
    nodes: Nodes = {}
    for row in rows:
        name = row.value.get("message_id") if isinstance(row.value, dict) else None
        if not isinstance(name, str | int) or name in nodes:
            fault = "the row has no message_id" if name is None else f"message_id {str(name)[:100]!r} occurs twice"
            yield row if isinstance(row.value, Unreadable) else _unreadable(row, fault)
        else:
            nodes[name] = row
    replies: dict[Any, list[Any]] = defaultdict(list)
    for name, row in nodes.items():
        replies[_parent(row)].append(name)
    reachable = _below(replies, None)
    reached = set(reachable)
    for name in (name for name in nodes if name not in reached):
        yield _unreadable(nodes[name], "no root leads to the message: its parent_id names no message of this table")
    ends = (
        [_best(nodes, replies, root) for root in replies[None]] if best else [n for n in reachable if n not in replies]
    )
    for end in sorted(ends, key=lambda name: nodes[name].number):
        yield _conversation(_path(nodes, end))


def _parent(row: Row) -> Any:  # noqa: ANN401  any JSON
    parent = row.value.get("parent_id")
    return parent if isinstance(parent, str | int) and parent != "" else None


def _below(replies: dict[Any, list[Any]], root: object) -> list[Any]:
    reached, left = [], list(replies.get(root, ()))
    while left:
        reached.append(left.pop())
        left += replies.get(reached[-1], ())
    return reached


def _best(nodes: Nodes, replies: dict[Any, list[Any]], name: object) -> Any:  # noqa: ANN401  a message_id
    def rank(reply: object) -> tuple[bool, float]:
        value = nodes[reply].value.get("rank")
        return (False, value) if isinstance(value, int | float) else (True, 0.0)

    while below := replies.get(name):
        name = min(below, key=rank)
    return name


def _path(nodes: Nodes, name: object) -> list[Row]:
    path = []
    while name is not None:
        path.append(nodes[name])
        name = _parent(nodes[name])
    return path[::-1]


def _conversation(path: list[Row]) -> Row:
    last = path[-1]
    messages = [{"role": row.value.get("role"), "content": row.value.get("text"), **_others(row.value)} for row in path]
    record = {"id": str(last.value["message_id"]), "messages": messages}
    numbers = tuple(row.number for row in path)
    return Row(last.file, last.number, record, any(row.replaced for row in path), numbers)


def _others(message: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in message.items() if name not in {"role", "text"}}


def _unreadable(row: Row, why: str) -> Row:
    return row._replace(value=Unreadable(why, as_json(row.value)))
