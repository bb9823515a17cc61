"""The scan of Mamba-1: the bits of transformers, by a backward pass in linear time."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.trainer.test_transfer import IDS, make
from trainer.distill import scan

THEIRS = import_module(scan.MODULE).mamba_selective_scan


def arguments(length: int) -> tuple[Any, dict[str, Any]]:
    """x, dt, A, B, C, and D, z, delta_bias of 2 texts, width 6, states of 4."""
    generator = torch.Generator().manual_seed(length)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).requires_grad_()

    a = (-4 * torch.rand(6, 4, generator=generator)).requires_grad_()
    named = {"D": draw(6), "z": draw(2, 6, length), "delta_bias": draw(6)}
    return [draw(2, 6, length), draw(2, 6, length), a, draw(2, 4, length), draw(2, 4, length)], named


@pytest.mark.parametrize("length", [1, 2, 128])
def test_outputs_and_gradients_are_those_of_transformers(length: int) -> None:
    """Outputs and the last state bit for bit, gradients to 1e-6 of their norm."""
    given, named = arguments(length)
    leaves = [*given, *named.values()]
    named |= {"delta_softplus": True, "return_last_state": True}
    found = [f(*given, **named) for f in (scan.selective_scan, THEIRS)]
    for ours, theirs in zip(*found, strict=True):
        assert torch.equal(ours, theirs)
    gradients = [torch.autograd.grad((y * torch.linspace(-1, 1, length)).sum(), leaves) for y, _ in found]
    for ours, theirs in zip(*gradients, strict=True):
        assert float((ours - theirs).norm()) <= 1e-6 * float(theirs.norm())


def test_the_recurrence_has_golden_values() -> None:
    """A = -1, dt = .1 .2 .3, B = 1 2 3, C = 1 -1 .5, x = 1 2 -1, by hand in float64; without D, gate and softplus."""
    x, dt = torch.tensor([[[1.0, 2, -1]]]), torch.tensor([[[0.1, 0.2, 0.3]]])
    b, c = torch.tensor([[[1.0, 2, 3]]]), torch.tensor([[[1.0, -1, 0.5]]])
    y = scan.selective_scan(x, dt, torch.tensor([[-1.0]]), b, c)
    assert isinstance(y, Tensor)
    assert y.flatten().tolist() == pytest.approx([0.1, -0.8818730753, -0.1233461787], rel=1e-6)


def selections(y: Tensor) -> int:
    """How many times the graph of a result selects from a tensor, each with a gradient of that tensor's size."""
    seen, todo = set[Any](), [y.grad_fn]
    while todo:
        node = todo.pop()
        if node is not None and node not in seen:
            seen.add(node)
            todo += [following for following, _ in node.next_functions]
    return sum(node.name().startswith("Select") for node in seen)


def test_transformers_still_needs_the_replacement() -> None:
    """Its backward pass is quadratic: it selects from whole tensors at each position. If this fails, remove ours."""
    given, named = arguments(40)
    assert selections(THEIRS(*given, **named)) >= 2 * 40
    y = scan.selective_scan(*given, **named)
    assert isinstance(y, Tensor)
    assert selections(y) <= 1


def test_a_model_scans_in_linear_time_while_it_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same logits to the bit, gradients to 1e-6; afterwards, and after an error, the other scan is back."""
    model = make("mamba").train()
    results = {}
    for name in ("theirs", "ours"):
        with scan.linear_time() if name == "ours" else torch.enable_grad():
            logits = model(input_ids=IDS, use_cache=False).logits
        gradients = torch.autograd.grad(logits.square().sum(), list(model.parameters()))
        results[name] = (logits, *gradients, torch.tensor(selections(logits)))
    *same, count = zip(results["theirs"], results["ours"], strict=True)
    assert torch.equal(*same[0])
    assert all((a - b).norm() <= 1e-6 * a.norm() for a, b in same)
    assert count[0] > count[1]
    module = import_module(scan.MODULE)
    assert module.mamba_selective_scan is THEIRS
    with pytest.raises(ZeroDivisionError), scan.linear_time():
        raise ZeroDivisionError
    assert module.mamba_selective_scan is THEIRS
    monkeypatch.setattr(module, scan.FUNCTION, lambda x: x)
    with pytest.raises(scan.ScanError, match=r"has no mamba_selective_scan with the parameters"), scan.linear_time():
        pass
