"""The selective scan of Mamba-1 with a backward pass in linear time, in the place of the one of transformers.

The scan of transformers indexes whole tensors at each of T positions, so its backward pass makes T gradients of the
size of these tensors: quadratic in T. Here the tensors are unbound once. The operations on numbers and their order are
the same, so the outputs have the same bits.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import silu, softplus

from trainer import TrainerError

MODULE = "transformers.models.mamba.modeling_mamba"
FUNCTION = "mamba_selective_scan"
SINCE = "5.23"
"""A version of transformers that has this function with these parameters."""


class ScanError(TrainerError):
    """The scan of the installed transformers is not the one that is replaced here."""


def selective_scan(  # noqa: PLR0917  the parameters of transformers
    hidden_states: Tensor,
    dt: Tensor,
    A: Tensor,  # noqa: N803
    B: Tensor,  # noqa: N803
    C: Tensor,  # noqa: N803
    D: Tensor | None = None,  # noqa: N803
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
    use_mambapy: bool = False,  # noqa: ARG001  other ways to the same result
    use_associative_scan: bool = False,  # noqa: ARG001
    **kwargs: Any,  # noqa: ANN401, ARG001
) -> Tensor | tuple[Tensor, Tensor]:
    """Outputs y_t = C_t h_t + D x_t of states h_t = exp(A dt_t) h_{t-1} + dt_t B_t x_t, gated by silu(z).

    Args:
        hidden_states: x [batch, width, T].
        dt: step sizes before bias and softplus [batch, width, T].
        A: negative [width, N].
        B: [batch, N, T].
        C: [batch, N, T].
        D: skip connection [width].
        z: gate [batch, width, T].
        delta_bias: [width].
        delta_softplus: whether step sizes are softplus of dt plus its bias.
        return_last_state: whether the last state [batch, width, N] is returned too.
        use_mambapy: not used.
        use_associative_scan: not used.
        kwargs: not used.
    """
    x, dtype = hidden_states, hidden_states.dtype
    if delta_bias is not None:
        dt = dt + delta_bias.to(dt.dtype)[..., None]
    if delta_softplus:
        dt = softplus(dt)
    decay = torch.exp(A[None, :, None, :] * dt[:, :, :, None])
    drive = dt[:, :, :, None] * B.transpose(1, 2)[:, None].float() * x[:, :, :, None].float()
    state = torch.zeros(x.shape[0], x.shape[1], A.shape[-1], dtype=dtype, device=x.device)
    states = []
    for a, b in zip(decay.unbind(2), drive.unbind(2), strict=True):
        state = a * state + b
        states.append(state)
    y = (torch.stack(states, 1).to(dtype) @ C.transpose(1, 2)[..., None])[..., 0].transpose(1, 2)
    if D is not None:
        y = y + x * D[None, :, None]
    if z is not None:
        y = y * silu(z)
    return (y, state) if return_last_state else y


@contextlib.contextmanager
def linear_time() -> Iterator[None]:
    """While it is open, every `MambaForCausalLM` scans in linear time; the kernels of mamba_ssm are left in place.

    Raises:
        ScanError: the installed transformers has another scan.
    """
    if find_spec("mamba_ssm") is not None:
        yield
        return
    module, library = import_module(MODULE), import_module("transformers")
    theirs = getattr(module, FUNCTION, None)
    if theirs is None or list(inspect.signature(theirs).parameters) != list(
        inspect.signature(selective_scan).parameters
    ):
        raise ScanError(
            f"transformers {library.__version__} has no {FUNCTION} with the parameters of {SINCE}: install "
            f"transformers {SINCE}, or take another student than mamba"
        )
    setattr(module, FUNCTION, selective_scan)
    try:
        yield
    finally:
        setattr(module, FUNCTION, theirs)
