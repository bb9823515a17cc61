"""Text files are read in one way, whoever reads them: compressed, marked, cut short, or not JSON at all."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import zstandard
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline import sources
from pipeline.dedup.texts import Columns, TextColumn, Texts
from pipeline.experiments import points_csv
from stages import readers
from stages.overlap import evals
from stages.readers import TEXT, UnreadableFileError, json_lines
from stages.text.corpus import Corpus
from tests.conftest import Refine
from trainer.scaling import ScalingError


def _ingest(path: Path) -> list[str]:
    texts: list[str] = [row.value["text"] for row in sources.find(str(path)).rows()]
    return texts


def _columns(path: Path) -> list[str]:
    return list(pl.concat([*Texts([TextColumn.of(Columns.of(path), "text")])]))


def _corpus(path: Path) -> list[str]:
    return pl.concat(list(Corpus(str(path)).batches()))["text"].to_list()


def _evals(path: Path) -> list[str]:
    return [part.text for part in evals.parts(str(path))]


Reader = Callable[[Path], list[str]]
READERS = pytest.mark.parametrize("read", [_ingest, _columns, _corpus, _evals])
"""The four readers of records: of a source, of `refine dedup`, of a corpus that a stage names, of evaluation sets."""

PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.compress,
}
LINES = [
    b'{"text": "one", "n": NaN}',
    b'{"text": "caf\xe9", "n": 1}',
    b"  ",
    b'{"text": "three \\u2028 \xe2\x80\xa8 lines"}',
]
TEXTS = ["one", "caf\ufffd", "three \u2028 \u2028 lines"]


@READERS
@pytest.mark.parametrize("packing", PACKERS)
@pytest.mark.parametrize("ending", [".jsonl", ".ndjson", ".json"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_every_reader_takes_every_form(read: Reader, packing: str, ending: str, mark: bytes, tmp_path: Path) -> None:
    """Lines or an array, compressed or not, with a byte-order mark or without, in capitals; odd bytes, NaN."""
    forms = [mark + b"\r\n".join(LINES)]
    if ending == ".json":
        forms.append(mark + b"\n [" + b",\n".join(line for line in LINES if line.strip()) + b"]\n")
    for form in forms:
        path = tmp_path / f"Corpus{ending.upper()}{packing.upper()}"
        path.write_bytes(PACKERS[packing](form))
        assert read(path) == TEXTS


FORMS: dict[str, str] = {
    "an array on one line": json.dumps([{"text": text} for text in TEXTS]),
    "an array on many lines": json.dumps([{"text": text} for text in TEXTS], indent=2),
    "an array with a line per record": "[\n" + ",\n".join(json.dumps({"text": text}) for text in TEXTS) + "\n]\n",
    "an array with a last comma": "[" + "".join(json.dumps({"text": text}) + ", " for text in TEXTS) + "]",
    "an array longer than a piece": json.dumps([{"text": text, "x": "y" * 100_000} for text in TEXTS]),
    "values on many lines": "\n".join(json.dumps({"n": [1], "text": text}, indent=2) for text in TEXTS),
    "records under a key": json.dumps({"version": "1", "data": [{"text": text} for text in TEXTS]}),
    "records under a key on many lines": json.dumps({"rows": [{"text": text} for text in TEXTS], "n": 3}, indent=1),
    "line ends of old Macs": "\r".join(json.dumps({"text": text}) for text in TEXTS),
    "mixed line ends": "\r\n\n".join(json.dumps({"text": text}) for text in TEXTS) + "\n",
}


@READERS
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("ending", [".jsonl", ".json"])
def test_json_is_read_however_a_file_holds_it(read: Reader, form: str, ending: str, tmp_path: Path) -> None:
    """The name of a JSON file does not say whether it holds lines, an array or an object."""
    (tmp_path / f"a{ending}").write_text(FORMS[form])
    assert read(tmp_path / f"a{ending}") == TEXTS


@READERS
def test_a_mark_between_lines_is_skipped(read: Reader, tmp_path: Path) -> None:
    """Files that are appended to each other bring theirs along."""
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "a"}\n\xef\xbb\xbf{"text": "b"}\n')
    assert read(tmp_path / "a.jsonl") == ["a", "b"]


@READERS
def test_one_object_is_one_record(read: Reader, tmp_path: Path) -> None:
    """Lists of objects in it may be annotations."""
    record = {"text": "one", "spans": [{"start": 1, "tags": ["x"]}]}
    for indent in (None, 2):
        (tmp_path / "a.json").write_text(json.dumps(record, indent=indent))
        assert read(tmp_path / "a.json") == ["one"]


@pytest.mark.parametrize(
    "record",
    [
        {"id": 1, "messages": [{"role": "user", "content": [{"type": "text"}]}]},
        {"conversation": [{"human": "a", "assistant": "b"}]},
        {"conversation": [{"question": "a", "answer": "b"}]},
        {"thread": [{"who": "a", "body": "b"}]},
        {"thread": [{"author": "a", "text": "b"}]},
        {"conversations": [{"from": "human", "value": "a"}], "tools": [{"name": "f"}]},
        {"spans": []},
        [{"role": "user"}],
    ],
)
def test_messages_are_no_records_under_a_key(record: Any, tmp_path: Path) -> None:
    """The only record of a file is not taken apart."""
    lines = [json.dumps(record)] * (1 + isinstance(record, list))
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    assert [json.loads(line) for _, batch in readers.lines(tmp_path / "a.jsonl") for line in batch] == [record] * len(
        lines
    )


def test_an_array_is_parsed_record_by_record(tmp_path: Path) -> None:
    """What comes before a fault is given, so that a corpus need not fit in memory; each record is one line."""
    (tmp_path / "a.json").write_text("[" + '{"x":\r\n"' + "y" * 90_000 + '"},' * 1 + '{"x": 1},\n' * 20_000 + "{]")
    parts = readers.lines(tmp_path / "a.json", 1)
    assert next(parts)[1] == [b'{"x":  "' + b"y" * 90_000 + b'"}\n']
    with pytest.raises(UnreadableFileError, match=r"record 20002: Expecting property name"):
        list(parts)


@READERS
@pytest.mark.parametrize(
    "name", ["a.csv", "a.tsv", "semicolons.csv", "a.csv.xz", "a.arrow", "stream.arrow", "a.feather"]
)
def test_every_reader_takes_tables(read: Reader, name: str, tmp_path: Path) -> None:
    """Quoted line breaks and separators, a byte-order mark, bytes that are not UTF-8; Arrow files and streams."""
    texts = ["one, and; more\tof it", 'two\r\n\n"lines"', "x" * 200_000, "caf\ufffd"]
    if ".csv" in name or ".tsv" in name:
        separator = {"a.tsv": "\t", "semicolons.csv": ";"}.get(name, ",")
        made = io.StringIO(newline="")
        csv.writer(made, delimiter=separator).writerows([["n", "text"], *enumerate(texts)])
        data = b"\xef\xbb\xbf" + made.getvalue().encode().replace("\ufffd".encode(), b"\xe9") + b"\r\n"
        (tmp_path / name).write_bytes(PACKERS[".xz" if name.endswith(".xz") else ""](data))
    else:
        frame = pl.DataFrame({"n": range(4), "text": texts})
        frame.write_ipc_stream(tmp_path / name) if name == "stream.arrow" else frame.write_ipc(tmp_path / name)
    assert read(tmp_path / name) == texts


def test_frames_of_a_table_are_bounded(tmp_path: Path) -> None:
    """In bytes, whatever the format; a row is never divided, and rows keep their order."""
    frame = pl.DataFrame({"n": [str(i) for i in range(50)], "text": ["x" * 1000] * 50})
    frame.write_csv(tmp_path / "a.csv")
    frame.write_ipc(tmp_path / "a.arrow")
    for name in ("a.csv", "a.arrow"):
        parts = list(readers.frames(tmp_path / name, size=10_000))
        assert pl.concat(parts).equals(frame)
        assert max(map(len, parts)) <= 10


def test_a_row_of_another_length_is_named(tmp_path: Path) -> None:
    """By its row; the header is row 1. Ingest puts it into quarantine instead."""
    (tmp_path / "a.csv").write_text('text,n\n"two\nlines",1\n\nshort\n')
    with pytest.raises(UnreadableFileError, match="has 1 fields in row 4, and its header has 2"):
        list(readers.frames(tmp_path / "a.csv"))
    rows = list(sources.find(str(tmp_path / "a.csv")).rows())
    assert [(row.number, row.value) for row in rows] == [
        (2, {"text": "two\nlines", "n": "1"}),
        (4, sources.Unreadable("the row has 1 fields and the header 2", '["short"]')),
    ]


def test_the_content_tells_how_a_file_is_packed(tmp_path: Path) -> None:
    """Its name may say otherwise; frames follow each other, one of them to be skipped, with windows of 256 MiB."""
    settings = zstandard.ZstdCompressionParameters(window_log=28)
    packer = zstandard.ZstdCompressor(compression_params=settings).compressobj()
    long = packer.compress(b'{"text": "a"}\n') + packer.flush()
    skip = b"\x50\x2a\x4d\x18\x03\0\0\0abc"
    (tmp_path / "a.jsonl.zst").write_bytes(skip + long + skip + zstandard.compress(b'{"text": "b"}\n'))
    (tmp_path / "b.jsonl").write_bytes(gzip.compress(b'{"text": "c"}\n') * 2)
    (tmp_path / "c.jsonl.gz").write_bytes(b'{"text": "d"}\n')
    for ending, pack in PACKERS.items():
        (tmp_path / f"none.jsonl{ending}").write_bytes(pack(b""))
    assert _ingest(tmp_path) == _columns(tmp_path) == ["a", "b", "c", "c", "d"]


@READERS
def test_folders_are_read_at_any_depth_without_hidden_files(read: Reader, tmp_path: Path) -> None:
    """In the order of their paths."""
    (tmp_path / "in" / "b").mkdir(parents=True)
    (tmp_path / "in" / ".cache").mkdir()
    for name in ("b/two.jsonl", "a.json", ".hidden.jsonl", ".cache/x.jsonl", "notes.tar", "packed.parquet.gz"):
        (tmp_path / "in" / name).write_text(json.dumps({"text": name}))
    assert read(tmp_path / "in") == ["a.json", "b/two.jsonl"]


JSON_LINES = b"".join(
    json.dumps({"text": f"word{i} river stone lamp {i * 7919} cloud"}).encode() + b"\n" for i in range(20_000)
)
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"


def _arrow(*offsets: int) -> bytes:
    """An Arrow file of the texts one, two, three, in which their offsets are others."""
    frame, file = pl.DataFrame({"text": ["one", "two", "three"]}), io.BytesIO()
    frame.write_ipc(file, compat_level=pl.CompatLevel.oldest())
    whole, damaged = (struct.pack("<4q", *four) for four in ((0, 3, 6, 11), (0, *offsets)))
    assert whole in file.getvalue()
    return file.getvalue().replace(whole, damaged)


DAMAGES: dict[str, tuple[bytes, str]] = {
    "cut.jsonl.zst": (zstandard.compress(JSON_LINES)[:-2000], r"cannot be read after line \d+ \("),
    "cut.jsonl.gz": (gzip.compress(JSON_LINES)[:-2000], r"cannot be read after line [1-9]\d* \("),
    "wide.jsonl": ('{"text": "x"}\n'.encode("utf-16"), "is UTF-16 text, expected UTF-8"),
    "cut.jsonl.bz2": (bz2.compress(JSON_LINES)[:-2000], r"cannot be read after line [1-9]\d* \("),
    "cut.jsonl.xz": (lzma.compress(JSON_LINES)[:-2000], r"cannot be read after line [1-9]\d* \("),
    "empty.jsonl.gz": (b"", r"cannot be read after line 0 \(it is empty, and a compressed file never is"),
    "bare.jsonl": ('{"text": "x"}\n'.encode("utf-16-le"), "is UTF-16 text, expected UTF-8"),
    "big.jsonl": ('{"text": "x"}\n'.encode("utf-16-be"), "is UTF-16 text, expected UTF-8"),
    "table.jsonl": (b"PAR1 and so on", "is a Parquet file, whose name must end in .parquet"),
    "packed.json": (b"PK\x03\x04 and so on", "is a zip archive, expected one of the files inside"),
    "pickle.jsonl": (pickle.dumps({"text": "x"}), "is a pickle, expected UTF-8 text"),
    "open.json": (b'[{"text": "a"}', r"begins like a JSON array and is not one \(record 2: it has no end"),
    "more.json": (b'[\n{"text": "a"}]\n{"text": "b"}', r"begins like a JSON array and is not one \(record 2: there is"),
    "torn.jsonl": (b'[\n{"text": "a"},\n{"text": b}]', r"begins like a JSON array and is not one \(record 2: Expect"),
    "half.json": (b'{\n"text": "a"\n', r"is not JSON \(record 1: Expecting ',' delimiter"),
    "cut.csv": (b'text,n\none,1\n"two,2\n', r"cannot be read as a table after row 2 \(a quote is not closed"),
    "twice.csv": (b"text,n,text\none,1,2\n", "has 2 columns named 'text', expected one"),
    "cut.arrow": (b"ARROW1\0\0 and no more", r"is no Arrow file, or is damaged or cut short \("),
    "lines.arrow": (b'{"text": "x"}\n', r"is no Arrow file, or is damaged or cut short \("),
    "beyond.arrow": (_arrow(3, 1 << 40, 11), r"is no Arrow file, or is damaged or cut short \(Offset invariant"),
    "back.arrow": (_arrow(3, 1, 11), r"is no Arrow file, or is damaged or cut short \(Offset invariant"),
    "old.feather": (b"FEA1 and so on", "is Feather of version 1, expected version 2"),
    "empty.feather": (b"", "is empty"),
    "empty.parquet": (b"", "is empty"),
    "cut.parquet": (b"PAR1 and no more", "is cut short: it does not end as Parquet does"),
    "lines.parquet": (b'{"text": "x"}\n', "is no Parquet file, in spite of its name"),
    "pointer.parquet": (POINTER, "is a pointer of Git LFS, expected the file itself, which `git lfs pull` gets"),
    "pointer.jsonl": (POINTER, "is a pointer of Git LFS, expected the file itself, which `git lfs pull` gets"),
    "wider.jsonl": ('{"text": "x"}\n'.encode("utf-32"), "is UTF-32 text, expected UTF-8"),
}


@READERS
@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_file_is_one_sentence(read: Reader, name: str, tmp_path: Path) -> None:
    """It names the file, and never passes for a shorter one."""
    data, fault = DAMAGES[name]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(Exception, match=rf"{name}'? {fault}") as caught:
        read(tmp_path / name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("read", [_columns, _corpus, _evals])
@pytest.mark.parametrize(("line", "fault"), [(b'{"text": ', "is not JSON on line 3"), (b"3", "int")])
def test_a_bad_line_is_named(read: Reader, line: bytes, fault: str, tmp_path: Path) -> None:
    """By file and number; blank lines count. Only ingest reads on, and puts the line in quarantine."""
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "a"}\n\n' + line + b"\n")
    with pytest.raises(Exception, match=rf"a\.jsonl'?.*{fault}"):
        read(tmp_path / "a.jsonl")


def test_refine_dedup_names_a_file_cut_short(refine: Refine, tmp_path: Path) -> None:
    """Half the texts are not deduplicated as if they were all."""
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(JSON_LINES)[:-2000])
    done = refine("dedup", tmp_path / "c.jsonl.gz", "--kept", "kept.txt")
    assert done.returncode == 1
    assert "c.jsonl.gz cannot be read after line" in done.stderr
    assert not (tmp_path / "kept.txt").exists()


def test_a_batch_never_divides_a_line(tmp_path: Path) -> None:
    """Batches are whole lines, numbered from 1; the last one may lack its newline."""
    (tmp_path / "a.jsonl").write_bytes(b"1\n22\n\n333\n4")
    assert list(readers.lines(tmp_path / "a.jsonl", 4)) == [(1, [b"1\n", b"22\n"]), (3, [b"\n", b"333\n"]), (5, [b"4"])]
    assert list(readers.lines(tmp_path / "a.jsonl", 1))[2] == (3, [b"\n"])


LEAVES = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=9))
VALUES = st.recursive(LEAVES, lambda some: st.lists(some, max_size=3) | st.dictionaries(st.text(max_size=3), some))
HELD = st.lists(st.dictionaries(st.sampled_from(["id", "text", "prompt", "role", "x\n"]), VALUES), max_size=4)
OBJECTS = st.dictionaries(
    st.sampled_from(["data", "messages", "text", "meta", ""]), st.one_of(HELD, VALUES), max_size=4
)


@settings(max_examples=30)
@given(
    value=OBJECTS,
    indent=st.sampled_from([None, 0, 1]),
    around=st.sampled_from([("", ""), ("\n ", "\n"), ("", " ,\n")]),
    head=st.sampled_from([5, 64, json_lines.HEAD]),
)
@example(value={"data": [{"a": 1}], "meta": [{}]}, indent=None, around=("", ""), head=64)
@example(value={"data": [{"a": 1}, 3], "meta": [3, {}]}, indent=1, around=("", ""), head=5)
def test_an_object_gives_its_records_as_if_it_were_parsed_whole(
    tmp_path_factory: pytest.TempPathFactory,
    value: dict[str, Any],
    indent: int | None,
    around: tuple[str, str],
    head: int,
) -> None:
    """However it is laid out, and wherever the pieces in which it is read end."""
    path = tmp_path_factory.mktemp("object") / "a.json"
    path.write_text(json.dumps(value, indent=indent, ensure_ascii=False).join(around), encoding="utf-8")
    key = json_lines.wrapper(value)
    with pytest.MonkeyPatch.context() as patch:
        if key is not None:  # the form of other files is recognised by their beginning
            patch.setattr(json_lines, "HEAD", head)
        lines = [line for _, batch in readers.lines(path) for line in batch if not line.isspace()]
        held = readers.envelope(path)
    if key is not None:
        assert list(map(json.loads, lines)) == value[key]
        assert held is not None
        assert json.loads(b",".join(lines).join(held)) == value
    else:
        assert list(map(json.loads, lines)) == [value]


@pytest.mark.parametrize(
    ("value", "key"),
    [
        ({"instruction": "", "output": "", "tools": [{"topic": []}]}, None),
        ({"prompt": "Which one?", "tools": [{"name": "search", "prompt": "", "parameters": []}]}, None),
        ({"prompt": "Be kind.", "data": [{"messages": [{"role": "user", "content": "Hi"}]}]}, "data"),
        ({"version": "1", "data": [{"topic": []}]}, "data"),
    ],
)
def test_a_record_with_lists_of_objects_holds_no_records(value: dict[str, Any], key: str | None) -> None:
    """A text of its own makes an object a record, unless the objects in its list have texts or turns themselves."""
    assert json_lines.wrapper(value) == key


@pytest.mark.parametrize(
    "text",
    [
        '{"data": [{"a": 1}',
        '{"data": [{"a": 1} {"a": 2}]}',
        '{"data": [{"a": 1}],}',
        '{"data": [{"a": 1}]} {',
        "{3: [{}]}",
    ],
)
def test_an_object_that_is_no_json_is_not_taken_apart(tmp_path: Path, text: str) -> None:
    """Nothing of it passes for a record; the one line is what it is."""
    (tmp_path / "a.json").write_text(text)
    assert list(readers.lines(tmp_path / "a.json")) == [(1, [text.encode()])]


def test_fields_that_later_records_have_are_found(tmp_path: Path) -> None:
    """A first record without an id does not hide the ids of the others."""
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n{"id": "b1", "text": "b"}\n')
    frame = pl.concat(list(Corpus(str(tmp_path / "a.jsonl")).batches()))
    assert frame.rows() == [("a", "a.jsonl:1"), ("b", "b1")]
    assert readers.fields(tmp_path / "a.jsonl") == ["text", "id"]


def test_a_conversation_outweighs_a_column_of_text(tmp_path: Path) -> None:
    """A reference and an earlier corpus take `messages` before `text`, which may be a rendered template."""
    record: dict[str, Any] = {"text": "<user> hi", "messages": [{"role": "user", "content": "hi"}]}
    (tmp_path / "a.jsonl").write_text(json.dumps(record))
    assert _corpus(tmp_path / "a.jsonl") == ["hi"]


def test_plain_text_is_a_text_per_line(tmp_path: Path) -> None:
    """A line feed ends a line; other separators of Unicode do not."""
    (tmp_path / "a.txt").write_bytes("\ufeffone\u2028still one\n\nthree".encode())
    frames = list(Corpus(str(tmp_path / "a.txt"), endings=TEXT).batches())
    assert pl.concat(frames)["text"].to_list() == ["one\u2028still one", "", "three"]


def test_points_may_be_marked_and_packed(tmp_path: Path) -> None:
    """A CSV file is a text file like any other."""
    (tmp_path / "p.csv.gz").write_bytes(gzip.compress(b"\xef\xbb\xbftokens,ppl\n1000,9\n2000,8\n"))
    assert points_csv.read(tmp_path / "p.csv.gz")[None].ppl.tolist() == [9, 8]
    (tmp_path / "p.csv").write_bytes("tokens,ppl\n1000,9\n".encode("utf-16"))
    with pytest.raises(ScalingError, match="UTF-16 text, expected UTF-8"):
        points_csv.read(tmp_path / "p.csv")


def test_a_missing_file_is_a_predicate(tmp_path: Path) -> None:
    """The caller names the file."""
    with (
        pytest.raises(UnreadableFileError, match=r"^cannot be read \(.*No such file"),
        readers.open_text(tmp_path / "x"),
    ):
        pass
