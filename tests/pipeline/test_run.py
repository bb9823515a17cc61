"""A run from source to manifest: nothing lost, nothing different when it was interrupted or shared out."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from pipeline import plan as planning
from pipeline import sources
from pipeline.engine.local import Local
from pipeline.ingest import Limits
from pipeline.manifest import Manifest
from pipeline.run import AccountingError, ActiveRun
from pipeline.signals import scan, scan_signals
from pipeline.store import RunFolderError, Store
from pipeline.write import ShardCounts, write
from stages.files import read_frame, save_frame
from stages.stage import CorruptInputError
from tests.conftest import ROOT, Refine, call, chat, contents

TOY = ROOT / "tests" / "pipeline" / "toy.toml"
Jsonl = Callable[..., Path]
WITH_WORKERS = "from pipeline import cli; from pipeline.engine import local; local.WORKER_START = 1e-9; cli.main()"
"""A program that is `refine`, but starts workers for any work, however little."""


def corpus(n: int = 300) -> Iterable[dict[str, Any]]:
    """Conversations of 2 to 5 turns with exact copies, near copies by their first words, and short ones."""
    for i in range(n):
        yield chat(i // 2 if i % 5 == 0 else i, 2 + i % 4)


def run(refine: Refine, source: Path, out: Path, *more: object) -> dict[str, Any]:
    done = refine("run", source, "--plan", TOY, "--out", out, "--shard-rows", 40, "--workers", 1, "--json", *more)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def test_every_conversation_goes_to_one_place_with_a_reason(refine: Refine, jsonl: Jsonl, tmp_path: Path) -> None:
    """Of all ids, in = refined + rejected + quarantined, each id once, and each rejected row says rule and values."""
    records: list[object] = [*corpus(), b"{broken"]
    said = run(refine, jsonl(records), tmp_path / "r")
    refined = pl.read_parquet(tmp_path / "r" / "refined" / "*.parquet")
    rejected = pl.read_parquet(tmp_path / "r" / "rejected" / "*.parquet")
    quarantined = pl.read_parquet(tmp_path / "r" / "quarantine" / "*.parquet")
    ids = pl.concat([refined["id"], rejected["id"], quarantined["id"]])
    assert ids.n_unique() == ids.len() == said["ingested"] == 301
    assert (said["refined"], said["rejected"], said["quarantined"]) == (refined.height, rejected.height, 1)
    assert refined.columns[:3] == ["prompt", "prompt_id", "messages"]
    assert {"words", "share_of_longest"} <= set(refined.columns)
    assert set(rejected.select("reason", "rule").iter_rows()) == {
        ("too_short", "words < 12"),
        ("duplicate", "copies pair with a better one at jaccard >= 0.75"),
    }
    short = rejected.filter(reason="too_short")
    words = short["messages"].list.eval(pl.element().struct["content"].str.count_matches(r"\S+")).list.sum()
    assert [json.loads(value) for value in short["values"]] == [{"words": n} for n in words]
    assert said["by_rule"]["too_short"] == short.height > 0
    duplicates = rejected.filter(reason="duplicate")
    assert duplicates.height == said["by_rule"]["duplicate"] > 0
    assert set(duplicates["duplicate_of"]) <= set(refined["id"])
    assert {round(x, 3) for x in duplicates["jaccard"]} <= {1.0, 0.8}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A source, and a finished run over it, which is only read."""
    folder = tmp_path_factory.mktemp("finished")
    source = folder / "corpus.jsonl"
    source.write_text("".join(json.dumps(record) + "\n" for record in corpus()), encoding="utf-8")
    run(partial(call, cwd=folder), source, folder / "r")
    return source, folder / "r"


@pytest.fixture
def source(finished: tuple[Path, Path]) -> Path:
    """The source of that run."""
    return finished[0]


@pytest.fixture
def out(finished: tuple[Path, Path], tmp_path: Path) -> Path:
    """A copy of that run, to be damaged and resumed."""
    return Path(shutil.copytree(finished[1], tmp_path / "r"))


@pytest.fixture
def toy(jsonl: Jsonl, tmp_path: Path) -> Callable[[], Manifest]:
    """A run of the toy plan in this process, in the folder `r`."""
    source = sources.find(str(jsonl(corpus(60))))

    def carry_out() -> Manifest:
        quiet = ActiveRun(Store(tmp_path / "r"), planning.load(TOY), Local(1), lambda *_: None, lambda _: None)
        return quiet.carry_out(source, Limits(rows=20))

    return carry_out


