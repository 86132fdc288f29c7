"""The optimiser and the learning rate as a function of the step."""

from __future__ import annotations

import math
from typing import Literal

from torch import nn
from torch.optim import AdamW

Schedule = Literal["linear", "cosine", "constant", "inverse_sqrt", "wsd"]


def adamw(module: nn.Module, *, learning_rate: float, weight_decay: float, betas: tuple[float, float], eps: float) -> AdamW:
    """Return AdamW over the trainable parameters; biases and the weights of norms (all of one dimension) do not decay."""
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    groups = [
        {"params": [parameter for parameter in trainable if parameter.ndim > 1], "weight_decay": weight_decay},
        {"params": [parameter for parameter in trainable if parameter.ndim <= 1], "weight_decay": 0.0},
    ]
    fused = all(parameter.device.type in ("cpu", "cuda") for parameter in trainable)
    return AdamW([group for group in groups if group["params"]], lr=learning_rate, betas=betas, eps=eps, fused=fused)


def learning_rate_factor(
    step: int, *, schedule: Schedule, num_steps: int, warmup_steps: int, decay_ratio: float | None = None
) -> float:
    """Return the part of the peak learning rate that step ``step`` uses.

    Args:
        step: from 0; neither the first nor the last step has a factor of 0.
        schedule: after a linear warmup: ``constant``; ``linear`` or ``cosine`` towards 0 at ``num_steps``; ``inverse_sqrt`` of the
            step (Vaswani et al. 2017); ``wsd``: constant, then linear towards 0 (warmup-stable-decay, Hu et al. 2024).
        num_steps: of the whole training.
        warmup_steps: until the peak is reached.
        decay_ratio: part of ``num_steps`` that ``wsd`` decays over.
    """
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    done = (step - warmup_steps) / max(1, num_steps - warmup_steps)
    if schedule == "constant":
        return 1.0
    if schedule == "linear":
        return 1.0 - done
    if schedule == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * done))
    if schedule == "inverse_sqrt":
        return math.sqrt((warmup_steps + 1) / (step + 1))
    assert decay_ratio is not None, "wsd has a decay_ratio"
    decay_steps = max(1, round(decay_ratio * num_steps))
    return min(1.0, (num_steps - step) / decay_steps)
