"""A training run is right, resumes to the bit, and says clearly what went wrong."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from trainer.cvfp import phase2
from trainer.cvfp.head import cross_entropy, score
from trainer.cvfp.model import Network
from trainer.cvfp.phase1 import NotFiniteError
from trainer.cvfp.scan import Contexts, Tape
from trainer.cvfp.settings import Phase2, Shape
from trainer.experiment import checkpoint
from trainer.experiment.checkpoint import Checkpoint, CheckpointError
from trainer.experiment.training import Data, Training, tape
from trainer.prepare.streams import Stream
from trainer.prepare.template import TEXT
from trainer.presets import PRESETS, Preset, Text

SIZE = 60
SMALL_PRESET = replace(
    PRESETS["house"],
    text=Text(),
    shape=Shape(SIZE, 16, 24, 2, 2),
    phase1=replace(PRESETS["house"].phase1, passes=5, chunk=200, share=1.1),
    phase2=replace(PRESETS["house"].phase2, epochs=4, batch=64, dropout=0.1, decay_tokens=0),
)


def stream(conversations: int, seed: int = 0, length: int = 40) -> Stream:
    """Conversations of a language with structure: a token mostly follows from the one before it."""
    generator = np.random.default_rng(seed)
    ids, starts = list[int](), list[int]()
    for _ in range(conversations):
        starts.append(len(ids))
        ids += [0, int(generator.integers(1, SIZE))]
        for _ in range(length):
            wild = generator.random() < 0.2
            ids.append(int(generator.integers(1, SIZE)) if wild else (7 * ids[-1] + 3) % (SIZE - 1) + 1)
    ids.append(0)
    widths = np.ones(SIZE, np.int32)
    widths[0] = 0
    made = np.array(ids, np.int32)
    sizes = np.diff(np.array([*starts, len(ids) - 1])) - 1
    said = np.full(len(made), TEXT, np.uint8)
    return Stream(made, np.array(starts), sizes.astype(np.int64), widths, said, 0, separated=True)


def data() -> Data:
    table = np.random.default_rng(0).normal(0, 0.14, (SIZE, 16)).astype(np.float32)
    return Data(stream(20), stream(5, 1), stream(6, 2), table)


def training(folder: Path, preset: Preset = SMALL_PRESET, **more: Any) -> Training:
    torch.set_num_threads(1)
    return Training(preset, data(), 0, folder, identity="x", **more)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return checkpoint.load(folder / "weights.safetensors").tensors


class StoppedError(Exception):
    """As if the process had been killed."""


class Whole(NamedTuple):
    """A training run that nothing stopped."""

    preset: Preset
    folder: Path
    record: dict[str, Any]


RESUMED = {
    "small": SMALL_PRESET,
    "patient": replace(SMALL_PRESET, phase2=replace(SMALL_PRESET.phase2, patience=2, shuffle=False)),
}
"""Presets that differ in phase 2 alone."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Whole]:
    """Such a run of a preset, made once."""

    @cache
    def of(name: str) -> Whole:
        folder = tmp_path_factory.mktemp("whole")
        return Whole(RESUMED[name], folder, training(folder, RESUMED[name]).run())

    return of


@pytest.mark.parametrize(
    ("name", "stop"), [("small", 2), ("small", 5), ("small", 9), ("small", 10), ("patient", 9), ("patient", 10)]
)
def test_resumed_is_uninterrupted(tmp_path: Path, name: str, stop: int, whole: Callable[[str], Whole]) -> None:
    """Stopped after any line of the metrics, in either phase: the same weights and numbers, bit for bit."""
    preset, folder, record = whole(name)
    lines = 0

    def tell(_line: dict[str, Any]) -> None:
        nonlocal lines
        lines += 1
        if lines == stop:
            raise StoppedError

    with pytest.raises(StoppedError):
        training(tmp_path / "cut", preset, tell=tell, interval=0).run()
    again = training(tmp_path / "cut", preset, interval=0).run()
    one, other = weights(folder), weights(tmp_path / "cut")
    assert all(torch.equal(one[name], other[name]) for name in one)
    same = ("nats", "bits_per_byte", "ppl", "accuracy", "passes", "steps", "best_evaluation", "validation_loss")
    assert {key: record[key] for key in same} == {key: again[key] for key in same}
    assert not (tmp_path / "cut" / "checkpoint.safetensors").exists()