def test_a_single_shard_starts_no_worker(jsonl: Jsonl, tmp_path: Path) -> None:
    """No step of it is worth one, not even a fit in parts."""
    engine, source = Local(2), sources.find(str(jsonl(corpus(30))))
    quiet = ActiveRun(Store(tmp_path / "r"), planning.load(TOY), engine, lambda *_: None, lambda _: None)
    assert quiet.carry_out(source, Limits()).counts.ingested == 30
    assert engine._pool is None  # noqa: SLF001


def test_tokens_are_counted_in_what_is_kept_and_in_what_is_dropped(toy: Callable[[], Manifest], tmp_path: Path) -> None:
    """Words and punctuation marks of all messages, counted again by `re` in the files; the second time by footers."""
    for counts in (toy().counts, toy().counts):
        tokens = {}
        for part in ("refined", "rejected"):
            messages = pl.read_parquet(tmp_path / "r" / part / "*.parquet")["messages"]
            texts = [message["content"] for conversation in messages for message in conversation]
            tokens[part] = sum(len(re.findall(r"\w+|[^\w\s]", text)) for text in texts)
        assert (counts.refined_tokens, counts.rejected_tokens) == (tokens["refined"], tokens["rejected"])
        assert tokens["refined"] != tokens["rejected"]


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda out: (out / "refined" / "00001.parquet").unlink(), id="lost"),
        pytest.param(
            lambda out: shutil.copy(out / "raw" / "00001.parquet", out / "quarantine" / "00001.parquet"), id="doubled"
        ),
    ],
)
def test_a_run_that_loses_or_doubles_conversations_fails(
    toy: Callable[[], Manifest],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    damage: Callable[[Path], object],
) -> None:
    """The files are counted again after they were written; no manifest says then that the run is complete."""
    real = write

    def faulty(*given: Any) -> Iterable[ShardCounts]:
        yield from real(*given)
        (tmp_path / "r" / "quarantine").mkdir(exist_ok=True)
        damage(tmp_path / "r")

    monkeypatch.setattr("pipeline.run.write", faulty)
    with pytest.raises(AccountingError, match="60 conversations came in, and"):
        toy()
    assert not (tmp_path / "r" / "manifest.json").exists()
    assert not (tmp_path / "r" / "README.md").exists()


def test_decisions_on_other_conversations_are_never_written(toy: Callable[[], Manifest], tmp_path: Path) -> None:
    """Each shard's ids are compared with those of its decisions, whatever signals the plan reads."""
    toy()
    store = Store(tmp_path / "r")
    path = store.decisions(store.shards()[0])
    save_frame(path, read_frame(path).with_columns(pl.col("id").reverse()))
    plan = replace(planning.load(TOY), columns=())
    with pytest.raises(CorruptInputError, match=r"00000\.parquet is corrupt: its ids are not those of the decisions"):
        list(write(plan, store, Local(1), store.shards()))


def test_all_signals_are_one_table(toy: Callable[[], Manifest], tmp_path: Path) -> None:
    """A row per conversation, in the order of raw; merges stand beside what was measured per shard."""
    toy()
    store = Store(tmp_path / "r")
    raw, decisions = (scan(store, part).collect() for part in ("raw", "decisions"))
    signals = scan_signals(store).collect()
    assert signals.columns == ["id", "words", "share_of_longest", "characters", "copy_of"]
    assert signals["id"].equals(raw["id"])
    assert decisions["id"].equals(raw["id"])
    assert signals["characters"].to_list() == [len(text) for text in raw["text"]]
    first: dict[str, str] = {}
    assert signals["copy_of"].to_list() == [first.setdefault(t, i) for i, t in raw.select("id", "text").iter_rows()]
    kept = scan_signals(store).filter(pl.col("words") > 20).select("id").collect()
    assert kept.equals(signals.filter(pl.col("words") > 20).select("id"))
    shutil.rmtree(min((store.folder / "signals").glob("*Words*")))
    with pytest.raises(RunFolderError, match=r"holds no signals of stage .*Words.* start `refine run` again"):
        scan_signals(store)


@pytest.mark.usefixtures("workers_at_once")
def test_the_files_do_not_depend_on_the_number_of_workers(refine: Refine, jsonl: Jsonl, tmp_path: Path) -> None:
    """One worker and three write the same bytes."""
    source = jsonl(corpus())
    run(refine, source, tmp_path / "one", "--workers", 1)
    run(refine, source, tmp_path / "three", "--workers", 3)
    assert contents(tmp_path / "one") == contents(tmp_path / "three")


