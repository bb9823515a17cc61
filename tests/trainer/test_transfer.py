"""Differences of models as adapters: PEFT loads them with the logits of the tuned model, whatever the architecture."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer
from torch import Tensor

from pipeline.models.extract import tensor_row
from tests.trainer.test_causal import ENDS, PLAIN, save_tokenizer
from tests.trainer.test_template import BPE, frame
from trainer import causal
from trainer.causal import ModelError
from trainer.transfer import lowrank
from trainer.transfer.adapter import Adapter
from trainer.transfer.apply import open_transfer, write_model
from trainer.transfer.extract import Extraction, ExtractOptions, extract, plan
from trainer.transfer.lowrank import RankError
from trainer.transfer.weights import Checkpoint, WeightsError, Writer, header, read

SIZE = {"vocab_size": 48, "max_position_embeddings": 32, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1}
COMMON = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, **SIZE}
ROTARY = {**COMMON, "num_key_value_heads": 1, "head_dim": 12}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2", {"n_embd": 24, "n_layer": 2, "n_head": 2, "n_positions": 32, **SIZE}),
    "gpt_neox": ("GPTNeoX", COMMON),
    "llama": ("Llama", ROTARY),
    "llama_tied": ("Llama", {**ROTARY, "tie_word_embeddings": True}),
    "qwen2": ("Qwen2", ROTARY),
    "qwen3": ("Qwen3", ROTARY),
    "mistral": ("Mistral", ROTARY),
    "phi": ("Phi", COMMON),
    "gemma2": ("Gemma2", ROTARY),
    "mamba": ("Mamba", {"hidden_size": 24, "num_hidden_layers": 2, "state_size": 4, **SIZE}),
    "bamba": (
        "Bamba",
        {**ROTARY, "mamba_n_heads": 4, "mamba_d_head": 12, "mamba_d_state": 8, "mamba_chunk_size": 8}
        | {"mamba_n_groups": 1, "mamba_expand": 2, "attn_layer_indices": [1]},
    ),
}
IDS = torch.tensor([[3, 7, 1, 40, 22, 9, 9, 13, 2, 30]])
RANK = 2
"""Rank of the differences of linear weights in these tests, which factors of this rank hold exactly."""


def make(kind: str) -> Any:
    """A tiny model with random weights, its biases and norms too."""
    name, values = MODELS[kind]
    library = import_module("transformers")
    torch.manual_seed(0)
    model = getattr(library, f"{name}ForCausalLM" if name != "GPT2" else "GPT2LMHeadModel")(
        getattr(library, f"{name}Config")(**values)
    )
    with torch.no_grad():
        for key, p in model.named_parameters():
            if p.dim() < 2 and "A_log" not in key:
                p.add_(0.3 * torch.randn_like(p))
            elif p.dim() == 2 and "embed" not in key:
                p.copy_(torch.randn_like(p) * 0.3)
    return model.eval()


@torch.no_grad()
def tune(model: Any, *, linear_alone: bool = False) -> None:
    """Change every parameter: linear weights by a difference of rank `RANK`, all else by noise."""
    generator = torch.Generator().manual_seed(1)
    linear = {id(m.weight) for m in model.modules() if type(m).__name__ in {"Linear", "Conv1D"}}
    linear -= {id(model.get_input_embeddings().weight)}
    for p in model.parameters():
        if id(p) in linear:
            left, right = (torch.randn(n, RANK, generator=generator) for n in p.shape)
            p.add_(0.1 * left @ right.T)
        elif not linear_alone:
            p.add_(0.1 * torch.randn(p.shape, generator=generator))


@torch.no_grad()
def logits(model: Any) -> Tensor:
    found: Tensor = model(input_ids=IDS, use_cache=False).logits
    return found


def pair(kind: str, folder: Path, change: Callable[[Any], None] = tune, shard: str = "5GB") -> tuple[Tensor, Tensor]:
    """Save base and tuned in a folder, and return their logits."""
    model = make(kind)
    model.save_pretrained(folder / "base", max_shard_size=shard)
    before = logits(model)
    change(model)
    model.save_pretrained(folder / "tuned")
    return before, logits(model)


def extracted(folder: Path, **options: Any) -> Extraction:
    job = plan(str(folder / "base"), str(folder / "tuned"), ExtractOptions(**{"force": True, **options}))
    (folder / "adapter").mkdir()
    return extract(job, folder / "adapter")


def base(folder: Path) -> Any:
    return import_module("transformers").AutoModelForCausalLM.from_pretrained(folder).eval()


def adapted(folder: Path) -> Any:
    """The base with the adapter, as a user loads it; a warning of PEFT is an error."""
    peft = pytest.importorskip("peft")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.filterwarnings("ignore", message=".*bias.*")  # disabling the adapter would not give the base back
        warnings.filterwarnings("ignore", message="fan_in_fan_out")  # of a tied head, which PEFT then takes as it is
        return peft.PeftModel.from_pretrained(base(folder / "base"), folder / "adapter").eval()


@pytest.mark.parametrize("kind", MODELS)
def test_base_and_adapter_have_the_logits_of_the_tuned_model(kind: str, tmp_path: Path) -> None:
    """As PEFT loads them, and merged, saved and loaded again: biases, norms, embeddings, tied heads, fused layers."""
    before, after = pair(kind, tmp_path)
    assert (after - before).abs().max() > 0.05
    made = extracted(tmp_path, rank=RANK)
    model = adapted(tmp_path)
    torch.testing.assert_close(logits(model), after, rtol=1e-4, atol=1e-5)
    model.merge_and_unload().save_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits(base(tmp_path / "merged")), after, rtol=1e-4, atol=1e-5)
    assert {one.how for one in made.tensors} <= {"low rank", "whole", "bias"}
    ranks = {one.rank for one in made.tensors if one.how == "low rank"}
    assert ranks == (set() if kind == "mamba" else {RANK})  # of Mamba the mixers are kept whole, with A and D


def test_the_adapter_depends_on_neither_shards_nor_order(tmp_path: Path) -> None:
    """The same bytes from one file and from many; the record names every tensor, in the order of layers."""
    pair("llama", tmp_path / "one")
    pair("llama", tmp_path / "many", shard="5KB")
    assert len(list((tmp_path / "many" / "base").glob("*.safetensors"))) > 3
    made = [extracted(tmp_path / name) for name in ("one", "many")]
    files = [(tmp_path / name / "adapter" / "adapter_model.safetensors").read_bytes() for name in ("one", "many")]
    assert files[0] == files[1]
    assert [one.name for one in made[0].tensors] == [one.name for one in made[1].tensors]
    assert {one.name for one in made[0].tensors} == set(header(tmp_path / "one" / "base" / "model.safetensors"))
    assert made[0].digests == made[1].digests


def test_linear_weights_alone_make_a_pure_lora(tmp_path: Path) -> None:
    """Without biases and whole modules, as other servers of adapters need it; --whole none leaves all else out."""
    _, after = pair("qwen2", tmp_path, lambda model: tune(model, linear_alone=True))
    made = extracted(tmp_path, rank=RANK)
    torch.testing.assert_close(logits(adapted(tmp_path)), after, rtol=1e-4, atol=1e-5)
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (config["bias"], config["modules_to_save"]) == ("none", None)
    assert not made.notes
    pair("qwen2", tmp_path / "all")
    made = extracted(tmp_path / "all", rank=RANK, whole=())
    assert {one.how for one in made.tensors} == {"low rank", "left out"}
    assert "changed tensors are left out (by --whole)" in made.notes[0]
    assert all(".lora_" in name for name in header(tmp_path / "all" / "adapter" / "adapter_model.safetensors"))


@pytest.mark.parametrize("kind", ["gpt2", "llama", "llama_tied"])
def test_embeddings_may_be_factors_too(kind: str, tmp_path: Path) -> None:
    """Exact at their own rank, tied or not, as PEFT loads them, and added to the base."""

    @torch.no_grad()
    def change(model: Any) -> None:
        weight = model.get_input_embeddings().weight
        before = weight.clone()
        tune(model)
        left, right = (torch.randn(n, RANK, generator=torch.Generator().manual_seed(3)) for n in weight.shape)
        weight.copy_(before + 0.1 * left @ right.T)

    _, after = pair(kind, tmp_path, change)
    made = extracted(tmp_path, rank=RANK, embeddings="lora")
    (embedding,) = (one for one in made.tensors if one.name.endswith(("wte.weight", "embed_tokens.weight")))
    assert (embedding.how, embedding.rank) == ("low rank", RANK)
    model = adapted(tmp_path)
    torch.testing.assert_close(logits(model), after, rtol=1e-4, atol=1e-5)
    # if the last of these fails, PEFT merges right, and the note can go
    assert any("adds factors of an embedding twice" in note for note in made.notes) == (kind != "llama")
    assert ((logits(model.merge_and_unload()) - after).abs().max() > 0.1) == (kind != "llama")
    checkpoint = Checkpoint.open(str(tmp_path / "base"))
    (tmp_path / "sum").mkdir()
    write_model(open_transfer(Adapter.open(tmp_path / "adapter"), checkpoint, checkpoint), 1.0, tmp_path / "sum")
    torch.testing.assert_close(logits(base(tmp_path / "sum")), after, rtol=1e-4, atol=1e-5)


def test_only_modules_that_are_named_are_whole(tmp_path: Path) -> None:
    """A linear one too, by the end of its name; a name of none is refused."""
    pair("llama", tmp_path)
    made = extracted(tmp_path, rank=RANK, whole=("model.norm", "1.mlp.up_proj"))
    whole = [one.name for one in made.tensors if one.how == "whole"]
    assert whole == ["model.norm.weight", "model.layers.1.mlp.up_proj.weight"]
    assert {one.how for one in made.tensors if one.part in {"norms", "embeddings"}} == {"whole", "left out", "low rank"}
    with pytest.raises(WeightsError, match="--whole is 'orm', which no module of "):
        plan(str(tmp_path / "base"), str(tmp_path / "tuned"), ExtractOptions(whole=("orm",)))


def test_linear_weights_of_an_unknown_type_are_found_by_shape_and_name(tmp_path: Path) -> None:
    """As factors; all else is whole, and the embedding is no linear weight."""
    pair("llama", tmp_path)
    for name in ("base", "tuned"):
        path = tmp_path / name / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"model_type": "of-my-own"}))
    made = extracted(tmp_path, rank=RANK)
    factored = [one.name for one in made.tensors if one.how == "low rank"]
    assert len(factored) == 14
    assert all(name.endswith("_proj.weight") for name in factored)
    assert {one.how for one in made.tensors if one.name not in factored} == {"whole"}


def test_a_bias_that_changed_alone_is_kept(tmp_path: Path) -> None:
    """Of a layer whose weight is the same; and an adapter without any factors is one too."""

    @torch.no_grad()
    def biases(model: Any) -> None:
        model.transformer.h[0].attn.c_attn.bias += 0.5
        model.transformer.h[1].ln_1.bias += 0.5

    _, after = pair("gpt2", tmp_path, biases)
    made = extracted(tmp_path)
    torch.testing.assert_close(logits(adapted(tmp_path)), after, rtol=1e-4, atol=1e-5)
    assert [(one.name, one.how) for one in made.changed] == [
        ("transformer.h.0.attn.c_attn.bias", "bias"),
        ("transformer.h.1.ln_1.bias", "whole"),
    ]
    norms, _ = tmp_path / "norms", pair("gpt2", tmp_path / "norms", lambda m: m.transformer.ln_f.bias.data.add_(1.0))
    extracted(norms)
    torch.testing.assert_close(logits(adapted(norms)), logits(base(norms / "tuned")), rtol=1e-4, atol=1e-5)


def test_auto_keeps_the_energy_and_full_keeps_all(tmp_path: Path) -> None:
    """Each rank is the smallest for 0.9; at the full rank everything is exact."""

    @torch.no_grad()
    def every(model: Any) -> None:
        for i, p in enumerate(model.parameters()):
            p.add_(0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(i)))

    _, after = pair("llama", tmp_path, every)
    for one in extracted(tmp_path, energy=0.5).tensors:
        if one.how == "low rank" and one.rank is not None:
            squares = np.cumsum(np.array(one.values) ** 2) / one.difference**2
            assert squares[one.rank - 1] >= 0.5 - 1e-6
            assert one.rank == 1 or squares[one.rank - 2] < 0.5
            assert one.kept == pytest.approx(squares[one.rank - 1], rel=1e-5)
    (tmp_path / "adapter").rename(tmp_path / "half")
    made = extracted(tmp_path, rank=0)
    assert {one.how for one in made.tensors} == {"whole"}
    torch.testing.assert_close(logits(adapted(tmp_path)), after, rtol=1e-5, atol=1e-6)


def test_a_bias_that_was_zero_has_no_relative_change(tmp_path: Path) -> None:
    """There is no size to compare its difference with, and the page says "from zero"."""
    name = "model.layers.0.mlp.fc1.bias"

    def change(model: Any) -> None:
        tune(model)
        with torch.no_grad():
            model.get_parameter(name).add_(1.0)

    pair("phi", tmp_path, change)
    weights = tmp_path / "base" / "model.safetensors"
    tensors = load_file(weights)
    save_file({**tensors, name: torch.zeros_like(tensors[name])}, weights, {"format": "pt"})
    found = next(one for one in extracted(tmp_path).tensors if one.name == name)
    assert found.difference > 0
    assert found.relative is None
    assert tensor_row(found)[2] == "from zero"


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_grown_vocabulary_is_scored_with_its_new_tokens(kind: str, tmp_path: Path) -> None:
    """The rows that both have are in the adapter, the new ones beside it; embeddings alone, or with an untied head."""
    grown = Tokenizer.from_str(PLAIN.to_str())
    grown.add_tokens([AddedToken(f"<new{i}>", normalized=False) for i in range(3)])
    model = make(kind)
    model.resize_token_embeddings(BPE.size, mean_resizing=False)
    model.save_pretrained(tmp_path / "base")
    save_tokenizer(tmp_path / "base", **ENDS)
    model.resize_token_embeddings(BPE.size + 3, mean_resizing=False)
    tune(model)
    model.save_pretrained(tmp_path / "tuned")
    save_tokenizer(tmp_path / "tuned", grown, **ENDS)
    made = extracted(tmp_path, rank=RANK)
    assert made.added == 3
    assert "the vocabulary grew by 3 tokens" in made.notes[-1]
    chats = frame([[("user", "hello <new1>"), ("assistant", "the <new2> river")]])
    found = causal.score(causal.load(str(tmp_path / "adapter")), chats)
    tuned = causal.score(causal.load(str(tmp_path / "tuned")), chats)
    np.testing.assert_array_equal(found.tokens, tuned.tokens)
    np.testing.assert_allclose(found.nats, tuned.nats, rtol=1e-4)


def _change_file(kind: str, path: Path) -> None:
    """Damage a file of tensors."""
    data = path.read_bytes()
    if kind == "pickle":
        path.rename(path.with_name("pytorch_model.bin"))
    else:
        path.write_bytes({"cut": data[:-100], "empty": b"", "offsets": b"\xff" * 8 + data[8:]}[kind])


def _damage(kind: str, folder: Path) -> None:
    """Make something wrong with the tuned model, or with the base."""
    tuned, library = folder / "tuned", import_module("transformers")
    config = json.loads((tuned / "config.json").read_text())
    if kind in {"cut", "empty", "offsets", "pickle"}:
        _change_file(kind, tuned / "model.safetensors")
    elif kind == "no config":
        (tuned / "config.json").unlink()
    elif kind == "t5":
        small = library.T5Config(d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=1, vocab_size=9)
        library.T5EncoderModel(small).save_pretrained(folder / "base")
    elif kind == "quantised":
        (tuned / "config.json").write_text(json.dumps(config | {"quantization_config": {"bits": 4}}))
    elif kind in {"nan", "shrunk"}:
        model = base(tuned)
        model.model.norm.weight.data[3] = float("nan")
        model.resize_token_embeddings(40 if kind == "shrunk" else 48)
        model.save_pretrained(tuned)
    elif kind == "shape":
        library.LlamaForCausalLM(library.LlamaConfig(**{**ROTARY, "intermediate_size": 40})).save_pretrained(tuned)
    elif kind == "other":
        make("qwen2").save_pretrained(tuned)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("no config", "holds no config.json"),
        ("t5", "is no causal language model (its architecture is T5EncoderModel)"),
        ("pickle", "holds pytorch_model.bin and no model.safetensors: pickles run code"),
        ("quantised", "differences of quantised weights are rounding"),
        ("cut", "ends within "),
        ("empty", "is no safetensors file, or its header is cut"),
        ("offsets", "its header is cut"),
        ("nan", "model.norm.weight holds NaN or infinity"),
        ("shape", "mlp.down_proj.weight has shape (24, 32)"),
        ("other", "is of type llama and"),
        ("shrunk", "has 8 rows fewer"),
    ],
)
def test_models_that_do_not_suit_are_one_sentence(kind: str, words: str, tmp_path: Path) -> None:
    """Before any arithmetic, or without a file; it names what was found."""
    pair("llama", tmp_path)
    _damage(kind, tmp_path)
    with pytest.raises((WeightsError, ModelError)) as error:
        extracted(tmp_path)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"shape": [-4, -2]}, "has the shape [-4, -2], at 32 to 64"),
        ({"shape": [4.0, 2]}, "has the shape [4.0, 2], at 32 to 64"),
        ({"shape": "ab"}, "has the shape ab"),
        ({"data_offsets": [-32, 0]}, "at -32 to 0"),
        ({"data_offsets": [0, 32]}, "has tensors that overlap, or bytes that belong to none"),
        ({"data_offsets": [0, 32, 64]}, "is no complete safetensors file"),
    ],
)
def test_a_header_that_safetensors_refuses_is_refused(entry: dict[str, Any], words: str, tmp_path: Path) -> None:
    """The bytes of another tensor would be read, or none."""
    first = {"dtype": "F32", "shape": [4, 2], "data_offsets": [0, 32]}
    head = json.dumps({"a": first, "b": {**first, "data_offsets": [32, 64], **entry}}).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(head).to_bytes(8, "little") + head + bytes(64))
    with pytest.raises(WeightsError, match=re.escape(words)):
        header(path)


def test_a_choice_of_no_tensor_is_not_called_no_difference(tmp_path: Path) -> None:
    """The models differ, elsewhere."""
    pair("llama", tmp_path)
    with pytest.raises(WeightsError, match="--only and --not leave out all 21 tensors that differ"):
        extracted(tmp_path, only="no such")


def test_a_single_file_comes_before_an_index(tmp_path: Path) -> None:
    """As in transformers, so that the difference is one of the models that are scored; an index holds names."""
    model = make("llama")
    model.save_pretrained(tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": 3}}))
    assert len(Checkpoint.open(str(tmp_path)).tensors) == len(model.state_dict())
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(WeightsError, match="does not say which file holds which tensor"):
        Checkpoint.open(str(tmp_path))


def test_a_model_of_the_hub_that_cannot_be_had_is_named() -> None:
    """And that a local folder works."""
    with pytest.raises(WeightsError, match=r"nobody/no-such-model is no folder, .*: name the folder of a model"):
        Checkpoint.open("nobody/no-such-model")


@pytest.mark.parametrize(
    ("kind", "words"),
    [("F8_E4M3", "of type F8_E4M3, and differences of quantised"), ("I32", "differs, and holds whole numbers in one")],
)
def test_quantised_tensors_are_refused(kind: str, words: str, tmp_path: Path) -> None:
    """By their type, whatever the configuration says."""
    pair("llama", tmp_path)
    for name in ("base", "tuned"):
        path = tmp_path / name / "model.safetensors"
        head = json.loads(path.read_bytes()[8:].split(b"}}", 1)[0] + b"}}")
        first = head["model.norm.weight"]
        wide = b'"model.norm.weight":' + json.dumps(first, separators=(",", ":")).encode()
        size = first["data_offsets"][1] - first["data_offsets"][0]
        changed = {**first, "dtype": kind, "shape": [size // (4 if kind == "I32" else 1)]}
        other = b'"model.norm.weight":' + json.dumps(changed, separators=(",", ":")).encode()
        data = path.read_bytes()
        assert wide in data
        length = int.from_bytes(data[:8], "little")
        text = data[8 : 8 + length].rstrip().replace(wide, other).ljust(length + 16)
        path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])
    with pytest.raises(WeightsError, match=words):
        extracted(tmp_path)


def test_unrelated_models_need_force(tmp_path: Path) -> None:
    """Two drawings differ by the root of 2 of their size; the boundary is 1."""

    @torch.no_grad()
    def redraw(model: Any) -> None:
        for p in model.parameters():
            p.copy_(0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(9)))

    pair("llama", tmp_path, redraw)
    with pytest.raises(WeightsError, match="were not trained from one another"):
        extracted(tmp_path, force=False)


def test_equal_models_give_no_adapter(tmp_path: Path) -> None:
    """And that is said."""
    pair("llama", tmp_path, lambda _: None)
    made = extracted(tmp_path, force=False)
    assert (made.size, made.notes, made.changed) == (0, ("nothing differs",), [])
    assert not list((tmp_path / "adapter").iterdir())


HILBERT = torch.tensor([[1 / (i + j + 1) for j in range(4)] for i in range(6)])
"""A matrix whose singular values and residuals numpy gives in float64."""


@pytest.mark.parametrize("method", ["auto", "lapack"])
@pytest.mark.parametrize("transposed", [False, True])
def test_golden_values_of_a_hilbert_matrix(method: Any, transposed: bool) -> None:
    """Values, energy, residuals, and the rank that is chosen."""
    d = HILBERT.T.contiguous() if transposed else HILBERT
    one, two = (lowrank.factor(d, rank, method=method) for rank in (1, 2))
    assert two.values[:3].tolist() == pytest.approx([1.5552291676, 0.20104609177, 0.010356688121], rel=1e-4)
    assert one.energy == pytest.approx(2.459264613252709, rel=1e-6)
    assert (one.kept, two.kept) == pytest.approx((0.9835207447, 0.9999563616), rel=1e-6)
    assert float((d - one.b @ one.a).norm()) == pytest.approx(0.2013128150696033, rel=1e-5)
    assert float((d - two.b @ two.a).norm()) == pytest.approx(0.010359464038747107, rel=1e-3)
    assert one.stable_rank == pytest.approx(2.459264613252709 / 1.5552291676**2, rel=1e-5)
    ranks = [lowrank.factor(d, None, share=share, method=method).rank for share in (0.95, 0.99, 0.99999)]
    assert ranks == [1, 2, 3]


def test_krylov_has_the_error_of_lapack() -> None:
    """On a flat spectrum, as differences of fine-tuned models have; its start depends on the name alone."""
    generator = torch.Generator().manual_seed(0)
    u, v = (torch.linalg.qr(torch.randn(n, 600, generator=generator)).Q for n in (640, 600))
    d = (u * torch.arange(1, 601).float() ** -0.3) @ v.T
    best = lowrank.factor(d, 16, method="lapack")
    found = lowrank.factor(d, 16, name="a")
    assert not found.whole  # by Krylov iteration
    errors = [float((d - one.b @ one.a).norm()) for one in (best, found)]
    assert errors[1] == pytest.approx(errors[0], rel=1e-5)
    np.testing.assert_allclose(found.values[:16], best.values[:16], rtol=1e-4)
    again = lowrank.factor(d, 16, name="a")
    assert torch.equal(found.b, again.b)


@settings(max_examples=20)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 99), st.sampled_from([0.3, 0.9, 1.0]))
def test_the_residual_falls_with_rank_and_the_full_rank_is_exact(
    rows: int, columns: int, seed: int, share: float
) -> None:
    """And a chosen rank is the smallest that keeps the share."""
    d = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    least = min(rows, columns)
    left = [float((d - (one := lowrank.factor(d, r)).b @ one.a).norm()) for r in range(1, least + 1)]
    assert all(a >= b - 1e-5 for a, b in pairwise(left))
    assert left[-1] < 1e-5 * max(float(d.norm()), 1.0)
    chosen = lowrank.factor(d, None, share=share).rank
    allowed = (1 - share) * float(d.norm()) ** 2
    assert left[chosen - 1] ** 2 <= allowed + 1e-5
    assert chosen == 1 or left[chosen - 2] ** 2 > allowed - 1e-5


def test_rounding_is_not_worth_a_rank(tmp_path: Path) -> None:
    """The difference of a bfloat16 model beyond its real rank is rounding, which the record says."""

    @torch.no_grad()
    def little(model: Any) -> None:
        for name, p in model.named_parameters():
            if name.endswith("q_proj.weight"):
                p.add_(0.01 * torch.outer(torch.ones(len(p)), torch.ones(p.shape[1])))

    model = make("llama").bfloat16()
    model.save_pretrained(tmp_path / "base")
    little(model)
    model.save_pretrained(tmp_path / "tuned")
    records = [one for one in extracted(tmp_path, energy=0.99).changed if one.role.endswith("q_proj")]
    for one in records:
        assert one.rank is not None
        assert one.rank <= 3  # of 24; without the noise floor, nearly all
        assert 0 < one.noise < 0.2
    assert len(records) == 2


@pytest.mark.parametrize("kind", ["F64", "F32", "BF16", "I64", "BOOL"])
def test_a_file_is_read_as_it_was_written(kind: str, tmp_path: Path) -> None:
    """By the format's own library too, and some rows alone; an empty tensor is one."""
    from safetensors.torch import load_file

    from trainer.transfer.weights import DTYPES

    tensors = {"a": torch.arange(12).view(3, 4).to(DTYPES[kind]), "b": torch.zeros(0, 2, dtype=DTYPES[kind])}
    writer = Writer(tmp_path / "x.safetensors")
    for name, tensor in tensors.items():
        writer.add(name, tensor)
    writer.close()
    theirs, ours = load_file(tmp_path / "x.safetensors"), header(tmp_path / "x.safetensors")
    for name, tensor in tensors.items():
        assert torch.equal(theirs[name], tensor)
        assert torch.equal(read(ours[name]), tensor)
    assert torch.equal(read(ours["a"], slice(1, 3)), tensors["a"][1:3])
    assert list(tmp_path.iterdir()) == [tmp_path / "x.safetensors"]


def test_options_that_cannot_be_are_refused() -> None:
    """With what was expected."""
    from trainer.transfer.extract import options_of

    good: dict[str, Any] = {
        "rank": "8",
        "energy": 0.9,
        "most": 8,
        "whole": "auto",
        "embeddings": "whole",
        "only": None,
        "exclude": None,
        "svd": "auto",
    }
    assert options_of(**good, dtype="same", force=False).rank == 8
    for name, value in (("rank", "0"), ("rank", "many"), ("embeddings", "some"), ("svd", "fast"), ("whole", ",")):
        with pytest.raises((RankError, WeightsError), match=f"--{name} is '{value}', expected"):
            options_of(**{**good, name: value}, dtype="same", force=False)
    with pytest.raises(RankError, match=r"--energy is 1\.5, expected above 0, up to 1"):
        plan("a", "b", ExtractOptions(energy=1.5))
