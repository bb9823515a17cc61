"""The folder of an experiment: data and runs are reused if complete and the same; its error messages."""

from __future__ import annotations

import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from pipeline.ownership import experiment_claimed
from pipeline.store import RunFolderError
from tests.conftest import ROOT, Refine
from tests.pipeline.test_train import TINY, chats
from tests.trainer.test_cvfp_training import SMALL_PRESET, training
from trainer.experiment.points import resample
from trainer.experiment.records import DamagedError, read, scores
from trainer.prepare import vocabulary
from trainer.prepare.choices import Choices
from trainer.prepare.prepared import ExperimentData, PreparedError, load, prepare
from trainer.prepare.vocabulary import VocabularyError

WANTED = Choices(tokenizer="bpe:300", test_tokens=600, validation_tokens=300)


def made(folder: Path, wanted: Choices = WANTED) -> ExperimentData:
    """The data of some conversations."""
    texts = [one["prompt"] for one in chats(60)]
    frame = pl.DataFrame({"first": texts, "text": texts})
    return prepare(frame, np.arange(60, dtype=np.uint64), np.arange(60), SMALL_PRESET, wanted, folder)


def test_the_same_data_are_not_made_again(tmp_path: Path) -> None:
    """What lies there stays as it is."""
    first = made(tmp_path / "data")
    before = (tmp_path / "data" / "prepared.json").stat().st_mtime_ns
    assert made(tmp_path / "data").digest == first.digest
    assert (tmp_path / "data" / "prepared.json").stat().st_mtime_ns == before


def test_a_tokenizer_is_known_by_what_it_does_not_by_its_path(tmp_path: Path) -> None:
    """Another file under the same name makes the data anew."""
    path = tmp_path / "tokenizer.json"
    texts = pl.Series([one["prompt"] for one in chats(60)])
    vocabulary.train(texts, 280).save(path)
    wanted = replace(WANTED, tokenizer=str(path))
    first = made(tmp_path / "data", wanted)
    vocabulary.train(texts, 270).save(path)
    assert (first.record.vocabulary, made(tmp_path / "data", wanted).record.vocabulary) == (280, 270)


def test_embeddings_of_an_attempt_that_was_stopped_are_not_taken_up(tmp_path: Path) -> None:
    """A table that lies there without a record is none of the experiment's."""
    folder = tmp_path / "data"
    made(folder)
    (folder / "prepared.json").unlink()
    assert made(folder, replace(WANTED, embeddings="ppmi-budget")).table is None


@pytest.mark.parametrize("name", ["prepared.json", "keys.npy", "embeddings.npy", "pool/ids.npy"])
def test_damaged_data_are_made_again_and_never_trained_on(tmp_path: Path, name: str) -> None:
    """A worker that finds them says so in a sentence; the command makes them anew."""
    folder = tmp_path / "data"
    digest = made(folder).digest
    (folder / name).write_bytes((folder / name).read_bytes()[:30])
    with pytest.raises(PreparedError, match=r"are damaged .*: remove that folder and start again"):
        load(folder)
    assert made(folder).digest == digest


@pytest.mark.parametrize(
    "said", ["bpe:huge", "bpe:-5", "bpe:256", "bpe:99999999999999999999999", "bpe:\u0663\u0663\u0663"]
)
def test_a_vocabulary_has_a_size_that_can_be(tmp_path: Path, said: str) -> None:
    """257 to a million ids."""
    with pytest.raises(VocabularyError, match="expected bpe:N with a number from 257"):
        made(tmp_path / "data", replace(WANTED, tokenizer=said))


def test_a_small_test_set_says_what_it_is_worth(tmp_path: Path) -> None:
    """Whether the corpus or the user made it small, in tokens as they are."""
    found = made(tmp_path / "data")
    said = (
        f"the test set has {found.test.tokens:,} tokens of {len(found.test)} conversations (fewer than 100,000 tokens, "
    )
    assert said in found.record.notes[0]
    assert "standard error" in found.record.notes[0]


@pytest.mark.parametrize(("name", "text"), [("record.json", "{"), ("record.json", "{}"), ("scores.npz", "PK")])
def test_a_damaged_training_is_one_sentence(tmp_path: Path, name: str, text: str) -> None:
    """It names the folder to remove."""
    folder = tmp_path / "one"
    training(folder).run()
    (folder / name).write_text(text)
    with pytest.raises(DamagedError, match=rf"{name} cannot be read .*: remove {folder} to repeat that training run"):
        read(folder) if name == "record.json" else scores(folder)


