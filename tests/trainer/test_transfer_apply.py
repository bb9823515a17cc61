"""Differences on other models: exact where they must be, chosen on validation, and beside what they must beat."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

from pipeline.api.errors import RefineError
from pipeline.models import apply as applying
from pipeline.models.apply import ApplyOptions
from pipeline.models.score import ScoreTable
from pipeline.models.work import bits as bits_of
from pipeline.models.work import read_texts
from tests.trainer.test_causal import ENDS, PLAIN, save_gpt2, save_tokenizer
from tests.trainer.test_transfer import MODELS, RANK, base, extracted, logits, make, pair, tune
from trainer.causal import CausalModel, ModelError
from trainer.causal import load as causal_load
from trainer.transfer import function, representation
from trainer.transfer.adapter import Adapter
from trainer.transfer.apply import open_transfer, relation, write_adapter, write_model
from trainer.transfer.weights import Checkpoint, WeightsError

WORDS = [f"{letter}{vowel}" for letter in "bdfgklmnp" for vowel in ("an", "ol")]


def test_kl_has_golden_values() -> None:
    """KL([0, 1, 2] || [2, 1, 0]) * T^2, by numpy in float64; mean over tokens."""
    teacher, student = torch.tensor([[0.0, 1, 2]]).double(), torch.tensor([[2.0, 1, 0]]).double()
    assert float(function.kl(teacher, student)) == pytest.approx(1.150420765208883)
    assert float(function.kl(teacher, student, 2.0)) == pytest.approx(1.2806266713192258)
    assert float(function.kl(teacher, torch.zeros(1, 3).double(), 2.0)) == pytest.approx(0.3136838077651134)
    rows = torch.cat((teacher, teacher)), torch.cat((student, teacher))
    assert float(function.kl(*rows)) == pytest.approx(1.150420765208883 / 2)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "qwen2", "gpt_neox", "mamba"])
def test_apply_to_the_base_is_the_tuned_model(kind: str, tmp_path: Path) -> None:
    """As a model and as an adapter; at scale 0 the target byte for byte."""
    pytest.importorskip("peft")
    _, after = pair(kind, tmp_path)
    extracted(tmp_path, rank=RANK)
    checkpoint = Checkpoint.open(str(tmp_path / "base"))
    transfer = open_transfer(Adapter.open(tmp_path / "adapter"), checkpoint, checkpoint)
    for name, scale in (("one", 1.0), ("none", 0.0), ("lora", 1.0)):
        (tmp_path / name).mkdir()
        (write_adapter if name == "lora" else write_model)(transfer, scale, tmp_path / name)
    torch.testing.assert_close(logits(base(tmp_path / "one")), after, rtol=1e-4, atol=1e-5)
    same = (tmp_path / "none" / "model.safetensors", tmp_path / "base" / "model.safetensors")
    found = [{name: Checkpoint.open(str(path.parent)).read(name) for name in checkpoint.tensors} for path in same]
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    peft = import_module("peft")
    torch.testing.assert_close(
        logits(peft.PeftModel.from_pretrained(base(tmp_path / "base"), tmp_path / "lora")), after, rtol=1e-4, atol=1e-5
    )


def test_a_related_model_gets_the_difference_and_not_the_values(tmp_path: Path) -> None:
    """The target's own weights plus half of the difference, norms and embeddings too, as a model and as an adapter."""
    pytest.importorskip("peft")
    pair("gpt2", tmp_path)
    extracted(tmp_path, rank=RANK)
    target = make("gpt2")
    with torch.no_grad():
        for i, p in enumerate(target.parameters()):
            p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(50 + i)))
    target.save_pretrained(tmp_path / "target")
    names = [Checkpoint.open(str(tmp_path / name)) for name in ("base", "target")]
    assert relation(*names).related
    transfer = open_transfer(Adapter.open(tmp_path / "adapter"), *names)
    tuned, first = base(tmp_path / "tuned").state_dict(), base(tmp_path / "base").state_dict()
    expected = base(tmp_path / "target")
    with torch.no_grad():
        for name, p in expected.named_parameters():
            p.add_(0.5 * (tuned[name] - first[name]))
    for name in ("model", "lora"):
        (tmp_path / name).mkdir()
    write_model(transfer, 0.5, tmp_path / "model")
    write_adapter(transfer, 0.5, tmp_path / "lora")
    torch.testing.assert_close(logits(base(tmp_path / "model")), logits(expected), rtol=1e-4, atol=1e-5)
    adapted = import_module("peft").PeftModel.from_pretrained(base(tmp_path / "target"), tmp_path / "lora")
    torch.testing.assert_close(logits(adapted), logits(expected), rtol=1e-4, atol=1e-5)


