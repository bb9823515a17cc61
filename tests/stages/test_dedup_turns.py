"""Near-duplicates say the same in each turn: by a slow reference, at the boundaries, and on copies with edits."""

from __future__ import annotations

import random
from itertools import zip_longest
from pathlib import Path
from tempfile import TemporaryDirectory

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.api.run import run as refined
from stages.dedup import Dedup
from stages.dedup.turns import SLACK
from tests.stages.dedup_reference import Run, run, words

Conversation = list[tuple[str, str]]


def text(conversation: Conversation) -> str:
    return "\n".join(content for _, content in conversation)


def merged(folder: Path, conversations: list[Conversation], stage: Dedup | None = None) -> Run:
    said = [[{"role": role, "content": content} for role, content in one] for one in conversations]
    return run(folder, [text(one) for one in conversations], stage, shards=2, conversations=said)


def same(first: Conversation, second: Conversation, least: float = 0.75) -> bool:
    """Whether no turn is another, by lists and sets."""
    ours, theirs = (
        [said for role, content in one if role != "system" and (said := words(content))] for one in (first, second)
    )
    total = max(sum(map(len, ours)), sum(map(len, theirs)))
    if len(ours) <= 1 and len(theirs) <= 1:
        return True
    while ours and theirs and ours[0] == theirs[0]:
        ours, theirs = ours[1:], theirs[1:]
    while ours and theirs and ours[-1] == theirs[-1]:
        ours, theirs = ours[:-1], theirs[:-1]
    for one, other in zip_longest(map(set, ours), map(set, theirs), fillvalue=set[str]()):
        differ = max(len(one - other), len(other - one))
        if differ > SLACK * total and len(one & other) < least * len(one | other):
            return False
    return True


WORDS = [f"w{i}" for i in range(30)]


def corpus(seed: int) -> list[Conversation]:
    """Conversations, and copies of them in which words, turns and roles are changed."""
    draw = random.Random(seed)
    made: list[Conversation] = []
    for _ in range(4):
        lengths = [draw.choice([0, 1, 2, 5, 40]) for _ in range(draw.randint(1, 5))]
        first = [(("user", "assistant")[i % 2], " ".join(draw.choices(WORDS, k=n))) for i, n in enumerate(lengths)]
        made.append(first)
        for _ in range(4):
            copy = [(role, content.split()) for role, content in first]
            for _ in range(draw.randint(1, 3)):
                _, content = draw.choice(copy)
                if content:
                    content[draw.randrange(len(content))] = draw.choice(WORDS)
            if draw.random() < 0.3:
                copy.insert(draw.randrange(len(copy) + 1), (draw.choice(["user", "system"]), draw.choices(WORDS, k=2)))
            made.append([(role, " ".join(content)) for role, content in copy])
    return made


@settings(max_examples=8)
@given(st.integers(0, 1 << 30))
def test_pairs_with_another_turn_are_those_of_a_slow_reference(seed: int) -> None:
    """What is not written are the pairs with another turn; clusters and all other signals are as without the turns."""
    made = corpus(seed)
    with TemporaryDirectory() as name:
        every = merged(Path(name) / "every", made, Dedup(turn_jaccard=0.0))
        some = merged(Path(name) / "some", made)
    alike = {pair: value for pair, value in every.pairs().items() if same(made[pair[0]], made[pair[1]])}
    assert some.pairs() == alike
    assert some.merged.equals(every.merged)
    assert some.summary["pairs_with_another_turn"] == len(every.near) - len(some.near)


REPLY = "I am a language model named Vicuna, and I was trained by researchers from the organization LMSYS."
LONG = " ".join(f"word{i}" for i in range(200))


