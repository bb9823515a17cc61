"""Text files are read in one way, whoever reads them: compressed, marked, cut short, or not JSON at all."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import zstandard

from pipeline import sources
from pipeline.dedup.texts import Columns, TextColumn, Texts
from pipeline.experiments import points_csv
from stages import readers
from stages.overlap import evals
from stages.readers import TEXT, UnreadableFileError
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

PACKERS: dict[str, Callable[[bytes], bytes]] = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}
LINES = [b'{"text": "one"}', b'{"text": "caf\xe9", "n": 1}', b"  ", b'{"text": "three \\u2028 \xe2\x80\xa8 lines"}']
TEXTS = ["one", "caf\ufffd", "three \u2028 \u2028 lines"]


@READERS
@pytest.mark.parametrize("packing", PACKERS)
@pytest.mark.parametrize("ending", [".jsonl", ".ndjson", ".json"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_every_reader_takes_every_form(read: Reader, packing: str, ending: str, mark: bytes, tmp_path: Path) -> None:
    """Lines or an array, compressed or not, with a byte-order mark or without, in capitals; odd bytes become U+FFFD."""
    forms = [mark + b"\r\n".join(LINES)]
    if ending == ".json":
        forms.append(mark + b"\n [" + b",\n".join(line for line in LINES if line.strip()) + b"]\n")
    for form in forms:
        path = tmp_path / f"Corpus{ending.upper()}{packing.upper()}"
        path.write_bytes(PACKERS[packing](form))
        assert read(path) == TEXTS


@READERS
def test_folders_are_read_at_any_depth_without_hidden_files(read: Reader, tmp_path: Path) -> None:
    """In the order of their paths."""
    (tmp_path / "in" / "b").mkdir(parents=True)
    (tmp_path / "in" / ".cache").mkdir()
    for name in ("b/two.jsonl", "a.json", ".hidden.jsonl", ".cache/x.jsonl", "notes.csv", "packed.parquet.gz"):
        (tmp_path / "in" / name).write_text(json.dumps({"text": name}))
    assert read(tmp_path / "in") == ["a.json", "b/two.jsonl"]


JSON_LINES = b"".join(
    json.dumps({"text": f"word{i} river stone lamp {i * 7919} cloud"}).encode() + b"\n" for i in range(20_000)
)
DAMAGES: dict[str, tuple[bytes, str]] = {
    "cut.jsonl.zst": (zstandard.compress(JSON_LINES)[:-2000], r"cannot be read after line \d+ \("),
    "cut.jsonl.gz": (gzip.compress(JSON_LINES)[:-2000], r"cannot be read after line [1-9]\d* \("),
    "wide.jsonl": ('{"text": "x"}\n'.encode("utf-16"), "is UTF-16 text, expected UTF-8"),
    "open.json": (b'[{"text": "a"}', r"begins like a JSON array and is not one \("),
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
