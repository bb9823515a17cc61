"""What a folder is: one sentence for each state of a run, and one writer at a time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.ownership import RunState, experiment_claimed, in_use, lock_run, run_at, state
from pipeline.store import RunFolderError, Store
from stages.readers import RUN_KEYS


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
        assert in_use(folder)
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
