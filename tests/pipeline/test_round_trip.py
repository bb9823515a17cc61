"""What comes in goes out: the kept records as they came, and nothing of a record missing from the output of a run."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import sources
from pipeline.ingest import Limits, ingest, rows_of
from pipeline.sources import SourceError, originals
from pipeline.sources.fields import MAX_FIELDS, with_fields
from pipeline.store import Store, read_json
from stages.files import read_frame
from stages.stage import DETAILS, MESSAGES
from tests import strategies
from tests.conftest import Refine, chat

Jsonl = Callable[..., Path]


def taken(path: Path, out: Path, shape: str | None = None) -> tuple[sources.Source, Limits, Store]:
    source, limits, store = sources.find(str(path)), Limits(shape=shape, unreadable=1.0), Store(out)
    ingest(source, store, limits)
    return source, limits, store


@st.composite
def corpora(draw: st.DrawFn) -> tuple[str, list[dict[str, Any]]]:
    shape = draw(st.sampled_from(sorted(strategies.records)))
    return shape, draw(st.lists(strategies.records[shape], min_size=1, max_size=5))


@settings(max_examples=90)
@given(made=corpora(), data=st.data())
def test_a_json_line_comes_back_as_the_same_line(made: tuple[str, list[dict[str, Any]]], data: st.DataObject) -> None:
    """Of every shape, whatever is in it: those that are chosen, in order, byte for byte."""
    shape, records = made
    with tempfile.TemporaryDirectory() as folder:
        path, out = Path(folder, "in.jsonl"), Path(folder, "run")
        lines = [json.dumps(record, ensure_ascii=False).encode() for record in records]
        path.write_bytes(b"\n".join(lines))
        source, limits, _ = taken(path, out, shape)
        kept = data.draw(st.sets(st.integers(0, len(records) - 1)))
        originals.write(source, rows_of(source, limits), kept, out / "kept")
        assert (out / "kept" / "in.jsonl").read_bytes() == b"".join(lines[i] + b"\n" for i in sorted(kept))


def texts_in(value: object) -> Iterator[str]:
    """All texts and names in a JSON value, those in JSON text included."""
    if isinstance(value, dict):
        for name, inner in value.items():
            if inner is not None:
                yield name
                yield from texts_in(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from texts_in(inner)
    elif isinstance(value, str):
        if value.lstrip()[:1] in {"{", "["}:
            try:
                yield from texts_in(json.loads(value))
            except ValueError:
                yield value
        else:
            yield value
    elif value is not None:
        yield json.dumps(value)


def number(text: str) -> float | None:
    """The number that a text is: 1.0 is 1."""
    try:
        return float(text)
    except ValueError:
        return None


CONSUMED = {
    *("messages", "conversations", "dialogue", "data", "from", "value", "role", "content", "system", "text", "type"),
    *("instruction", "input", "output", "history", "prompt", "completion", "chosen", "human", "gpt", "observation"),
    *("Assistant", "id", "tools", "tool_calls", "reasoning_content", "function", "name", "arguments"),
}
"""Names that the output has under another one."""


@settings(max_examples=90)
@given(made=corpora())
def test_the_output_of_a_run_has_all_that_a_record_has(made: tuple[str, list[dict[str, Any]]]) -> None:
    """Each text, number and flag of it, in the messages, in `tools`, or in `extra`; a blank system prompt aside."""
    shape, records = made
    with tempfile.TemporaryDirectory() as folder:
        path, out = Path(folder, "in.jsonl"), Path(folder, "run")
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        _, _, store = taken(path, out, shape)
        raw, corpus = read_frame(store.raw("00000.parquet")), read_json(store.shard_list)
        whole = raw.with_columns(messages=with_fields(raw["messages"], raw["details"], corpus["fields"]))
        readable = {int(one.rpartition("-")[2]) for one in whole["id"]}
        for record, row in zip((r for i, r in enumerate(records) if i in readable), whole.to_dicts(), strict=True):
            there = "\0".join(texts_in(row))
            numbers = set(map(number, there.split("\0")))
            for text in set(texts_in(record)) - CONSUMED:
                assert text.strip() in there or number(text) in numbers - {None}, text


SCHEMA = pa.schema(
    [
        pa.field(
            "conversations",
            pa.list_(pa.struct([("from", pa.dictionary(pa.int32(), pa.string())), ("value", pa.large_string())])),
        ),
        pa.field("when", pa.timestamp("ms", "UTC")),
        pa.field("price", pa.decimal128(9, 2)),
        pa.field("picture", pa.binary()),
        pa.field("sparse", pa.list_(pa.int8())),
    ],
    metadata={b"owner": b"me"},
)


def test_parquet_comes_back_with_its_schema(tmp_path: Path, refine: Refine) -> None:
    """Types that JSON does not know, metadata, nulls, row groups: the kept rows, in a file of the same name.

    In `extra` they are text, and bytes are in base64.
    """
    from datetime import UTC, datetime
    from decimal import Decimal

    long = "The ferry lands at the second pier, below the mill, when the tide is high."
    rows = [
        {
            "conversations": [{"from": "human", "value": long}, {"from": "gpt", "value": long if i % 3 else ""}],
            "when": datetime(2026, 1, 1, i, tzinfo=UTC),
            "price": Decimal("1.25"),
            "picture": b"\x00\xff" if i % 2 else None,
            "sparse": [None, i],
        }
        for i in range(9)
    ]
    table = pa.Table.from_pylist(rows, SCHEMA)
    pq.write_table(table, tmp_path / "in.parquet", row_group_size=4, use_compliant_nested_type=False)
    done = refine("run", "in.parquet", "--stages", "heuristics", "--as", "source", "--out", "r", "--workers", "1")
    assert done.returncode == 0, done.stderr
    back = pq.read_table(tmp_path / "r" / "kept" / "in.parquet")
    table = pq.read_table(tmp_path / "in.parquet")
    assert back.schema.equals(table.schema, check_metadata=True)
    assert back.equals(table.filter(pa.array([bool(i % 3) for i in range(9)])))
    extra = [json.loads(one) for one in read_frame(tmp_path / "r" / "refined" / "00000.parquet")["extra"]]
    assert [(one.get("picture"), one["price"]) for one in extra[:2]] == [("AP8=", "1.25"), (None, "1.25")]


def test_every_file_of_a_folder_comes_back_in_its_format(jsonl: Jsonl, tmp_path: Path, refine: Refine) -> None:
    """Compression, arrays and folders included; a file of which nothing is kept is there and empty."""
    (tmp_path / "in" / "deep").mkdir(parents=True)
    records = [{**chat(i), "n": i, "gone": None} for i in range(6)]
    plain = jsonl(records[:2], name="in/a.jsonl").read_bytes()
    (tmp_path / "in" / "deep" / "b.jsonl.gz").write_bytes(gzip.compress(plain))
    (tmp_path / "in" / "c.jsonl.zst").write_bytes(zstandard.compress(plain.replace(b"\n", b"\r\n\r\n")))
    (tmp_path / "in" / "d.json").write_text(json.dumps(records, indent=1))
    jsonl(
        [{"messages": []}, {"messages": [{"role": "user", "content": "only asked, never answered"}]}], name="in/e.jsonl"
    )
    done = refine("run", "in", "--stages", "heuristics", "--as", "source", "--out", "r", "--workers", "1")
    assert done.returncode == 0, done.stderr
    kept = tmp_path / "r" / "kept"
    assert (kept / "a.jsonl").read_bytes() == plain
    assert gzip.decompress((kept / "deep" / "b.jsonl.gz").read_bytes()) == plain
    assert zstandard.ZstdDecompressor().stream_reader((kept / "c.jsonl.zst").read_bytes()).read() == plain
    assert json.loads((kept / "d.json").read_bytes()) == records
    assert (kept / "e.jsonl").read_bytes() == b""


def test_other_formats_come_back_as_they_were(tmp_path: Path, refine: Refine) -> None:
    """Wrapped records, arrays, tables of text with their separators, Arrow files and streams, every compression."""
    (tmp_path / "in").mkdir()
    (tmp_path / "tables").mkdir()
    records = [{**chat(i), "n": i} for i in range(3)]
    empty = {**chat(3), "messages": [{"role": "user", "content": "hi"}]}
    wrapped = {"version": [1], "rows": [*records, empty], "by": "\u00e9"}
    (tmp_path / "in" / "wrapped.json").write_text(json.dumps(wrapped, indent=2))
    (tmp_path / "in" / "array.jsonl.bz2").write_bytes(bz2.compress(json.dumps([empty, *records]).encode()))
    (tmp_path / "in" / "lines.jsonl.xz").write_bytes(lzma.compress(json.dumps(records[0]).encode()))
    table = pa.Table.from_pylist([*records, empty])
    for name, new in (("file.feather", pa.ipc.new_file), ("stream.arrow", pa.ipc.new_stream)):
        with new(tmp_path / "in" / name, table.schema) as out:
            out.write_table(table)
    rows = [["", "prompt", "completion"], ["1", "Why, and; how?", 'Because of "\n"\nlines.'], ["2", "Where?", ""]]
    for name, separator in (("a.csv", ";"), ("b.tsv.gz", "\t")):
        text = io.StringIO(newline="")
        csv.writer(text, delimiter=separator).writerows(rows)
        pack = gzip.compress if name.endswith(".gz") else bytes
        (tmp_path / "tables" / name).write_bytes(pack(text.getvalue().encode()))
    for folder in ("in", "tables"):
        done = refine(
            *("run", folder, "--stages", "heuristics", "--as", "source", "--out", f"of-{folder}", "--workers", "1")
        )
        assert done.returncode == 0, done.stderr
    kept = tmp_path / "of-in" / "kept"
    assert json.loads((kept / "wrapped.json").read_text()) == {**wrapped, "rows": records}
    assert json.loads(bz2.decompress((kept / "array.jsonl.bz2").read_bytes())) == records
    assert json.loads(lzma.decompress((kept / "lines.jsonl.xz").read_bytes())) == records[0]
    assert pa.ipc.open_file(kept / "file.feather").read_all().equals(table.slice(0, 3))
    with (kept / "stream.arrow").open("rb") as stream:
        assert pa.ipc.open_stream(stream).read_all().equals(table.slice(0, 3))
    for name, separator in (("a.csv", ";"), ("b.tsv.gz", "\t")):
        data = (tmp_path / "of-tables" / "kept" / name).read_bytes()
        data = gzip.decompress(data) if name.endswith(".gz") else data
        assert list(csv.reader(io.StringIO(data.decode(), newline=""), delimiter=separator)) == rows[:2]


@pytest.mark.parametrize(
    ("name", "begin", "end"),
    [
        ("a.csv", b"prompt,completion\n", b"Why so?,Caf\xe9 au lait.\n"),
        ("a.json", b"[\n", b'{"prompt": "Why so?", "completion": "Caf\xe9 au lait."}\n]\n'),
        ("b.json", b'{"rows": [\n', b'{"prompt": "Why so?", "completion": "Caf\xe9 au lait."}\n]}\n'),
    ],
)
def test_bytes_that_are_not_utf8_come_back(name: str, begin: bytes, end: bytes, tmp_path: Path, refine: Refine) -> None:
    """Only what the stages read has U+FFFD for them."""
    (tmp_path / name).write_bytes(begin + end)
    done = refine("run", name, "--stages", "heuristics", "--as", "source", "--out", "r", "--workers", "1")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "r" / "kept" / name).read_bytes() == begin + end
    assert read_frame(tmp_path / "r" / "refined" / "00000.parquet")["messages"][0][1]["content"] == "Caf\ufffd au lait."


def test_a_saved_dataset_comes_back_as_one(tmp_path: Path, refine: Refine) -> None:
    """With its features."""
    made = datasets.Dataset.from_list([{**chat(i), "n": i} for i in range(4)])
    made.save_to_disk(str(tmp_path / "saved"))
    words = ("--stages", "heuristics", "--as", "source", "--drop", "n_words < 14", "--out", "r", "--workers", "1")
    assert refine("run", "saved", *words).returncode == 0
    back = datasets.load_from_disk(str(tmp_path / "r" / "kept"))
    refined = pl.read_parquet(tmp_path / "r" / "refined" / "*.parquet")
    assert back.features == made.features
    assert 0 < len(back) < 4
    assert back["prompt"][:] == refined["prompt"].to_list()


def test_the_rows_of_all_kept_paths_come_back(jsonl: Jsonl, tmp_path: Path) -> None:
    """Of a table of messages: those of the kept paths, each once."""
    rows: list[dict[str, Any]] = [
        {"message_id": "a", "parent_id": None, "role": "prompter", "text": "one"},
        {"message_id": "b", "parent_id": "a", "role": "assistant", "text": "two"},
        {"message_id": "c", "parent_id": "a", "role": "assistant", "text": "three"},
        {"message_id": "d", "parent_id": "c", "role": "prompter", "text": "four"},
    ]
    source, limits, _ = taken(jsonl(rows), tmp_path / "r")
    originals.write(source, rows_of(source, limits), {1}, tmp_path / "r" / "kept")
    back = [json.loads(line) for line in (tmp_path / "r" / "kept" / "corpus.jsonl").read_text().splitlines()]
    assert back == [rows[0], rows[2], rows[3]]


def test_other_decisions_take_other_records(jsonl: Jsonl, tmp_path: Path, refine: Refine) -> None:
    """`decide --as source` writes them again; without it kept/ goes, since it would belong to other decisions."""
    path = jsonl([chat(i) for i in range(6)])
    assert refine("run", path, "--stages", "heuristics", "--as", "source", "--out", "r").returncode == 0
    kept = tmp_path / "r" / "kept" / "corpus.jsonl"
    assert kept.read_bytes() == path.read_bytes()
    assert refine("decide", "r", "--drop", "n_words < 14", "--as", "source").returncode == 0
    few = kept.read_bytes()
    assert 0 < len(few) < path.stat().st_size
    assert "kept/ held the records of earlier decisions and is removed" in refine("decide", "r").stderr
    assert not kept.parent.exists()
    jsonl([chat(9)])
    assert "corpus.jsonl has changed since the run read it" in refine("decide", "r", "--as", "source").stderr
    assert not kept.parent.exists()


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--as", "source"], "writes files and saved Datasets, and chitchat is neither"),
        (["--as", "parquet", "--limit", "5"], "--as is 'parquet', expected source"),
    ],
)
def test_what_cannot_be_written_as_it_came_is_refused(
    refine: Refine, tmp_path: Path, words: list[str], reason: str
) -> None:
    """Before any work."""
    done = refine("run", *words, "--stages", "heuristics", "--out", "r")
    assert done.returncode == 1
    assert reason in done.stderr
    assert not (tmp_path / "r").exists()


def test_the_messages_of_the_output_have_typed_fields(jsonl: Jsonl, tmp_path: Path, refine: Refine) -> None:
    """The same in every shard, null where a message has none; nested and mixed values are JSON text."""
    call = {"id": "c", "type": "function", "function": {"name": "tide", "arguments": {"port": "Ems"}}}
    asked, answered = "Where does the old ferry land?", "At the second pier, below the mill."
    rich = [
        {"role": "user", "content": asked, "weight": 0, "train": False},
        {"role": "assistant", "content": None, "tool_calls": [call], "thinking": "Ask the tide.", "weight": 0.5},
        {"role": "tool", "content": "high", "tool_call_id": "c", "name": "tide", "meta": {"a": [1]}},
        {"role": "assistant", "content": answered, "train": True, "meta": "m"},
    ]
    plain = [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
    path = jsonl([{"messages": plain}, {"messages": rich, "tools": [{"name": "tide"}]}])
    done = refine("run", path, "--stages", "heuristics", "--shard-rows", "1", "--out", "r", "--workers", "1")
    assert done.returncode == 0, done.stderr
    frame = pl.concat([pl.read_parquet(one) for one in sorted((tmp_path / "r" / "refined").glob("*.parquet"))])
    assert frame.columns[:4] == ["prompt", "prompt_id", "messages", "tools"]
    assert frame["tools"].to_list() == [None, '[{"name":"tide"}]']
    fields = {each.name: each.dtype for each in frame.schema["messages"].inner.fields}  # type: ignore[attr-defined]
    assert (fields["weight"], fields["train"], fields["meta"]) == (pl.Float64, pl.Boolean, pl.String)
    written = frame["messages"].to_list()
    assert [{k: v for k, v in one.items() if v is not None} for one in written[0]] == plain
    function = {"name": "tide", "arguments": '{"port":"Ems"}'}
    assert written[1][1]["tool_calls"] == [{"id": "c", "type": "function", "function": function}]
    assert (written[1][1]["thinking"], written[1][1]["content"]) == ("Ask the tide.", "")
    assert [one["meta"] for one in written[1]] == [None, None, '{"a":[1]}', "m"]
    assert len(datasets.load_dataset("parquet", data_files=str(tmp_path / "r/refined/*.parquet"), split="train")) == 2


def test_a_conversation_without_messages_stays_one_beside_others_with_fields() -> None:
    """An empty list, in its place; so does a shard without rows."""
    said, detail = {"role": "user", "content": "a"}, {"calls": None, "reasoning": None, "media": 0, "fields": '{"w":1}'}
    messages = pl.Series([[], [said], []], dtype=MESSAGES)
    details = pl.Series([None, [detail], None], dtype=DETAILS)
    assert with_fields(messages, details, {"w": "integer"}).to_list() == [[], [{**said, "w": 1}], []]
    assert with_fields(messages[:0], details[:0], {"w": "integer"}).is_empty()
    assert with_fields(messages[:1], details[:1], {"w": "integer"}).to_list() == [[]]


def test_a_refined_corpus_is_read_again_with_its_calls(jsonl: Jsonl, tmp_path: Path, refine: Refine) -> None:
    """A run of a run has the same messages and tools."""
    call = {"id": "c", "type": "function", "function": {"name": "tide", "arguments": '{"port": "Ems"}'}}
    messages = [
        {"role": "user", "content": "When is the tide high in Emden?"},
        {"role": "assistant", "tool_calls": [call]},
    ]
    path = jsonl([{"messages": messages, "tools": [{"name": "tide"}]}])
    assert refine("run", path, "--stages", "heuristics", "--out", "a", "--workers", "1").returncode == 0
    assert refine("run", "a", "--stages", "heuristics", "--out", "b", "--workers", "1").returncode == 0
    first, second = (pl.read_parquet(tmp_path / name / "refined" / "*.parquet") for name in ("a", "b"))
    assert second.select("prompt", "messages", "tools").equals(first.select("prompt", "messages", "tools"))


def test_messages_with_very_many_fields_keep_the_first(jsonl: Jsonl, tmp_path: Path) -> None:
    """A field per message would be a type as wide as the corpus; raw/ and --as source have them all. A note says so."""
    records = [{"messages": [{"role": "user", "content": "a", f"f{i}": i}]} for i in range(MAX_FIELDS + 5)]
    _, _, store = taken(jsonl(records), tmp_path / "r")
    assert list(read_json(store.shard_list)["fields"]) == [f"f{i}" for i in range(MAX_FIELDS)]
    assert read_json(store.shard_list)["notes"][0].startswith(
        f"messages have more than {MAX_FIELDS} different fields: "
    )
    _, _, few = taken(jsonl(records[:MAX_FIELDS]), tmp_path / "few")
    assert read_json(few.shard_list)["notes"] == []
    raw = read_frame(store.raw("00000.parquet"))
    assert (
        raw["details"].list.first().struct.field("fields").to_list()[-1] == f'{{"f{MAX_FIELDS + 4}":{MAX_FIELDS + 4}}}'
    )


def test_every_shape_has_a_round_trip() -> None:
    """A new shape is drawn here too."""
    from pipeline.sources.shapes import SHAPES

    assert set(SHAPES) - set(strategies.records) == {"oasst", "oasst-best"}
    with pytest.raises(SourceError):
        originals.is_asked("other")
