"""Ingest: any source becomes raw shards; a row that cannot be read is not lost and does not end the run."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import zstandard

from pipeline import ingest as ingesting
from pipeline import sources
from pipeline.ingest import Limits, ingest
from pipeline.sources import SourceError
from pipeline.sources.rows import row_id
from pipeline.store import RunFolderError, Store, read_json
from stages.stage import RAW
from tests.conftest import chat, read_shards

Jsonl = Callable[..., Path]


def take(source: object, out: Path, **limits: Any) -> pl.DataFrame:
    """Ingest a source and read its raw shards."""
    found = (
        source if not isinstance(source, str | Path | None) else sources.find(None if source is None else str(source))
    )
    ingest(found, Store(out), Limits(**limits))  # type: ignore[arg-type]  # any Source
    return read_shards(out / "raw")


def quarantined(out: Path) -> list[dict[str, Any]]:
    return pl.read_parquet(out / "quarantine" / "*.parquet").to_dicts()


HELLO = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi there"}]

SHAPES: dict[str, tuple[dict[str, Any], str]] = {
    "ultrachat": ({"prompt": "Hello", "prompt_id": "p", "messages": HELLO}, "p"),
    "openai": ({"messages": HELLO}, "185f8db32271fe25f561a6fc938b2e264306ec304eda518007d1764826381969"),
    "sharegpt": (
        {"id": "s1", "conversations": [{"from": "human", "value": "Hello"}, {"from": "gpt", "value": "Hi there"}]},
        "185f8db32271fe25f561a6fc938b2e264306ec304eda518007d1764826381969",
    ),
    "ultrachat-original": (
        {"id": "0", "data": ["Hello", "Hi there"]},
        "185f8db32271fe25f561a6fc938b2e264306ec304eda518007d1764826381969",
    ),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_becomes_the_same_conversation(jsonl: Jsonl, tmp_path: Path, shape: str) -> None:
    """The four chat shapes give the same messages, prompt and text; a missing prompt_id is the prompt's SHA-256."""
    record, prompt_id = SHAPES[shape]
    raw = take(jsonl([record]), tmp_path / "r")
    assert raw.schema == RAW
    row = raw.to_dicts()[0]
    assert (row["messages"], row["prompt"], row["text"]) == (HELLO, "Hello", "Hello\nHi there")
    assert row["prompt_id"] == prompt_id
    assert row["source_id"] == record.get("id")
    assert read_json(tmp_path / "r" / "raw" / "shards.json")["shape"] == shape


def test_a_plain_text_is_one_message_of_role_text(jsonl: Jsonl, tmp_path: Path) -> None:
    """A document has no speakers."""
    row = take(jsonl([{"text": "Once upon a time", "url": "u", "stars": 3}]), tmp_path / "r").to_dicts()[0]
    assert row["messages"] == [{"role": "text", "content": "Once upon a time"}]
    assert row["text"] == "Once upon a time"
    assert json.loads(row["extra"]) == {"url": "u", "stars": 3}


def test_every_container_gives_the_same_rows(jsonl: Jsonl, tmp_path: Path) -> None:
    """Parquet, Arrow, JSONL plain, .gz, .zst, a JSON array and a saved Dataset hold the same conversations."""
    import datasets

    records = [chat(i) for i in range(7)]
    plain = jsonl(records)
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(plain.read_bytes()))
    (tmp_path / "c.jsonl.zst").write_bytes(zstandard.compress(plain.read_bytes()))
    (tmp_path / "c.json").write_text(json.dumps(records))
    pl.DataFrame(records).write_parquet(tmp_path / "c.parquet")
    pl.DataFrame(records).write_ipc(tmp_path / "c.feather")
    pl.DataFrame(records).write_ipc_stream(tmp_path / "c.arrow")
    datasets.Dataset.from_list(records).save_to_disk(str(tmp_path / "saved"))
    datasets.DatasetDict({"train": datasets.Dataset.from_list(records)}).save_to_disk(str(tmp_path / "dict"))
    names = [
        "corpus.jsonl",
        "c.jsonl.gz",
        "c.jsonl.zst",
        "c.json",
        "c.parquet",
        "c.feather",
        "c.arrow",
        "saved",
        "dict",
    ]
    frames = [take(tmp_path / name, tmp_path / "r" / str(i)) for i, name in enumerate(names)]
    columns = ["prompt", "prompt_id", "messages", "text"]
    assert all(frame.select(columns).equals(frames[0].select(columns)) for frame in frames)
    assert frames[0]["prompt"].to_list() == [record["prompt"] for record in records]