def test_weights_can_be_read_by_whom_other_files_can(tmp_path: Path) -> None:
    """As the user's umask has it."""
    training(tmp_path / "one").run()
    modes = {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "one").iterdir()}
    (tmp_path / "plain").touch()
    assert modes == {stat.S_IMODE((tmp_path / "plain").stat().st_mode)}


def test_one_conversation_says_nothing_of_how_much_they_vary(tmp_path: Path) -> None:
    """No resamples, where there would be an interval of width zero; conversations without targets do not count."""
    np.savez(tmp_path / "scores.npz", nats=np.array([5.0, 0.0]), targets=np.array([2, 0]))
    assert resample([tmp_path], np.arange(2)) is None
    np.savez(tmp_path / "scores.npz", nats=np.array([5.0, 0.0, 9.0]), targets=np.array([2, 0, 3]))
    found = resample([tmp_path], np.arange(3))
    assert found is not None
    assert np.isfinite(found).all()


def test_one_process_at_a_time_and_one_corpus_a_folder(tmp_path: Path) -> None:
    """The second is refused with a message; when the first is done the folder is free."""
    claim = {"corpus": "a.jsonl", "digest": "1"}
    with (
        experiment_claimed(tmp_path / "e", claim, "--out"),
        pytest.raises(RunFolderError, match="is in use by another refine process"),
        experiment_claimed(tmp_path / "e", claim, "--out"),
    ):
        pass
    with experiment_claimed(tmp_path / "e", claim, "--out"):
        pass
    with (
        pytest.raises(RunFolderError, match=r"is the experiment of another corpus \(a.jsonl\): choose another --out"),
        experiment_claimed(tmp_path / "e", {"corpus": "b.jsonl", "digest": "2"}, "--out"),
    ):
        pass


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train", "--device", "meta"], "--device meta is not available"),
        (["scale", "--budgets", "1000"], "--budgets names one size, and a law needs 2 or more"),
        (["scale", "--budgets", "500,1000", "--predict", "0"], "--predict takes numbers of tokens above 0"),
        (["scale", "--points", "p.csv"], "--points fits a table and trains nothing"),
    ],
)
def test_what_cannot_be_is_said_before_any_training(
    refine: Refine, jsonl: Callable[..., Path], tmp_path: Path, words: list[str], said: str
) -> None:
    """One sentence, and nothing is left behind."""
    command, *more = words
    done = refine(command, jsonl(chats(60)), *TINY, "--out", "e", *more)
    assert done.returncode == 1
    assert said in done.stderr.strip().splitlines()[-1]
    assert not (tmp_path / "e").exists()


def test_a_table_of_points_takes_no_option_of_a_training(refine: Refine, tmp_path: Path) -> None:
    """Each one is named; what a fit uses is taken."""
    (tmp_path / "p.csv").write_text("tokens,ppl\n1000,90\n2000,70\n4000,60\n8000,50\n")
    done = refine("scale", "--points", "p.csv", "--seeds", "7", "--tokenizer", "bpe:300", "--limit", "5")
    assert done.returncode == 1
    assert "omit --seeds, --tokenizer, --limit" in done.stderr
    fitted = refine("scale", "--points", "p.csv", "--predict", "16000", "--json")
    assert fitted.returncode == 0, fitted.stderr


def test_predictions_say_why_they_have_no_interval(refine: Refine, tmp_path: Path) -> None:
    """Of two budgets no point is left over; of a floor that may be anything the interval is too wide to be shown."""
    (tmp_path / "two.csv").write_text("tokens,ppl,seed\n1000,90,0\n2000,70,0\n1000,91,1\n2000,72,1\n")
    said = " ".join(refine("scale", "--points", "two.csv", "--predict", "9000").stdout.split())
    assert "predictions have no interval: no degree of freedom is left" in said
    said = " ".join(refine("scale", "--points", ROOT / "trainer/examples/E1.csv", "--predict", "1e6").stdout.split())
    assert "no interval at 1,000,000 tokens: it spans a factor of a million or more" in said


def test_options_out_of_range_are_refused(refine: Refine, jsonl: Callable[..., Path]) -> None:
    """By the command line itself."""
    path: Any = jsonl(chats(60))
    for words in (["--seed", "-1"], ["--seed", str(2**32)], ["--threads", "100000"], ["--test-tokens", str(10**12)]):
        done = refine("train", path, *words)
        assert done.returncode == 2, words
        assert "Input should be" in done.stderr
