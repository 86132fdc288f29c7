"""Positions: where a row begins in a model's table of position embeddings, and how long it may be."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def position_offset(model: nn.Module) -> int:
    """Return the position of a row's first token: 0, but ``padding_idx + 1`` for RoBERTa and its kin."""
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding) and module.padding_idx is not None:
            return module.padding_idx + 1
    return 0


def longest_row(model: PreTrainedModel) -> int:
    """Return how many tokens a row may have, special ones included."""
    return int(model.config.max_position_embeddings) - position_offset(model)
