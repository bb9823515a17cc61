"""How much a reply owes to its prompt: by a transformer of the other half, and by a causal language model."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from stages.files import read_frame, read_json, save_frame
from stages.follows import Follows, trained
from stages.follows import causal as causal_models
from stages.follows.exchanges import exchanges
from stages.ppl.tokens import halves
from stages.stage import MissingModelError, StageParameterError
from tests import strategies

WORDS = ["river", "stone", "lamp", "cloud", "seven", "walks", "green", "paper", "music", "engine", "salt", "bread"]


def echo(seed: int) -> list[dict[str, str]]:
    """An exchange whose reply repeats the one subject of the prompt, which nothing else tells."""
    draw = random.Random(seed)
    subject, others = draw.choice(WORDS[:6]), draw.choices(WORDS[6:], k=4)
    prompt, reply = " ".join([subject, *others]), " ".join([subject] * 4)
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": reply}]


def fit(stage: Follows, raw: list[Path], folder: Path) -> None:
    """Fit a stage with a transformer of the size of a toy."""
    folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trained, "VOCABULARY", 400)
        patch.setattr(trained, "WIDTH", 32)
        patch.setattr(trained, "SETTINGS", replace(trained.SETTINGS, epochs=8, batch=128, rate=0.01))
        stage.fit(raw, folder)


@pytest.fixture(scope="module")
def echoes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Follows, pl.DataFrame]:
    """A corpus of echoes in two shards, and the folder of a stage fitted on it."""
    folder = tmp_path_factory.mktemp("follows")
    frame, stage = strategies.raw([echo(seed) for seed in range(500)]), Follows(tokens=20_000)
    for name, part in zip("ab", (frame[:200], frame[200:]), strict=True):
        save_frame(folder / f"{name}.parquet", part)
    fit(stage, [folder / "a.parquet", folder / "b.parquet"], folder / "stage")
    return folder, stage, stage.open(folder / "stage")(frame.select(stage.reads))


def test_a_reply_that_repeats_its_prompt_owes_it_much(echoes: tuple[Path, Follows, pl.DataFrame]) -> None:
    """The ratio of perplexities is below 1, and that of exp(nats); the model knows a reply's own prompt."""
    folder, stage, found = echoes
    assert found.null_count().row(0) == (0, 0, 0, 0)
    assert found["follows_ifd"].median() < 0.95  # type: ignore[operator]
    ratio = np.exp(found["follows_nats"].to_numpy() - found["follows_alone_nats"].to_numpy())
    assert np.allclose(found["follows_ifd"], ratio, rtol=1e-4)
    summary = read_json(folder / "stage" / "follows.json")
    assert summary["preference"] > 0.75
    assert summary["judged"] == 500
    assert "more than another's for" in stage.remarks(folder / "stage")[0]
    assert "too weak" not in stage.remarks(folder / "stage")[0]


def test_no_half_is_scored_by_the_model_that_it_trained(echoes: tuple[Path, Follows, pl.DataFrame]) -> None:
    """What the model of a half reads does not change with the other half's texts."""
    folder, _, _ = echoes
    frame = pl.concat([read_frame(folder / f"{name}.parquet") for name in "ab"])
    sides = halves(frame["text"])
    seen: list[int] = []

    class Model:
        def __init__(self, number: int) -> None:
            self.number = number

    def score(model: Any, _words: Any, pairs: pl.DataFrame) -> np.ndarray[Any, Any]:
        seen.append(model.number)
        return np.full((pairs.height, 3), float(model.number))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trained, "open_models", lambda *_: [Model(0), Model(1)])
        patch.setattr(trained, "_score", score)
        got = trained.load(folder / "stage")(exchanges(frame), sides)
    assert got[:, 0].tolist() == (1 - sides).tolist()
    assert sorted(seen) == [0, 1]


def test_nats_are_those_of_the_reply_s_own_tokens(echoes: tuple[Path, Follows, pl.DataFrame]) -> None:
    """A loop over the tokens of the reply, one forward pass each, gives the same mean."""
    import torch

    folder, _, found = echoes
    words, models = trained.open_vocabulary(folder / "stage"), trained.open_models(folder / "stage")
    pair = exchanges(read_frame(folder / "a.parquet")[:1])
    side = halves(read_frame(folder / "a.parquet")[:1]["text"])[0]
    prompt, reply = (next(words.encode([pair[name].item()])).ids.tolist() for name in ("prompt", "reply"))
    user, assistant, end = (int(words.template[i]) for i in (0, 1, 5))
    heads = {"follows_nats": [words.end, user, *prompt, end, assistant], "follows_alone_nats": [words.end, assistant]}
    model = models[1 - side]
    for name, head in heads.items():
        nats = []
        for at, token in enumerate(reply):
            with torch.no_grad():
                z = model(torch.tensor([[*head, *reply[:at]]]))[0, -1]
                weight, bias = model.output
                nats.append(-torch.log_softmax(z @ weight.T + bias, 0)[token].item())
        assert found[name][0] == pytest.approx(sum(nats) / len(nats), abs=1e-4)
    assert found["follows_tokens"][0] == len(reply)


