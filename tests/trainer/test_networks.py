"""The networks beside CVFP: the transformer is what its paper says, no token sees what it must not, runs resume."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.trainer.test_cvfp_training import SIZE, SMALL_PRESET, StoppedError, data, weights
from trainer.cvfp import phase2
from trainer.cvfp.model import Network
from trainer.cvfp.phase1 import NotFiniteError
from trainer.cvfp.scan import Tape
from trainer.experiment import baselines
from trainer.experiment.kinds import KINDS, NETWORKS, NetworkError
from trainer.experiment.kinds import baselines as baselines_of
from trainer.experiment.kinds import networks as parse
from trainer.experiment.single_phase import GruRun, SinglePhase, TransformerRun, shape
from trainer.presets import HOUSE, Preset
from trainer.transformer import training as windowed
from trainer.transformer.model import NORM_EPS, Shape, ShapeError, Transformer

QUICK = replace(SMALL_PRESET, phase2=replace(SMALL_PRESET.phase2, epochs=1, steps=40))
BOTH = pytest.mark.parametrize("network", [TransformerRun, GruRun])


def transformer(vocabulary: int = 50, *, tied: bool = False) -> Transformer:
    """A transformer all of whose weights are random, those that start at zero and the gains included."""
    model = Transformer(Shape(vocabulary, 16, 2, 2, 24, tied), 1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(1 if p.dim() == 1 else 0, 0.3, generator=generator)
    return model


def slow_logits(model: Transformer, ids: list[int]) -> NDArray[np.float64]:
    """Logits [tokens, V] by the formulas, in float64, token by token and head by head."""
    w = {name: p.detach().double().numpy() for name, p in model.named_parameters()}

    def norm(x: NDArray[np.float64], gain: str) -> NDArray[np.float64]:
        rows = [row / math.sqrt((row @ row) / len(row) + NORM_EPS) for row in x]
        return np.array(rows * w[gain])

    def rotated(row: NDArray[np.float64], position: int) -> NDArray[np.float64]:
        half, out = len(row) // 2, row.copy()
        for i in range(half):
            angle = position * 10_000.0 ** (-2 * i / len(row))
            turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
            out[[i, i + half]] = turn @ row[[i, i + half]]
        return out

    x = norm(w["embedding.weight"][ids], "embedding_norm.weight")
    width, heads = model.shape.width, model.shape.heads
    size = width // heads
    for n in range(model.shape.layers):
        qkv = norm(x, f"layers.{n}.attention_norm.weight") @ w[f"layers.{n}.qkv.weight"].T
        mixed = np.zeros_like(x)
        for head in range(heads):
            part = slice(head * size, (head + 1) * size)
            q, k, v = (qkv[:, i * width : (i + 1) * width][:, part] for i in range(3))
            for t in range(len(ids)):
                scores = [rotated(q[t], t) @ rotated(k[s], s) / math.sqrt(size) for s in range(t + 1)]
                shares = np.exp(scores) / np.exp(scores).sum()
                mixed[t, part] = sum(share * v[s] for s, share in enumerate(shares))
        x = x + mixed @ w[f"layers.{n}.project.weight"].T
        inner = np.maximum(norm(x, f"layers.{n}.mlp_norm.weight") @ w[f"layers.{n}.expand.weight"].T, 0) ** 2
        x = x + inner @ w[f"layers.{n}.contract.weight"].T
    z = norm(x, "norm.weight")
    return np.array(z @ w["embedding.weight"].T if model.shape.tied else z @ w["head.weight"].T + w["head.bias"])


@pytest.mark.parametrize("tied", [False, True])
def test_the_transformer_is_its_formulas(tied: bool) -> None:
    """RMSNorm, rotary positions, causal attention, squared ReLU and both heads, against numpy in float64."""
    model, ids = transformer(tied=tied), [3, 1, 4, 1, 5, 9, 2, 6]
    weight, bias = model.output
    with torch.no_grad():
        found = torch.nn.functional.linear(model(torch.tensor([ids]))[0], weight, bias)
    np.testing.assert_allclose(found.numpy(), slow_logits(model, ids), atol=1e-5, rtol=1e-5)


def test_the_transformer_of_house_has_its_size() -> None:
    """Within 0.1 % of CVFP's 2,370,048 parameters; a head that starts at zero, so that the first loss is ln V."""
    network = Network(HOUSE.shape, 0)
    made = Transformer(shape(network), 0)
    assert made.shape == Shape(8192, 128, 2, 4, 256)
    counts = made.parameter_counts()
    assert counts["total"] == sum(p.numel() for p in made.parameters()) == 2_368_256
    assert counts["total"] / network.parameter_counts()["total"] == pytest.approx(1, abs=1e-3)
    text = Tape(torch.arange(100), torch.zeros(1, dtype=torch.int64))
    assert windowed.evaluate(made, text).loss == pytest.approx(math.log(8192))
    assert Transformer(replace(made.shape, tied=True)).parameter_counts()["head"] == 0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"layers": 0}, "layers is 0, expected at least 1"),
        ({"width": 12, "heads": 4}, "a multiple of twice the 4 heads"),
    ],
)
def test_an_impossible_shape_is_one_sentence(fields: dict[str, Any], message: str) -> None:
    """Rotary positions turn pairs of components."""
    with pytest.raises(ShapeError, match=message):
        Shape(10, **fields)


