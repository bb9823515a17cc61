"""The network is the one of the user's experiments: to the integer, and to the traces of the original code."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch

from tests.trainer.cvfp_traces import VARIANTS, Trace
from trainer.cvfp import phase1, phase2
from trainer.cvfp.model import Network
from trainer.cvfp.phase1 import Pass
from trainer.cvfp.scan import Contexts, Tape
from trainer.cvfp.settings import Phase1, Shape, ShapeError
from trainer.presets import PRESETS

# Parameter counts of the original code for E1 ... E4 (public research code of 2025-11, its run logs), and of small
# shapes computed by hand from the equations: context block, token block, total, trained in phase 2.
PRESET_COUNTS = {
    "e1": (3_545_856, 3_545_856, 84_338_257, 42_195_025),
    "e2": (7_091_712, 7_091_712, 91_429_969, 45_740_881),
    "e3a": (10_630_656, 7_681_536, 56_911_104, 7_683_072),
    "e3b": (14_169_600, 5_905_152, 58_673_664, 5_906_688),
    "e4a": (15_394_304, 8_566_272, 62_559_488, 8_567_808),
    "e4b": (20_730_880, 5_905_152, 65_234_944, 5_906_688),
}
SMALL_COUNTS = {
    Shape(8192, 128, 128, 3, 1, "reduced", tied=True): (201_192, 115_968, 1_365_992),
    Shape(50257, 768, 768, 6, 2, "reduced", tied=True): (27_296_768, 26_240_512, None),
    Shape(8192, 128, 128, 3): (99_456, 99_456, 2_304_512),
    Shape(8192, 128, 128, 3, tied=True): (99_456, 99_456, 1_247_744),
    Shape(8192, 128, 128, 3, 2, tied=True): (148_608, 115_840, 1_313_280),
}


def empty(shape: Shape) -> Network:
    with torch.device("meta"):
        return Network(shape, None)


@pytest.mark.parametrize("name", PRESET_COUNTS)
def test_presets_have_the_parameters_of_the_experiments(name: str) -> None:
    """Counts of each block, of all, and of what phase 2 trains equal the original's."""
    context, token, total, trained = PRESET_COUNTS[name]
    network = empty(PRESETS[name].shape)
    counts = network.parameter_counts()
    assert (counts["context_block"], counts["token_block"], counts["total"]) == (context, token, total)
    chosen = phase2.trained_parameters(network, PRESETS[name].phase2)
    assert sum(p.numel() for p in chosen.values()) == trained


@pytest.mark.parametrize("shape", SMALL_COUNTS, ids=str)
def test_widths_follow_the_equations(shape: Shape) -> None:
    """Small and two-token shapes have the counts that the equations give, rounding down included."""
    context, token, total = SMALL_COUNTS[shape]
    counts = empty(shape).parameter_counts()
    assert (counts["context_block"], counts["token_block"]) == (context, token)
    assert total in {None, counts["total"]}


def test_reduced_widths_fall_in_equal_steps() -> None:
    """D of E4-A and of a width that does not divide; K of two input tokens."""
    assert PRESETS["e4a"].shape.context_widths == [1536, 1408, 1280, 1152, 1024, 896, 768]
    assert Shape(64, 128, 128, 3, 1, "reduced").context_widths == [256, 214, 171, 128]
    assert Shape(64, 768, 768, 6, 2, "reduced").token_widths == [1536, 1408, 1280, 1152, 1024, 896, 768]


def test_layers_of_one_experiment_have_the_original_sizes() -> None:
    """Layer by layer, E4-A: where projections stand, and that only the first context layer takes the token."""
    network = empty(PRESETS["e4a"].shape)
    context = [sum(p.numel() for p in layer.parameters()) for layer in network.context.layers]
    token = [sum(p.numel() for p in layer.parameters()) for layer in network.token.layers]
    assert context == [3_249_664, 3_609_600, 2_953_728, 2_363_392, 1_838_592, 1_379_328]
    assert token == [1_673_472, 1_575_168, 1_476_864, 1_378_560, 1_280_256, 1_181_952]


def test_weights_are_drawn_as_stated() -> None:
    """Standard deviations of weights and biases, norms at 1 and 0, an untied head of zeros; the seed decides all."""
    network = Network(Shape(1000, 64, 96, 4, weight_std=0.1), seed=3)
    linear = [module for module in network.context.modules() if isinstance(module, torch.nn.Linear)]
    weights, biases = torch.cat([each.weight.flatten() for each in linear]), torch.cat([each.bias for each in linear])
    assert abs(float(weights.detach().std()) - 0.1) < 0.002
    assert abs(float(biases.detach().std()) - 0.01) < 0.002
    assert network.head is not None
    assert not network.head.weight.any()
    assert not network.head.bias.any()
    again = Network(Shape(1000, 64, 96, 4, weight_std=0.1), seed=3)
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), again.parameters(), strict=True))