def test_relations(tmp_path: Path) -> None:
    """A fine-tuned model is related, another drawing is not, another architecture has no distance."""
    pair("llama", tmp_path)
    other = make("llama")
    with torch.no_grad():
        for i, p in enumerate(other.parameters()):
            p.copy_(0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(i + 7)))
    other.save_pretrained(tmp_path / "other")
    make("qwen2").save_pretrained(tmp_path / "qwen2")
    first, tuned, drawn, kind = (Checkpoint.open(str(tmp_path / name)) for name in ("base", "tuned", "other", "qwen2"))
    assert relation(first, first).distance == 0
    assert relation(first, tuned).related
    far = relation(first, drawn)
    assert far.distance is not None
    assert far.distance == pytest.approx(2**0.5, rel=0.05)
    assert not far.related
    assert relation(first, kind).distance is None
    assert "is of type llama and" in relation(first, kind).why


@torch.no_grad()
def test_the_difference_at_decoding_is_that_of_logits() -> None:
    """Golden: T (.5 .25 .25), S (.2 .4 .4), S' (.4 .3 .3), alpha 1."""

    def fixed(*p: float) -> Any:
        z = torch.tensor(p).log()[None, None]
        network = lambda input_ids, attention_mask, use_cache: SimpleNamespace(logits=z)  # noqa: ARG005, E731
        return SimpleNamespace(network=network, ids=3)

    made = function.Proxy(fixed(0.5, 0.25, 0.25), fixed(0.4, 0.3, 0.3), fixed(0.2, 0.4, 0.4), 1.0)
    ids = torch.zeros(1, 1, dtype=torch.int64)
    found = torch.softmax(made(ids, ids).logits, -1).flatten()
    assert found.tolist() == pytest.approx([0.7272727273, 0.1363636364, 0.1363636364], rel=1e-6)


def test_models_of_other_vocabularies_have_no_difference_of_functions() -> None:
    """A token that is another id in one of them is named."""

    def named(name: str, tokens: dict[str, int]) -> Any:
        return SimpleNamespace(name=name, tokenizer=SimpleNamespace(get_vocab=lambda: tokens))

    function.check_vocabularies([named("a", {"x": 0, "y": 1}), named("b", {"y": 1, "x": 0})])
    with pytest.raises(ModelError, match=r"a and b have other vocabularies \('y' is 1 and 2\)"):
        function.check_vocabularies([named("a", {"x": 0, "y": 1}), named("b", {"x": 0, "y": 2})])


def chats(step: int, shift: int, count: int, seed: int) -> list[dict[str, Any]]:
    """Conversations in which a word mostly determines the next one: i -> step * i + shift."""
    generator = np.random.default_rng(seed)
    made = []
    for i in range(count):
        at, said = int(generator.integers(len(WORDS))), []
        for _ in range(40):
            known = generator.random() < 0.85
            at = (at * step + shift) % len(WORDS) if known else int(generator.integers(len(WORDS)))
            said.append(WORDS[at])
        text = [" ".join(said[:20]), " ".join(said[20:])]
        messages = [{"role": ("user", "assistant")[j], "content": one} for j, one in enumerate(text)]
        made.append({"prompt": text[0], "prompt_id": f"{seed}-{i}", "messages": messages})
    return made


def words_tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([" ".join(WORDS)] * 3, trainer)
    return tokenizer


