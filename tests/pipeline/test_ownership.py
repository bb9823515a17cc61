"""What a folder is: one sentence for each state of a run, and one writer at a time."""

from __future__ import annotations

import fcntl
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipeline.ownership import RunState, experiment_claimed, in_use, lock_run, run_at, state
from pipeline.store import RunFolderError, Store
from stages.readers import RUN_KEYS
from tests.conftest import ROOT, chat, start


def run_of(folder: Path, *files: str) -> Path:
    """A folder with these files of a run; source.json holds the keys of one."""
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(dict.fromkeys(RUN_KEYS, 1)))
    return folder


STATES = [
    ((), RunState.ABSENT, "there is no folder {}: name the folder of a run; `refine status` lists runs"),
    (
        ("thesis.tex",),
        RunState.FOREIGN,
        "{} is not a run folder: it holds no source.json of a run; `refine run --out DIR` makes one",
    ),
    (
        ("source.json",),
        RunState.BEGUN,
        "{} holds no complete ingest: start `refine run` again with its source and --out {}",
    ),
    (
        ("source.json", "raw/shards.json"),
        RunState.INGESTED,
        "{} is not a complete run: start `refine run` again with its source and --out {}",
    ),
]


@pytest.mark.parametrize(("files", "far", "sentence"), STATES)
def test_each_state_short_of_complete_has_one_sentence(
    tmp_path: Path, files: tuple[str, ...], far: RunState, sentence: str
) -> None:
    """The error names the folder and what to do; a run that is far enough is opened."""
    folder = run_of(tmp_path / "r", *files)
    assert state(folder) is far
    with pytest.raises(RunFolderError) as caught:
        run_at(folder)
    assert str(caught.value) == sentence.format(folder, folder)
    if far is RunState.INGESTED:
        assert run_at(folder, RunState.INGESTED) == Store(folder)


def test_a_complete_run_is_opened_unless_a_process_writes_in_it(tmp_path: Path) -> None:
    """The lock counts, not the file of it."""
    folder = run_of(tmp_path / "r", "source.json", "raw/shards.json", "manifest.json")
    with lock_run(Store(folder)):
        assert in_use(Store(folder))
        with pytest.raises(RunFolderError, match=r"r is in use by another refine process \(\d+\): wait for it to end"):
            run_at(folder)
    assert (folder / ".lock").exists()
    assert run_at(folder) == Store(folder)


def test_a_run_and_an_experiment_cannot_share_a_folder(tmp_path: Path) -> None:
    """Each is something else to the other."""
    origin = {"corpus": "a", "digest": "1"}
    run = run_of(tmp_path / "r", "source.json")
    with pytest.raises(RunFolderError, match="r is not an experiment's folder"), experiment_claimed(run, origin, "--o"):
        pass
    with experiment_claimed(tmp_path / "e", origin, "--out") as experiment:
        pass
    with (
        pytest.raises(RunFolderError, match=r"not a run folder: it holds experiment\.json"),
        lock_run(Store(experiment)),
    ):
        pass


TWO = """
import sys, time
from pathlib import Path
from pipeline.ownership import experiment_claimed, lock_run
from pipeline.store import RunFolderError, Store
from stages.files import save_json
for i in range(20):
    folder, go = Path(f"{sys.argv[1]}-{i}"), Path(f"go-{i}")
    Path(f"ready-{i}-{sys.argv[2]}").touch()
    while not go.exists():
        pass
    try:
        if sys.argv[1] == "run":
            with lock_run(Store(folder)):
                for name in ("source.json", "raw/shards.json"):
                    save_json(folder / name, {})
                    time.sleep(0.1)
        else:
            with experiment_claimed(folder, {"corpus": "a", "digest": "1"}, "--out"):
                time.sleep(0.2)
        print("done", flush=True)
    except RunFolderError as error:
        print(error, flush=True)
"""


@pytest.mark.parametrize("kind", ["run", "experiment"])
def test_of_two_processes_one_waits_in_vain(kind: str, tmp_path: Path) -> None:
    """Started together twenty times, each writes or names the other; neither reports that the folder is no run."""
    words = [sys.executable, "-c", TWO, kind]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    both = [subprocess.Popen([*words, str(i)], cwd=tmp_path, env=env, stdout=-1, text=True) for i in range(2)]
    for i in range(20):
        while not all((tmp_path / f"ready-{i}-{j}").exists() for j in range(2)):
            assert not any(process.poll() for process in both)
            time.sleep(0.001)
        (tmp_path / f"go-{i}").touch()
    outcomes = list(zip(*(process.communicate()[0].splitlines() for process in both), strict=True))
    assert len(outcomes) == 20
    assert all("done" in pair for pair in outcomes)
    numbers = {process.pid for process in both}
    for said in {line for pair in outcomes for line in pair} - {"done"}:
        found = re.fullmatch(
            rf"{kind}-\d+ is in use by another refine process( \((\d+)\))?: wait for it, or .*--out", said
        )
        assert found, said
        assert not found[2] or int(found[2]) in numbers
    assert any(set(pair) != {"done"} for pair in outcomes)


def test_a_half_written_claim_of_a_killed_process_is_no_foreign_file(tmp_path: Path) -> None:
    """Its folder can be used again; any other file makes a folder foreign."""
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / ".source.json.123.tmp").write_text("{")
    with lock_run(Store(tmp_path / "r")):
        assert [path.name for path in (tmp_path / "r").iterdir()] == [".lock"]
    (tmp_path / "r" / ".other.json.123.tmp").write_text("{")
    with pytest.raises(RunFolderError, match=r"it holds \.other\.json\.123\.tmp"), lock_run(Store(tmp_path / "r")):
        pass


def test_two_runs_in_one_folder(tmp_path: Path, jsonl: Callable[..., Path]) -> None:
    """As two terminals start them: one finishes, the other finishes after it or says why not."""
    jsonl([chat(i) for i in range(50)])
    words = ["run", "corpus.jsonl", "--stages", "language", "--out", "out"]
    with ThreadPoolExecutor(2) as pool:
        done = list(pool.map(lambda _: start(*words, cwd=tmp_path), range(2)))
    assert 0 in [one.returncode for one in done]
    for one in done:
        assert one.returncode == 0 or "out is in use by another refine process" in one.stderr


def test_a_question_does_not_stop_a_run(tmp_path: Path) -> None:
    """`refine status` holds the lock for an instant, in which a run that starts must not be refused."""
    folder = run_of(tmp_path / "r", ".lock", "source.json")
    with (folder / ".lock").open() as asked:
        fcntl.flock(asked, fcntl.LOCK_SH)
        release = threading.Timer(0.05, fcntl.flock, (asked, fcntl.LOCK_UN))
        release.start()
        with lock_run(Store(folder)):
            assert in_use(Store(folder))
        release.join()