def test_the_dynamics_depend_on_weights_times_the_root_of_the_width() -> None:
    """The gain of a small perturbation of a context, a token later: at width 128 with 0.1 sqrt(768 / 128) that at 768.

    0.471 at width 768 (six layers, measured on the original along its own contexts; these are random ones).
    """

    def gain(width: int, std: float) -> float:
        network = Network(Shape(64, width, width, 6, weight_std=std), seed=1)
        generator = torch.Generator().manual_seed(0)
        u = torch.nn.functional.layer_norm(torch.randn(256, width, generator=generator), (width,))
        with torch.no_grad():
            c = network.context(torch.randn(256, width, generator=generator), u)[-1]
            moved = 1e-2 * torch.randn(256, width, generator=generator)
            change = network.context(c + moved, u)[-1] - network.context(c, u)[-1]
        return float(change.norm() / moved.norm())

    at_768, at_128 = gain(768, 0.1), gain(128, 0.245)
    assert at_768 == pytest.approx(0.471, abs=0.04)
    assert at_128 == pytest.approx(at_768, abs=0.04)
    assert gain(128, 0.1) > at_768 + 0.03


def test_first_pass_numbers_are_those_of_the_logs() -> None:
    """E2's CVFP at pass 2 and effective rank (0.0021 and 73.0 % measured on other text, with random embeddings)."""
    network = Network(replace(PRESETS["e2"].shape, vocabulary=2000), seed=42)
    network.set_embedding(torch.randn(2000, 768, generator=torch.Generator().manual_seed(0)) * 0.14)
    ids = torch.randint(0, 2000, (1500,), generator=torch.Generator().manual_seed(1))
    text = Tape(ids, torch.zeros(1, dtype=torch.int64), wraps=True)
    settings = replace(PRESETS["e2"].phase1, passes=2)
    state, _ = phase1.begin(network, text, settings, 0)
    rank = phase1.effective_rank(state.contexts) / 768
    passes: list[Pass] = []
    phase1.run(network, text, settings, state, lambda done, _: passes.append(done))
    assert passes[0].cvfp == pytest.approx(0.0022, abs=0.0003)
    assert passes[0].converged > 0.999  # all but the first token, which wraps around
    assert 0.7 < rank < 0.9  # random ids repeat less than text does


@pytest.mark.parametrize("variant", VARIANTS)
def test_traces_of_the_original_are_reproduced(shared: Path, variant: str, tmp_path: Path) -> None:
    """Contexts to 1e-4, losses to 1e-5, accuracies and stopping exactly, for every variant that was run.

    One validation loss of one variant hangs on the last bits of its weights, and is within 1.9e-5.
    """
    torch.set_num_threads(1)
    trace = Trace.read(shared, variant)
    network, train, val = trace.network(), trace.text("train"), trace.text("val")
    passes: list[Pass] = []
    state, _ = phase1.begin(network, train, trace.phase1(), 0)
    phase1.run(network, train, trace.phase1(), state, lambda done, _: passes.append(done))
    golden = trace.array("phase1", "losses")[1:]
    found = np.array([[p.loss, p.cvfp, p.diversity] for p in passes])
    assert found.shape[0] == len(golden)
    np.testing.assert_allclose(found, golden[:, :3], atol=1e-5)
    np.testing.assert_allclose([100 * p.converged for p in passes], golden[:, 3], atol=0.051)
    np.testing.assert_allclose(state.contexts, trace.array("phase1", "train_contexts"), atol=1e-4)
    history, _, contexts = phase1.forgetting(network, val, trace.phase1().trials)
    np.testing.assert_allclose(history, trace.result["phase1"]["val_cvfp_history"], atol=1e-5)
    np.testing.assert_allclose(contexts, trace.array("phase1", "val_contexts"), atol=1e-4)
    assert phase1.effective_rank(contexts) == pytest.approx(trace.result["phase1"]["val_er"], abs=1e-3)
    _second_phase(trace, network, tmp_path)


