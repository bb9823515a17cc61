"""Common passages equal those of a comparison of every window with every other."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.files import read_frame, save_frame
from stages.overlap.substrings import Merge, Substrings
from stages.stage import StageParameterError
from stages.text.shards import Shards
from tests import strategies
from tests.stages.dedup_reference import words

Made = list[list[dict[str, str]]]


def signals(stage: Substrings, made: Made, folder: Path, parts: int = 1, at_once: int = 1 << 25) -> pl.DataFrame:
    """The stage's signals of conversations in shards."""
    whole = strategies.raw(made)
    size, raw = -(-len(made) // parts), []
    for i in range(parts):
        raw.append(folder / "raw" / f"{i:05}.parquet")
        save_frame(raw[-1], shard := whole[i * size : (i + 1) * size])
        measured = shard.select("id").hstack(stage.measure(shard.select(stage.reads)))
        save_frame(folder / raw[-1].name, measured)
    Merge(Shards.of(raw, [folder / path.name for path in raw]), stage.span, at_once).write(folder)
    assert sorted(path.name for path in folder.iterdir() if not path.suffix) == ["merged", "raw"]
    return pl.concat([read_frame(folder / "merged" / path.name) for path in raw]).drop("id")


def reference(made: Made, span: int) -> list[dict[str, Any]]:
    """An independent slow reference, over the words themselves."""
    texts = [words("\n".join(m["content"] for m in row if m["role"] != "system")) for row in made]
    windows = [[tuple(text[i : i + span]) for i in range(len(text) - span + 1)] for text in texts]
    owners: defaultdict[tuple[str, ...], list[int]] = defaultdict(list)
    for row, here in enumerate(windows):
        for window in set(here):
            owners[window].append(row)
    return [_row(row, text, here, owners, span) for row, (text, here) in enumerate(zip(texts, windows, strict=True))]


def _row(row: int, text: list[str], windows: list[tuple[str, ...]], owners: Any, span: int) -> dict[str, Any]:
    shared = [i for i, window in enumerate(windows) if len(owners[window]) > 1]
    earlier = [i for i in shared if owners[windows[i]][0] < row]
    longest = max(stretches := _stretches(earlier), default=None, key=len)
    return {
        "dup_span_share": len({p for i in shared for p in range(i, i + span)}) / len(text) if text else None,
        "dup_span_earlier": len({p for i in earlier for p in range(i, i + span)}) / len(text) if text else None,
        "dup_span_words": max((len(one) + span - 1 for one in _stretches(shared)), default=0),
        "dup_span_copies": max((len(owners[window]) for window in windows), default=1),
        "dup_span_of": f"test-{owners[windows[longest[0]]][0]:09d}" if stretches and longest else None,
    }


def _stretches(positions: list[int]) -> list[list[int]]:
    """Runs of consecutive positions."""
    runs: list[list[int]] = []
    for at in positions:
        if runs and runs[-1][-1] == at - 1:
            runs[-1].append(at)
        else:
            runs.append([at])
    return runs


few = st.lists(st.sampled_from(["a", "B,", "a b", "b a b", "天气", "c", "a b c a"]), max_size=8).map(" ".join)
turn = st.fixed_dictionaries({"role": st.sampled_from(["assistant", "user", "system"]), "content": few})


@settings(max_examples=30, deadline=None)
@given(
    made=st.lists(st.lists(turn, max_size=4), min_size=1, max_size=10),
    span=st.integers(2, 7),
    parts=st.integers(1, 3),
    at_once=st.sampled_from([1, 5, 1 << 25]),
)
def test_spans_are_those_of_brute_force(
    made: Made, span: int, parts: int, at_once: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Over any shards and partitions: shares, longest stretch, copies, and the first copy."""
    found = signals(Substrings(span), made, tmp_path_factory.mktemp("spans"), parts, at_once)
    assert found.equals(pl.DataFrame(reference(made, span), schema=found.schema))


def test_a_span_of_fifty_words_counts_and_one_of_forty_nine_does_not(tmp_path: Path) -> None:
    """The boundary of Lee et al., in texts that are otherwise different, across messages and case."""
    common = [f"word{i}" for i in range(50)]
    made = [
        [{"role": "user", "content": " ".join(["one", *common, "end"])}],
        [{"role": "user", "content": " ".join(common[:20]).upper()}, {"role": "x", "content": "\n".join(common[20:])}],
        [{"role": "user", "content": " ".join(["three", *common[:49], "stop", *(f"w{i}" for i in range(50))])}],
    ]
    found = signals(Substrings(), made, tmp_path)
    assert found["dup_span_words"].to_list() == [50, 50, 0]
    assert found["dup_span_earlier"].to_list() == [0, 1, 0]
    assert found["dup_span_of"].to_list() == [None, "test-000000000", None]


def test_a_system_prompt_is_no_passage_in_common(tmp_path: Path) -> None:
    """A corpus repeats it on purpose."""
    system = {"role": "system", "content": " ".join(f"rule{i}" for i in range(80))}
    made = [[system, {"role": "user", "content": f"Question number {i}."}] for i in range(3)]
    assert signals(Substrings(), made, tmp_path)["dup_span_share"].to_list() == [0, 0, 0]


def test_real_conversations_agree_with_brute_force(shared: Path, tmp_path: Path) -> None:
    """Spans of 50 words in arena prompts with two answers each and in OpenAssistant's branching trees."""
    made = []
    for name in ("arena1k", "oasst_100trees"):
        made += pl.read_parquet(shared / "chat" / f"{name}.parquet")["messages"].to_list()[:300]
    found = signals(Substrings(), made, tmp_path, 3)
    assert found.equals(pl.DataFrame(reference(made, 50), schema=found.schema))
    assert (found["dup_span_share"] > 0.5).sum() > 100


def test_a_span_has_a_half() -> None:
    """A span of one word is refused."""
    with pytest.raises(StageParameterError, match="substrings: span is 1, expected at least 2 words"):
        Substrings(1)


def test_what_a_killed_merge_left_does_no_harm(tmp_path: Path) -> None:
    """Scratch files of another merge are removed first, not read."""
    made = [[{"role": "user", "content": "a b c"}], [{"role": "user", "content": "x a b c"}]]
    (tmp_path / ".windows.1.scratch").mkdir()
    (tmp_path / ".windows.1.scratch" / "0").write_bytes(bytes(64))
    assert signals(Substrings(2), made, tmp_path)["dup_span_share"].to_list() == [1, 0.75]
    assert not (tmp_path / ".windows.1.scratch").exists()
