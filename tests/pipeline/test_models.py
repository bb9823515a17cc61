"""`refine transfer` and `refine score` from the command line: folders, pages, records, errors."""

from __future__ import annotations

import contextlib
import json
import re
import runpy
import shlex
from dataclasses import replace
from importlib import import_module
from itertools import chain
from pathlib import Path

import numpy as np
import pytest

import refine as api
from tests.conftest import ROOT, Refine
from tests.pipeline.test_train import TINY, Jsonl, chats
from tests.trainer.test_causal import ENDS, save_gpt2
from tests.trainer.test_template import frame
from tests.trainer.test_transfer import RANK, pair, tune
from trainer import causal
from trainer.presets import PRESETS

TEXT = (ROOT / "trainer" / "README.md").read_text(encoding="utf-8")
pytestmark = pytest.mark.usefixtures("no_pictures")


def test_the_export_has_the_scores_of_its_record(refine: Refine, jsonl: Jsonl, tmp_path: Path) -> None:
    """Of all messages and of replies: the same function, read by the same template in the same windows."""
    source = jsonl(chats())
    words = ("train", source, "--budget", "1500", *TINY, "--threads", 1, "--no-baselines", "--out", "t")
    refused = refine(*words, "--export", "hf")
    assert "expected --export hf with --network transformer" in refused.stderr
    done = refine(*words, "--network", "transformer", "--export", "hf")
    assert done.returncode == 0, done.stderr
    (run,) = (tmp_path / "t" / "trainings").iterdir()
    record = json.loads((run / "record.json").read_text())
    scored = refine("score", run / "hf", "--on", "t", "--json")
    assert scored.returncode == 0, scored.stderr
    export, trained = json.loads(scored.stdout)["rows"]
    assert export["bits_per_byte"] == pytest.approx(record["bits_per_byte"], rel=1e-5)
    assert export["replies_bits_per_byte"] == pytest.approx(record["replies"]["bits_per_byte"], rel=1e-5)
    assert export["own_ppl"] == pytest.approx(record["ppl"], rel=1e-4)
    assert trained["bits_per_byte"] == pytest.approx(record["bits_per_byte"], rel=1e-6)
    tokenizer = import_module("transformers").AutoTokenizer.from_pretrained(run / "hf")
    chat = [{"role": "user", "content": "ban"}, {"role": "wizard", "content": "dol"}]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert text == "<|endoftext|><|user|>ban<|end|><|other|>dol<|end|><|assistant|>"


def test_any_text_is_scored_in_bits_per_byte(refine: Refine, jsonl: Jsonl, tmp_path: Path) -> None:
    """Nats of the model over the bytes of the contents, of everything and of replies, and no other tokenizer's PPL."""
    save_gpt2(tmp_path / "model", **ENDS)
    messages = [{"role": "system", "content": "ä"}, {"role": "user", "content": "the river"}]
    records = [{"messages": [*messages, {"role": "assistant", "content": f"a stone bridge {i}"}]} for i in range(30)]
    done = refine("score", "model", "--text", jsonl(records), "--out", "scores.json", "--json")
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)["rows"]
    assert json.loads((tmp_path / "scores.json").read_text()) == json.loads(done.stdout)
    said = [[(one["role"], one["content"]) for one in record["messages"]] for record in records]
    nats = causal.score(causal.load(str(tmp_path / "model")), frame(said)).nats.sum(axis=1)
    sizes = [sum(len(text.encode()) for role, text in chain(*said) if (role == "assistant") == of) for of in (0, 1)]
    assert row["bits_per_byte"] == pytest.approx(nats.sum() / np.log(2) / sum(sizes))
    assert row["replies_bits_per_byte"] == pytest.approx(nats[1] / np.log(2) / sizes[1])
    assert row["ppl_per_token"] is None


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            ("model", "--text", "x.jsonl", "--test", "raw"),
            "--test is raw, which has an effect with an experiment (--on)",
        ),
        (("model", "--on", "work", "--limit", "3"), "--limit is 3, which has an effect with --text alone: omit it"),
        (("--on", "work", "--context", "9"), "--context is 9, which has an effect with a MODEL alone: omit it"),
        (
            ("--on", "work", "--training-texts", "texts", "--out", "a.json"),
            "--out is a.json, which has an effect with a MODEL alone: omit it",
        ),
        (("model", "model", "--text", "x.jsonl"), "model is named twice: name each model once"),
        (("model", "--text", "x.jsonl", "--out", "."), "--out is ., which is a folder: name a file"),
    ],
)
def test_an_option_of_score_without_an_effect_is_refused(refine: Refine, words: tuple[str, ...], says: str) -> None:
    """Before anything is read."""
    done = refine("score", *words)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert says in done.stderr


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
    same = refine("transfer", "extract", "base", "base", "--out", "made", "--report", "made")
    assert "--out is made, which would take the place of made" in same.stderr


