"""Cross-entropy over a large vocabulary: the logits of some predictions at a time."""

# P predictions, D width, V vocabulary

from __future__ import annotations

from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

MAX_LOGITS: Final = 2**26
"""Logits held at a time: 256 MiB in float32. Beside them stand their probabilities and gradients, so that the peak is some
three times as high."""


def cross_entropy(head: nn.Module, hidden_PD: Tensor, targets_P: Tensor, *, vocab_size: int) -> tuple[Tensor, Tensor]:
    """Return what a language-model head's predictions cost, and how many are right.

    Where all logits together would be more than ``MAX_LOGITS``, they are made in chunks of predictions and made again, chunk by
    chunk, in the backward pass. Loss and gradient are those of one piece, up to rounding.

    Args:
        head: (P, D) to logits (P, V), whether or not it shares its weights with embeddings.
        hidden_PD: the vectors to predict from.
        targets_P: int64, the right entries of the vocabulary.
        vocab_size: V, which sets the size of the chunks.

    Returns:
        The sum of the losses in nats, () in float32 or finer, and the number of predictions whose likeliest entry is the right one,
        () int64.
    """
    chunk_size = predictions_per_chunk(vocab_size)
    if len(targets_P) <= chunk_size:
        return _cross_entropy(head, hidden_PD, targets_P)
    losses, hits = [], []
    for hidden, targets in zip(torch.split(hidden_PD, chunk_size), torch.split(targets_P, chunk_size), strict=True):
        loss, num_right = checkpoint(_cross_entropy, head, hidden, targets, use_reentrant=False)
        losses.append(loss)
        hits.append(num_right)
    return torch.stack(losses).sum(), torch.stack(hits).sum()


def predictions_per_chunk(vocab_size: int) -> int:
    """Return how many predictions have their logits at the same time, one at least."""
    return max(1, MAX_LOGITS // vocab_size)


def _cross_entropy(head: nn.Module, hidden_PD: Tensor, targets_P: Tensor) -> tuple[Tensor, Tensor]:
    logits_PV = head(hidden_PD)
    # Half precision is too coarse to sum in.
    logits_PV = logits_PV.to(torch.promote_types(logits_PV.dtype, torch.float32))
    loss = F.cross_entropy(logits_PV, targets_P, reduction="sum")
    return loss, (logits_PV.argmax(-1) == targets_P).sum()