def learn(model: Any, tokenizer: Tokenizer, texts: list[dict[str, Any]], steps: int, rate: float) -> None:
    """Train a model on conversations, as its user would."""
    joined = ["\n".join(one["content"] for one in chat["messages"]) for chat in texts]
    ids = [torch.tensor([0, *tokenizer.encode(text).ids[:62], 0]) for text in joined]
    optimiser, generator = torch.optim.AdamW(model.parameters(), lr=rate), np.random.default_rng(0)
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = rate * (1 - step / steps)
        batch = torch.nn.utils.rnn.pad_sequence(
            [ids[i] for i in generator.integers(0, len(ids), 16)], batch_first=True, padding_value=-100
        )
        loss = model(input_ids=batch.clamp(min=0), labels=batch).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, the base tuned on another domain, the base trained on, and a model of another architecture."""
    here = tmp_path_factory.mktemp("family")
    tokenizer = words_tokenizer()
    size = tokenizer.get_vocab_size()
    library = import_module("transformers")
    first, second = chats(5, 1, 300, 1), chats(7, 4, 300, 2)
    torch.manual_seed(0)
    small = {"vocab_size": size, "bos_token_id": 0, "eos_token_id": 0}
    source = library.GPT2LMHeadModel(library.GPT2Config(n_embd=32, n_layer=2, n_head=2, n_positions=128, **small))
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    other = library.LlamaForCausalLM(library.LlamaConfig(**shape, **small, max_position_embeddings=128))
    learn(source, tokenizer, first, 160, 5e-3)
    learn(other, tokenizer, first, 160, 5e-3)
    for name, model in (("base", source), ("other", other)):
        model.save_pretrained(here / name)
    learn(source, tokenizer, second, 90, 2e-3)
    source.save_pretrained(here / "tuned")
    related = base(here / "base").train()
    learn(related, tokenizer, chats(5, 1, 300, 3), 40, 1e-3)
    related.save_pretrained(here / "related")
    for name in ("base", "other", "tuned", "related"):
        save_tokenizer(here / name, tokenizer, **ENDS)
    extracted(here, force=False)
    lines = "".join(json.dumps(one) + "\n" for one in chats(7, 4, 120, 5))
    (here / "domain.jsonl").write_text(lines)
    return here


def bits(made: applying.Applied) -> dict[str, float]:
    assert made.ladder is not None
    return {row.name: row.bits_per_byte for row in made.ladder.rows}


@pytest.mark.slow
def test_a_related_model_takes_most_of_the_gain(family: Path, tmp_path: Path) -> None:
    """In the space of weights: far more than noise of the same norm, and the scale is the best on validation."""
    options = ApplyOptions(
        family / "adapter", str(family / "related"), tmp_path / "made", on=str(family / "domain.jsonl")
    )
    made = applying.apply_adapter(options)
    found = bits(made)
    assert made.space == "weights"
    assert made.carried is not None
    assert made.carried[0] > 0.8
    assert made.carried[1] < made.carried[0] < made.carried[2]
    assert found[f"the adapter at {made.scale:g}"] < found["target alone"] - 0.2
    assert found["random adapter of the same norm"] > found[f"the adapter at {made.scale:g}"] + 0.2
    assert made.validation[str(made.scale)] == min(made.validation.values())
    assert "of the source's gain carries over (" in made.sentence
    assert json.loads((tmp_path / "made" / "record.json").read_text())["scale"] == made.scale


@pytest.mark.slow
def test_another_architecture_takes_the_function(family: Path, tmp_path: Path) -> None:
    """At decoding and as a LoRA; what is written has the scores of the ladder; without texts it works too."""
    from trainer import causal

    here = str(family / "domain.jsonl")
    made = applying.apply_adapter(
        ApplyOptions(family / "adapter", str(family / "other"), tmp_path / "made", on=here, steps=90)
    )
    found = bits(made)
    assert made.space == "function"
    assert made.carried is not None
    assert made.carried[1] > 0.2
    assert found["the difference at decoding"] < found["target alone"] - 0.2
    assert found["random adapter of the same norm"] > found[f"the adapter at {made.scale:g}"] + 0.1
    assert "a LoRA trained on the texts themselves" in found
    texts = applying.split_texts(ApplyOptions(family / "adapter", "", tmp_path, on=here))
    assert texts is not None
    scores = causal.score(causal.load(str(tmp_path / "made")), texts.test.conversations)
    assert bits_of(float(scores.nats.sum()), int(texts.test.bytes.sum())) == pytest.approx(
        found[f"the adapter at {made.scale:g}"], rel=1e-5
    )
    alone = applying.apply_adapter(
        ApplyOptions(family / "adapter", str(family / "other"), tmp_path / "alone", steps=5, as_="model")
    )
    assert "Nothing was measured" in alone.sentence
    assert (tmp_path / "alone" / "model.safetensors").is_file()


def test_reduced_rank_regression_has_golden_values() -> None:
    """By numpy in float64, without a ridge: |Y - X W|, and at rank 1."""
    x = torch.tensor([[1.0, 0], [0, 1], [1, 1], [2, -1]]).double()
    y = torch.tensor([[1.0, 2], [0, 1], [1, 3], [3, 1]]).double()
    for rank, rows, error in (
        (2, [[1.2941176471, 1.4117647059], [-0.2352941176, 1.4705882353]], 0.9393364366),
        (1, [[1.2065706462, 1.4829933731], [0.6262055565, 0.7696678958]], 2.2158268534),
    ):
        b, a = representation.reduced_rank(x, y, rank, weight=0.0)
        torch.testing.assert_close((b @ a).T, torch.tensor(rows, dtype=torch.float64), rtol=1e-8, atol=1e-8)
        assert float((y - x @ (b @ a).T).norm()) == pytest.approx(error)


@pytest.mark.parametrize("how", ["orthogonal", "least-squares"])
def test_a_rotated_stream_is_mapped_back(how: Any) -> None:
    """Both maps find a rotation and a scale; least squares up to its ridge."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(500, 6, generator=generator)
    rotation = torch.linalg.qr(torch.randn(6, 6, generator=generator)).Q
    found = representation.stream_map(x, 2.5 * x @ rotation + 7, how)
    torch.testing.assert_close(found, 2.5 * rotation, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("kind", ["gpt2", "gpt_neox", "phi", "llama", "qwen2", "qwen3", "mistral"])
def test_states_move_as_those_of_the_source(kind: str) -> None:
    """With source and target one model, the target's states become the tuned ones; at scale 0 nothing changes."""
    models = [make(kind), make(kind)]
    tune(models[1])
    target, tuned = (CausalModel(kind, one, PLAIN, 48, None, None, 32) for one in models)
    pieces = list(torch.randint(2, 48, (3, 30), generator=torch.Generator().manual_seed(0)))
    before, aim = (representation.states(one, pieces) for one in (target, tuned))
    additions = representation.mapped(before, aim, before, "least-squares")
    found = representation.states(representation.fit(target, pieces, additions, 1.0, 24).model, pieces)
    for a, b, c in zip(before, aim, found, strict=True):
        assert (c - b).norm() < 0.8 * (a - b).norm()
    none = representation.fit(target, pieces, additions, 0.0, 24).model
    torch.testing.assert_close(logits(none.network), logits(target.network))


@pytest.mark.slow
def test_representations_of_another_architecture(family: Path, tmp_path: Path) -> None:
    """The scale is the best on validation, 0 included; what is written has the score of the ladder."""
    from trainer import causal

    here = str(family / "domain.jsonl")
    options = ApplyOptions(
        family / "adapter", str(family / "other"), tmp_path / "made", space="representation", on=here, rank=4
    )
    made = applying.apply_adapter(options)
    assert made.space == "representation"
    assert made.validation[str(made.scale)] == min(made.validation.values())
    assert (made.folder is None) == (made.scale == 0)
    given = applying.apply_adapter(replace(options, scale=0.5, map_="least-squares"))
    texts = applying.split_texts(options)
    assert texts is not None
    scores = causal.score(causal.load(str(tmp_path / "made")), texts.test.conversations)
    assert bits_of(float(scores.nats.sum()), int(texts.test.bytes.sum())) == pytest.approx(
        bits(given)["the adapter at 0.5"], rel=1e-5
    )


@pytest.mark.slow
def test_nothing_is_written_where_nothing_carries_over(family: Path, tmp_path: Path) -> None:
    """On text that the source was not tuned on, scale 0 wins on validation."""
    path = tmp_path / "old.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in chats(5, 1, 120, 6)))
    made = applying.apply_adapter(
        ApplyOptions(family / "adapter", str(family / "related"), tmp_path / "made", on=str(path))
    )
    assert made.scale == 0
    assert made.sentence.startswith("Nothing carries over")
    assert made.folder is None
    assert sorted(one.name for one in tmp_path.iterdir()) == ["old.jsonl"]


def test_a_model_writes_no_padding_rows(tmp_path: Path) -> None:
    """Another model of the same vocabulary may not have them."""
    save_gpt2(tmp_path, 512, **ENDS)
    model = causal_load(str(tmp_path))
    assert model.ids < 512
    assert max(int(ids.max()) for ids in function.write_texts(model, 0, 8)) < model.ids


def test_texts_near_the_test_set_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A LoRA that is trained on test conversations would look better than it is."""
    path = tmp_path / "chats.jsonl"
    rows = chats(5, 1, 60, 6)
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows[:20]))
    test = read_texts(str(tmp_path / "test.jsonl"))
    monkeypatch.setattr(applying, "open_work", lambda _folder: SimpleNamespace(test=lambda _name: test))
    options = ApplyOptions(tmp_path, "", tmp_path / "made", on=str(path), score=tmp_path / "work")
    texts = applying.split_texts(options)
    assert texts is not None
    seen = {*texts.train["text"], *texts.validation["text"]}
    assert len(texts.test.conversations) == 20
    assert not seen & {*test.conversations["text"]}
    assert 0 < len(seen) < 40
    assert "20 conversations of" in capsys.readouterr().err
    with pytest.raises(ModelError, match=r"every conversation of .* is near the test set of"):
        applying.split_texts(replace(options, on=str(tmp_path / "test.jsonl")))
    (tmp_path / "same.jsonl").write_text((json.dumps(rows[0]) + "\n") * 9)
    with pytest.raises(ModelError, match="has 1 conversations that are no near-duplicates of each other"):
        applying.split_texts(replace(options, on=str(tmp_path / "same.jsonl"), score=None))


@pytest.mark.parametrize(("effective", "begins"), [(19.9, "Nothing can be concluded: the test set"), (20.0, "80% of")])
def test_too_few_conversations_allow_no_conclusion(effective: float, begins: str) -> None:
    """At the boundary, as for scores and students."""
    ladder = ScoreTable("test set", 30, effective, "replies", (), (), ())
    assert applying._sentence(ladder, (0.8, 0.7, 0.9), 1.0, given=True).startswith(begins)  # noqa: SLF001


def test_other_types_have_no_known_representation() -> None:
    """Gemma 2 normalises what a block writes, and Mamba has no such matrix."""
    representation.check_type("qwen2", "a")
    with pytest.raises(ModelError, match=r"a is of type gemma2, and the space of representations knows gpt2, .*: take"):
        representation.check_type("gemma2", "a")


def test_adapters_that_do_not_suit_are_one_sentence(tmp_path: Path) -> None:
    """No LoRA, another vocabulary, another shape in the space of weights, an option that there is not."""
    pair("llama", tmp_path)
    extracted(tmp_path, rank=RANK)
    make("qwen2").save_pretrained(tmp_path / "qwen2")
    dora = tmp_path / "dora"
    dora.mkdir()
    (dora / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "use_dora": True, "base_model_name_or_path": "b"})
    )
    ia3, grown = tmp_path / "ia3", tmp_path / "grown"
    ia3.mkdir()
    (ia3 / "adapter_config.json").write_text(json.dumps({"peft_type": "IA3", "base_model_name_or_path": "b"}))
    shutil.copytree(tmp_path / "adapter", grown)
    (grown / "tokens.safetensors").touch()
    here: dict[str, Any] = {
        "adapter": tmp_path / "adapter",
        "target": str(tmp_path / "qwen2"),
        "out": tmp_path / "made",
    }
    for changes, words in (
        ({"adapter": dora}, "is an adapter of type DoRA, expected LoRA"),
        ({"adapter": ia3}, "is an adapter of type IA3, expected LoRA"),
        ({"adapter": grown}, "adds tokens to its base's vocabulary"),
        ({"source": "nobody/no-such-model"}, "nobody/no-such-model is no folder, and cannot be had from the hub"),
        ({"adapter": tmp_path}, "adapter_config.json cannot be read"),
        ({"space": "weights"}, "so weights have no difference in common: take --space function"),
        ({"as_": "picture"}, "--as is 'picture', expected adapter, model"),
        ({"scale": float("nan")}, "--scale is nan, expected a number"),
        ({"map_": "city"}, "--map is 'city', expected orthogonal, least-squares"),
        ({"space": "representation"}, "--space representation compares states on texts: name them with --on"),
        ({"space": "dreams"}, "--space is 'dreams', expected auto, weights, function, representation"),
        ({"out": tmp_path / "tuned"}, "holds something else than an adapter of refine"),
        ({"out": tmp_path / "qwen2"}, "which would take the place of"),
        ({"out": tmp_path / "x" / ".." / "adapter"}, "which would take the place of"),
        ({"limit": 3}, "--limit is the number of rows of --on to read, and there is no --on"),
    ):
        with pytest.raises(RefineError) as error:
            applying.apply_adapter(ApplyOptions(**{**here, **changes}))
        assert words in str(error.value)
    assert not (tmp_path / "made").exists()


def damaged_adapter(folder: Path, config: dict[str, Any], change: Callable[[dict[str, Tensor], str], Any]) -> Path:
    """A copy of the adapter in a folder with another configuration; `change` gets its tensors and a factor's name."""
    made = folder / "damaged"
    shutil.rmtree(made, ignore_errors=True)
    shutil.copytree(folder / "adapter", made)
    before = json.loads((made / "adapter_config.json").read_text())
    (made / "adapter_config.json").write_text(json.dumps({**before, **config}))
    tensors = load_file(made / "adapter_model.safetensors")
    change(tensors, next(name for name in tensors if name.endswith("lora_A.weight")))
    save_file(tensors, made / "adapter_model.safetensors")
    return made


def keep(_tensors: dict[str, Tensor], _name: str) -> None:
    """Change nothing."""


@pytest.mark.parametrize(
    ("config", "change", "words"),
    [
        ({"lora_alpha": "abc"}, keep, "has the lora_alpha 'abc', expected a number"),
        ({"lora_alpha": float("nan")}, keep, "has the lora_alpha nan, expected a number"),
        ({"alpha_pattern": ["q"]}, keep, "has an alpha_pattern that cannot be read"),
        ({"alpha_pattern": {"(": 3}}, keep, "has an alpha_pattern that cannot be read"),
        ({"modules_to_save": "norm"}, keep, "has no names of modules in modules_to_save"),
        ({}, lambda tensors, name: tensors.pop(name), "and no lora_A beside it"),
        ({}, lambda tensors, name: tensors.update({name: torch.zeros(3, 24)}), "which have no product"),
        ({}, lambda tensors, name: tensors.update({name: torch.tensor(1.0)}), "which have no product"),
        ({}, lambda tensors, name: tensors.update({name: torch.zeros(RANK, 5)}), "by a difference of shape"),
        ({}, lambda tensors, name: tensors.update({name: tensors[name].to(torch.int8)}), "of type I8, expected floats"),
        ({}, lambda tensors, name: tensors[name].fill_(torch.nan), "holds NaN or infinity at scale 1"),
        ({"lora_alpha": 1e300}, keep, "holds NaN or infinity at scale 1"),
    ],
)
@pytest.mark.parametrize("as_", ["adapter", "model"])
def test_a_damaged_adapter_writes_nothing(
    config: dict[str, Any], change: Callable[[dict[str, Tensor], str], Any], words: str, as_: str, tmp_path: Path
) -> None:
    """Neither as an adapter nor as a model, without texts too."""
    pair("llama", tmp_path)
    extracted(tmp_path, rank=RANK)
    folder = damaged_adapter(tmp_path, config, change)
    with pytest.raises(RefineError, match=re.escape(words)):
        applying.apply_adapter(ApplyOptions(folder, str(tmp_path / "base"), tmp_path / "made", scale=1.0, as_=as_))
    assert not [path for path in tmp_path.iterdir() if path.name.startswith((".", "made"))]


def moved(folder: Path, adapter: Path) -> Any:
    """The base with an adapter, by `write_model`."""
    checkpoint = Checkpoint.open(str(folder / "base"))
    shutil.rmtree(folder / "moved", ignore_errors=True)
    (folder / "moved").mkdir()
    write_model(open_transfer(Adapter.open(adapter), checkpoint, checkpoint), 1.0, folder / "moved")
    return logits(base(folder / "moved"))


def lora(folder: Path, **options: Any) -> Any:
    """Save a LoRA of the base by PEFT, with factors that are not 0, and return its logits."""
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(base(folder / "base"), peft.LoraConfig(r=2, task_type="CAUSAL_LM", **options)).eval()
    with torch.no_grad():
        for i, p in enumerate(one for one in model.parameters() if one.requires_grad):
            p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(i)))
    model.peft_config["default"].base_model_name_or_path = str(folder / "base")
    model.save_pretrained(str(folder / "adapter"))
    return logits(model)


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")
@pytest.mark.parametrize("target", ["embed_tokens", "lm_head"])
def test_the_copy_of_the_base_beside_factors_is_no_change(target: str, tmp_path: Path) -> None:
    """PEFT writes one of an embedding or a head, in any order: that of types, then names."""
    pair("llama", tmp_path)
    after = lora(tmp_path, target_modules=[target])
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = load_file(path)
    (name,) = (name for name in tensors if "base_layer" in name)
    save_file({**tensors, name: tensors[name].half()}, path)
    torch.testing.assert_close(moved(tmp_path, tmp_path / "adapter"), after, rtol=1e-4, atol=1e-5)
    save_file({**tensors, name: tensors[name] + 1}, path)
    with pytest.raises(WeightsError, match="and other values of it than"):
        moved(tmp_path, tmp_path / "adapter")


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("options", [{"target_modules": ["embed_tokens"]}, {"target_modules": ["lm_head"]}])
def test_half_of_a_tied_pair_is_refused(options: dict[str, Any], tmp_path: Path) -> None:
    """PEFT changes the input embedding or the head alone, which one tensor of a tied model cannot hold."""
    pair("llama_tied", tmp_path)
    lora(tmp_path, **options)
    with pytest.raises(WeightsError, match=r"alone, and .* has one tensor for its input embedding and its head"):
        moved(tmp_path, tmp_path / "adapter")