def test_the_same_corpus_gives_the_same_models(echoes: tuple[Path, Follows, pl.DataFrame], tmp_path: Path) -> None:
    """To the byte, also in one shard."""
    folder, stage, _ = echoes
    frame = pl.concat([read_frame(folder / f"{name}.parquet") for name in "ab"])
    save_frame(tmp_path / "whole.parquet", frame)
    fit(stage, [tmp_path / "whole.parquet"], tmp_path / "stage")
    for path in (folder / "stage").iterdir():
        assert path.read_bytes() == (tmp_path / "stage" / path.name).read_bytes(), path.name


def test_an_exchange_is_a_prompt_and_the_reply_to_it() -> None:
    """A system message is none, nor is a reply without words, nor one that follows no prompt."""
    talk = [
        "system s",
        "user one",
        "assistant two",
        "user three",
        "user four",
        "assistant five",
        "user x",
        "assistant !",
    ]
    messages = [dict(zip(("role", "content"), each.split(), strict=True)) for each in talk]
    batch = strategies.raw([messages, [{"role": "assistant", "content": "a"}], []])
    assert exchanges(batch).rows() == [(0, "one", "two"), (0, "four", "five")]


def test_too_few_replies_give_nulls_and_say_so(tmp_path: Path) -> None:
    """No model is better than one of ten conversations."""
    frame, stage = strategies.raw([echo(seed) for seed in range(10)]), Follows()
    save_frame(tmp_path / "a.parquet", frame)
    (tmp_path / "stage").mkdir()
    stage.fit([tmp_path / "a.parquet"], tmp_path / "stage")
    assert stage.open(tmp_path / "stage")(frame.select(stage.reads)).null_count().row(0) == (10,) * 4
    assert stage.remarks(tmp_path / "stage") == ("too few replies to train a model on (10), so all signals are null",)
    (tmp_path / "stage" / "follows.json").write_text(
        json.dumps({"files": ["x"], "pairs": 900, "preference": 0.52, "judged": 500})
    )
    assert "too weak to rank by" in stage.remarks(tmp_path / "stage")[0]
    with pytest.raises(StageParameterError, match="follows: tokens is 0"):
        Follows(tokens=0)


@pytest.fixture(scope="module")
def causal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A causal language model of two layers with random weights and a vocabulary of words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("causal")
    words = {word: i for i, word in enumerate(["<s>", "<unk>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))  # noqa: S106  a token of a vocabulary
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    kind: Any = PreTrainedTokenizerFast
    kind(tokenizer_object=tokenizer, bos_token="<s>", unk_token="<unk>").save_pretrained(folder)  # noqa: S106
    config = GPT2Config(vocab_size=len(words), n_positions=32, n_embd=16, n_layer=2, n_head=2, bos_token_id=0)
    GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


def test_a_model_of_ones_own_scores_the_reply_after_the_prompt(causal: Path) -> None:
    """Mean nats of the reply's tokens, in a batch as alone; the first tokens of a reply, the last of a prompt."""
    import torch
    from transformers import AutoModelForCausalLM

    talks = [("river stone", "lamp cloud seven"), ("salt", "bread " * 40), ("green " * 100, "music engine")]
    frame = strategies.raw(
        [[{"role": "user", "content": one}, {"role": "assistant", "content": two}] for one, two in talks]
    )
    stage = Follows(model=str(causal))
    assert {path.name for path in stage.models()} >= {"config.json", "model.safetensors", "tokenizer.json"}
    found = stage.open(causal)(frame.select(stage.reads))
    assert found["follows_tokens"].to_list() == [3, 16, 2]
    network: Any = AutoModelForCausalLM.from_pretrained(causal)
    network.eval()
    at = [2, 3, 4, 5, 6]  # of the words, in order
    with torch.no_grad():
        logits = network(input_ids=torch.tensor([[0, *at]])).logits[0].log_softmax(-1)
        alone = network(input_ids=torch.tensor([[0, *at[2:]]])).logits[0].log_softmax(-1)
    given_nats = -sum(logits[2 + i, at[2 + i]].item() for i in range(3)) / 3
    alone_nats = -sum(alone[i, at[2 + i]].item() for i in range(3)) / 3
    assert found["follows_nats"][0] == pytest.approx(given_nats, abs=1e-5)
    assert found["follows_alone_nats"][0] == pytest.approx(alone_nats, abs=1e-5)
    assert found["follows_ifd"][0] == pytest.approx(math.exp(given_nats - alone_nats), abs=1e-5)
    single = stage.open(causal)(frame[:1].select(stage.reads))
    assert single["follows_nats"][0] == pytest.approx(found["follows_nats"][0], abs=1e-5)


def test_a_model_that_is_not_there_is_refused(tmp_path: Path) -> None:
    """In a sentence, and never replaced by the transformer."""
    with pytest.raises(MissingModelError, match="no language model at"):
        Follows(model=str(tmp_path)).models()
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(MissingModelError, match="is not a causal language model"):
        Follows(model=str(tmp_path)).open(tmp_path)


def test_a_model_of_ones_own_runs_where_torch_has_a_gpu(causal: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Network and texts are moved there: torch's device `meta` takes its place, and refuses to give a score back."""
    monkeypatch.setattr("stages.follows.causal.device", lambda: "meta")
    monkeypatch.setattr("stages.follows.causal._load", causal_models._load.__wrapped__)  # noqa: SLF001
    frame, stage = strategies.raw([echo(0)]), Follows(model=str(causal))
    with pytest.raises((RuntimeError, NotImplementedError), match="meta tensor"):
        stage.open(causal)(frame.select(stage.reads))
    assert stage.uses_gpu
    assert not Follows().uses_gpu