def test_a_seed_decides_everything(tmp_path: Path) -> None:
    """Twice the same seed: the same weights; another seed: others."""
    training(tmp_path / "a").run()
    training(tmp_path / "b").run()
    torch.set_num_threads(1)
    Training(SMALL_PRESET, data(), 1, tmp_path / "c", identity="x").run()
    a, b, c = (weights(tmp_path / name) for name in "abc")
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not torch.equal(a["token.layers.0.linear.weight"], c["token.layers.0.linear.weight"])


def test_weight_decay_goes_with_the_root_of_the_tokens() -> None:
    """Of the house preset 4 at 40,000; no stream is so short that a step would be undone; 0 leaves it as it is."""
    house = PRESETS["house"].phase2
    found = {tokens: house.sized(tokens).weight_decay for tokens in (10_000, 40_000, 160_000, 2)}
    assert found == {10_000: 8.0, 40_000: 4.0, 160_000: 2.0, 2: 32.0}
    assert house.rate * found[2] < 0.1
    assert Phase2(weight_decay=3.0).sized(5).weight_decay == 3.0


def test_it_learns_what_is_there(tmp_path: Path) -> None:
    """A language whose tokens follow from the one before is predicted far better than by frequencies."""
    preset = replace(
        SMALL_PRESET, phase2=replace(SMALL_PRESET.phase2, epochs=10, batch=32, weight_decay=0.0, rate=0.01)
    )
    given = replace(data(), train=stream(200))
    torch.set_num_threads(1)
    record = Training(preset, given, 0, tmp_path, identity="x").run()
    assert record["nats"] < math.log(SIZE) - 1.0
    assert record["accuracy"] > 0.4
    assert record["best_evaluation"] <= record["evaluations"] == 8


def test_one_batch_overfits() -> None:
    """Two hundred tokens are learnt by heart: the loss of the training stream goes to nearly nothing."""
    network = Network(Shape(SIZE, 16, 32, 2), seed=0)
    network.set_embedding(torch.randn(SIZE, 16, generator=torch.Generator().manual_seed(0)))
    text = Tape(torch.from_numpy(stream(5).ids.astype(np.int64)), torch.zeros(1, dtype=torch.int64), wraps=True)
    settings = Phase2(epochs=400, patience=0, batch=256, rate=0.01)
    state, contexts = phase2.begin(network, settings, 0), Contexts.of(network, text, Path())
    phase2.run(network, text, text, settings, state, (contexts, contexts), lambda *_: None)
    assert state.best < 0.05


def test_targets_are_shifted_by_one() -> None:
    """A head that names the current token is wrong everywhere, one that names the next is right everywhere."""
    ids = torch.arange(1, 31)
    network = Network(Shape(40, 40, 8, 1, tied=True), seed=0)
    network.set_embedding(torch.eye(40))
    text = Tape(ids, torch.zeros(1, dtype=torch.int64), wraps=True)

    def scored(shift: int) -> float:
        network.token.forward = lambda states, u: torch.roll(u, shift, dims=1)  # type: ignore[method-assign]  # noqa: ARG005
        return phase2.evaluate(network, text).accuracy

    assert scored(0) == 0.0
    assert scored(1) == 1.0
    assert phase2.evaluate(network, text).nats.shape == (29,)