@pytest.mark.parametrize("alpha", [0, None])
def test_alpha_is_that_of_peft(alpha: int | None, tmp_path: Path) -> None:
    """0 is no change, and without one it is 8."""
    pair("llama", tmp_path)
    lora(tmp_path, target_modules="all-linear", lora_alpha=8 if alpha is None else alpha)
    path = tmp_path / "adapter" / "adapter_config.json"
    config = json.loads(path.read_text())
    if alpha is None:
        del config["lora_alpha"]
    path.write_text(json.dumps(config))
    peft = import_module("peft")
    expected = logits(peft.PeftModel.from_pretrained(base(tmp_path / "base"), tmp_path / "adapter"))
    torch.testing.assert_close(moved(tmp_path, tmp_path / "adapter"), expected, rtol=1e-4, atol=1e-5)


def test_whole_modules_that_are_not_named_are_written_too(tmp_path: Path) -> None:
    """PEFT loads them, so an adapter of the target holds them."""
    peft = pytest.importorskip("peft")
    _, after = pair("llama", tmp_path)
    extracted(tmp_path, rank=RANK)
    folder = damaged_adapter(tmp_path, {"modules_to_save": None}, keep)
    applying.apply_adapter(ApplyOptions(folder, str(tmp_path / "base"), tmp_path / "made", scale=1.0))
    found = peft.PeftModel.from_pretrained(base(tmp_path / "base"), tmp_path / "made")
    torch.testing.assert_close(logits(found), after, rtol=1e-4, atol=1e-5)


