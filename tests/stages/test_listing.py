"""Every command reads the same files of a folder, and names what it leaves out."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline import sources
from pipeline.dedup.texts import Columns
from pipeline.sources import SourceError
from pipeline.store import Store
from stages.dedup.against import Against
from stages.overlap.evals import files
from stages.readers import RECORDS, RUN_KEYS, Listing, list_files
from stages.stage import StageParameterError
from stages.text.corpus import Corpus
from tests.conftest import Refine


def folder(root: Path, *names: str) -> Path:
    """A folder of files, each with one record."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(json.dumps({"text": f"this is the only text of {name}"}) + "\n")
    return root


def listed(root: Path) -> list[str]:
    return [path.relative_to(root).as_posix() for path in list_files(root, RECORDS).paths]


PLACES: dict[str, Callable[[Path], tuple[Path, ...]]] = {
    "SOURCE": lambda path: tuple(sources.find(str(path)).paths()),
    "refine dedup": lambda path: Columns.of(path).paths,
    "against, reference": lambda path: Corpus(str(path)).files(),
    "evals": lambda path: files(str(path)),
}


@pytest.mark.parametrize("place", PLACES)
def test_every_command_reads_the_same_files(place: str, tmp_path: Path) -> None:
    """At any depth, endings in any case, in the order of their names; no hidden, foreign or packed ones."""
    names = ["A.JSONL", "a.jsonl", "b/c/d/e.Json.GZ", "b/f.ndjson", "z.jsonl.bz2"]
    folder(tmp_path, *names, "._a.jsonl", ".git/x.jsonl", "b/.DS_Store", "c.pkl", "m.bin", "x.tar.gz", "y.parquet.gz")
    assert [path.relative_to(tmp_path).as_posix() for path in PLACES[place](tmp_path)] == names


def test_a_note_names_what_is_left_out_and_why(tmp_path: Path) -> None:
    """It names up to three files per reason and counts hidden ones; a folder that is read whole has no note."""
    assert list_files(folder(tmp_path / "whole", "a.jsonl"), RECORDS).note() == ""
    folder(tmp_path / "in", "a.jsonl", ".x", ".y", "b/README.md", *(f"{i}.zip" for i in range(4)), "dataset_info.json")
    (tmp_path / "in" / "run" / "raw").mkdir(parents=True)
    (tmp_path / "in" / "run" / "source.json").write_text(json.dumps(dict.fromkeys(RUN_KEYS)))
    note = f"left out of {tmp_path / 'in'}: 2 hidden; 0.zip, 1.zip, 2.zip and 2 more (no format of records); "
    listing = list_files(tmp_path / "in", RECORDS)
    assert listing.note() == note + "dataset_info.json (about other files); run (a run of refine)"
    assert listing.note(tmp_path / "in" / "run") == note + "dataset_info.json (about other files)"


def test_a_name_cannot_act_on_a_terminal() -> None:
    """Line breaks, escapes and bytes that are not UTF-8 become U+FFFD."""
    left = ((Path(os.fsdecode(b"in/a\nb\x1b[31m\xff.zip")), "no format of records"),)
    assert Listing(Path("in"), (), left).note() == "left out of in: a\ufffdb\ufffd[31m\ufffd.zip (no format of records)"


def test_links_are_followed_once(tmp_path: Path) -> None:
    """A circle ends, and no file is read twice; what links lead to is read."""
    folder(tmp_path / "elsewhere", "x/a.jsonl", "b.jsonl")
    folder(tmp_path / "in", "c.jsonl", "sub/d.jsonl")
    (tmp_path / "in" / "x").symlink_to(tmp_path / "elsewhere" / "x")
    (tmp_path / "in" / "y").symlink_to(tmp_path / "elsewhere" / "x")
    (tmp_path / "in" / "b.jsonl").symlink_to("../elsewhere/b.jsonl")
    (tmp_path / "in" / "c2.jsonl").symlink_to("c.jsonl")
    (tmp_path / "in" / "sub" / "up").symlink_to("..")
    assert listed(tmp_path / "in") == ["b.jsonl", "c.jsonl", "sub/d.jsonl", "x/a.jsonl"]
    assert (
        list_files(tmp_path / "in", RECORDS).note().endswith(": c2.jsonl, sub/up, y (read already under another name)")
    )


def test_a_link_may_give_a_file_its_ending(tmp_path: Path) -> None:
    """The cache of the hub has files without endings, which are left out, and links to them, which are read."""
    folder(tmp_path, "blobs/0f3a", "blobs/77b2", ".locks/x")
    (tmp_path / "snapshots").mkdir()
    for name, blob in (("a.jsonl", "0f3a"), ("b.jsonl", "77b2")):
        (tmp_path / "snapshots" / name).symlink_to(f"../blobs/{blob}")
    assert listed(tmp_path) == ["snapshots/a.jsonl", "snapshots/b.jsonl"]


@pytest.mark.parametrize("target", ["nowhere.jsonl", "broken.jsonl", "nowhere"])
def test_a_link_that_leads_nowhere_is_an_error(target: str, tmp_path: Path) -> None:
    """A lost disk does not make a corpus smaller."""
    folder(tmp_path, "sub/a.jsonl")
    (tmp_path / "sub" / "broken.jsonl").symlink_to(target)
    with pytest.raises(SourceError, match=rf"sub/broken\.jsonl is a link to {target}, which cannot be opened \("):
        sources.find(str(tmp_path))
    with pytest.raises(StageParameterError, match="cannot be opened"):
        Against(str(tmp_path)).models()


