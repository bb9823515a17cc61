"""Parameters of stages that are paths: `~` is the user's folder, and a missing path is an error of one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from stages.dedup.against import Against
from stages.language import Language
from stages.overlap.contamination import Contamination
from stages.ppl import Perplexity
from stages.stage import MissingModelError, Stage
from stages.toxicity import Toxicity

WITH_PATHS: list[tuple[type[Stage], str]] = [
    (Perplexity, "model"),
    (Perplexity, "reference"),
    (Language, "model"),
    (Contamination, "evals"),
    (Against, "corpus"),
    (Toxicity, "model"),
]


@pytest.mark.parametrize(("kind", "name"), WITH_PATHS)
def test_the_users_folder_is_meant_by_a_tilde(
    kind: type[Stage], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A path typed into a plan is no shell's business: `~/file` is found."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "file.jsonl").write_text('{"text": "a"}\n')
    assert tmp_path / "file.jsonl" in kind(**{name: "~/file.jsonl"}).models()


@pytest.mark.parametrize(("kind", "name"), WITH_PATHS)
def test_a_path_that_is_not_there_is_one_sentence(kind: type[Stage], name: str) -> None:
    """It holds what was given, and what to do."""
    with pytest.raises(MissingModelError) as caught:
        kind(**{name: "/no/such/file"}).models()
    said = str(caught.value)
    assert "/no/such/file" in said
    assert "\n" not in said
    assert ":" in said


def test_a_folder_without_a_configuration_is_named(tmp_path: Path) -> None:
    """A checkpoint is not read by the wrong architecture because of a slip in `config`."""
    (tmp_path / "a.ckpt").write_bytes(b"")
    with pytest.raises(MissingModelError, match=r"config\.json does not exist.*omit it"):
        Toxicity(model=str(tmp_path / "a.ckpt"), config=str(tmp_path)).models()


def test_a_file_that_is_no_fasttext_model_is_named(tmp_path: Path) -> None:
    """Not a traceback of fastText's."""
    (tmp_path / "lid.bin").write_bytes(b"this is no model")
    with pytest.raises(MissingModelError, match=r"lid\.bin is not a fastText model"):
        Language(model=str(tmp_path / "lid.bin")).open(tmp_path)
