"""`refine distill` from the command line: folders, records, controls, resume, errors."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch

import refine as python
from pipeline.models.distill_corpora import CorporaDistilled
from tests.conftest import ROOT, Refine
from tests.trainer.test_causal import ENDS, save_tokenizer
from tests.trainer.test_transfer_apply import chats, learn, words_tokenizer

WORDS = ("distill", "teacher", "chats.jsonl", "--out", "student", "--tokens", "6000", "--context", "64")

SHORT = ("--tokens", "9000", "--context", "64", "--batch", "256", "--lr", "0.003")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Llama that has learned to continue the words of a made-up corpus, and that corpus."""
    here, tokenizer = tmp_path_factory.mktemp("teacher"), words_tokenizer()
    library = import_module("transformers")
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    ends = {"bos_token_id": 0, "eos_token_id": 0}
    config = library.LlamaConfig(**shape, **ends, vocab_size=tokenizer.get_vocab_size(), max_position_embeddings=128)
    model = library.LlamaForCausalLM(config)
    learn(model, tokenizer, chats(5, 1, 300, 1), 150, 5e-3)
    model.save_pretrained(here / "teacher")
    save_tokenizer(here / "teacher", tokenizer, **ENDS)
    (here / "chats.jsonl").write_text("".join(json.dumps(one) + "\n" for one in chats(5, 1, 400, 2)))
    return here


def test_a_student_is_better_than_its_floor_and_opens_in_transformers(refine: Refine, made: Path) -> None:
    """Controls in one table, files, the same folder again, and what another option gets."""
    done = refine(*WORDS, "--compare", "--json", cwd=made)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    bits = {row["name"]: row["bits_per_byte"] for row in found["table"]["rows"]}
    assert len(bits) == 7
    assert bits["the teacher"] < bits["the student by least squares alone"] < bits["mixers that give the mean"]
    assert bits["the student"] < bits["the student by least squares alone"]
    assert bits["the student"] < bits["the same network from scratch, on the texts alone"]
    assert bits["the student"] < bits["mixers frozen at the mean, the rest trained"]
    assert found["closed"][1] < found["closed"][0] < found["closed"][2]
    assert "The student closes" in found["sentence"]
    names = {path.name for path in (made / "student").iterdir()}
    assert names >= {"model.safetensors", "config.json", "tokenizer.json", "README.md", "metrics.jsonl", "record.json"}
    assert "checkpoints" not in names
    lines = [json.loads(line) for line in (made / "student" / "metrics.jsonl").read_text().splitlines()]
    assert {line["training"] for line in lines} == {"mean", "student", "scratch", "teacher"}
    scored = refine("score", "student", "--text", "chats.jsonl", "--json", cwd=made)
    assert scored.returncode == 0, scored.stderr
    again = refine(*WORDS, "--compare", "--json", cwd=made)
    assert json.loads(again.stdout) == found
    other = refine(*WORDS, "--alpha", "1", "--compare", cwd=made)
    assert (other.returncode, other.stderr.count("\n")) == (1, 1)
    assert "student was begun with alpha 0.5, and this command has 1.0: choose another --out" in other.stderr