def tape(*sizes: int) -> Tape:
    """A stream of conversations of so many inputs each, the end-of-text token 0 included."""
    ids = np.random.default_rng(0).integers(1, 50, sum(sizes) + 1)
    starts = np.cumsum([0, *sizes])
    ids[starts] = 0
    return Tape(torch.from_numpy(ids), torch.from_numpy(starts[:-1]))


SIZES = (1, 2, 128, 129, 130, 193, 194, 500, 1)


@pytest.mark.parametrize("overlap", [0, 64])
def test_windows_hold_each_target_once(overlap: int) -> None:
    """For lengths around the bounds; at most 128 inputs follow the end-of-text token, and half are context."""
    text = tape(*SIZES)
    made = windowed.windows(text, overlap)
    at, own = made.positions(torch.arange(len(made)))
    assert sorted(at[own].tolist()) == list(range(len(text) - 1))
    conversation = torch.bucketize(at, text.starts, right=True)
    assert (conversation == conversation[:, :1]).all()
    assert (text.ids[at[:, 0]] == 0).all()
    assert int((made.ends - made.begins).max()) == 128
    later = made.counts > made.first
    assert later.any()
    assert (made.counts - made.begins)[later].tolist() == [overlap] * int(later.sum())
    assert len(windowed.windows(tape(129), overlap)) == 1
    assert len(windowed.windows(tape(130), overlap)) == 2


def test_no_token_sees_a_later_one_or_another_conversation() -> None:
    """Another token at any place changes the scores of that target and of later ones of its conversation, no others."""
    model, text = transformer(), tape(*SIZES)
    before = windowed.evaluate(model, text).nats
    starts = [*text.starts.tolist(), len(text) - 1]
    for conversation, place in ((2, 60), (3, 128), (7, 1), (7, 300), (7, 499)):
        start, end = starts[conversation : conversation + 2]
        ids = text.ids.clone()
        ids[start + place] = ids[start + place] % 49 + 1
        changed = (windowed.evaluate(model, Tape(ids, text.starts)).nats != before).nonzero()[:, 0]
        assert int(changed.min()) == start + place - 1
        assert start + place in changed or place == end - start - 1
        assert int(changed.max()) < end


def test_a_batch_of_pieces_is_what_each_alone_gives() -> None:
    """Padding changes nothing, and an epoch holds each target once."""
    model, text = transformer(), tape(*SIZES[:4], 40)
    settings = replace(HOUSE.phase2, batch=100)
    state = phase2.start(dict(model.named_parameters()), settings, 0)
    endless = windowed.batches(model, text, settings, state)
    found = [next(endless) for _ in range(settings.per_epoch(len(text) - 1))]
    spans = pairwise([*text.starts.tolist(), len(text) - 1])
    alone = [(model(text.ids[None, a:b])[0], text.ids[a + 1 : b + 1]) for a, b in spans]
    first, second = (
        sorted((int(target), float(row.detach().sum())) for z, y in part for row, target in zip(z, y, strict=True))
        for part in (found, alone)
    )
    np.testing.assert_allclose(first, second, rtol=1e-4, atol=1e-4)


def run(network: type[SinglePhase], folder: Path, preset: Preset = QUICK, seed: int = 0, **more: Any) -> Any:
    torch.set_num_threads(1)
    return network(preset, data(), seed, folder, identity="x", **more).run()


