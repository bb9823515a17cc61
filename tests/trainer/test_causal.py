"""Scores of causal models: every target once, in nats of the model itself, whatever the windows, padding and text."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from tests.strategies import ODD
from tests.trainer.test_template import BPE, CHAT, frame
from trainer import causal
from trainer.causal import ModelError
from trainer.prepare import streams, vocabulary
from trainer.prepare.template import REPLY, TEXT

LONG = " ".join(f"the river runs {i} under a stone bridge" for i in range(9))
CHATS = [
    [("user", "hello hello"), ("assistant", "the lamp is green"), ("user", "")],
    [("assistant", LONG)],
    [("system", "<|endoftext|> </s> is text"), ("user", "\x1b[31mred\x1b[0m \u202e"), ("assistant", "\0")],
    [("text", "the river")],
    [],
]
UNKNOWN: dict[str, Any] = {"unk_token": "[UNK]"}
ENDS: dict[str, Any] = {"eos_token": "<|endoftext|>"}
PLAIN = Tokenizer.from_str(BPE.tokenizer.to_str().replace("<|end|>", "<|stop|>"))
PLAIN.encode_special_tokens = True
"""BPE's tokenizer without a token of the chat template."""


def save_tokenizer(folder: Path, tokenizer: Tokenizer = PLAIN, **tokens: Any) -> None:
    fast: Any = import_module("transformers").PreTrainedTokenizerFast
    fast(tokenizer_object=tokenizer, **tokens).save_pretrained(folder)


