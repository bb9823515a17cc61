"""What an adapter gives back of a fine-tune, and what carries over: `python -m tests.bench.transfer_pair COMMAND ...`.

`train FOLDER DOMAIN SEED` makes four models: a base of Qwen2's shape on the embedded corpus, the base tuned on the
corpus DOMAIN (all weights), the base trained on, and a GPT-2 of another seed. `mergekit FOLDER...` extracts adapters by
mergekit, whose packages are in the folders PEER. `measure FOLDER DOMAIN` extracts adapters by refine and scores all on
the test part of DOMAIN, once. `apply FOLDER DOMAIN` applies the default one to the two other models. `table FOLDER...`
prints medians. With SIZE=5m in the environment the models have 5 million parameters, and a base reads 790,000 tokens.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import polars as pl
import torch

from pipeline.models.apply import ApplyOptions, Texts, apply_adapter, gain_share, split_texts
from pipeline.models.work import bits, read_texts
from pipeline.terminal import say
from tests.conftest import SHARED
from tests.trainer.test_causal import ENDS, save_tokenizer
from trainer import causal
from trainer.prepare import vocabulary
from trainer.transfer import function
from trainer.transfer.adapter import TENSORS
from trainer.transfer.extract import ExtractOptions, extract, plan

POSITIONS = 512
ROWS = 8
"""Pieces of at most 128 tokens in a step."""


@dataclass(frozen=True)
class Size:
    """What the models are, and how long they learn."""

    vocabulary: int
    width: int
    inner: int
    layers: int
    key_value_heads: int
    own: int | None
    """Conversations of the embedded corpus."""
    domain: int
    """Conversations of the domain: 60 % to tune on, 20 % to choose scales by, 20 % to test on."""
    steps: dict[str, int]
    rates: dict[str, float]
    lora_steps: int


SIZES = {
    "tiny": Size(
        *(1024, 64, 176, 3, 2, 2500, 400),
        steps={"base": 200, "tuned": 70, "related": 40},
        rates={"base": 3e-3, "tuned": 1e-3, "related": 1e-3},
        lora_steps=100,
    ),
    "5m": Size(
        *(4096, 256, 704, 5, 4, None, 804),
        steps={"base": 900, "tuned": 220, "related": 120},
        rates={"base": 1e-3, "tuned": 3e-4, "related": 3e-4},
        lora_steps=300,
    ),
}
SIZE = SIZES[os.environ.get("SIZE", "tiny")]
ELSEWHERE = SHARED / "data" / "chat" / "oasst_100trees.parquet"
"""Another domain, whose texts teach a LoRA what it is then tested on in the first one."""


def new_model(kind: str) -> Any:
    """A model with random weights, its head tied to its embedding."""
    library = import_module("transformers")
    common = {"vocab_size": SIZE.vocabulary, "bos_token_id": 0, "eos_token_id": 0, "tie_word_embeddings": True}
    if kind == "gpt2":
        shape = {"n_embd": SIZE.width, "n_layer": SIZE.layers, "n_head": 4, "n_positions": POSITIONS}
        return library.GPT2LMHeadModel(library.GPT2Config(**common, **shape))
    shape = {"hidden_size": SIZE.width, "intermediate_size": SIZE.inner, "num_hidden_layers": SIZE.layers}
    heads = {"num_attention_heads": 4, "num_key_value_heads": SIZE.key_value_heads}
    config = library.Qwen2Config(**common, **shape, **heads, max_position_embeddings=POSITIONS)
    return library.Qwen2ForCausalLM(config)


def learn(network: Any, pieces: Sequence[torch.Tensor], steps: int, rate: float, seed: int) -> int:
    """Train all weights with AdamW, 5 % warm-up and a cosine; returns the number of tokens."""
    optimiser = torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=0.01)
    generator, tokens = np.random.default_rng(seed), 0
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = rate * min((step + 1) / (0.05 * steps), 0.5 + 0.5 * math.cos(math.pi * step / steps))
        chosen = [pieces[i] for i in generator.integers(0, len(pieces), ROWS)]
        batch = torch.nn.utils.rnn.pad_sequence(chosen, batch_first=True, padding_value=-100)
        there = (batch >= 0).long()
        tokens += int(there.sum())
        loss = network(input_ids=batch.clamp(min=0), attention_mask=there, labels=batch, use_cache=False).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return tokens


def texts_of(domain: str, folder: Path) -> Texts:
    """The three parts of the domain, as `refine transfer apply --on` cuts them."""
    texts = split_texts(ApplyOptions(folder, "", folder, on=domain, limit=SIZE.domain))
    assert texts is not None
    return texts


def train(folder: Path, domain: str, seed: int) -> None:
    """The four models, in folders beside one another."""
    torch.set_num_threads(1)
    own, texts = read_texts("chitchat", SIZE.own).conversations, texts_of(domain, folder)
    tokenizer = vocabulary.train(own["text"], SIZE.vocabulary).tokenizer
    # related is trained on conversations that the base has not seen
    halves = [
        own.filter(pl.Series(np.random.default_rng(seed).random(len(own)) < 0.75) == part) for part in (True, False)
    ]
    torch.manual_seed(seed)
    network, tokens = new_model("qwen2"), {}
    for name, frame in (("base", halves[0]), ("tuned", texts.train), ("related", halves[1]), ("other", halves[0])):
        if name == "other":
            torch.manual_seed(1000 + seed)
            network = new_model("gpt2")
        elif name != "base":
            network = causal.load(str(folder / "base")).network.requires_grad_()
        place = folder / name
        network.train().save_pretrained(place)
        save_tokenizer(place, tokenizer, **ENDS)
        model = causal.load(str(place))
        like = "base" if name == "other" else name
        tokens[name] = learn(network, function.pieces(model, frame), SIZE.steps[like], SIZE.rates[like], seed)
        network.save_pretrained(place)
        say(f"{name}: {sum(p.numel() for p in network.parameters()):,} parameters, {tokens[name]:,} tokens")
    (folder / "tokens.json").write_text(json.dumps(tokens))


EXTRACTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "rank 16": {"rank": 16},
    "rank 16, embedding too": {"rank": 16, "embeddings": "lora"},
    "rank 16, linear weights alone": {"rank": 16, "whole": ()},
    "full rank": {"rank": 0},
}


def shares(folder: Path, texts: Texts) -> dict[str, Any]:
    """Share of the tuned model's gain that each adapter gives back, with its interval, and its size in numbers."""
    score = partial(causal.score, conversations=texts.test.conversations)
    base, tuned = (score(causal.load(str(folder / name))).nats.sum(0) for name in ("base", "tuned"))
    found: dict[str, Any] = {"gain": float((base - tuned).sum() / texts.test.bytes.sum() / math.log(2))}
    for name, options in EXTRACTIONS.items():
        place = folder / name.replace(" ", "-")
        place.mkdir()
        extract(plan(str(folder / "base"), str(folder / "tuned"), ExtractOptions(**options)), place)
        found[name] = _adapter_share(folder, place, base, tuned, texts)
    if (folder / "mergekit").is_dir():
        found["mergekit, rank 16"] = _adapter_share(folder, folder / "mergekit", base, tuned, texts)
    return found