def test_a_named_link_that_leads_nowhere_is_one_sentence(tmp_path: Path, refine: Refine) -> None:
    """Also one that leads to itself."""
    for target in ("gone.jsonl", "broken.jsonl"):
        (tmp_path / "broken.jsonl").symlink_to(target)
        for words in (("run", "broken.jsonl"), ("dedup", "broken.jsonl", "--json")):
            assert f"broken.jsonl is a link to {target}, which is not there: repair it" in refine(*words).stderr
        (tmp_path / "broken.jsonl").unlink()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may list every folder")
def test_a_folder_that_cannot_be_listed_is_an_error(tmp_path: Path) -> None:
    """Its files may be half the corpus."""
    folder(tmp_path, "a.jsonl", "sub/b.jsonl")
    (tmp_path / "sub").chmod(0)
    try:
        with pytest.raises(SourceError, match=r"sub cannot be listed \(Permission denied\)"):
            sources.find(str(tmp_path))
    finally:
        (tmp_path / "sub").chmod(0o700)


def test_a_refusal_to_list_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same for root, with a system that refuses."""
    folder(tmp_path, "a.jsonl", "sub/b.jsonl")
    scan = os.scandir

    def refused(path: str) -> object:
        if str(path).endswith("sub"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refused)
    with pytest.raises(SourceError, match=r"sub cannot be listed \(Permission denied\): change its permissions"):
        sources.find(str(tmp_path))


def test_what_is_no_regular_file_is_never_opened(tmp_path: Path, refine: Refine) -> None:
    """A pipe would block for ever; alone it is an error, in a folder it is left out."""
    folder(tmp_path / "in", "a.jsonl", "dir.jsonl/b.jsonl")
    os.mkfifo(tmp_path / "in" / "pipe.jsonl")
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(os.path.relpath(tmp_path / "in" / "s.jsonl"))
    assert listed(tmp_path / "in") == ["a.jsonl", "dir.jsonl/b.jsonl"]
    assert "pipe.jsonl, s.jsonl (no regular file)" in list_files(tmp_path / "in", RECORDS).note()
    for words in (("run", "in/pipe.jsonl"), ("dedup", "in/pipe.jsonl", "--json")):
        assert "in/pipe.jsonl is no regular file, and it is read more than once" in refine(*words).stderr


def test_tables_of_text_beside_records_are_left_out(tmp_path: Path) -> None:
    """They describe the records; alone they are records. Evaluation sets in one folder are of many formats."""
    folder(tmp_path / "in", "a.jsonl", "stats.csv", "b/index.tsv.gz")
    for path in ("a.csv", "b.tsv"):
        (folder(tmp_path / "tables", path) / path).write_text("text\na text\n")
    for place, files_of in PLACES.items():
        names = [path.name for path in files_of(tmp_path / "in")]
        assert names == (["a.jsonl", "index.tsv.gz", "stats.csv"] if place == "evals" else ["a.jsonl"])
        assert len(files_of(tmp_path / "tables")) == 2
    assert Columns.of(tmp_path / "in").note.endswith("b/index.tsv.gz, stats.csv (a table beside other records)")


@pytest.mark.parametrize("place", PLACES)
def test_a_saved_dataset_is_its_data_files(place: str, tmp_path: Path) -> None:
    """Not its caches, wherever it lies."""
    import datasets

    datasets.Dataset.from_dict({"text": ["a", "b"]}).save_to_disk(str(tmp_path / "in" / "saved"))
    folder(tmp_path / "in" / "saved", "cache-1.arrow", "notes.jsonl")
    for root in (tmp_path / "in", tmp_path / "in" / "saved"):
        if place != "SOURCE" or root.name == "in":  # a saved Dataset itself is read by `datasets`
            assert [path.name for path in PLACES[place](root)] == ["data-00000-of-00001.arrow"]


def test_refine_dedup_reads_a_saved_dataset(tmp_path: Path, refine: Refine) -> None:
    """As refine run does."""
    import datasets

    datasets.Dataset.from_dict({"text": ["a", "a", "b"]}).save_to_disk(str(tmp_path / "saved"))
    assert refine("dedup", "saved", "--kept", "kept.jsonl").returncode == 0
    assert (tmp_path / "kept.jsonl").read_text().splitlines() == ['{"text":"a"}', '{"text":"b"}']


def test_a_run_says_what_it_left_out(tmp_path: Path, refine: Refine) -> None:
    """On stderr, in the summary, in the manifest and in a dry run; also of an earlier corpus that the plan names."""
    folder(tmp_path / "in", "a.jsonl", "b.JSONL", "c.csv", ".d.jsonl", "e.parquet.gz")
    folder(tmp_path / "old", "a.jsonl", "b.txt")
    (tmp_path / "p.toml").write_text('[[stage]]\nuse = "against"\ncorpus = "old"\n')
    note = "left out of in: 1 hidden; e.parquet.gz (no format of records); c.csv (a table beside other records)"
    dry = refine("run", "in", "--plan", "p.toml", "--out", "in/r", "--dry-run")
    assert note in dry.stdout
    for _ in range(2):  # the second time, the run itself is there
        done = refine("run", "in", "--plan", "p.toml", "--out", "in/r")
        assert done.returncode == 0, done.stderr
        assert note in done.stdout
        assert done.stderr.count(note) == 1
        assert "against: left out of old: b.txt (no format of records)" in done.stderr
    assert json.loads(Store(tmp_path / "in" / "r").manifest.read_text())["remarks"]["ingest"] == [note]
    done = refine("dedup", "in", "--kept", "kept.txt")
    assert "e.parquet.gz (no format of records); r (a run of refine); c.csv (a table" in done.stdout
