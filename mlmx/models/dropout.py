"""Dropout, wherever a model keeps its probability."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn


def set_dropout(module: nn.Module, probability: float) -> None:
    """Set the probability of every dropout in a module, those inside attention included."""
    for part, name in _dropouts(module):
        setattr(part, name, probability)


def dropout_of(module: nn.Module) -> float:
    """Return the largest probability of any dropout in a module."""
    return max((float(getattr(part, name)) for part, name in _dropouts(module)), default=0.0)


def _dropouts(module: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    for part in module.modules():
        if isinstance(part, nn.Dropout):
            yield part, "p"
        elif isinstance(getattr(part, "attention_dropout", None), float):
            # ModernBERT keeps the probability as a number and calls the functional form.
            yield part, "attention_dropout"