@pytest.mark.parametrize(
    ("first", "second", "written"),
    [
        (
            [("user", "Who are you?"), ("assistant", REPLY)],
            [("user", "Tell me about you."), ("assistant", REPLY)],
            False,
        ),
        (
            [("user", "Who are you?"), ("assistant", REPLY)],
            [("user", "who are you"), ("assistant", f"Well, {REPLY}")],
            True,
        ),
        ([("user", f"Who are you? {REPLY}")], [("user", f"Tell me about you. {REPLY}")], True),  # one turn
        ([("text", f"Who are you? {REPLY}")], [("text", f"Tell me about you. {REPLY}")], True),
        ([("user", LONG), ("assistant", "yes it is")], [("user", LONG), ("assistant", "no it never was")], True),  # 2 %
        ([("user", LONG), ("assistant", "a b c d e")], [("user", LONG), ("assistant", "f g h i j")], False),
        ([("user", LONG), ("assistant", "a b c d")], [("user", LONG), ("assistant", "f g h i")], True),
        ([("user", f"a b c {REPLY}"), ("user", "x")], [("user", f"a d c {REPLY}"), ("user", "x")], True),  # a quarter
        ([("user", "a b c d"), ("user", REPLY)], [("user", "a b c"), ("user", REPLY)], True),  # exactly 0.75
        ([("user", "a b c e"), ("user", REPLY)], [("user", "a b c d"), ("user", REPLY)], False),  # 0.6
        ([("system", "Be kind."), ("user", "Hi"), ("assistant", REPLY)], [("user", "Hi"), ("assistant", REPLY)], True),
        (
            [("user", "Hi you"), ("assistant", REPLY)],
            [("user", "?"), ("user", "Hi you"), ("assistant", f"Yes: {REPLY}")],
            True,
        ),
        ([("user", REPLY), ("user", "Bye for now")], [("user", REPLY)], False),
    ],
)
def test_where_the_difference_lies(first: Conversation, second: Conversation, written: bool, tmp_path: Path) -> None:
    """Another question in a short text is another conversation, whatever the Jaccard of the whole; edits are not."""
    assert bool(merged(tmp_path, [first, second]).pairs()) is written
    assert same(first, second) is written


def test_scattered_edits_of_a_long_conversation_are_found(tmp_path: Path) -> None:
    """Of copies in which 3 % of the words are replaced, wherever they are, none is lost; turns may be short."""
    draw = random.Random(5)
    made: list[Conversation] = []
    for i in range(60):
        said = [[f"c{i}w{draw.randrange(999)}" for _ in range(draw.choice([2, 3, 6, 25]))] for _ in range(24)]
        copy = [list(turn) for turn in said]
        for _ in range(sum(map(len, said)) // 35):
            turn = draw.choices(copy, weights=[len(one) for one in copy])[0]
            turn[draw.randrange(len(turn))] = f"other{draw.randrange(99)}"
        made += [[("user", " ".join(turn)) for turn in one] for one in (said, copy)]
    found = merged(tmp_path, made)
    assert found.summary["pairs_with_another_turn"] == 0
    assert len(found.pairs()) >= 58  # the chance that a pair at 0.75 is compared is 0.999


def test_calls_are_a_turn(tmp_path: Path) -> None:
    """Another argument of a call is another turn."""
    said = "Book a table at the quiet place by the river for the four of us at eight please, thank you so much"
    records = []
    for city in ("Porto", "Lisbon"):
        call = {"type": "function", "function": {"name": "book", "arguments": f'{{"city": "{city}"}}'}}
        reply = {"role": "assistant", "content": "", "tool_calls": [call]}
        records.append({"messages": [{"role": "user", "content": said}, reply]})
    pl.DataFrame(records).write_ndjson(tmp_path / "calls.jsonl")
    found = {}
    for least in (0.0, 0.75):
        plan = tmp_path / f"{least}.toml"
        plan.write_text(f'[[stage]]\nuse = "dedup"\nturn_jaccard = {least}\n')
        made = refined(tmp_path / "calls.jsonl", plan=plan, out=tmp_path / f"run{least}")
        (file,) = made.path.glob("signals/dedup-*/dedup.parquet")
        found[least] = len(pl.read_parquet(file))
    assert found == {0.0: 1, 0.75: 0}