def save_gpt2(folder: Path, rows: int = BPE.size, scale: float = 0.3, **tokens: Any) -> Any:
    """A GPT-2 with random weights; the embeddings of the first ids do not depend on the number of rows."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=rows, n_positions=48, n_embd=16, n_layer=2, n_head=2, bos_token_id=None, eos_token_id=None
    )
    model = GPT2LMHeadModel(config)
    with torch.no_grad():
        for i, (name, p) in enumerate(model.named_parameters()):
            generator = torch.Generator().manual_seed(i)
            size = 1.0 if name.endswith(("wte.weight", "wpe.weight")) else scale
            p.copy_(torch.randn(p.shape, generator=generator) * size)
        model.transformer.wte.weight[BPE.size :] = 3.0
    model.save_pretrained(folder)
    save_tokenizer(folder, **tokens)
    return model


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gpt2")
    save_gpt2(folder, **ENDS)
    return folder


def slow(folder: Path, text: str, context: int, kinds: Callable[[int], int]) -> dict[int, float]:
    """Nats by class of one conversation, each target predicted by itself; `kinds` gives the class of a character."""
    classes: Any = import_module("transformers").GPT2LMHeadModel
    model = classes.from_pretrained(folder).double().eval()
    encoded = PLAIN.encode(text, add_special_tokens=False)
    ids, at = [BPE.end, *encoded.ids, BPE.end], [*(begin for begin, _ in encoded.offsets), len(text)]
    sums = {TEXT: 0.0, REPLY: 0.0}
    size = context - 1
    for target in range(1, len(ids)):
        window = max(-(-(target - size - 1) // (size - size // 2)), 0)  # the first that gives half a window of context
        begin = 1 + window * (size - size // 2)
        with torch.no_grad():
            logits = model(torch.tensor([[ids[0], *ids[begin:target]]])).logits[0, -1]
        sums[kinds(at[target - 1])] -= float(torch.log_softmax(logits, -1)[ids[target]])
    return sums


def test_nats_are_those_of_the_model_itself(gpt2: Path) -> None:
    """Against one target at a time in float64: short and long conversations, ends of messages, odd text."""
    model = causal.load(str(gpt2))
    reports: list[tuple[int, int]] = []
    found = causal.score(model, frame(CHATS), context=33, report=lambda *counts: reports.append(counts))
    lengths = [len(ids) for ids, _ in causal.encode(model, frame(CHATS))]
    assert reports[-1] == (len(list(causal.windows(lengths, 33, opened=model.start is not None))),) * 2
    first = slow(gpt2, "hello hello\nthe lamp is green\n", 33, lambda at: REPLY if 12 <= at < 30 else TEXT)
    assert found.nats[:, 0].tolist() == pytest.approx([first[TEXT], first[REPLY]], rel=1e-5)
    long = slow(gpt2, LONG, 33, lambda _: REPLY)
    assert found.nats[:, 1].tolist() == pytest.approx([0.0, long[REPLY]], rel=1e-5)
    third = slow(
        gpt2, "<|endoftext|> </s> is text\n\x1b[31mred\x1b[0m \u202e\n\0", 33, lambda at: REPLY if at > 40 else TEXT
    )
    assert found.nats[:, 2].sum() == pytest.approx(third[TEXT] + third[REPLY], rel=1e-5)
    assert found.tokens[:, 4].tolist() == [1, 0]  # of an empty conversation the end alone


@settings(max_examples=60)
@given(st.lists(st.integers(1, 90), max_size=4), st.integers(4, 40), st.booleans())
def test_each_target_is_scored_once_with_half_a_window_of_context(sizes: list[int], context: int, opened: bool) -> None:
    """No window is longer than the context, and all but the first of a conversation give its half to each target."""
    scored: list[tuple[int, int]] = []
    for window in causal.windows(sizes, context, opened=opened):
        assert 0 < len(window.at) <= context
        own = window.at[window.at >= window.counts]
        scored += [(window.row, int(at) + 1) for at in own]
        assert window.counts == 0 or (window.at < window.counts).sum() >= (context - opened) // 2
    assert scored == [(row, target) for row, size in enumerate(sizes) for target in range(1, size)]


def test_padding_rows_of_a_vocabulary_change_no_score(gpt2: Path, tmp_path: Path) -> None:
    """Rows of the head that no text encodes to are not in the softmax."""
    save_gpt2(tmp_path, 512, **ENDS)
    both = [causal.score(causal.load(str(folder)), frame(CHATS)).nats for folder in (gpt2, tmp_path)]
    np.testing.assert_allclose(both[0], both[1], rtol=1e-6)


def _rest(model: causal.CausalModel, ids: list[int]) -> float:
    """Nats of all ids but the first."""
    logits = model.network(torch.tensor([ids])).logits[0, :-1, : model.ids].detach()
    return float(torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:]), reduction="sum"))


def test_a_model_without_an_end_scores_no_end_and_its_first_token_by_frequency(tmp_path: Path) -> None:
    """And says so."""
    save_gpt2(tmp_path)
    model = causal.load(str(tmp_path))
    found = causal.score(model, frame([[("user", "hello")], [("user", "hello")], [("user", "lamp")]]))
    ids = [PLAIN.encode(word).ids for word in ("hello", "lamp")]
    assert found.tokens.tolist() == [[len(ids[0]), len(ids[0]), len(ids[1])], [0, 0, 0]]
    every = [*ids[0], *ids[0], *ids[1]]
    assert found.nats[0, 2] == pytest.approx(
        -np.log(every.count(ids[1][0]) / len(every)) + _rest(model, ids[1]), rel=1e-5
    )
    assert len(list(model.notes())) == 2


def test_layers_that_the_config_does_not_have_are_named(gpt2: Path, tmp_path: Path) -> None:
    """The model is scored without them, and says so."""
    assert list(causal.load(str(gpt2)).notes()) == []
    save_gpt2(tmp_path, **ENDS)
    text = (tmp_path / "config.json").read_text()
    assert '"n_layer": 2' in text
    (tmp_path / "config.json").write_text(text.replace('"n_layer": 2', '"n_layer": 1'))
    (note,) = causal.load(str(tmp_path)).notes()
    assert f"tensors of the files of {tmp_path}, such as transformer.h.1." in note


def test_a_model_with_the_template_reads_conversations_by_it(tmp_path: Path) -> None:
    """Ids and classes are those that the trainer's own networks see."""
    save_gpt2(tmp_path)
    save_tokenizer(tmp_path, BPE.tokenizer, **ENDS)
    whole = streams.encode(frame(CHATS), BPE, CHAT)
    encoded = causal.encode(causal.load(str(tmp_path)), frame(CHATS))
    assert np.concatenate([ids[:-1] for ids, _ in encoded]).tolist() == whole.ids[:-1].tolist()
    assert np.concatenate([kinds[:-1] for _, kinds in encoded]).tolist() == whole.classes[:-1].tolist()


@pytest.mark.parametrize("text", ODD, ids=range(len(ODD)))
def test_decode_gives_the_texts_back(text: str) -> None:
    """Contents, roles and lengths, of odd text too."""
    chats = [[("user", text), ("assistant", ""), ("other", text)], [("text", f"{text}.")], []]
    assert streams.decode(streams.encode(frame(chats), BPE, CHAT), BPE).equals(frame(chats))


