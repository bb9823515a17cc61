"""The manifest: the same bytes read and written, and one sentence for a damaged one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from pipeline import plan as planning
from pipeline.manifest import Counts, HubSplit, Manifest, record
from pipeline.store import RunFolderError, Store
from pipeline.write import ShardCounts, save_decisions
from tests.conftest import Refine, chat

HUB = {"hub": "a/b", "revision": "0123", "config": None, "split": "train"}
TABLE: dict[str, Any] = {
    "refine": "0.1.0",
    "packages": {"polars": "2.1.0", "torch": "not installed"},
    "source": {
        "source": "corpus.jsonl",
        "digest": "0123456789abcdef",
        "shape": "ultrachat",
        "files": [{"name": "corpus.jsonl", "bytes": 12, "blake2b": "0123456789abcdef"}, HUB],
    },
    "plan": {
        "stages": [{"use": "ppl", "digest": "0123456789abcdef", "parameters": {"prune": [0, 0, 1]}, "notes": ["a"]}],
        "rules": [
            {"reason": "short", "where": "n < 5", "because": "ä", "fired": 3, "dropped": 2, "nulls": 1},
            {"reason": "copy", "where": "a pair", "because": "", "fired": 0, "dropped": 0, "nulls": 0},
        ],
        "order": ["n DESC"],
        "left_out": ["toxic"],
    },
    "counts": {
        "ingested": 10,
        "refined": 7,
        "rejected": 2,
        "quarantined": 1,
        "replaced": 0,
        "refined_tokens": 70,
        "rejected_tokens": 4,
        "repaired": 0,
        "redacted": 0,
    },
    "by_rule": {"short": 2, "copy": 0},
    "seconds": {"ingest": 0.5},
    "remarks": {"ppl": ["b"]},
}


def _without(path: tuple[str | int, ...]) -> dict[str, Any]:
    """The table without one of its fields."""
    table: Any = json.loads(json.dumps(TABLE))
    *outer, last = path
    inner = table
    for key in outer:
        inner = inner[key]
    del inner[last]
    result: dict[str, Any] = table
    return result


def test_a_manifest_is_written_as_it_was_read(tmp_path: Path) -> None:
    """Byte for byte, files and splits of the hub alike."""
    store = Store(tmp_path)
    text = json.dumps(TABLE, indent=2, ensure_ascii=False) + "\n"
    store.manifest.write_text(text, encoding="utf-8")
    manifest = Manifest.load(store)
    assert manifest.inputs[1] == HubSplit("a/b", "0123", None, "train")
    assert manifest.summary() == {**TABLE["counts"], "by_rule": {"short": 2, "copy": 0}, "seconds": {"ingest": 0.5}}
    manifest.save(store)
    assert store.manifest.read_text(encoding="utf-8") == text


def test_a_manifest_from_before_there_were_remarks_loads() -> None:
    """It is the one field that was added to the format; a later field is ignored."""
    assert Manifest.from_json({**_without(("remarks",)), "later": 1}).remarks == {}


@pytest.mark.parametrize(
    ("table", "why"),
    [
        ([], "a list, expected an object"),
        ({}, "it lacks 'source'"),
        (_without(("counts", "refined")), "it lacks 'refined'"),
        (_without(("plan", "rules", 0, "dropped")), "it lacks 'dropped'"),
        (_without(("source", "digest")), "it lacks 'digest'"),
        ({**TABLE, "counts": {**TABLE["counts"], "refined": "7"}}, "refined is '7', expected int"),
        ({**TABLE, "counts": {**TABLE["counts"], "refined": True}}, "refined is True, expected int"),
        ({**TABLE, "remarks": [1]}, "items"),
        ({**TABLE, "seconds": 3}, "not iterable"),
    ],
)
def test_a_damaged_manifest_is_one_sentence(tmp_path: Path, table: object, why: str) -> None:
    """It names the file, what is wrong with it, and the command that writes it again."""
    store = Store(tmp_path)
    store.manifest.write_text(json.dumps(table))
    with pytest.raises(RunFolderError, match=why) as caught:
        Manifest.load(store)
    assert str(caught.value).startswith(f"{store.manifest} is damaged (")
    assert str(caught.value).endswith(f"): start `refine decide {tmp_path}` to write it again")


@pytest.mark.parametrize("text", ["", "{", "\x00", '{"a": ' * 100_000])
def test_a_manifest_that_is_not_json_is_one_sentence(tmp_path: Path, text: str) -> None:
    """A file cut short, and one that would exhaust the parser."""
    store = Store(tmp_path)
    store.manifest.write_text(text)
    with pytest.raises(RunFolderError, match=r"manifest.json is damaged \(.*\): start `refine decide .*` to write"):
        Manifest.load(store)


def test_the_manifest_counts_what_each_rule_did(tmp_path: Path) -> None:
    """A rule fires on more than it is the first for, and is unknown for some; tokens are those that were written."""
    plan = planning.load(Path(__file__).with_name("toy.toml"))
    decisions = pl.DataFrame(
        {
            "id": list("abcde"),
            "reason": ["too_short", "too_short", "duplicate", None, "far_too_long"],
            "too_short": [True, True, False, False, False],
            "far_too_long": [True, False, False, False, True],
            "duplicate": [False, False, True, False, False],
        }
    )
    firings = save_decisions(Store(tmp_path), plan.rules, [("0.parquet", decisions[:3]), ("1.parquet", decisions[3:])])
    shards = {**TABLE["source"], "rows": 7, "quarantined": 2, "replaced": 1}
    nulls, written = {"too_short": 1, "far_too_long": 1}, ShardCounts(1, 4, 50, 6, 0)
    made = record(plan, shards, firings, nulls, written=written, seconds={"write": 1.0}, remarks={})
    assert [(rule.reason, rule.fired, rule.dropped, rule.nulls) for rule in made.rules] == [
        ("too_short", 2, 2, 1),
        ("far_too_long", 2, 1, 1),
        ("duplicate", 1, 1, 0),
    ]
    assert made.by_rule == {"too_short": 2, "far_too_long": 1, "duplicate": 1}
    assert made.counts == Counts(7, 1, 4, 2, 1, 50, 6)


def test_decide_writes_a_damaged_manifest_again(refine: Refine, jsonl: Callable[..., Path], tmp_path: Path) -> None:
    """The fix that the sentence names is one; only seconds of measuring are lost."""
    plan = Path(__file__).with_name("toy.toml")
    done = refine("run", jsonl(chat(i) for i in range(20)), "--plan", plan, "--out", "r", "--json")
    assert done.returncode == 0, done.stderr
    path = tmp_path / "r" / "manifest.json"
    good = json.loads(path.read_text())
    path.write_text('{"refine"')
    assert refine("decide", "r").returncode == 0
    again = json.loads(path.read_text())
    assert {**again, "seconds": 0} == {**good, "seconds": 0}
