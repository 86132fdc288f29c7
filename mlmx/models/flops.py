"""Model FLOPs: the arithmetic that the mathematics of a forward and a backward pass needs, whatever the machine does beside it.

A multiplication and an addition are two FLOPs. The backward pass of a matrix product has two more products of its size, so that a
token costs ``6 N`` for the ``N`` numbers of all linear layers it goes through (embeddings are looked up, not multiplied), and
attention ``12 D P`` for a layer of width ``D`` and ``P`` pairs of a token and one that it sees: ``L^2`` in a row of ``L`` tokens,
fewer in a local window or where a token sees only those before it. Padding, recomputation, norms and the optimiser do not count.

Everything is known before the forward pass: the lengths of the rows, and the number of predictions.
"""

# S rows, L tokens of a row

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import nn
from transformers.pytorch_utils import Conv1D

# Forward, gradient of the input, gradient of the weights; two FLOPs each.
_PER_WEIGHT = 6
# Twice as many, for scores and for weighted values.
_PER_PAIR = 12


def linear_flops(num_weights: int, num_vectors: int) -> int:
    """Return the FLOPs of vectors that each go through linear layers of so many weights."""
    return _PER_WEIGHT * num_weights * num_vectors


def attention_flops(width: int, lengths: NDArray[np.int64], windows: list[int | None], *, causal: bool = False) -> int:
    """Return the FLOPs of attention over rows.

    Args:
        width: of all heads together.
        lengths: (S,) tokens per row.
        windows: for each layer, the distance below which tokens see each other; None for the whole row.
        causal: whether tokens see only those before them and themselves.
    """
    pairs = {window: _num_pairs(lengths, window, causal=causal) for window in set(windows)}
    return pair_flops(width, sum(pairs[window] for window in windows))


def pair_flops(width: int, num_pairs: int) -> int:
    """Return the FLOPs of attention, of all heads together so wide, between so many pairs of a token and one that it sees."""
    return _PER_PAIR * width * num_pairs


def num_linear_weights(module: nn.Module, *, without: str | None = None) -> int:
    """Return the size of all linear layers of a module, biases apart; those tied to embeddings are linear layers too.

    So are those that GPT-2 calls convolutions.

    Args:
        module: the module.
        without: the name of a submodule anywhere in it that is left out.
    """
    return sum(
        part.weight.numel()
        for name, part in module.named_modules()
        if isinstance(part, nn.Linear | Conv1D) and without not in name.split(".")
    )


def _num_pairs(lengths: NDArray[np.int64], window: int | None, *, causal: bool) -> int:
    reach = np.maximum(lengths - 1, 0)
    if window is not None:
        reach = np.minimum(window - 1, reach)
    # Each token, and as many before it as are in reach; after it as many.
    before = int((lengths * reach - reach * (reach + 1) // 2).sum())
    return int(lengths.sum()) + before * (1 if causal else 2)