def test_an_adapter_is_scored_on_its_base(gpt2: Path, tmp_path: Path) -> None:
    """By its folder alone, or with the model; one that changes nothing has the scores of its base."""
    peft = pytest.importorskip("peft")
    from transformers import GPT2LMHeadModel

    config = peft.LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True, task_type="CAUSAL_LM")
    adapted = peft.get_peft_model(GPT2LMHeadModel.from_pretrained(gpt2), config)
    adapted.save_pretrained(tmp_path / "same")
    for name, p in adapted.named_parameters():
        if "lora_B" in name:
            p.data.fill_(0.1)
    adapted.save_pretrained(tmp_path / "other")
    base = causal.score(causal.load(str(gpt2)), frame(CHATS)).nats
    same = causal.score(causal.load(str(tmp_path / "same")), frame(CHATS)).nats
    other = causal.score(causal.load(str(gpt2), tmp_path / "other"), frame(CHATS)).nats
    np.testing.assert_array_equal(base, same)
    assert abs(other - base).max() > 1e-3


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("no A", "it lacks 1 tensors, such as base_model.model.transformer.h.0.attn.c_attn.lora_A"),
        ("layer 9", "it has, with no place in the model, 1 tensors, such as base_model.model.transformer.h.9.attn"),
    ],
)
def test_an_adapter_of_which_a_tensor_is_not_read_is_refused(
    change: str, words: str, gpt2: Path, tmp_path: Path
) -> None:
    """PEFT draws a missing factor, and leaves out one that has no place."""
    peft = pytest.importorskip("peft")
    from safetensors.torch import load_file, save_file
    from transformers import GPT2LMHeadModel

    config = peft.LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True, task_type="CAUSAL_LM")
    peft.get_peft_model(GPT2LMHeadModel.from_pretrained(gpt2), config).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    name = next(name for name in tensors if "h.0.attn.c_attn.lora_A" in name)
    if change == "no A":
        del tensors[name]
    else:
        tensors[name.replace("h.0", "h.9")] = tensors[name].clone()
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    with pytest.raises(ModelError, match=re.escape(words)):
        causal.load(str(gpt2), tmp_path)


@pytest.mark.parametrize("kind", ["PrefixTuningConfig", "IA3Config", "PromptTuningConfig"])
def test_adapters_of_other_kinds(kind: str, gpt2: Path, tmp_path: Path) -> None:
    """A prefix and factors of activations are scored; tokens before a text are not its own."""
    peft = pytest.importorskip("peft")
    from transformers import GPT2LMHeadModel

    more = {} if kind == "IA3Config" else {"num_virtual_tokens": 2}
    config = getattr(peft, kind)(task_type="CAUSAL_LM", **more)
    peft.get_peft_model(GPT2LMHeadModel.from_pretrained(gpt2), config).save_pretrained(tmp_path)
    if kind == "PromptTuningConfig":
        with pytest.raises(ModelError, match="is an adapter of type PROMPT_TUNING, which puts tokens before a text"):
            causal.load(str(gpt2), tmp_path)
    else:
        assert np.isfinite(causal.score(causal.load(str(gpt2), tmp_path), frame(CHATS), 33).nats).all()


CONFIGS: dict[str, Callable[[str], str]] = {
    "config": lambda _: "[]",
    "config cut": lambda text: text[:50],
    "config deep": lambda _: "[" * 100_000,
    "shapes": lambda text: text.replace('"n_positions": 48', '"n_positions": 40'),
    "own code": lambda text: text.replace(
        '"gpt2"', '"own", "auto_map": {"AutoConfig": "a.B", "AutoModelForCausalLM": "a.C"}'
    ),
}
"""What damages a config.json."""


