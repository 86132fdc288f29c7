"""The optimiser: which one, and which parameters decay and learn how fast."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

Algorithm = Literal["adamw", "stable_adamw"]


def optimizer_for(
    module: nn.Module,
    *,
    algorithm: Algorithm,
    learning_rate: float,
    weight_decay: float,
    betas: tuple[float, float],
    eps: float,
    scales: Mapping[nn.Parameter, float] | None = None,
) -> Optimizer:
    """Return an optimiser over the trainable parameters.

    Biases and the weights of norms (all of one dimension) do not decay.

    Args:
        module: whose parameters are trained.
        algorithm: which optimiser.
        learning_rate: until ``set_learning_rate`` sets another.
        weight_decay: part of the learning rate that weights lose in a step.
        betas: of the moving averages.
        eps: in the denominator.
        scales: parameter -> what its learning rate is multiplied by; 1 where it is not there.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = defaultdict(list)
    for parameter in module.parameters():
        if parameter.requires_grad:
            scale = (scales or {}).get(parameter, 1.0)
            groups[weight_decay if parameter.ndim > 1 else 0.0, scale].append(parameter)
    # In an order that does not depend on which parameter came first: those that decay, then the others.
    listed = [{"params": groups[key], "weight_decay": key[0], "scale": key[1]} for key in sorted(groups, reverse=True)]
    if algorithm == "stable_adamw":
        return StableAdamW(listed, lr=learning_rate, betas=betas, eps=eps)
    fused = all(parameter.device.type in ("cpu", "cuda") for parameters in groups.values() for parameter in parameters)
    return AdamW(listed, lr=learning_rate, betas=betas, eps=eps, fused=fused)


def set_learning_rate(optimizer: Optimizer, learning_rate: float) -> None:
    """Set the learning rate of all groups, each scaled as ``scales`` said."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group["scale"]


class StableAdamW(Optimizer):
    """AdamW that shortens, tensor by tensor, steps that the second moment was not ready for.

    Wortsman et al. 2023 (https://arxiv.org/abs/2304.13013), algorithm 2: with ``u`` the bias-corrected mean of squared gradients
    ``g^2``, a tensor's learning rate, weight decay included, is divided by ``max(1, RMS)``, where
    ``RMS = sqrt(mean(g^2 / max(u, eps^2)))``. With it gradients need not be clipped by their norm (``max_grad_norm: null``).

    Args:
        params: parameters or groups of them.
        lr: learning rate.
        betas: of the moving averages of ``g`` and ``g^2``.
        eps: in the denominator.
        weight_decay: part of the learning rate that weights lose in a step.
    """

    def __init__(
        self,
        params: Iterable[Any],
        *,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Take a step; no value comes back from the device."""
        assert closure is None, "nobody here evaluates the loss again"
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)

    def _update(self, parameter: nn.Parameter, gradient: Tensor, group: Mapping[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            # In double precision, since 1 - 0.999 in single has an error of 5e-5.
            state["step"] = torch.zeros((), dtype=torch.float64, device=parameter.device)
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        beta1, beta2 = group["betas"]
        state["step"] += 1
        mean = state["exp_avg"].lerp_(gradient, 1.0 - beta1) / (1.0 - beta1 ** state["step"])
        square = state["exp_avg_sq"].mul_(beta2).addcmul_(gradient, gradient, value=1.0 - beta2) / (1.0 - beta2 ** state["step"])
        rms = (gradient.square() / square.clamp(min=group["eps"] ** 2)).mean().sqrt()
        learning_rate = group["lr"] / rms.clamp(min=1.0)
        parameter.mul_(1.0 - learning_rate * group["weight_decay"])
        parameter.sub_(learning_rate * mean / (square.sqrt() + group["eps"]))