@pytest.mark.parametrize("trained", [False, True])
def test_the_fused_head_is_cross_entropy(trained: bool) -> None:
    """Loss and all gradients are those of the plain form, over several tiles both ways, the last ones short."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(700, 16, generator=generator)
    weight, bias = torch.randn(2500, 16, generator=generator), torch.randn(2500, generator=generator)
    targets = torch.randint(0, 2500, (700,), generator=generator)
    found, expected = list[torch.Tensor](), list[torch.Tensor]()
    for grads in (found, expected):
        leaves = [t.clone().requires_grad_(i == 0 or trained) for i, t in enumerate((z, weight, bias))]
        if grads is found:
            value = cross_entropy(leaves[0], leaves[1], leaves[2], targets)
        else:
            logits = torch.addmm(leaves[2], leaves[0], leaves[1].T)
            value = torch.nn.functional.cross_entropy(logits, targets)
        (2 * value).backward()  # type: ignore[no-untyped-call]
        grads += [value.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]
    assert len(found) == len(expected) == (4 if trained else 2)
    assert all(torch.allclose(a, b, atol=1e-6, rtol=1e-4) for a, b in zip(found, expected, strict=True))


def test_scores_are_of_each_target() -> None:
    """Nats and hits row by row, with logits far apart."""
    z = 30 * torch.randn(300, 8, generator=torch.Generator().manual_seed(0))
    weight, targets = torch.randn(500, 8, generator=torch.Generator().manual_seed(1)), torch.arange(300)
    nats, right = score(z, weight, None, targets)
    plain = torch.nn.functional.cross_entropy(z @ weight.T, targets, reduction="none")
    assert torch.allclose(nats, plain, rtol=1e-4, atol=1e-4)
    assert torch.equal(right, (z @ weight.T).argmax(dim=1) == targets)


def test_of_equal_logits_the_first_is_the_likeliest() -> None:
    """Within a tile and across tiles; and nats of a chance that is 0 in float32 are exact."""
    z = torch.eye(2)
    weight = torch.zeros(2500, 2)
    weight[[7, 9, 2400], 0] = 5.0
    weight[0, 1] = 300.0
    targets = torch.tensor([7, 9, 2400, 0, 1])
    nats, right = score(z[[0, 0, 0, 1, 1]], weight, None, targets)
    assert right.tolist() == [True, False, False, True, False]
    assert nats[3:].tolist() == [0.0, 300.0]


def test_the_best_weights_are_what_is_left(tmp_path: Path) -> None:
    """After the phase, the validation loss of the network is the best that was seen, not the last."""
    preset = replace(
        SMALL_PRESET, phase2=replace(SMALL_PRESET.phase2, epochs=40, rate=0.02, decay=False, weight_decay=0.0)
    )
    run = training(tmp_path, preset)
    record = run.run()
    assert record["best_evaluation"] < record["evaluations"]
    assert phase2.evaluate(run.network, run.tapes[1]).loss == pytest.approx(record["validation_loss"], abs=1e-6)


def test_the_record_adds_up(tmp_path: Path) -> None:
    """PPL, nats and bits per byte are of the same sum; scores.npz holds it conversation by conversation."""
    record = training(tmp_path).run()
    scores = np.load(tmp_path / "scores.npz")
    assert scores["nats"].sum() / scores["targets"].sum() == pytest.approx(record["nats"], rel=1e-6)
    assert scores["targets"].sum() == record["test_tokens"] == stream(6, 2).tokens - 1
    assert record["ppl"] == pytest.approx(math.exp(record["nats"]))
    scored = int(stream(6, 2).bytes.sum())
    assert record["bits_per_byte"] == pytest.approx(record["nats"] * record["test_tokens"] / scored / math.log(2))
    assert json.loads((tmp_path / "record.json").read_text()) == record
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["pass"] for line in lines if "cvfp" in line] == [2, 3, 4, 5]
    assert sum("validation_loss" in line for line in lines) == record["evaluations"]


def test_nan_stops_with_step_and_checkpoint(tmp_path: Path) -> None:
    """A rate that explodes ends in a sentence with the place and the last good checkpoint, not in numbers."""
    given = data()
    given.embeddings[5] = np.nan
    torch.set_num_threads(1)
    with pytest.raises(NotFiniteError, match=r"a: phase 1, pass 2: the loss is nan; no checkpoint had been"):
        Training(SMALL_PRESET, given, 0, tmp_path / "a", identity="x").run()
    preset = replace(SMALL_PRESET, phase2=replace(SMALL_PRESET.phase2, rate=1e30, clip=1e30))
    with pytest.raises(
        NotFiniteError,
        match=r"phase 2, step 2: the loss is not a finite number; the last good checkpoint is .*checkpoint.safetensors",
    ):
        training(tmp_path / "b", preset, interval=0).run()
    lines = (tmp_path / "b/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["pass"] for line in lines if "cvfp" in line] == [2, 3, 4, 5]  # there though it failed


def test_nan_after_the_last_pass_or_on_the_test_set_is_seen(tmp_path: Path) -> None:
    """Weights that overflow in phase 1's last step, and a test set that no finite loss can be had of."""
    exploding = replace(SMALL_PRESET, phase1=replace(SMALL_PRESET.phase1, rate=1e30, passes=2, least=2))
    with pytest.raises(NotFiniteError, match="phase 1"):
        training(tmp_path / "a", exploding).run()
    given = data()
    only = replace(given.test, ids=np.where(given.test.ids == 5, SIZE, given.test.ids).astype(np.int32))
    wide = np.vstack([given.embeddings, np.full((1, 16), 1e30, np.float32) * np.arange(1, 17, dtype=np.float32)])
    widths = np.append(given.test.widths, 1).astype(np.int32)
    one, two, three = (replace(each, widths=widths) for each in (given.train, given.validation, only))
    torch.set_num_threads(1)
    with pytest.raises(NotFiniteError, match="the loss on the test set is not a finite number"):
        Training(SMALL_PRESET, Data(one, two, three, wide), 0, tmp_path / "b", identity="x").run()
    assert not (tmp_path / "b/record.json").exists()