def test_a_student_that_was_stopped_goes_on(refine: Refine, made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped while it trains: the same command ends with the bytes of a run that was not."""
    from trainer import TrainerError
    from trainer.distill import training

    words = (*WORDS[:3], "--tokens", "3000", "--context", "64")
    assert refine(*words, "--out", "whole", cwd=made).returncode == 0
    evaluate, seen = training._Run._evaluate, 0  # noqa: SLF001  where a signal would stop it

    def stop(self: training._Run, *args: object) -> None:
        nonlocal seen
        seen += 1
        if seen == 4:
            raise TrainerError("stopped")
        evaluate(self, *args)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(training._Run, "_evaluate", stop)  # noqa: SLF001
        assert refine(*words, "--out", "parts", cwd=made).returncode == 1
    assert (made / "parts" / "checkpoints" / "student.safetensors").is_file()
    assert not (made / "parts" / "record.json").exists()
    done = refine(*words, "--out", "parts", cwd=made)
    assert "student: resumed after step" in done.stderr
    for name in ("model.safetensors", "metrics.jsonl"):
        assert (made / "parts" / name).read_bytes() == (made / "whole" / name).read_bytes()


@pytest.mark.parametrize("student", ["mamba2", "cvfp"])
def test_a_process_that_was_killed_goes_on(refine: Refine, made: Path, student: str) -> None:
    """SIGKILL between two evaluations: the same command ends with the bytes of a run that was not killed."""
    words = (*WORDS[:3], "--student", student, "--tokens", "6000", "--context", "64", "--batch", "128")
    assert refine(*words, "--out", f"alive-{student}", cwd=made).returncode == 0
    killed = made / f"killed-{student}"
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline.cli", *words, "--out", killed.name],
        cwd=made,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "stage 3, step " in line and int(line.split("step ")[1].split(",")[0]) >= 10:
            process.send_signal(signal.SIGKILL)
            break
    process.stderr.close()
    assert process.wait() == -signal.SIGKILL
    assert not (killed / "model.safetensors").exists()
    done = refine(*words, "--out", killed.name, cwd=made)
    assert done.returncode == 0, done.stderr
    assert "student: resumed after step" in done.stderr
    for name in ("model.safetensors", "metrics.jsonl"):
        assert (killed / name).read_bytes() == (made / f"alive-{student}" / name).read_bytes()


def test_a_cvfp_learns_from_its_teacher(refine: Refine, made: Path) -> None:
    """It is better than the same network on the texts alone, and is scored like any model of transformers."""
    words = (*WORDS[:3], "--student", "cvfp", "--tokens", "6000", "--context", "64", "--batch", "128")
    done = refine(*words, "--out", "cvfp", "--compare", "--json", cwd=made)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    bits = {row["name"]: row["bits_per_byte"] for row in found["table"]["rows"]}
    alone = bits["the same network from scratch, on the texts alone"]
    assert len(bits) == 4
    assert bits["the teacher"] < bits["the student"] < alone
    assert (found["student"], found["closed"]) == ("cvfp", None)
    lines = [json.loads(line) for line in (made / "cvfp" / "metrics.jsonl").read_text().splitlines()]
    assert {line["training"] for line in lines} == {"contexts", "student", "scratch", "teacher"}
    assert "import trainer.cvfp.causal" in (made / "cvfp" / "README.md").read_text()
    scored = refine("score", "cvfp", "--text", "chats.jsonl", "--json", cwd=made)
    assert scored.returncode == 0, scored.stderr
    assert (
        json.loads(scored.stdout)["rows"][0]["bits_per_byte"]
        < bits["the same network from scratch, on the texts alone"]
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--student", "rwkv"), "--student is 'rwkv', expected auto, mamba2, mamba, cvfp, hybrid:K"),
        (("--student", "cvfp", "--hidden", "1"), "--hidden is 1, and a cvfp student has no layers to match"),
        (("--student", "cvfp", "--stages", "2,3"), "--stages is 2,3, and a cvfp student has no layers to match"),
        (("--stages", "2"), "--stages is '2', expected auto, 3, 2,3, 1,2,3"),
        (("--lr", "0"), "--lr is 0, expected a learning rate above 0, such as 0.001"),
        (("--alpha", "2"), "--alpha is 2, expected a weight of the teacher's logits from 0 to 1"),
        (("--context", "500"), "--context is 500, and teacher has 128 positions: take fewer"),
        (("--score", "nowhere"), "nowhere is not the folder of an experiment"),
        (("--seeds", "2"), "--seeds is for two corpora, and one is named: omit it, or name both"),
        (("--out", "teacher"), "teacher is not an experiment's folder: choose another --out"),
        (("--device", "abacus"), "--device abacus is not available"),
        (("--limit", "2"), "chats.jsonl is too small to be trained on and tested on: take a larger corpus"),
    ],
)
def test_what_does_not_suit_is_one_sentence(refine: Refine, made: Path, words: tuple[str, ...], message: str) -> None:
    """Exit code 1, and no folder."""
    done = refine(*WORDS[:3], *(() if "--out" in words else ("--out", "refused")), *words, cwd=made)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    assert message in done.stderr
    assert not (made / "refused").exists()


def test_a_teacher_that_cannot_be_had_is_named(refine: Refine, made: Path) -> None:
    """A folder without a model."""
    done = refine("distill", "./nothing", "chats.jsonl", "--out", "refused", cwd=made)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "there is no folder ./nothing" in done.stderr


def test_the_corpus_without_damage_is_better_to_distil_on(
    refine: Refine, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of raw follows another rule. Students of equal tokens, in pairs; finished ones are kept."""
    good, bad = chats(5, 1, 250, 3), chats(7, 4, 250, 4)
    for name, lines in (("raw", [*good, *bad]), ("refined", good)):
        (made / f"{name}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    words = ("distill", "teacher", "raw.jsonl", "refined.jsonl", "--out", "both", *SHORT)
    done = refine(*words, "--json", cwd=made)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["test"] == ["refined.jsonl-test", "replies"]
    assert [len(one) for one in found["nats"].values()] == [3, 3]
    low, high = found["interval"]
    assert low < found["ln_ratio"] < high < 0
    assert found["sentence"].startswith(
        "refined.jsonl is better to distil on: the perplexity on replies of its students"
    )
    again = refine(*words, "--json", cwd=made)
    assert again.stderr.count("done before") == 6
    assert json.loads(again.stdout) == found
    assert (made / "both" / "students" / "raw-jsonl-0" / "model.safetensors").is_file()
    refused = refine(*words, "--compare", cwd=made)
    assert (refused.returncode, "--compare and --score are for one corpus" in refused.stderr) == (1, True)
    monkeypatch.chdir(made)
    students = python.distill(
        "teacher", ["raw.jsonl", "refined.jsonl"], out="both", tokens=9000, context=64, batch=256, lr=0.003
    )
    assert isinstance(students, CorporaDistilled)
    assert students.sentence == found["sentence"]
    assert found["sentence"] in repr(students)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--hidden", "nan"), "--hidden nan, expected one above 0"),
        (("--temperature", "inf"), "--temperature is inf and --hidden 0"),
    ],
)
def test_a_weight_that_is_no_number_is_refused(refine: Refine, made: Path, words: tuple[str, ...], says: str) -> None:
    """Before the folder is made, and not as a learning rate."""
    done = refine(*WORDS[:3], *words, "--out", "none", cwd=made)
    assert done.returncode == 1
    assert says in done.stderr
    assert not (made / "none").exists()


