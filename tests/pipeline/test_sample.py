"""`--sample`: the same conversations from whatever holds them, and an honest word about the whole."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import polars as pl
import pytest
from scipy.stats import binomtest

import refine as package
from pipeline import sources
from pipeline.ingest import Limits, ingest
from pipeline.manifest import Manifest
from pipeline.sources import SourceError
from pipeline.store import Store
from tests.conftest import ROOT, Refine, chat, read_shards

TOY = ROOT / "tests" / "pipeline" / "toy.toml"
Jsonl = Callable[..., Path]


def drawn(source: Path, out: Path, sample: float | None) -> pl.DataFrame:
    """The raw conversations of a sample."""
    ingest(sources.find(str(source)), Store(out), Limits(rows=50, sample=sample, unreadable=1.0))
    return read_shards(out / "raw")


def test_a_sample_is_the_same_whatever_holds_the_conversations(jsonl: Jsonl, tmp_path: Path) -> None:
    """Another order, another format, several files and other fields: the same texts, about as many as asked for."""
    records = [chat(i) for i in range(2000)]
    texts = set(drawn(jsonl(records), tmp_path / "r", 0.1)["text"])
    assert 160 <= len(texts) <= 240  # three standard deviations
    jsonl(records[::-1], "other.jsonl")
    assert set(drawn(tmp_path / "other.jsonl", tmp_path / "other", 0.1)["text"]) == texts
    folder = tmp_path / "folder"
    folder.mkdir()
    jsonl([{**record, "prompt_id": "x", "mark": 1} for record in records[:700]], "folder/a.jsonl")
    pl.DataFrame(records[700:]).write_parquet(folder / "b.parquet")
    assert set(drawn(folder, tmp_path / "several", 0.1)["text"]) == texts
    assert set(drawn(tmp_path / "corpus.jsonl", tmp_path / "small", 0.02)["text"]) < texts


def test_a_conversation_has_the_id_that_it_has_in_the_whole(jsonl: Jsonl, tmp_path: Path) -> None:
    """Rows of the sample are rows of a run without it; a share of 1 takes all of them."""
    source = jsonl([chat(i) for i in range(300)])
    whole, part = drawn(source, tmp_path / "whole", None), drawn(source, tmp_path / "part", 0.1)
    assert part.equals(whole.filter(pl.col("id").is_in(part["id"].to_list())))
    assert drawn(source, tmp_path / "all", 1.0).equals(whole)


def test_copies_are_drawn_together(jsonl: Jsonl, tmp_path: Path) -> None:
    """Whatever their ids: so a sample has as large a share of exact copies as the whole."""
    source = jsonl([{**chat(i // 4), "prompt_id": f"{i}"} for i in range(800)])
    copies = drawn(source, tmp_path / "r", 0.1).group_by("text").len()
    assert copies.height > 5
    assert copies["len"].to_list() == [4] * copies.height


def test_unreadable_rows_are_drawn_as_well(jsonl: Jsonl, tmp_path: Path) -> None:
    """The sample has its share of them, and the counts add up."""
    source = jsonl([line for i in range(500) for line in (chat(i), f"{{broken {i}".encode())])
    part = drawn(source, tmp_path / "r", 0.2)
    shards = json.loads((tmp_path / "r" / "raw" / "shards.json").read_text())
    assert shards["sample"] == {"share": 0.2, "rows": 1000}
    assert shards["rows"] == part.height + shards["quarantined"]
    assert 70 <= part.height <= 130
    assert 70 <= shards["quarantined"] <= 130


@pytest.mark.usefixtures("no_pictures")
def test_everything_says_that_it_is_a_sample(refine: Refine, jsonl: Jsonl, tmp_path: Path) -> None:
    """Summary, manifest, card, status and report; after other rules as well."""
    source, said = jsonl([chat(i, 2 + i % 4) for i in range(400)]), "a sample of 25% of 400 conversations"
    done = refine("run", source, "--plan", TOY, "--sample", "25%", "--out", "r")
    assert done.returncode == 0, done.stderr
    assert f"this is {said}; of the whole, " in done.stdout
    assert "would be kept (fewer if near-duplicates lie outside the sample), in about " in done.stdout
    kept = [json.loads(refine("decide", "r", "--json").stdout)["sample"]["share"]]
    manifest = Manifest.load(Store(tmp_path / "r"))
    assert manifest.sample is not None
    assert (manifest.sample.share, manifest.sample.rows, *kept) == (0.25, 400, 0.25)
    assert manifest.sample.seconds > 0
    assert f"The source is {said}, taken by a hash" in (tmp_path / "r" / "README.md").read_text()
    assert "(sample of 25%)" in refine("status").stdout
    assert json.loads(refine("status", "--json").stdout)[0]["sample"] == 0.25
    assert refine("report", "r", "--out", "page").returncode == 0
    report = json.loads((tmp_path / "page" / "report.json").read_text())
    assert said in report["headline"]
    assert report["sample"]["rows"] == 400


def test_the_interval_of_the_whole_is_wilsons() -> None:
    """As scipy computes it, also where nothing or everything is kept."""
    for n, kept in ((100, 0), (100, 37), (7, 7), (2013, 1100)):
        counts = SimpleNamespace(ingested=n, refined=kept)
        ends = binomtest(kept, n).proportion_ci(0.95, method="wilson")
        given = Manifest.kept(SimpleNamespace(counts=counts))  # type: ignore[arg-type]
        assert given == pytest.approx((ends.low, ends.high), abs=1e-6)


def test_a_run_goes_on_with_its_own_sample_only(refine: Refine, jsonl: Jsonl) -> None:
    """Another share is another run, and so is the whole; the same share, however written, is the same run."""
    source = jsonl([chat(i) for i in range(200)])
    words = ["run", source, "--plan", TOY, "--out", "r"]
    assert refine(*words, "--sample", "20%").returncode == 0
    assert refine(*words, "--sample", "0.2").returncode == 0
    assert "its sample is 0.2 and this one's is 0.3; choose another --out" in refine(*words, "--sample", "0.3").stderr
    assert "its sample is 0.2 and this one's is None" in refine(*words).stderr


@pytest.mark.parametrize("share", ["0", "-1%", "101%", "nan", "inf", "a lot", "1%%", ""])
def test_what_is_no_share_is_refused(refine: Refine, jsonl: Jsonl, tmp_path: Path, share: str) -> None:
    """In one sentence, before anything is written."""
    done = refine("run", jsonl([chat(1)]), "--plan", TOY, f"--sample={share}", "--out", "r")
    assert done.returncode == 1
    assert done.stderr.startswith("refine: --sample is ")
    assert done.stderr.endswith("such as 1% or 0.01\n")
    assert not (tmp_path / "r").exists()


def test_a_sample_without_a_conversation_is_refused(jsonl: Jsonl, tmp_path: Path) -> None:
    """Of a small source a small share may be nothing."""
    with pytest.raises(SourceError, match=r"a sample of 1e-09 of its 3 rows is empty: take more"):
        drawn(jsonl([chat(i) for i in range(3)]), tmp_path / "r", 1e-9)


def test_kept_records_of_a_sample_are_those_of_the_source(jsonl: Jsonl, tmp_path: Path) -> None:
    """`--as source` writes the very lines that were drawn and kept."""
    source = jsonl([{**chat(i, 4), "i": i} for i in range(200)])
    run = package.run(source, plan=TOY, sample=0.2, as_="source", out=tmp_path / "r")
    lines = (tmp_path / "r" / "kept" / "corpus.jsonl").read_text().splitlines()
    refined = run.refined.select("extra").collect()["extra"]
    assert [json.loads(line)["i"] for line in lines] == [json.loads(extra)["i"] for extra in refined]
    assert 5 <= len(lines) <= 60
