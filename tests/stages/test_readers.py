"""A packed file that is cut short is an error wherever one is read, never a shorter file."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import zstandard

from stages.overlap.contamination import Contamination
from stages.stage import StageParameterError
from tests.conftest import Refine

ROWS = b"".join(
    json.dumps({"text": f"word{i} river stone lamp {i * 7919} cloud"}).encode() + b"\n" for i in range(20_000)
)


def cut(path: Path) -> Path:
    """A packed file without its second half."""
    packed = zstandard.compress(ROWS) if path.suffix == ".zst" else gzip.compress(ROWS)
    path.write_bytes(packed[: len(packed) // 2])
    return path


@pytest.mark.parametrize("name", ["c.jsonl.zst", "c.jsonl.gz"])
def test_refine_dedup_names_a_file_cut_short(refine: Refine, tmp_path: Path, name: str) -> None:
    """Half the texts are not deduplicated as if they were all."""
    done = refine("dedup", cut(tmp_path / name), "--kept", "kept.txt")
    assert done.returncode == 1
    assert f"{name} cannot be read" in done.stderr
    assert not (tmp_path / "kept.txt").exists()


@pytest.mark.parametrize("name", ["c.jsonl.zst", "c.jsonl.gz"])
def test_an_evaluation_set_cut_short_is_refused(tmp_path: Path, name: str) -> None:
    """Half the items are not compared as if they were all."""
    with pytest.raises((StageParameterError, OSError, EOFError)):
        Contamination(evals=str(cut(tmp_path / name))).open(tmp_path)