def test_an_adapter_is_no_teacher(refine: Refine, made: Path) -> None:
    """And how to make a model of it."""
    (made / "adapter").mkdir()
    (made / "adapter" / "adapter_config.json").write_text("{}")
    done = refine("distill", "adapter", WORDS[2], "--out", "none", cwd=made)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "adapter is an adapter, and a teacher is a model: make one of it" in done.stderr


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("record.json", "[]"),
        ("record.json", "{}"),
        ("record.json", "[" * 100_000),
        ("record.json", '{"tokens": "many"}'),
        ("experiment.json", "null"),
        ("experiment.json", '{"distilled": "x"}'),
    ],
)
def test_a_damaged_folder_is_one_sentence(refine: Refine, made: Path, name: str, text: str) -> None:
    """And no bug."""
    words = (*WORDS[:3], "--tokens", "600", "--context", "64", "--out", "damaged")
    whole = refine(*words, cwd=made)
    assert whole.returncode == 0, whole.stderr
    path = made / "damaged" / name
    before = path.read_text()
    changed = json.dumps({**json.loads(before), **json.loads(text)}) if text.startswith('{"') else text
    path.write_text(changed)
    done = refine(*words, cwd=made)
    path.write_text(before)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "bug in refine" not in done.stderr
    assert "remove it" in done.stderr or "choose another --out" in done.stderr
