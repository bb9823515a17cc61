"""Adam and AdamW of torch without its compiler, which they would import: two seconds of processor time per process.

Their methods are those that torch wraps for the compiler; the numbers are the same to the bit.
"""

from inspect import unwrap
from typing import Any

import torch
from torch.optim import Optimizer

PLAIN: dict[str, Any] = {
    "step": torch.no_grad()(unwrap(torch.optim.Adam.step)),  # that of AdamW too
    **{
        name: unwrap(vars(Optimizer)[name])
        for name in ("add_param_group", "zero_grad", "state_dict", "load_state_dict")
    },
}
"""Methods of an optimiser without what torch wraps them in."""
Adam: type[torch.optim.Adam] = type("Adam", (torch.optim.Adam,), PLAIN)
AdamW: type[torch.optim.AdamW] = type("AdamW", (torch.optim.AdamW,), PLAIN)