def test_repeated_source_ids_are_kept_and_counted(jsonl: Jsonl, tmp_path: Path) -> None:
    """Over all shards; null is no id. `id` is unique, so nothing is lost."""
    ids = ["a", "b", "a", None, None, "a", "c", "b"]
    source = jsonl([{**chat(i), "id": name} for i, name in enumerate(ids)])
    raw = take(source, tmp_path / "r", rows=3)
    assert raw["source_id"].to_list() == ids
    assert raw["id"].n_unique() == 8
    notes = read_json(tmp_path / "r" / "raw" / "shards.json")["notes"]
    assert notes == ["3 of 6 source ids repeat an earlier one: `source_id` is kept, `id` is unique"]
    take(jsonl([{**chat(i), "id": i} for i in range(4)], name="u.jsonl"), tmp_path / "s")
    assert read_json(tmp_path / "s" / "raw" / "shards.json")["notes"] == []


def test_a_folder_is_read_in_the_order_of_its_names(jsonl: Jsonl, tmp_path: Path) -> None:
    """Files of a folder follow each other; rows say which file they came from; hidden files are not read."""
    (tmp_path / "in").mkdir()
    for name, i in (("b.jsonl", 2), ("a.jsonl", 1), (".hidden.jsonl", 9)):
        jsonl([chat(i)], name=f"in/{name}")
    raw = take(tmp_path / "in", tmp_path / "r")
    assert raw["prompt_id"].to_list() == ["p1", "p2"]
    assert raw["source"].to_list() == ["a.jsonl", "b.jsonl"]


def test_the_hub_is_streamed_at_a_pinned_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub id is pinned to its commit, streamed, and asked for a split where it has several."""
    import datasets
    import huggingface_hub

    asked: list[tuple[Any, ...]] = []

    def load(name: str, config: str | None, **more: Any) -> dict[str, Iterator[dict[str, Any]]]:
        asked.append((name, config, more))
        return {"train_sft": (chat(i) for i in range(5)), "test_sft": iter(())}

    class Api:
        def dataset_info(self, name: str, revision: str | None) -> Any:
            return type("Info", (), {"sha": f"{name}@{revision}"})()

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    hub = sources.find("HuggingFaceH4/ultrachat_200k", split="train_sft")
    assert take(hub, tmp_path / "r", limit=3).height == 3
    assert asked == [
        ("HuggingFaceH4/ultrachat_200k", None, {"revision": "HuggingFaceH4/ultrachat_200k@None", "streaming": True})
    ]
    with pytest.raises(SourceError, match="has the splits train_sft, test_sft, but no split is named"):
        take(sources.find("HuggingFaceH4/ultrachat_200k"), tmp_path / "other")


def test_an_unreachable_hub_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a network the sentence names the id and what to check."""
    import huggingface_hub

    def refuse(*_words: object, **_more: object) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", refuse)
    with pytest.raises(SourceError, match="no file or folder 'nobody/nothing' here, and the hub returned no dataset"):
        sources.find("nobody/nothing").digest()


BROKEN: list[tuple[object, str]] = [
    (b'{"messages": [', "the line is not JSON"),
    (b"[1, 2]", "the record is a list, expected an object"),
    ({"prompt_id": "x"}, "messages is null, expected a list of messages"),
    ({"messages": "hi"}, "messages is text, expected a list of messages"),
    ({"messages": [3]}, "message 1 is a number"),
    ({"messages": [{"role": "user", "content": 3}]}, "content of message 1 is a number, expected text"),
    ({"messages": [*HELLO, {"content": "x"}]}, "role of message 3 is null, expected text"),
    (
        {"messages": [{"role": "user", "content": [{"type": "text", "body": None}]}]},
        "a part of message 1 has no text (found: type, body)",
    ),
]