def test_collapsed_contexts_are_said(tmp_path: Path) -> None:
    """A block whose context is the same for every token, or one of two: a line of the metrics, and the record."""
    for name, matter in (("one", 0.0), ("two", 1.0)):
        run = training(tmp_path / name)
        point = torch.randn(2, 24, generator=torch.Generator().manual_seed(0))
        ids = run.tapes[0].ids
        run._check(point[(ids % 2 * matter).long()])  # noqa: SLF001  what phase 1 would have left
        assert run.lines[-1]["collapsed"], name
    whole = training(tmp_path / "whole")
    assert whole.run()["collapsed"] is False


def test_metrics_are_there_while_it_trains(tmp_path: Path) -> None:
    """Each line is in the file when it is reported."""
    seen = list[int]()

    def tell(_line: dict[str, Any]) -> None:
        seen.append(len((tmp_path / "metrics.jsonl").read_text().splitlines()))

    training(tmp_path, tell=tell).run()
    assert seen == list(range(1, len(seen) + 1))
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == len(seen)


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    """One sentence, with the file and what to do; nothing in it is run."""
    (tmp_path / "checkpoint.safetensors").write_bytes(b"\x80\x04cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(CheckpointError, match=r"checkpoint.safetensors cannot be read .*: remove it"):
        training(tmp_path).run()


def test_a_checkpoint_with_other_bytes_is_named(tmp_path: Path) -> None:
    """A flipped bit in a weight would be trained on without a word."""
    path = tmp_path / "checkpoint.safetensors"
    checkpoint.save(path, Checkpoint({"a": torch.ones(64)}, {"identity": "x"}))
    whole = bytearray(path.read_bytes())
    whole[-100] ^= 1
    path.write_bytes(whole)
    with pytest.raises(CheckpointError, match=r"checkpoint.safetensors is damaged \(bytes have changed\): remove it"):
        training(tmp_path).run()


def test_another_trainings_checkpoint_is_not_taken_up(tmp_path: Path) -> None:
    """Its identity differs: the training begins anew and gives its own numbers."""
    alone = training(tmp_path / "alone").run()
    checkpoint.save(tmp_path / "both.safetensors", Checkpoint({"a": torch.zeros(1)}, {"identity": "other"}))
    (tmp_path / "both").mkdir()
    (tmp_path / "both.safetensors").rename(tmp_path / "both" / "checkpoint.safetensors")
    assert training(tmp_path / "both").run()["nats"] == alone["nats"]


def test_without_phase_1_the_block_stays_as_drawn(tmp_path: Path) -> None:
    """The random baseline: the context block's weights are those of the seed."""
    preset = replace(SMALL_PRESET, phase1=replace(SMALL_PRESET.phase1, passes=0))
    record = training(tmp_path, preset).run()
    drawn = Network(SMALL_PRESET.sized(SIZE).shape, seed=0)
    found = weights(tmp_path)
    assert record["kind"] == "random_block"
    for name, tensor in drawn.context.state_dict().items():
        assert torch.equal(tensor, found[f"context.{name}"])
    assert not torch.equal(drawn.token.state_dict()["layers.0.linear.weight"], found["token.layers.0.linear.weight"])


def test_an_embedding_of_its_own_is_trained_alone(tmp_path: Path) -> None:
    """The token block's copy moves; the one that contexts are made of stays."""
    preset = replace(
        SMALL_PRESET,
        shape=replace(SMALL_PRESET.shape, own_embedding=True, tied=True),
        phase2=replace(SMALL_PRESET.phase2, train_embedding=True),
    )
    training(tmp_path, preset).run()
    found = weights(tmp_path)
    assert np.array_equal(found["embedding.weight"].numpy(), data().embeddings)
    assert not np.array_equal(found["own_embedding.weight"].numpy(), data().embeddings)


def test_reset_follows_conversations() -> None:
    """With resets a tape starts at each conversation, without only at the beginning."""
    made = stream(4)
    assert tape(made, "cpu", reset=True).starts.tolist() == made.starts.tolist()
    assert tape(made, "cpu", reset=False).starts.tolist() == [0]


def test_bfloat16_keeps_the_loss(tmp_path: Path) -> None:
    """Training with bfloat16 products ends within 2 % of the float32 loss, and not at the same bits."""
    half = replace(SMALL_PRESET, phase2=replace(SMALL_PRESET.phase2, precision="bfloat16"))
    one, other = training(tmp_path / "a").run(), training(tmp_path / "b", half).run()
    assert other["nats"] == pytest.approx(one["nats"], rel=0.02)
    assert other["nats"] != one["nats"]