@pytest.mark.usefixtures("workers_at_once")
def test_a_run_killed_at_random_moments_ends_like_one_that_was_not(
    refine: Refine, jsonl: Jsonl, tmp_path: Path
) -> None:
    """SIGKILL again and again, of the process or its group; the files are byte-identical in the end."""
    source = jsonl(corpus(400))
    begun = time.monotonic()
    run(refine, source, tmp_path / "whole", "--workers", 2)
    whole = time.monotonic() - begun
    draw = random.Random(1)
    words = ["run", source, "--plan", TOY, "--out", tmp_path / "killed", "--shard-rows", 40, "--workers", 2]
    for i in range(5):
        process = subprocess.Popen(
            [sys.executable, "-c", WITH_WORKERS, *map(str, words)],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        time.sleep(draw.uniform(0.3, whole))
        (os.killpg if i % 2 else os.kill)(process.pid, signal.SIGKILL)
        process.wait()
    run(refine, source, tmp_path / "killed", "--workers", 2)
    assert contents(tmp_path / "whole") == contents(tmp_path / "killed")


def test_a_complete_run_started_again_measures_nothing(refine: Refine, source: Path, out: Path) -> None:
    """Signals and output shards keep their very files."""
    kept = ("signals", "refined", "rejected", "raw")
    before = {path: path.stat().st_ino for part in kept for path in (out / part).rglob("*.parquet")}
    run(refine, source, out)
    assert before == {path: path.stat().st_ino for path in before}


@pytest.mark.parametrize("victim", ["raw", "signals/*Words*", "signals/*/merged"])
@pytest.mark.parametrize("how", ["cut", "flipped"])
def test_a_corrupt_file_of_ours_is_named_and_made_again(
    refine: Refine, source: Path, out: Path, victim: str, how: str
) -> None:
    """A shard that is read and was cut short, or has flipped bytes, is never trusted."""
    before = contents(out)
    path = min(out.glob(f"{victim}/00003.parquet"))
    good = path.read_bytes()
    third = len(good) // 3
    flipped = good[:third] + bytes(b ^ 0x5A for b in good[third : third + 8]) + good[third + 8 :]
    path.write_bytes(good[:third] if how == "cut" else flipped)
    shutil.rmtree(out / "refined")  # so that raw shards are read again
    done = refine("run", source, "--plan", TOY, "--out", out, "--shard-rows", 40, "--workers", 1)
    assert done.returncode == 0, done.stderr
    assert contents(out) == before
    assert f"{path.name} is corrupt" in done.stderr.replace("\n", "")


@pytest.mark.parametrize("folder", ["refined", "rejected"])
def test_an_output_shard_cut_short_is_written_again(refine: Refine, source: Path, out: Path, folder: str) -> None:
    """An output shard without its footer does not count as written."""
    before = contents(out)
    path = out / folder / "00003.parquet"
    path.write_bytes(path.read_bytes()[:100])
    run(refine, source, out)
    assert contents(out) == before


@pytest.mark.usefixtures("out")
def test_decide_changes_the_outcome_without_measuring(refine: Refine, source: Path, tmp_path: Path) -> None:
    """`refine decide --drop` gives what a run with that rule gives, and leaves the signals alone."""
    signals = {path: path.stat().st_mtime_ns for path in (tmp_path / "r" / "signals").rglob("*")}
    done = refine("decide", tmp_path / "r", "--drop", "long: words > 40", "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["by_rule"]["long"] > 0
    dropped = pl.read_parquet(tmp_path / "r" / "rejected" / "*.parquet").filter(reason="long")
    assert set(dropped["rule"]) == {"words > 40"}
    assert signals == {path: path.stat().st_mtime_ns for path in (tmp_path / "r" / "signals").rglob("*")}
    run(refine, source, tmp_path / "again", "--drop", "long: words > 40")
    assert contents(tmp_path / "r") == contents(tmp_path / "again")


def test_the_output_opens_in_datasets(out: Path, tmp_path: Path) -> None:
    """`load_dataset("parquet", ...)` and the card's own configuration give UltraChat's columns with plain features."""
    import datasets

    counts = json.loads((out / "manifest.json").read_text())["counts"]
    cache = str(tmp_path / "cache")
    files = str(out / "refined" / "*.parquet")
    direct = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=cache)
    by_card = datasets.load_dataset(str(out), split="train", cache_dir=cache)
    for found in (direct, by_card):
        assert found.num_rows == counts["refined"]
        assert found.column_names[:3] == ["prompt", "prompt_id", "messages"]
        assert found.features["prompt"] == datasets.Value("string")
        assert found[0]["messages"][0]["role"] == "user"


def test_the_manifest_records_what_was_done(refine: Refine, jsonl: Jsonl, tmp_path: Path) -> None:
    """Input digests, plan, versions, counts, nulls and timings are in the manifest; the card counts the same."""
    said = run(refine, jsonl(corpus()), tmp_path / "r")
    manifest = json.loads((tmp_path / "r" / "manifest.json").read_text())
    assert manifest["counts"]["refined"] == said["refined"]
    assert len(manifest["source"]["files"][0]["blake2b"]) == 16
    assert [stage["use"].rpartition(":")[2] for stage in manifest["plan"]["stages"]] == ["Words", "Longest", "Copies"]
    assert all({"dropped", "fired", "nulls", "where"} <= set(rule) for rule in manifest["plan"]["rules"])
    assert {"ingest", "decide", "write"} <= set(manifest["seconds"])
    assert f"{said['refined']:,} of 300 conversations" in (tmp_path / "r" / "README.md").read_text()


@pytest.mark.parametrize("limit", [1, 39, 41])
def test_a_limit_reads_the_first_rows_and_ids_stay(refine: Refine, jsonl: Jsonl, tmp_path: Path, limit: int) -> None:
    """--limit N gives the ids that the whole source gives its first N rows."""
    source = jsonl(corpus(60))
    run(refine, source, tmp_path / "all")
    run(refine, source, tmp_path / "some", "--limit", limit)
    ids = [pl.read_parquet(tmp_path / name / "raw" / "*.parquet")["id"].to_list() for name in ("all", "some")]
    assert ids[0][:limit] == ids[1]


@pytest.mark.parametrize("folder", ["refined", "rejected"])
def test_a_flipped_bit_in_an_output_shard_is_named_and_written_again(
    refine: Refine, source: Path, out: Path, folder: str
) -> None:
    """The footer alone is not trusted."""
    before = contents(out)
    path = out / folder / "00003.parquet"
    good = bytearray(path.read_bytes())
    good[len(good) // 4] ^= 0x10
    path.write_bytes(bytes(good))
    done = refine("run", source, "--plan", TOY, "--out", out, "--shard-rows", 40, "--workers", 1)
    assert "00003.parquet is corrupt" in done.stderr.replace("\n", "")
    assert contents(out) == before


def test_a_stray_output_shard_is_not_left_among_the_survivors(refine: Refine, source: Path, out: Path) -> None:
    """`refined/*.parquet` holds what the manifest counts, whatever lay there before."""
    (out / "refined" / "00099.parquet").write_bytes((out / "refined" / "00003.parquet").read_bytes())
    said = run(refine, source, out)
    assert pl.read_parquet(out / "refined" / "*.parquet").height == said["refined"]
    assert not (out / "refined" / "00099.parquet").exists()


def test_a_run_that_keeps_nothing_warns(refine: Refine, jsonl: Jsonl, tmp_path: Path) -> None:
    """An empty corpus is hardly what a user wanted."""
    done = refine("run", jsonl(corpus()), "--plan", TOY, "--out", tmp_path / "r", "--drop", "words > 0")
    assert done.returncode == 0
    assert "nothing is kept" in done.stderr


def test_decide_starts_from_the_plan_each_time(refine: Refine, out: Path) -> None:
    """--drop rules do not pile up, the same command can be given twice, and none gives the plan's own outcome."""
    plain = json.loads((out / "manifest.json").read_text())["by_rule"]
    for where in ("words > 40", "words > 40", "words > 30"):
        said = json.loads(refine("decide", out, "--drop", where, "--json").stdout)
        assert list(said["by_rule"]) == ["too_short", "far_too_long", where, "duplicate"]
    assert json.loads(refine("decide", out, "--json").stdout)["by_rule"] == plain


@pytest.mark.parametrize("where", ["1 = 1", "words >", "wrds > 3", "words > AVG(words)", "CAST(copy_of AS INT) > 3"])
def test_a_rule_that_fails_leaves_the_run_as_it_was(refine: Refine, out: Path, where: str) -> None:
    """The manifest stays, and so do plan and decisions."""
    before = contents(out)
    done = refine("decide", out, "--drop", where)
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1
    assert (out / "manifest.json").exists()
    assert contents(out) == before