def test_models_from_python(jsonl: Jsonl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The three functions give typed results that show as tables, and name the command that does the same."""
    monkeypatch.chdir(tmp_path)
    model = save_gpt2(tmp_path / "<b>base", **ENDS)
    tune(model)
    model.save_pretrained("tuned")
    causal.load_tokenizer("<b>base").save_pretrained("tuned")
    corpus = jsonl(chats()[:40], name="chats.jsonl")
    made = api.transfer_extract("<b>base", "tuned", out="made", rank=RANK, exclude="wpe", force=True)
    assert made.folder == Path("made")
    assert made.frame.filter(rank=RANK).height == 8
    words = f"refine transfer extract '<b>base' tuned --out made --rank {RANK} --not wpe --force"
    assert json.loads(Path("made/record.json").read_text())["command"] == words
    assert api.transfer_extract("tuned", "tuned", out="none").folder is None
    scores = api.score(["<b>base", "tuned", "made"], text=corpus, out="scores.json")
    assert scores is not None
    assert json.loads(Path("scores.json").read_text()) == scores.as_dict()
    row = scores.frame.row(1, named=True)
    assert (row["name"], row["bits_per_byte"]) == ("tuned", scores.rows[1].bits_per_byte)
    assert row["everything_low"] < row["everything_ln_ratio"] < row["everything_high"]
    moved = api.transfer_apply("made", "tuned", out="moved", scale=0.5, as_="model")
    assert (moved.space, moved.scale, moved.folder) == ("weights", 0.5, "moved")
    assert Path("moved/model.safetensors").is_file()
    for shown in (made, scores, moved):
        assert "<b>base" not in shown._repr_html_()
        assert "\x1b" not in repr(shown)
    assert "of the squared difference" in repr(made)
    assert "bits per byte" in repr(scores)
    assert moved.sentence in repr(moved)


def _tour() -> list[list[str]]:
    """The words of the commands of the tour in the trainer's README."""
    (block,) = re.findall(r"```console\n(\$ refine run --stages heuristics --limit 1000.*?)```", TEXT, re.DOTALL)
    return [shlex.split(line.removeprefix("$ ")) for line in block.splitlines()]


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_tour_of_the_readme(refine: Refine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each command as it stands: training, fine-tuning, score, extract, apply to two models, distil one of them.

    The network is a smaller one than that of the preset, and fewer conversations choose the scale.
    """
    house = PRESETS["house"]
    shape = replace(house.shape, embedding=64, context=64, layers=2)
    small = replace(house, shape=shape, phase2=replace(house.phase2, evaluations=2))
    monkeypatch.setitem(PRESETS, "house", small)
    monkeypatch.setattr("pipeline.models.apply.MAX_VALIDATION", 16)
    script = runpy.run_path(str(ROOT / "trainer" / "examples" / "fine_tune.py"))["main"]
    shown = ""
    with contextlib.chdir(tmp_path):
        for words in _tour():
            if words[0] == "python":
                script(words[2:])
            elif words[0] == "mv":
                (found,) = tmp_path.glob(words[1])
                found.rename(words[2])
            else:
                done = refine(*words[1:])
                assert done.returncode == 0, f"{words}: {done.stderr[-2000:]}"
                shown += done.stdout
    shown = " ".join(shown.split())
    related, other = (json.loads((tmp_path / name / "record.json").read_text()) for name in ("moved", "learned"))
    assert (related["space"], other["space"]) == ("weights", "function")
    assert related["carried"][1] > 0.5
    assert other["carried"][1] <= other["carried"][0] <= other["carried"][2]  # so few steps may carry nothing over
    assert "a LoRA trained on the texts themselves" in [row["name"] for row in other["ladder"]["rows"]]
    assert related["sentence"] in shown
    assert other["sentence"] in shown
    student = json.loads((tmp_path / "student" / "record.json").read_text())
    bits = {row["name"]: row["bits_per_byte"] for row in student["table"]["rows"]}
    assert bits["the student"] < 1.02 * bits["the teacher"]
    assert "Transformer, 4,000 tokens" in bits
    assert student["sentence"] in shown
    assert "conversations of tour-run are near the test set: they are left out" in student["notes"][0]
