"""A run folder and its source: whose it is, what of another run goes, and what is no part of a source."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from pipeline import sources
from pipeline.ingest import Limits, ingest
from pipeline.sources import SourceError
from pipeline.store import RunFolderError, Store, read_json
from tests.conftest import chat, read_shards

Jsonl = Callable[..., Path]


def take(source: object, out: Path, **limits: Any) -> pl.DataFrame:
    """Ingest a source and read its raw shards."""
    found = sources.find(os.fspath(source)) if isinstance(source, str | Path) else source
    ingest(found, Store(out), Limits(**limits))  # type: ignore[arg-type]  # any Source
    return read_shards(out / "raw")


def derived(out: Path) -> None:
    """What a run leaves beside its raw shards."""
    for name in ("signals/words-1", "decisions", "refined", "rejected"):
        (out / name / "00000.parquet").parent.mkdir(parents=True)
        (out / name / "00000.parquet").touch()
    for name in ("manifest.json", "README.md", "plan.toml"):
        (out / name).touch()


@pytest.mark.parametrize("change", ["source", "limit"])
def test_signals_of_another_source_do_not_stay(jsonl: Jsonl, tmp_path: Path, change: str) -> None:
    """Where the shard list is gone and the source or what is read of it is another one, all that came of it goes."""
    out = tmp_path / "r"
    source = jsonl([chat(1), chat(2)])
    take(source, out)
    derived(out)
    (out / "raw" / "shards.json").unlink()
    take(jsonl([chat(3), chat(4)]) if change == "source" else source, out, limit=1 if change == "limit" else None)
    assert sorted(path.name for path in out.iterdir()) == ["raw", "source.json"]


def test_signals_of_the_same_source_stay(jsonl: Jsonl, tmp_path: Path) -> None:
    """Where a raw shard is made again, nothing is measured again; the run counts as complete when it is."""
    out = tmp_path / "r"
    source = jsonl([chat(1), chat(2)])
    take(source, out)
    derived(out)
    (out / "raw" / "shards.json").unlink()
    take(source, out)
    assert (out / "signals" / "words-1" / "00000.parquet").exists()
    assert (out / "decisions" / "00000.parquet").exists()
    assert not (out / "manifest.json").exists()


@pytest.mark.parametrize("part", ["raw", "quarantine", "signals", "decisions", "refined", "rejected"])
def test_a_folder_that_leads_elsewhere_is_refused(jsonl: Jsonl, tmp_path: Path, part: str) -> None:
    """Nothing is removed or written behind a symbolic link."""
    out = tmp_path / "r"
    source = jsonl([chat(1), b"{"])
    take(source, out, unreadable=1.0)
    (out / part).mkdir(exist_ok=True)
    (out / part).rename(tmp_path / "elsewhere")
    (out / part).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RunFolderError, match=f"{part} is a link"):
        take(source, out, unreadable=1.0)


def test_shards_that_are_not_in_the_list_go(jsonl: Jsonl, tmp_path: Path) -> None:
    """Whoever reads raw/*.parquet or quarantine/*.parquet reads this run's rows; a lost quarantine is made again."""
    out, source = tmp_path / "r", jsonl([chat(1), chat(2), b"{"])
    take(source, out, unreadable=1.0)
    there = (out / "quarantine" / "00000.parquet").read_bytes()
    for part in ("raw", "quarantine"):
        shutil.copy(out / part / "00000.parquet", out / part / "00007.parquet")
    assert take(source, out, unreadable=1.0).height == 2
    assert [path.name for path in (out / "quarantine").iterdir()] == ["00000.parquet"]
    shutil.rmtree(out / "quarantine")
    take(source, out, unreadable=1.0)
    assert (out / "quarantine" / "00000.parquet").read_bytes() == there


@pytest.mark.parametrize(
    "text", ["{}", "[]", "3", "{", '{"shards": [{"name": "../../x.parquet", "rows": 1, "quarantined": 0}]}']
)
def test_a_damaged_shard_list_is_made_again(jsonl: Jsonl, tmp_path: Path, text: str) -> None:
    """Whatever JSON lies there; a damaged source.json is one sentence, because it may be somebody else's."""
    out, source = tmp_path / "r", jsonl([chat(1), chat(2)])
    take(source, out)
    said = read_json(out / "raw" / "shards.json")
    (out / "raw" / "shards.json").write_text(text)
    take(source, out)
    assert {**read_json(out / "raw" / "shards.json"), "seconds": 0} == {**said, "seconds": 0}
    (out / "source.json").write_text(text)
    with pytest.raises(RunFolderError, match=r"source\.json (does not say what this run was started for|is not valid)"):
        take(source, out)


def test_a_run_inside_its_source_goes_on(jsonl: Jsonl, tmp_path: Path) -> None:
    """Runs of ours inside a folder are no part of it, at any depth."""
    (tmp_path / "in" / "data" / "runs").mkdir(parents=True)
    jsonl([chat(1), chat(2)], name="in/a.jsonl")
    out = tmp_path / "in" / "data" / "runs" / "one"
    first = take(tmp_path / "in", out)
    (out / "manifest.json").write_text("{}")
    assert take(tmp_path / "in", out).equals(first)
    assert take(tmp_path / "in", tmp_path / "in" / "two").height == 2


def test_a_folder_with_a_source_json_that_is_not_ours_is_read(jsonl: Jsonl, tmp_path: Path) -> None:
    """Only what refine wrote is left out."""
    (tmp_path / "in" / "crawl" / "raw").mkdir(parents=True)
    jsonl([chat(1)], name="in/crawl/raw/a.jsonl")
    jsonl([chat(2)], name="in/crawl/source.json")
    assert take(tmp_path / "in", tmp_path / "r").height == 2


def test_a_run_that_is_not_complete_is_no_source(jsonl: Jsonl, tmp_path: Path) -> None:
    """Nor are its raw shards; of a complete one the raw shards are a corpus, without their list."""
    take(jsonl([chat(1), chat(2)]), tmp_path / "r")
    for folder in (tmp_path / "r", tmp_path / "r" / "raw"):
        with pytest.raises(RunFolderError, match=r"r (holds no complete ingest|is not a complete run)"):
            take(folder, tmp_path / "s")
    (tmp_path / "r" / "manifest.json").write_text("{}")
    assert take(tmp_path / "r" / "raw", tmp_path / "s").height == 2


@pytest.mark.parametrize("said", ["", "  "])
def test_an_empty_word_is_no_source(said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not mean the folder refine is started in."""
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n')
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SourceError, match="SOURCE is empty"):
        sources.find(said)


def test_an_option_without_effect_is_refused(jsonl: Jsonl, tmp_path: Path) -> None:
    """Files have no split, configuration or revision; a saved Dataset has no other split than its own."""
    import datasets

    path = jsonl([chat(1)])
    for option in ("split", "config", "revision"):
        for said in (str(path), str(path.parent), None):
            with pytest.raises(SourceError, match=f"--{option} is 'x', but it does not apply to"):
                sources.find(said, **{option: "x"})
    datasets.Dataset.from_list([chat(1)], split="train").save_to_disk(str(tmp_path / "saved"))
    assert take(sources.find(str(tmp_path / "saved"), split="train"), tmp_path / "r").height == 1
    with pytest.raises(SourceError, match="of the split train, without a split 'test': omit"):
        take(sources.find(str(tmp_path / "saved"), split="test"), tmp_path / "s")
    with pytest.raises(SourceError, match=r"--revision is 'x', but it does not apply to .*, a saved Dataset"):
        sources.find(str(tmp_path / "saved"), revision="x")


def test_a_run_is_never_written_over_its_own_source(jsonl: Jsonl, tmp_path: Path) -> None:
    """A run is not wiped by reading its refined corpus into itself, whether its shard list is there or lost."""
    out = tmp_path / "r"
    take(jsonl([chat(1), chat(2)]), out)
    (out / "refined").mkdir()
    (out / "raw" / "00000.parquet").rename(out / "refined" / "00000.parquet")
    (out / "manifest.json").write_text("{}")
    for why in ("a run would overwrite it", "holds no complete ingest"):
        with pytest.raises(RunFolderError, match=why):
            take(out, out)
        assert (out / "refined" / "00000.parquet").exists()
        (out / "raw" / "shards.json").unlink(missing_ok=True)
