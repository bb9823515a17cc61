"""Whole runs with the stages of the default plan: killed, shared out otherwise, damaged, and yet the same."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.conftest import ROOT, Refine, contents

STAGES = "heuristics,language,dedup,ppl"
WORDS = re.findall(
    r"\w+",
    "the river a stone of under walks and green paper to music quiet engine seven cloud lamp in field house is was "
    "garden children road winter letter table that with small bright answer question because people water very good",
)


def corpus(n: int = 400) -> Iterator[dict[str, Any]]:
    """Conversations of 2 or 4 turns with exact and near copies, plain replies, and what rules drop."""
    draw = random.Random(7)
    made: list[list[str]] = []
    for i in range(n):
        if made and i % 7 == 0:
            said = list(draw.choice(made))
            if i % 2:
                said[-1] += " and more."
        else:
            said = [" ".join(draw.choices(WORDS, k=draw.randrange(4, 60))) + "." for _ in range(2 + 2 * (i % 2))]
        made.append(said)
        roles = ("user", "assistant")
        messages = [{"role": roles[j % 2], "content": text} for j, text in enumerate(said)]
        yield {"prompt": said[0], "prompt_id": f"p{i}", "messages": messages[: -1 if i % 50 == 3 else None]}


def words(source: Path, out: Path, workers: int) -> list[str]:
    """A run as a user types it."""
    return ["run", str(source), "--stages", STAGES, "--out", str(out), "--shard-rows", "80", "--workers", str(workers)]


@pytest.fixture
def source(jsonl: Callable[..., Path]) -> Path:
    """The corpus as a file."""
    return jsonl(corpus())


def killed_when(moment: Callable[[], bool], source: Path, out: Path) -> bool:
    """Start a run, and kill it with all its workers when the moment has come; whether it came."""
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline.cli", *words(source, out, 2)],
        cwd=out.parent,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        while not (came := moment()) and process.poll() is None:
            time.sleep(0.001)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return came


def test_killed_in_a_fit_a_merge_or_anywhere_a_run_ends_like_another(
    refine: Refine, source: Path, tmp_path: Path
) -> None:
    """Byte-identical to a run that nothing disturbed, of one worker where the killed one had two.

    The last moment is another one each time: any must do.
    """
    begun = time.monotonic()
    done = refine(*words(source, tmp_path / "whole", 1))
    seconds = time.monotonic() - begun
    assert done.returncode == 0, done.stderr
    out = tmp_path / "killed"
    for inside in ("dedup-*/merged", "ppl-*/.half*.scratch/*"):  # of a merge, of a fit
        assert killed_when(lambda: any((out / "signals").glob(inside)), source, out), inside  # noqa: B023  asked at once
    late = time.monotonic() + random.Random().uniform(0.1, 1) * seconds
    killed_when(lambda: time.monotonic() > late, source, out)
    done = refine(*words(source, out, 2))
    assert done.returncode == 0, done.stderr
    whole, found = contents(tmp_path / "whole"), contents(out)
    assert whole.keys() == found.keys()
    assert [name for name in whole if whole[name] != found[name]] == []
    assert not [path for path in out.rglob(".*") if path.name != ".lock"]


def test_damaged_files_of_stages_are_named_and_made_again(refine: Refine, source: Path, tmp_path: Path) -> None:
    """A model of ppl, a shard that it measured, one that dedup merged: what was there before is there again."""
    out = tmp_path / "run"
    assert refine(*words(source, out, 1)).returncode == 0
    before = contents(out)
    (ppl,), (dedup,) = (out / "signals").glob("ppl-*"), (out / "signals").glob("dedup-*")
    model, measured, merged = ppl / "half1.bin", ppl / "00002.parquet", dedup / "merged" / "00001.parquet"
    (ppl / "00000.parquet").unlink()  # so that the model is asked again, and ppl merged
    model.write_bytes(model.read_bytes()[:5000])
    for path in (measured, merged):
        column = pq.read_metadata(path).row_group(0).column(1)
        content = bytearray(path.read_bytes())
        begin = column.dictionary_page_offset or column.data_page_offset
        content[begin + column.total_compressed_size - 1] ^= 0x5A
        path.write_bytes(content)
    done = refine(*words(source, out, 2))
    assert done.returncode == 0, done.stderr
    said = "".join(done.stderr.split())  # lines are wrapped at spaces
    for path in (model, measured, merged):
        assert f"{path.relative_to(out)}iscorrupt" in said
    assert contents(out) == before
