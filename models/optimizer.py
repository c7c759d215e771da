"""What all training loops share: the rate of a step, and Adam's state as plain arrays."""

import numpy as np
import torch
from torch import nn

from two_tower.models.checkpoint import Arrays

WARMUP_SHARE = 0.05
MAX_GRADIENT_NORM = 1.0


def rate_factor(step: int, steps: int) -> float:
    """Return the share of the peak rate at `step` of `steps`: linear warm-up, then linear decay."""
    warmup = max(1, round(steps * WARMUP_SHARE))
    return min((step + 1) / warmup, (steps - step) / max(1, steps - warmup + 1))


def optimizer_arrays(optimizer: torch.optim.Optimizer, module: nn.Module) -> Arrays:
    """Return Adam's state as plain arrays."""
    return {
        f"{name}.{key}": value.detach().cpu().numpy().copy()
        for name, parameter in module.named_parameters()
        for key, value in optimizer.state[parameter].items()
    }


def restore_optimizer(
    optimizer: torch.optim.Optimizer, module: nn.Module, *, arrays: Arrays
) -> None:
    """Set Adam's state to what `optimizer_arrays` returned."""
    for name, parameter in module.named_parameters():
        if f"{name}.step" not in arrays:
            continue  # it took no part in the phase so far
        for key in ("step", "exp_avg", "exp_avg_sq"):
            value = torch.from_numpy(np.array(arrays[f"{name}.{key}"]))
            optimizer.state[parameter][key] = value.to(parameter.device)
