"""Small inputs of the test data that once failed: files, ids and tables as users have them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.conftest import Refine

CASES = {
    "array_in_jsonl": ("run in.jsonl --stages language --out out", "openai", 0),
    "dedup_empty_first_shard": ("dedup in --kept kept.txt", "8 texts: 8 kept, 0 removed", 0),
    "dedup_hidden_files": ("dedup in --kept kept.txt", "left out of in: 1 hidden", 0),
    "dedup_nested_folder": ("dedup in --kept kept.txt", "9 texts: 8 kept, 1 removed", 0),
    "dedup_null_ids": ("dedup in.jsonl --kept kept.txt", "'id' of in.jsonl is empty in rows 5, 7 (counted from 0)", 0),
    "folder_ignored_endings": ("run in --stages language --out out", "left out of in: c.csv (", 0),
    "points_caps": ("scale --points points.csv", "power law: intervals are t from the scatter", 0),
    "points_comment_line": ("scale --points points.csv", "power law: intervals are t from the scatter", 0),
    "utf16": ("run in.jsonl --stages language --out out", "in.jsonl is UTF-16 text, expected UTF-8", 1),
}
"""Command, a part of its output, exit code."""


@pytest.mark.parametrize("name", CASES)
def test_it_is_read_or_told_exactly(name: str, shared: Path, tmp_path: Path, refine: Refine) -> None:
    """As the notes beside each input expect."""
    command, said, code = CASES[name]
    if not (shared / "inputs" / name).is_dir():
        pytest.skip(f"the input {name} is not among the test data")
    shutil.copytree(shared / "inputs" / name, tmp_path / name, copy_function=shutil.copyfile)
    done = refine(*command.split(), cwd=tmp_path / name)
    assert done.returncode == code, done.stderr
    assert said in done.stdout + done.stderr