@BOTH
@pytest.mark.parametrize("stop", [2, 5, 8])
def test_resumed_is_uninterrupted(network: type[SinglePhase], tmp_path: Path, stop: int) -> None:
    """Stopped at any evaluation, with the checkpoint of the one before: the same weights and numbers, bit for bit."""
    whole = run(network, tmp_path / "whole")
    lines = 0

    def tell(_line: dict[str, Any]) -> None:
        nonlocal lines
        lines += 1
        if lines == stop:
            raise StoppedError

    with pytest.raises(StoppedError):
        run(network, tmp_path / "cut", tell=tell, interval=0)
    again = run(network, tmp_path / "cut", interval=0)
    one, other = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert all(torch.equal(one[name], other[name]) for name in one)
    same = ("nats", "bits_per_byte", "accuracy", "steps", "best_evaluation", "validation_loss")
    assert {key: whole[key] for key in same} == {key: again[key] for key in same}


@BOTH
def test_a_seed_decides_everything(network: type[SinglePhase], tmp_path: Path) -> None:
    """Twice the same seed: the same record but for times; another seed: another."""
    a, b, c = (run(network, tmp_path / str(i), seed=seed) for i, seed in enumerate((0, 0, 1)))
    for record in (a, b, c):
        assert record.pop("seconds").keys() == {"phase 2", "test"}
        assert record.pop("tokens_per_s") > 0
    assert a == b
    assert a["nats"] != c["nats"]


@BOTH
def test_bfloat16_keeps_the_loss(network: type[SinglePhase], tmp_path: Path) -> None:
    """Training with bfloat16 products ends within 2 % of the float32 loss, and not at the same bits."""
    half = replace(QUICK, phase2=replace(QUICK.phase2, precision="bfloat16"))
    one, other = run(network, tmp_path / "a"), run(network, tmp_path / "b", half)
    assert other["nats"] == pytest.approx(one["nats"], rel=0.02)
    assert other["nats"] != one["nats"]


@BOTH
def test_it_learns_what_is_there(network: type[SinglePhase], tmp_path: Path) -> None:
    """A language whose tokens follow from the one before is predicted far better than by frequencies."""
    settings = replace(SMALL_PRESET.phase2, epochs=8, steps=300, batch=64, rate=0.01, weight_decay=0.0)
    record, given = run(network, tmp_path, replace(SMALL_PRESET, phase2=settings)), data()
    assert record["nats"] < baselines.unigram(given.train, given.test, SIZE).mean() - 0.5
    assert (record["kind"], record["steps"]) == (network.kind, 300)
    blocks = record["parameters"]["total"] - record["parameters"]["embedding"] - record["parameters"]["head"]
    counts = Network(SMALL_PRESET.shape, 0).parameter_counts()
    assert blocks / (counts["context_block"] + counts["token_block"]) == pytest.approx(1, abs=0.1)


@BOTH
def test_a_network_that_meets_nan_says_so(network: type[SinglePhase], tmp_path: Path) -> None:
    """The network and the step are named."""
    preset = replace(SMALL_PRESET, phase2=replace(SMALL_PRESET.phase2, rate=1e30, clip=1e30, steps=20))
    with pytest.raises(NotFiniteError, match=f"{KINDS[str(network.kind)].label}, step"):
        run(network, tmp_path, preset)


def test_a_network_is_chosen_by_name() -> None:
    """CVFP comes first of all, since the verdict is about the first; an unknown name lists the names."""
    assert parse("all") == NETWORKS == ("cvfp", "transformer", "gru")
    assert parse("gru") == ("gru",)
    with pytest.raises(NetworkError, match="--network is 'lstm', expected cvfp, transformer, gru or all"):
        parse("lstm")


def test_a_network_is_no_baseline_of_its_own() -> None:
    """A random block stands beside CVFP alone, a GRU beside other networks."""
    assert baselines_of(("cvfp",)) == ("random_block", "gru", "kneser_ney", "unigram")
    assert baselines_of(("transformer",)) == ("gru", "kneser_ney", "unigram")
    assert baselines_of(("gru",)) == ("kneser_ney", "unigram")
    assert baselines_of(NETWORKS) == ("random_block", "kneser_ney", "unigram")
