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
    loss, num_right, _ = _in_chunks(head, hidden_PD, targets_P, None, None, vocab_size)
    return loss, num_right


def losses_and_hits(head: nn.Module, hidden_PD: Tensor, targets_P: Tensor, *, vocab_size: int) -> tuple[Tensor, Tensor]:
    """Return what each prediction costs, in nats, and whether it is right, for judging: without gradients.

    Args:
        head: (P, D) to logits (P, V).
        hidden_PD: the vectors to predict from.
        targets_P: int64, the right entries of the vocabulary.
        vocab_size: V, which sets how many predictions have their logits at the same time.

    Returns:
        (P,) float32 losses and (P,) bool, whether the likeliest entry is the right one.
    """
    losses, hits = [], []
    chunk_size = predictions_per_chunk(vocab_size)
    for states, targets in zip(torch.split(hidden_PD, chunk_size), torch.split(targets_P, chunk_size), strict=True):
        logits = head(states).float()
        losses.append(F.cross_entropy(logits, targets, reduction="none"))
        hits.append(logits.argmax(dim=1) == targets)
    return torch.cat(losses), torch.cat(hits)


def cross_entropy_and_samples(
    head: nn.Module, hidden_PD: Tensor, targets_P: Tensor, *, draws_P: Tensor, forbidden_V: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what ``cross_entropy`` does, and an entry for each prediction, drawn with the probability that the head gives it.

    Args:
        head: (P, D) to logits (P, V).
        hidden_PD: the vectors to predict from.
        targets_P: int64, the right entries of the vocabulary.
        draws_P: in [0, 1), at which point of the summed probabilities each entry is taken.
        forbidden_V: bool, entries that are never drawn; the others share their probability.

    Returns:
        The sum of the losses, the number of right predictions, and the entries (P,) int64, which have no gradient.
    """
    return _in_chunks(head, hidden_PD, targets_P, draws_P, forbidden_V, len(forbidden_V))


def _in_chunks(
    head: nn.Module,
    hidden_PD: Tensor,
    targets_P: Tensor,
    draws_P: Tensor | None,
    forbidden_V: Tensor | None,
    vocab_size: int,
) -> tuple[Tensor, Tensor, Tensor]:
    chunk_size = predictions_per_chunk(vocab_size)
    if len(targets_P) <= chunk_size:
        return _cross_entropy(head, hidden_PD, targets_P, draws_P, forbidden_V)
    parts = []
    for start in range(0, len(targets_P), chunk_size):
        some = slice(start, start + chunk_size)
        draws = None if draws_P is None else draws_P[some]
        parts.append(checkpoint(_cross_entropy, head, hidden_PD[some], targets_P[some], draws, forbidden_V, use_reentrant=False))
    losses, hits, samples = zip(*parts, strict=True)
    return torch.stack(losses).sum(), torch.stack(hits).sum(), torch.cat(samples)


def predictions_per_chunk(vocab_size: int) -> int:
    """Return how many predictions have their logits at the same time, one at least."""
    return max(1, MAX_LOGITS // vocab_size)


def _cross_entropy(
    head: nn.Module, hidden_PD: Tensor, targets_P: Tensor, draws_P: Tensor | None, forbidden_V: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    logits_PV = head(hidden_PD)
    # Half precision is too coarse to sum in.
    logits_PV = logits_PV.to(torch.promote_types(logits_PV.dtype, torch.float32))
    loss = F.cross_entropy(logits_PV, targets_P, reduction="sum")
    samples_P = targets_P if draws_P is None or forbidden_V is None else _drawn(logits_PV.detach(), draws_P, forbidden_V)
    return loss, (logits_PV.argmax(-1) == targets_P).sum(), samples_P


def _drawn(logits_PV: Tensor, draws_P: Tensor, forbidden_V: Tensor) -> Tensor:
    summed_PV = logits_PV.masked_fill(forbidden_V, -torch.inf).softmax(-1).cumsum(-1)
    # Far enough below 1 that no rounding reaches the end, where an entry without probability may stand.
    points_P1 = draws_P.to(summed_PV.dtype).clamp(max=1 - 2**-20)[:, None] * summed_PV[:, -1:]
    return torch.searchsorted(summed_PV, points_P1, right=True)[:, 0]