def _bad(kind: str, folder: Path) -> str:
    """The name of a model with something wrong."""
    if kind in {"bert", "masked", "positions"}:
        bert: Any = import_module("transformers")
        size: dict[str, Any] = {
            "vocab_size": BPE.size,
            "hidden_size": 8,
            "num_hidden_layers": 1,
            "intermediate_size": 8,
        }
        size |= {"num_attention_heads": 1, "max_position_embeddings": 3, "initializer_range": 0.3}
        torch.manual_seed(0)
        made = {
            "bert": lambda: bert.BertModel(bert.BertConfig(**size)),
            "masked": lambda: bert.BertForMaskedLM(bert.BertConfig(**{**size, "max_position_embeddings": 9})),
            "positions": lambda: bert.LlamaForCausalLM(bert.LlamaConfig(**size)),
        }[kind]()
        made.init_weights()
        made.save_pretrained(folder)
        save_tokenizer(folder)
    elif kind == "lower":
        save_gpt2(folder)
        lower = Tokenizer.from_str(PLAIN.to_str())
        lower.normalizer = normalizers.Lowercase()
        save_tokenizer(folder, lower)
    elif kind == "words":
        save_gpt2(folder)
        words = Tokenizer(models.WordLevel({"[UNK]": 0, "the": 1}, "[UNK]"))
        words.pre_tokenizer = pre_tokenizers.Whitespace()
        save_tokenizer(folder, words, **UNKNOWN)
    elif kind == "cut":
        save_gpt2(folder)
        path = folder / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-100])
    elif kind == "nan":
        with torch.no_grad():
            model = save_gpt2(folder)
            model.transformer.ln_f.weight[0] = float("nan")
        model.save_pretrained(folder)
    elif kind == "few rows":
        save_gpt2(folder, 100)
    elif kind in CONFIGS:
        save_gpt2(folder)
        (folder / "config.json").write_text(CONFIGS[kind]((folder / "config.json").read_text()))
    elif kind == "no tokenizer":
        save_gpt2(folder)
        for path in folder.glob("tokenizer*"):
            path.unlink()
    return {"hub": "nobody/no-such-model", "absent": str(folder / "absent")}.get(kind, str(folder))


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("absent", "there is no folder"),
        ("empty", "holds no config.json"),
        ("hub", "nobody/no-such-model is no folder, and cannot be had from the hub"),
        ("bert", "(BertModel) is no complete causal language model: it lacks"),
        ("masked", "its logits depend on later tokens"),
        ("lower", "changes text"),
        ("words", "changes text"),
        ("cut", "fully covered): get it again, or name another model"),
        ("config", "config.json holds no JSON object: get it again"),
        ("config cut", "config.json cannot be read ("),
        ("config deep", "config.json cannot be read ("),
        ("shapes", "transformer.wpe.weight is (48, 16), expected (40, 16); get both files again"),
        ("own code", "needs code of its own, which is not run: name another model"),
        ("few rows", f"gives ids up to {BPE.size - 1}, and the model has 100 embeddings"),
        ("positions", "says that it has 3 positions"),
        ("nan", "is not a finite number"),
        ("no tokenizer", "holds no tokenizer"),
    ],
)
def test_a_model_that_cannot_be_scored_is_one_sentence(kind: str, words: str, tmp_path: Path) -> None:
    """It names the model and what was found."""
    with pytest.raises(ModelError) as error:
        causal.score(causal.load(_bad(kind, tmp_path)), frame(CHATS))
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_a_model_that_the_hub_does_not_have_is_asked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other functions of the hub try again and again; one in the cache, or without a network, needs no question."""
    asked = []

    def refuse(_api: object, name: str, **_options: object) -> None:
        asked.append(name)
        raise ConnectionError("no network")

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", refuse)
    assert causal.locate("nobody/none@0123456") == ("nobody/none", "0123456")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with pytest.raises(ModelError, match=r"nobody/none is no folder, and cannot be had from the hub \(no network\)"):
        causal.locate("nobody/none")
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_words, **_options: "config.json")
    causal.locate("nobody/none")
    assert asked == ["nobody/none"]


def test_an_adapter_without_peft_names_the_package(gpt2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the command that installs it."""
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ModelError, match=r"pip install 'refine\[models\]'"):
        causal.load(str(gpt2), tmp_path)


def test_a_folder_has_no_commit(gpt2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Transformers would take the folder in the place of the model of the hub."""
    monkeypatch.chdir(gpt2.parent)
    with pytest.raises(ModelError, match=f"{gpt2.name} is a folder, which has no commit 0123456"):
        causal.locate(f"{gpt2.name}@0123456")


def test_a_window_beyond_the_positions_is_refused(gpt2: Path) -> None:
    """At the boundary: 48 positions hold windows of 48 tokens."""
    model = causal.load(str(gpt2))
    assert model.context(48) == model.context(None) == 48
    with pytest.raises(ModelError, match=r"--context is 49, and .* has 48 positions"):
        model.context(49)
    with pytest.raises(ModelError, match="--context is 3, expected at least 4 tokens"):
        model.context(3)


def test_the_vocabulary_of_the_tests_has_no_template() -> None:
    """Else the tests above would not read plain text."""
    assert PLAIN.token_to_id(vocabulary.MESSAGE_END) is None
