"""`refine transfer` and `refine score` from the command line: folders, pages, records, errors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import Refine
from tests.trainer.test_transfer import RANK, pair

pytestmark = pytest.mark.usefixtures("no_pictures")


@pytest.fixture
def models(tmp_path: Path) -> Path:
    pair("llama", tmp_path)
    return tmp_path


def test_extract_leaves_an_adapter_a_record_and_a_page(refine: Refine, models: Path) -> None:
    """The record and the page name each tensor; the same command replaces both, and another folder is refused."""
    words = ("transfer", "extract", "base", "tuned", "--out", "made", "--rank", RANK)
    done = refine(*words)
    assert done.returncode == 0, done.stderr
    assert "Training changed 21 of 21 tensors" in done.stdout.replace("\n", " ")
    names = {path.name for path in (models / "made").iterdir()}
    assert names == {"adapter_model.safetensors", "adapter_config.json", "README.md", "record.json"}
    record = json.loads((models / "made" / "record.json").read_text())
    assert len(record["tensors"]) == 21
    assert all(one["relative"] > 0 for one in record["tensors"])
    report = json.loads((models / "reports" / "made-transfer" / "report.json").read_text())
    cells = report["figures"]["change"]["panels"][0]["rows"]
    assert {(one["x"], one["y"]) for one in cells} >= {("self_attn.q_proj", "0"), ("mlp.down_proj", "1")}
    (q,) = (one for one in record["tensors"] if one["name"] == "model.layers.0.self_attn.q_proj.weight")
    (cell,) = (one for one in cells if (one["x"], one["y"]) == ("self_attn.q_proj", "0"))
    assert cell["value"] == pytest.approx(q["relative"])
    before = (models / "made" / "adapter_model.safetensors").read_bytes()
    assert refine(*words).returncode == 0
    assert (models / "made" / "adapter_model.safetensors").read_bytes() == before
    (models / "mine").mkdir()
    (models / "mine" / "thesis.txt").write_text("x")
    refused = refine("transfer", "extract", "base", "tuned", "--out", "mine")
    assert (refused.returncode, refused.stderr.count("\n")) == (1, 1)
    assert "mine holds something else than an adapter of refine" in refused.stderr
    assert (models / "mine" / "thesis.txt").read_text() == "x"


def test_extract_of_equal_models_writes_nothing(refine: Refine, models: Path) -> None:
    """Exit code 0, and a sentence; a dry run writes nothing either."""
    done = refine("transfer", "extract", "base", "base", "--out", "made")
    assert done.returncode == 0, done.stderr
    assert "nothing differs between base and base; nothing is written" in done.stdout
    dry = refine("transfer", "extract", "base", "tuned", "--out", "made", "--dry-run", "--json")
    assert json.loads(dry.stdout)["changed"] == {"embeddings": 2, "attention": 8, "MLP": 6, "norms": 5}
    assert not (models / "made").exists()
    assert not (models / "reports").exists()


def test_an_error_leaves_nothing_behind(refine: Refine, models: Path) -> None:
    """One sentence, exit code 1, no folder."""
    path = models / "tuned" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-50])
    done = refine("transfer", "extract", "base", "tuned", "--out", "made")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "tuned/model.safetensors ends within " in done.stderr
    assert sorted(path.name for path in models.iterdir()) == ["base", "tuned"]
