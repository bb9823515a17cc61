"""Runs and sources in a bucket, on a real S3 server: the same bytes, one writer, and a sentence for each fault."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipeline import plan as planning
from pipeline import sources
from pipeline.engine.local import Local
from pipeline.ingest import Limits
from pipeline.run import ActiveRun
from pipeline.sources import SourceError
from pipeline.store import RunFolderError, Store
from pipeline.store.bucket import Bucket, PlaceError, url_of
from pipeline.store.lease import LeaseLostError, leased
from stages.files import exists, remove, save, save_json
from tests.conftest import ROOT, Refine, chat, contents
from tests.pipeline.cluster import S3

TOY = ROOT / "tests" / "pipeline" / "toy.toml"
Jsonl = Callable[..., Path]
SCHEMES = pytest.mark.parametrize("scheme", ["s3", "gs"])
"""Clients that speak to the same server, each in its own way."""


def carry_out(source: str | Path, out: str | Path) -> Store:
    """A run of the toy plan in three shards."""
    store = Store.at(Path(out))
    ActiveRun(store, planning.load(TOY), Local(1), lambda *_: None, lambda _: None).carry_out(
        sources.find(str(source)), Limits(rows=20)
    )
    return store


def files(folder: Path) -> dict[str, bytes]:
    """The files of a run, but lease, lock and manifest."""
    return {name: content for name, content in contents(folder).items() if not name.startswith(".")}


def corpus(jsonl: Jsonl) -> Path:
    """Sixty conversations with copies."""
    return jsonl(chat(i // 2 if i % 5 == 0 else i, 2 + i % 4) for i in range(60))


@SCHEMES
def test_a_run_in_a_bucket_has_the_files_of_one_in_a_folder(s3: S3, scheme: str, jsonl: Jsonl, tmp_path: Path) -> None:
    """Through a server that asks to slow down and resets connections; the source may be there too."""
    source = corpus(jsonl)
    carry_out(source, tmp_path / "r")
    (s3.folder / "bucket" / "in").mkdir(exist_ok=True)
    (s3.folder / "bucket" / "in" / "corpus.jsonl").write_bytes(source.read_bytes())
    s3.slow_every, s3.reset_every = 5, 23
    carry_out(f"{scheme}://bucket/in/corpus.jsonl", f"{scheme}://bucket/same-{scheme}")
    expected = files(tmp_path / "r")
    found = files(s3.folder / "bucket" / f"same-{scheme}")
    for name in ("README.md", "source.json"):  # they hold the name of the source
        assert found.pop(name)
        assert expected.pop(name)
    assert found == expected
    assert (s3.folder / "bucket" / f"same-{scheme}" / "manifest.json").exists()


@SCHEMES
def test_a_run_in_a_bucket_is_resumed_and_mended(s3: S3, scheme: str, jsonl: Jsonl) -> None:
    """A complete run writes no shard again; an object that vanished or is cut short is made again."""
    source, out, root = corpus(jsonl), f"{scheme}://bucket/resumed-{scheme}", s3.folder / "bucket" / f"resumed-{scheme}"
    carry_out(source, out)
    before = files(root)
    s3.requests.clear()
    carry_out(source, out)
    assert [path for path in s3.puts(".parquet") if "/decisions/" not in path] == []
    short = min(root.glob("signals/*/merged/00001.parquet"))
    lost = (
        min(root.glob("signals/*Words*/00001.parquet")),
        root / "raw" / "00002.parquet",
        root / "refined" / "00000.parquet",
    )
    for path in (short, *lost):
        if path == short:
            path.write_bytes(path.read_bytes()[:200])
        else:
            path.unlink()
        carry_out(source, out)
        assert files(root) == before, path


def test_the_commands_read_and_decide_a_run_in_a_bucket(s3: S3, refine: Refine, jsonl: Jsonl) -> None:
    """`run`, `decide`, `signals` and `show` take its URL."""
    out = "s3://bucket/commands"
    done = refine("run", corpus(jsonl), "--plan", TOY, "--out", out, "--workers", 1, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["out"] == out
    decided = refine("decide", out, "--drop", "words > 20", "--json")
    assert decided.returncode == 0, decided.stderr
    assert json.loads(decided.stdout)["refined"] < json.loads(done.stdout)["refined"]
    assert json.loads((s3.folder / "bucket" / "commands" / "manifest.json").read_text())["counts"]["rejected"] > 0
    for words in (("signals", out), ("show", out, "-n", 1)):
        assert refine(*words).returncode == 0


def test_the_status_of_a_run_in_a_bucket(s3: S3, refine: Refine, jsonl: Jsonl) -> None:
    """By a listing and three small objects: complete, in use by another process, interrupted; or no run."""
    out, root = "s3://bucket/seen", s3.folder / "bucket" / "seen"
    place = carry_out(corpus(jsonl), out)

    def status() -> tuple[str, str]:
        (row,) = json.loads(refine("status", out, "--json").stdout)
        assert (row["run"], row["rows"]) == (out, 60)
        return row["state"], row["stages"]

    s3.requests.clear()
    state, stages = status()
    assert state == "complete"
    assert [stage.rpartition(".")[2] for stage in stages.split(", ")] == ["Copies 3/3", "Longest 3/3", "Words 3/3"]
    assert not [path for _, path in s3.requests if ".parquet" in path]
    assert place.bucket
    with leased(place.bucket):
        assert status()[0] == "running"
    (root / "manifest.json").unlink()
    min(root.glob("signals/*Words*/00001.parquet")).unlink()
    state, stages = status()
    assert state == "interrupted"
    assert " 2/3" in stages
    missing = refine("status", "s3://bucket/unseen")
    assert missing.returncode == 1
    assert "s3://bucket/unseen holds no run: name the URL of one" in missing.stderr


def test_nothing_is_stored_if_the_writer_fails(s3: S3) -> None:
    """Neither a part nor a temporary object; and a file is stored as a whole when it is renamed."""
    store = Store.at(Path("s3://bucket/atomic")).mount()

    def half(path: Path) -> None:
        path.write_text("half")
        raise KeyError("stop")

    with pytest.raises(KeyError):
        save(store.card, half)
    assert s3.puts("atomic") == []
    assert not exists(store.card)
    save_json(store.manifest, {"a": 1})
    assert exists(store.manifest)
    remove(store.manifest)
    assert not (s3.folder / "bucket" / "atomic" / "manifest.json").exists()


@SCHEMES
def test_of_sixteen_rivals_one_gets_the_lease(s3: S3, scheme: str) -> None:
    """The errors of the others name the holder and its start; once it has ended, the next one gets the lease."""
    bucket, winners, losers = Bucket(f"{scheme}://bucket/race-{scheme}"), list[int](), list[str]()

    def rival(number: int) -> None:
        try:
            with leased(bucket):
                winners.append(number)
                time.sleep(1)
        except PlaceError as error:
            losers.append(str(error))

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(rival, range(16)))
    assert len(winners) == 1
    assert len(losers) == 15
    assert all(line.startswith(f"{bucket.url} ") and "process" in line for line in losers), losers
    rival(16)
    assert len(winners) == 2
    assert s3.puts(".lease/000002")


def test_a_stale_lease_is_taken_and_its_holder_notices(s3: S3, jsonl: Jsonl, monkeypatch: pytest.MonkeyPatch) -> None:
    """A holder that did not answer for long writes no manifest."""
    place = Store.at(Path("s3://bucket/stale"))
    assert place.bucket
    with leased(place.bucket) as first:
        rival = leased(place.bucket)
        with pytest.raises(PlaceError, match=r"is in use by process \d+ on \S+ since \S+: wait for it; if it is dead"):
            rival.__enter__()
        with monkeypatch.context() as patch:
            patch.setattr("pipeline.store.lease.STALE", -1.0)
            with leased(place.bucket), pytest.raises(LeaseLostError, match=r"stale is written by process \d+ on"):
                first.check()
    source = corpus(jsonl)

    def taken(step: str, done: int, *_: object) -> None:
        if step == "write" and done and not (s3.folder / "bucket" / "stale" / ".lease" / "000099").exists():
            Bucket("s3://bucket/stale").create(".lease/000099", b"{}")

    run = ActiveRun(Store.at(Path("s3://bucket/stale")), planning.load(TOY), Local(1), taken, lambda _: None)
    with pytest.raises(LeaseLostError, match="is written by another process now"):
        run.carry_out(sources.find(str(source)), Limits(rows=20))
    assert (s3.folder / "bucket" / "stale" / "refined").exists()
    assert not (s3.folder / "bucket" / "stale" / "manifest.json").exists()


def test_a_lease_of_a_process_that_has_died_here_is_free(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits five minutes for a process of this machine that was killed."""
    bucket = Bucket("s3://bucket/dead")
    with monkeypatch.context() as patch:
        patch.setattr("os.getpid", lambda: 2**22 + 1)  # above the largest number of a process
        patch.setattr("pipeline.store.lease.FREE", b"alive")
        with leased(bucket):
            pass
    with leased(bucket) as second:
        assert second.number == 2
    assert len(s3.puts("dead/.lease")) >= 4