def _second_phase(trace: Trace, network: Network, folder: Path) -> None:
    train, val, settings = trace.text("train"), trace.text("val"), trace.phase2()
    contexts = None if settings.live else (Contexts.of(network, train, folder), Contexts.of(network, val, folder))
    state, found = phase2.begin(network, settings, 0), list[phase2.Evaluation]()
    phase2.run(network, train, val, settings, state, contexts, lambda done, _: found.append(done))
    np.testing.assert_allclose([e.train_loss for e in found], trace.array("phase2", "train_loss"), atol=1e-5)
    # moving the weights of v2_nocache by 1e-8, less than float32 resolves, moves its third validation loss by 1.9e-5
    edge = 2.5e-5 if trace.folder.name == "v2_nocache" else 1e-5
    np.testing.assert_allclose([e.validation_loss for e in found], trace.array("phase2", "val_loss"), atol=edge)
    np.testing.assert_allclose([e.validation_accuracy for e in found], trace.array("phase2", "val_acc"), atol=1e-9)
    assert state.best_evaluation == int(trace.array("phase2", "best_epoch"))


def test_a_shape_that_cannot_be_is_refused() -> None:
    """The message names the field."""
    with pytest.raises(ShapeError, match="layers is 0"):
        Shape(64, layers=0)
    with pytest.raises(ShapeError, match="widths is 'odd'"):
        Shape(64, widths="odd")  # type: ignore[arg-type]


def test_diversity_normalised_does_not_depend_on_the_rows() -> None:
    """The same rows, twice as often: "rms" stays, the original's falls."""
    rows = torch.randn(500, 32, generator=torch.Generator().manual_seed(0))

    def apart(contexts: torch.Tensor, kind: Literal["rows", "rms"]) -> float:
        return float(phase1.loss_and_slope(contexts, contexts, Phase1(diversity=kind))[0][2])

    twice = torch.cat((rows, rows))
    assert apart(twice, "rms") == pytest.approx(apart(rows, "rms"), rel=1e-5)
    assert apart(twice, "rows") == pytest.approx(apart(rows, "rows") / 2**0.5, rel=1e-5)
    assert apart(rows, "rms") == pytest.approx(-float(rows.var(dim=0, correction=0).mean().sqrt()), rel=1e-5)


@pytest.mark.parametrize("kind", ["rows", "rms"])
def test_the_slope_is_the_gradient_of_the_loss(kind: Literal["rows", "rms"]) -> None:
    """The closed form is what differentiation of the equations gives."""
    generator = torch.Generator().manual_seed(0)
    now = torch.randn(50, 8, generator=generator, dtype=torch.float64, requires_grad=True)
    before = torch.randn(50, 8, generator=generator, dtype=torch.float64)
    divisor = 50 if kind == "rows" else (50 * 8) ** 0.5
    loss = 0.7 * (now - before).square().mean() - 0.3 * torch.linalg.matrix_norm(now - now.mean(dim=0)) / divisor
    (expected,) = torch.autograd.grad(loss, now)
    parts, slope = phase1.loss_and_slope(now.detach(), before, Phase1(weight=0.3, diversity=kind))
    assert float(parts[0]) == pytest.approx(float(loss.detach()))
    assert torch.allclose(slope, expected, atol=1e-12)


def test_collapse_is_seen() -> None:
    """Equal contexts have variance 0 and effective rank 1; independent ones nearly 1 and nearly the width."""
    same = torch.randn(32).expand(1000, 32)
    apart = torch.randn(5000, 32, generator=torch.Generator().manual_seed(0))
    assert phase1.variance(same) < 1e-12
    assert phase1.effective_rank(same) == pytest.approx(1.0, abs=1e-3)
    assert phase1.variance(apart) == pytest.approx(1.0, abs=0.05)
    assert phase1.effective_rank(apart) > 31


def test_chunks_count_by_their_rows_where_that_is_asked() -> None:
    """One loss over all rows has the gradient of weighted chunks' stillness; the original's equal weights differ."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 50, (130,), generator=generator)
    text = Tape(ids, torch.zeros(1, dtype=torch.int64), wraps=True)
    grads = {}
    for chunk, weighted in ((0, True), (100, True), (100, False)):
        network = Network(Shape(50, 16, 16, 2), seed=0)
        settings = Phase1(chunk=chunk, weighted=weighted, weight=0.0, noise=0.0, clip=1e9)
        state, _ = phase1.begin(network, text, settings, 0)
        state.contexts += 0.1 * torch.randn(130, 16, generator=torch.Generator().manual_seed(1))
        phase1.one_pass(network, text, settings, state)
        grads[chunk, weighted] = torch.cat(
            [p.grad.flatten() for p in network.context.parameters() if p.grad is not None]
        )
    assert torch.allclose(grads[0, True], grads[100, True], atol=1e-6)
    assert not torch.allclose(grads[0, True], grads[100, False], atol=1e-4)
