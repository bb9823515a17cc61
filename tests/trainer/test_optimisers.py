"""Adam and AdamW without torch's compiler train as torch's own do."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch

from tests.conftest import ROOT
from trainer import optimisers


def weights(kind: Any, **options: Any) -> torch.Tensor:
    """The weights of a small network after twenty steps, the second half of them by an optimiser that resumed."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.Tanh(), torch.nn.Linear(7, 2))
    inputs, made = torch.randn(20, 5), kind(network.parameters(), lr=0.01, **options)
    for step in range(20):
        if step == 10:
            state = made.state_dict()
            made = kind(network.parameters(), lr=0.01, **options)
            made.load_state_dict(state)
        made.zero_grad()
        network(inputs).square().mean().backward()
        made.step()
    return torch.cat([parameter.detach().flatten() for parameter in network.parameters()])


@pytest.mark.parametrize(
    ("kind", "options"),
    [("Adam", {}), ("AdamW", {"weight_decay": 0.1}), ("AdamW", {"weight_decay": 0.1, "fused": True})],
)
def test_the_weights_are_those_of_torch(kind: str, options: dict[str, Any]) -> None:
    """To the bit, also after a resumption."""
    assert torch.equal(weights(getattr(optimisers, kind), **options), weights(getattr(torch.optim, kind), **options))


def test_training_never_loads_the_compiler() -> None:
    """It would take two seconds in each process that trains."""
    code = (
        "import sys; from tests.trainer.test_optimisers import *; import trainer.experiment.single_phase\n"
        "weights(optimisers.Adam); weights(optimisers.AdamW, fused=True); print('torch._dynamo' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
