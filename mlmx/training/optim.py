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
    return AdamW(listed, lr=learning_rate, betas=betas, eps=eps, fused=True)


def step_unless(bad: Tensor, optimizer: Optimizer, *, norm: Tensor, max_norm: float | None) -> None:
    """Take a step, unless ``bad`` is 1: then weights and state stay as they are. The host does not wait to know.

    Gradients are shortened to ``max_norm`` within the step, which spares two passes over all of them.

    Args:
        bad: () 0 or 1, float32, on the parameters' device.
        optimizer: one of ``optimizer_for``; the protocol is the one that torch's gradient scaler has with fused optimisers.
        norm: () of the whole gradient.
        max_norm: what it may be at most; None: anything.
    """
    optimizer.found_inf = bad  # type: ignore[attr-defined]
    optimizer.grad_scale = None if max_norm is None else (norm / max_norm).clamp(min=1.0).float()  # type: ignore[attr-defined]
    optimizer.step()


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

    # As torch's fused optimisers have them.
    found_inf: Tensor | None = None
    grad_scale: Tensor | None = None

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Take a step along the gradient divided by ``grad_scale``, unless ``found_inf`` is 1; the host waits for nothing."""
        assert closure is None, "nobody here evaluates the loss again"
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    gradient = parameter.grad if self.grad_scale is None else parameter.grad / self.grad_scale
                    self._update(parameter, gradient, group)

    def _update(self, parameter: nn.Parameter, gradient: Tensor, group: Mapping[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            # In double precision, since 1 - 0.999 in single has an error of 5e-5.
            state["step"] = torch.zeros((), dtype=torch.float64, device=parameter.device)
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        beta1, beta2 = group["betas"]
        step = state["step"] + 1
        average = state["exp_avg"].lerp(gradient, 1.0 - beta1)
        average_square = state["exp_avg_sq"].mul(beta2).addcmul_(gradient, gradient, value=1.0 - beta2)
        mean, square = average / (1.0 - beta1**step), average_square / (1.0 - beta2**step)
        rms = (gradient.square() / square.clamp(min=group["eps"] ** 2)).mean().sqrt()
        learning_rate = group["lr"] / rms.clamp(min=1.0)
        weights = parameter * (1.0 - learning_rate * group["weight_decay"])
        weights -= learning_rate * mean / (square.sqrt() + group["eps"])
        self._write(parameter, weights)
        for name, value in (("step", step), ("exp_avg", average), ("exp_avg_sq", average_square)):
            self._write(state[name], value)

    def _write(self, target: Tensor, value: Tensor) -> None:
        target.copy_(value if self.found_inf is None else torch.where(self.found_inf > 0, target, value))