def test_a_base_that_an_adapter_does_not_name_is_named_by_an_option(tmp_path: Path) -> None:
    """By --source."""
    pair("llama", tmp_path)
    extracted(tmp_path, rank=RANK)
    folder = damaged_adapter(tmp_path, {"base_model_name_or_path": None}, keep)
    options = ApplyOptions(folder, str(tmp_path / "base"), tmp_path / "made", scale=1.0)
    with pytest.raises(ModelError, match=r"names no base model: name it, .* with --source"):
        applying.apply_adapter(options)
    applying.apply_adapter(replace(options, source=str(tmp_path / "base")))


def test_a_loss_that_is_no_number_ends_the_training(tmp_path: Path) -> None:
    """A target that holds NaN would be written as a LoRA of NaN."""
    pytest.importorskip("peft")
    folder = tmp_path / "llama"
    make("llama").save_pretrained(folder)
    network = base(folder)
    network.model.norm.weight.data.fill_(torch.nan)
    model = CausalModel("a", network, PLAIN, 48, 0, 0, 48)
    with pytest.raises(ModelError, match="the loss of the LoRA is not a finite number at step 1"):
        function.train_lora(model, [torch.arange(8)], function.LoraOptions(steps=2), None)
    with pytest.raises(ModelError, match="--rank is 25, and no matrix of a has a rank above 24"):
        function.train_lora(model, [torch.arange(8)], function.LoraOptions(rank=25), None)
    with pytest.raises(ModelError, match="shorter than two tokens"):
        function.train_lora(model, [], function.LoraOptions(steps=2), None)


def test_the_tiny_models_cover_the_forms() -> None:
    """Conv1D and tied, untied, biases, fused, and parameters of modules."""
    assert {"gpt2", "llama", "qwen2", "gpt_neox", "mamba"} <= MODELS.keys()
    assert callable(tune)