@pytest.mark.parametrize(("record", "reason"), BROKEN)
def test_a_row_that_cannot_be_read_goes_to_quarantine(
    jsonl: Jsonl, tmp_path: Path, record: object, reason: str
) -> None:
    """With file, row (from 1), reason and the record itself; the other rows keep their ids."""
    raw = take(jsonl([chat(0), record, chat(1)]), tmp_path / "r", unreadable=0.5)
    assert raw["prompt_id"].to_list() == ["p0", "p1"]
    (row,) = quarantined(tmp_path / "r")
    assert (row["file"], row["row"]) == ("corpus.jsonl", 2)
    assert row["reason"].startswith(reason)
    assert json.loads(row["record"]) == record if not isinstance(record, bytes) else row["record"]
    assert [identity.rpartition("-")[2] for identity in [*raw["id"], row["id"]]] == [
        "000000000",
        "000000002",
        "000000001",
    ]


def test_messages_that_other_tools_write_are_read(jsonl: Jsonl, tmp_path: Path) -> None:
    """Null content of a tool call, text parts, roles in capitals: they are what they mean."""
    messages = [
        {"role": "System", "content": "Be kind"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": None, "tool_calls": []},
    ]
    row = take(jsonl([{"messages": messages}]), tmp_path / "r").to_dicts()[0]
    assert [(m["role"], m["content"]) for m in row["messages"]] == [
        ("system", "Be kind"),
        ("user", "a\nb"),
        ("assistant", ""),
    ]
    assert row["prompt"] == "a\nb"


def test_too_many_unreadable_rows_stop_the_run_with_one_sentence(jsonl: Jsonl, tmp_path: Path) -> None:
    """2 of 100 are more than 1 %; the sentence names the first one; a larger share lets them pass."""
    records: list[object] = [chat(i) for i in range(98)]
    source = jsonl([*records, b"{", b"}"])
    with pytest.raises(
        SourceError, match=r"2 of 100 rows .* more than the 1.00% allowed; the first: corpus.jsonl, row 99"
    ):
        take(source, tmp_path / "r")
    assert take(source, tmp_path / "r", unreadable=0.02).height == 98


@pytest.mark.parametrize("around", [(b"", b"\n", b""), (b"[", b",\n", b"]"), (b'{"data": [', b",", b"]}")])
def test_invalid_text_is_replaced_and_counted(tmp_path: Path, around: tuple[bytes, bytes, bytes]) -> None:
    """Bytes that are not UTF-8 and lone surrogates become U+FFFD; NUL and U+FFFD itself are text like any other."""
    begin, between, end = around
    lines = [
        b'{"messages": [{"role": "user", "content": "caf\xe9"}]}',
        b'{"messages": [{"role": "user", "content": "a\\ud83db"}]}',
        b'{"messages": [{"role": "user", "content": "a\\u0000b \\ufffd"}]}',
        '{"messages": [{"role": "user", "content": "\ufffd"}], "n": NaN}'.encode(),
    ]
    (tmp_path / "corpus.json").write_bytes(begin + between.join(lines) + end)
    raw = take(tmp_path / "corpus.json", tmp_path / "r")
    assert raw["text"].to_list()[0] == "caf\ufffd"
    assert raw["text"].to_list()[1].startswith("a\ufffd")
    assert raw["text"].to_list()[2] == "a\0b \ufffd"
    shards = read_json(tmp_path / "r" / "raw" / "shards.json")
    assert shards["replaced"] == 2
    said = "2 of 4 rows hold invalid text, which was replaced by U+FFFD: if a file is in another encoding than UTF-8, "
    assert shards["notes"] == [f"{said}convert it"]


def test_parquet_text_that_is_not_utf8_is_quarantined(tmp_path: Path) -> None:
    """Parquet does not check its text; one bad row does not end the run."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    bad = pa.array([b"fine", b"\xff\xfe", b"good"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"text": bad}), tmp_path / "c.parquet")
    assert take(tmp_path / "c.parquet", tmp_path / "r", unreadable=0.5)["text"].to_list() == ["fine", "good"]
    assert quarantined(tmp_path / "r")[0]["row"] == 2


@pytest.mark.parametrize("rows", [1, 3, 100])
def test_ids_do_not_depend_on_the_size_of_shards(jsonl: Jsonl, tmp_path: Path, rows: int) -> None:
    """The same source gives the same ids, however it is cut, wherever it lies and whatever its name is."""
    source = jsonl([chat(i) for i in range(10)])
    moved = tmp_path / "elsewhere" / "renamed.jsonl"
    moved.parent.mkdir()
    moved.write_bytes(source.read_bytes())
    assert take(source, tmp_path / "a", rows=rows)["id"].equals(take(moved, tmp_path / "b")["id"])
    assert len(list((tmp_path / "a" / "raw").glob("*.parquet"))) == -(-10 // rows)


def test_a_shard_is_bounded_in_characters_too(jsonl: Jsonl, tmp_path: Path) -> None:
    """Few long conversations fill a shard like many short ones."""
    take(jsonl([{"text": "x" * 1000} for _ in range(10)]), tmp_path / "r", characters=2500)
    assert len(list((tmp_path / "r" / "raw").glob("*.parquet"))) == 4


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.parquet", b"PAR1 and no more", "a.parquet is cut short: it does not end as Parquet does"),
        ("a.jsonl.gz", gzip.compress(b'{"text": "x"}\n' * 9999)[:-20], "a.jsonl.gz cannot be read after line"),
        ("a.jsonl", b"", "holds no rows"),
        ("a.jsonl", b'{"body": 1}\n', "a record with body has none of the known shapes: ultrachat"),
        ("a.json", b"[1, 2", "begins like a JSON array and is not one"),
        ("a.pkl", b"a,b", "expected a file ending in .parquet, .arrow, .feather, .jsonl"),
        ("a.csv", b"a,b\n1,2\n", "a record with a, b has none of the known shapes: ultrachat"),
    ],
)
def test_a_source_that_cannot_be_read_is_one_sentence(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    """It names the file, what was found and what was expected."""
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SourceError, match=said):
        take(tmp_path / name, tmp_path / "r")


@pytest.mark.parametrize("said", ["./nowhere", "nowhere.parquet", "a/b/c", "word"])
def test_no_such_source_is_one_sentence(said: str) -> None:
    """Only owner/name can be a hub id."""
    with pytest.raises(SourceError, match="no such source"):
        sources.find(said)


def test_a_folder_of_another_source_is_refused(jsonl: Jsonl, tmp_path: Path) -> None:
    """So is another limit, and a folder that is no run at all."""
    take(jsonl([chat(1)]), tmp_path / "r")
    with pytest.raises(RunFolderError, match="belongs to another run: its digest is"):
        take(jsonl([chat(2)], name="b.jsonl"), tmp_path / "r")
    with pytest.raises(RunFolderError, match="its limit is None and this one's is 5"):
        take(tmp_path / "corpus.jsonl", tmp_path / "r", limit=5)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(RunFolderError, match=r"is not a run folder: it holds thesis\.tex"):
        take(tmp_path / "corpus.jsonl", tmp_path / "mine")


def test_the_embedded_default_is_chat(tmp_path: Path) -> None:
    """7,168 dialogues (the count in the package's own README), strictly alternating roles."""
    raw = take(None, tmp_path / "r")
    assert raw.height == 7168
    roles = raw.select(roles=pl.col("messages").list.eval(pl.element().struct["role"]))["roles"].to_list()
    assert all(role == ("user", "assistant")[i % 2] for turns in roles for i, role in enumerate(turns))


def test_ids_sort_like_rows_past_a_billion(jsonl: Jsonl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the boundary of a corpus whose first rows are thought of; ids below it stay what they were."""
    begin = 10**9 - 3
    monkeypatch.setattr(ingesting._Count, "load", lambda _store: ingesting._Count(seen=begin))  # noqa: SLF001
    ids = take(jsonl(chat(i) for i in range(6)), tmp_path / "r")["id"]
    assert ids.is_sorted()
    assert ids.str.extract(r"(\d+)$").cast(pl.Int64).to_list() == [*range(begin, begin + 6)]
    assert ids[:3].str.split("-").list.last().to_list() == ["999999997", "999999998", "999999999"]
    numbers = [0, 9, 10**9 - 1, 10**9, 10**10 - 1, 10**10, 10**12, 10**15]
    assert sorted(row_id("d", number) for number in reversed(numbers)) == [row_id("d", number) for number in numbers]