def _adapter_share(folder: Path, place: Path, base: Any, tuned: Any, texts: Texts) -> dict[str, Any]:
    model = causal.load(str(folder / "base"), place)
    nats = causal.score(model, texts.test.conversations).nats.sum(0)
    size = (place / TENSORS).stat().st_size
    return {"share": gain_share(base - nats, base - tuned, texts.test.clusters), "megabytes": size / 1e6}


def projected(folder: Path, texts: Texts) -> float:
    """Bits per byte of the related model plus LoRA-X's projection of the linear weights' differences (scale 1).

    U_t U_t^T dW_s V_t V_t^T, with the first half of the target's singular vectors.
    """
    target = causal.load(str(folder / "related"))
    base, tuned = (causal.load(str(folder / name)).network.state_dict() for name in ("base", "tuned"))
    for name, p in target.network.named_parameters():
        if p.dim() == 2 and "embed" not in name:
            u, _, v = torch.linalg.svd(p.detach(), full_matrices=False)
            u, v = u[:, : len(v) // 2], v[: len(v) // 2]
            p.data += u @ (u.T @ (tuned[name] - base[name]) @ v.T) @ v
    return bits(float(causal.score(target, texts.test.conversations).nats.sum()), int(texts.test.bytes.sum()))


def transfers(folder: Path, domain: str) -> dict[str, Any]:
    """The ladders of the related model and of the other one, and the shares that carry over."""
    found: dict[str, Any] = {}
    for name in ("related", "other"):
        place = folder / f"on-{name}"
        options = ApplyOptions(
            folder / "default", str(folder / name), place, on=domain, limit=SIZE.domain, steps=SIZE.lora_steps
        )
        made = apply_adapter(options)
        assert made.ladder is not None
        ladder = {row.name.split(" at ")[0]: row.bits_per_byte for row in made.ladder.rows}
        found[name] = {"space": made.space, "scale": made.scale, "share": made.carried, "ladder": ladder}
    test = texts_of(domain, folder).test
    place = folder / "on-other-elsewhere"
    options = replace(options, out=place, on=str(ELSEWHERE), limit=None, scale=found["other"]["scale"])
    apply_adapter(options)
    nats = causal.score(causal.load(str(folder / "other"), place), test.conversations).nats.sum()
    label = f"a LoRA that learned on texts of {ELSEWHERE.stem}"
    found["other"]["ladder"][label] = bits(float(nats), int(test.bytes.sum()))
    return found


def measure(folder: Path, domain: str) -> None:
    """What adapters of one seed give back, into shares.json."""
    torch.set_num_threads(1)
    found = shares(folder, texts_of(domain, folder))
    say(json.dumps(found))
    (folder / "shares.json").write_text(json.dumps(found, indent=1))


def apply(folder: Path, domain: str) -> None:
    """What the default adapter of one seed does for the two other models, into transfers.json."""
    torch.set_num_threads(1)
    found = transfers(folder, domain)
    found["related"]["ladder"]["LoRA-X, linear weights alone"] = projected(folder, texts_of(domain, folder))
    say(json.dumps(found))
    (folder / "transfers.json").write_text(json.dumps(found, indent=1))


def mergekit(folders: Sequence[Path]) -> None:
    """The adapters of mergekit at rank 16; its packages are in the folders of PEER."""
    sys.path[:0] = os.environ["PEER"].split(":")
    main = import_module("mergekit.scripts.extract_lora").main

    for folder in folders:
        words = ["--model", f"{folder}/tuned", "--base-model", f"{folder}/base", "--max-rank", "16"]
        try:
            main([*words, "--out-path", f"{folder}/mergekit"], standalone_mode=False)
        except ConnectionError as error:  # its model card asks the hub about local folders; the adapter is there
            say(f"{folder}: {error}")


def table(folders: Sequence[Path]) -> None:
    """Medians over seeds, with the least and the largest, of what is there."""

    def line(name: str, values: Sequence[float], form: str = ".1%") -> None:
        say(f"{name}: {median(values):{form}} ({min(values):{form}} to {max(values):{form}}), {len(values)} seeds")

    every = [json.loads(path.read_text()) for folder in folders for path in folder.glob("shares.json")]
    line("gain in bits per byte", [one["gain"] for one in every], ".3f")
    for name in every[0]:
        if name != "gain":
            line(name, [one[name]["share"][0] for one in every])
            line("  megabytes", [one[name]["megabytes"] for one in every], ".2f")
    every = [json.loads(path.read_text()) for folder in folders for path in folder.glob("transfers.json")]
    for target in ("related", "other") if every else ():
        line(f"{target}, carried over", [one[target]["share"][0] for one in every])
        for name in every[0][target]["ladder"]:
            line(f"  {name}, bits per byte", [one[target]["ladder"][name] for one in every], ".3f")


if __name__ == "__main__":
    command, *rest = sys.argv[1:]
    if command == "train":
        Path(rest[0]).mkdir(parents=True, exist_ok=True)
        train(Path(rest[0]), rest[1], int(rest[2]))
    elif command in {"measure", "apply"}:
        {"measure": measure, "apply": apply}[command](Path(rest[0]), rest[1])
    else:
        {"mergekit": mergekit, "table": table}[command]([Path(name) for name in rest])
