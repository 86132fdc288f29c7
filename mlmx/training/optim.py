"""The optimiser."""

from __future__ import annotations

from torch import nn
from torch.optim import AdamW


def adamw(module: nn.Module, *, learning_rate: float, weight_decay: float, betas: tuple[float, float], eps: float) -> AdamW:
    """Return AdamW over the trainable parameters; biases and the weights of norms (all of one dimension) do not decay."""
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    groups = [
        {"params": [parameter for parameter in trainable if parameter.ndim > 1], "weight_decay": weight_decay},
        {"params": [parameter for parameter in trainable if parameter.ndim <= 1], "weight_decay": 0.0},
    ]
    fused = all(parameter.device.type in ("cpu", "cuda") for parameter in trainable)
    return AdamW([group for group in groups if group["params"]], lr=learning_rate, betas=betas, eps=eps, fused=fused)