def refused(out: str, jsonl: Jsonl) -> str:
    """The sentence of a run that cannot begin."""
    with pytest.raises((PlaceError, RunFolderError)) as caught:
        carry_out(corpus(jsonl), out)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_bucket_that_cannot_be_used_is_one_sentence(s3: S3, jsonl: Jsonl, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not there, may not be written, has a server without conditional writes, holds something else."""
    assert refused("s3://nowhere/run", jsonl).startswith("there is no bucket 'nowhere' at the server of s3://nowhere")
    s3.deny = "PUT"
    assert "s3://bucket/no cannot be read and written with these credentials" in refused("s3://bucket/no", jsonl)
    s3.well()
    s3.ignore_conditions = True
    assert "the server of s3://bucket/no ignores If-None-Match" in refused("s3://bucket/no", jsonl)
    s3.well()
    (s3.folder / "bucket" / "other").mkdir()
    (s3.folder / "bucket" / "other" / "thesis.pdf").touch()
    assert refused("s3://bucket/other", jsonl).startswith("s3://bucket/other is not a run: it holds thesis.pdf")
    carry_out(corpus(jsonl), "s3://bucket/mine")
    with pytest.raises(RunFolderError, match="belongs to another run: its digest is"):
        carry_out(jsonl([chat(1)], "other.jsonl"), "s3://bucket/mine")
    with pytest.raises(SourceError, match=r"there is no object s3://bucket/no\.jsonl"):
        sources.find("s3://bucket/no.jsonl")
    with pytest.raises(SourceError, match="there is nothing at s3://bucket/nothing"):
        sources.find("s3://bucket/nothing")
    monkeypatch.setattr("pipeline.store.bucket._connect", uncached())
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    assert refused("s3://bucket/no", jsonl).startswith("s3://bucket/no cannot be reached (Generic S3 error")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    assert "the credentials for s3://bucket/no cannot be used (Generic S3 error: Missing" in refused(
        "s3://bucket/no", jsonl
    )
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://127.0.0.1:9/169.254.")
    assert refused("s3://bucket/no", jsonl).startswith("no credentials for s3://bucket/no: set AWS_ACCESS_KEY_ID")
    assert refused("az://bucket/no", jsonl).startswith("no credentials for az://bucket/no: set AZURE_STORAGE_ACCOUNT")
    assert refused("gs://nowhere/run", jsonl).startswith("there is no bucket 'nowhere' at the server of gs://nowhere")
    s3.ignore_conditions = True
    assert "the server of gs://bucket/no ignores If-None-Match" in refused("gs://bucket/no", jsonl)
    monkeypatch.delenv("GOOGLE_BEARER_TOKEN")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "nowhere.json")
    assert "the credentials for gs://bucket/no cannot be used (Generic GCS error" in refused("gs://bucket/no", jsonl)


def test_a_bucket_without_its_package_is_one_sentence(jsonl: Jsonl, monkeypatch: pytest.MonkeyPatch) -> None:
    """It names the extra to install."""
    monkeypatch.setitem(sys.modules, "obstore", None)
    assert refused("s3://bucket/no", jsonl) == ("a bucket needs the package obstore: start `pip install 'refine[s3]'`")


def uncached() -> Callable[..., object]:
    """A connection that reads the environment anew and does not wait."""
    from datetime import timedelta

    from pipeline.store import bucket

    connect = bucket._connect.__wrapped__  # noqa: SLF001
    return lambda url, _patience=None: connect(url, timedelta(seconds=1))


@pytest.mark.parametrize(
    ("word", "url"),
    [
        ("s3://b/run", "s3://b/run"),
        (Path("s3://b/run/"), "s3://b/run"),
        ("gs://b", "gs://b"),
        ("az://container/a/b", "az://container/a/b"),
        ("s3", None),
        ("data/s3:/x", None),
        (Path("runs/a"), None),
        ("s3://", None),
    ],
)
def test_a_url_is_known_as_one(word: str | Path, url: str | None) -> None:
    """Also after `Path` made one slash of two."""
    assert url_of(word) == url


def test_a_changed_object_is_read_again(s3: S3) -> None:
    """After a listing a copy is believed only if its entity tag is that of the object."""
    store = Store.at(Path("s3://bucket/changed")).mount()
    save_json(store.plan, {"a": 1})
    path = s3.folder / "bucket" / "changed" / "plan.toml"
    path.write_text("other")
    assert store.bucket
    store.bucket.refresh()
    store.bucket.fetch(store.plan)
    assert store.plan.read_text() == "other"
    path.unlink()
    store.bucket.refresh()
    with pytest.raises(FileNotFoundError, match="there is no such object"):
        store.bucket.fetch(store.plan)
    assert not store.plan.exists()


@pytest.mark.usefixtures("s3")
def test_remarks_are_the_same_with_an_empty_cache(jsonl: Jsonl, tmp_path: Path) -> None:
    """As on another machine: of a complete run it has no signals yet, and no numbers of a fit."""
    items = jsonl(({"question": chat(i)["prompt"]} for i in range(30)), "items.jsonl")
    stages = f'[[stage]]\nuse = "contamination"\nevals = "{items}"\n[[stage]]\nuse = "follows"\n'
    (tmp_path / "plan.toml").write_text(stages)
    plan = planning.load(tmp_path / "plan.toml")
    found = []
    for _ in range(2):
        store = Store.at(Path("s3://bucket/remarks"))
        run = ActiveRun(store, plan, Local(1), lambda *_: None, lambda _: None)
        found.append(run.carry_out(sources.find(str(corpus(jsonl))), Limits(rows=20)).remarks)
        shutil.rmtree(store.folder)
    assert found[0] == found[1]
    assert set(found[0]) == {"contamination", "follows", "rules"}
