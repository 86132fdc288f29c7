"""A text as the tokens that a language-model head finds in it: of each entry of the vocabulary, the largest logit of its places."""

# S rows, P their tokens, D width, V vocabulary, B entries of all bags

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mlmx.models.cross_entropy import predictions_per_chunk


def largest_logits(head: nn.Module, hidden_PD: Tensor, sizes: Sequence[int]) -> Tensor:
    """Return (S, V) the largest logit of each entry among the tokens of each row, in float32 or finer.

    Args:
        head: (P, D) to logits (P, V).
        hidden_PD: vectors of the tokens that count.
        sizes: how many of them each row has; a row without any has zeros.
    """
    logits_PV = head(hidden_PD)
    logits_PV = logits_PV.to(torch.promote_types(logits_PV.dtype, torch.float32))
    of_rows = torch.split(logits_PV, list(sizes))
    # `max` hands its gradient back by index, in a quarter of the time that `scatter_reduce` and `amax` need on a CPU.
    return torch.stack([row.max(0).values if len(row) else row.sum(0) for row in of_rows])


def largest_entries(
    head: nn.Module, hidden_PD: Tensor, sizes: Sequence[int], num_entries: int, *, vocab_size: int
) -> tuple[Tensor, Tensor]:
    """Return the entries of the vocabulary that rows speak of most: their logits (S, K), falling, and the entries (S, K).

    Args:
        head: (P, D) to logits (P, V).
        hidden_PD: vectors of the tokens that count.
        sizes: how many of them each row has.
        num_entries: K.
        vocab_size: V, which sets how many rows go through the head at a time.
    """
    found, token = [], 0
    for rows in _chunks(sizes, predictions_per_chunk(vocab_size)):
        tokens = slice(token, token := token + sum(sizes[rows]))
        found.append(largest_logits(head, hidden_PD[tokens], sizes[rows]).topk(num_entries))
    logits, entries = zip(*found, strict=True)
    return torch.cat(logits), torch.cat(entries)


def bag_of_words_loss(
    head: nn.Module,
    hidden_PD: Tensor,
    sizes: Sequence[int],
    bag_B: Tensor,
    weights_B: Tensor,
    bag_sizes: Sequence[int],
    *,
    vocab_size: int,
) -> Tensor:
    """Return the sum over all bags of -weight * log p(entry | row), where p is the softmax of a row's largest logits.

    Rows whose logits would be too many together go through the head some at a time, and once more in the backward pass.

    Args:
        head: (P, D) to logits (P, V).
        hidden_PD: vectors of the tokens that count.
        sizes: (S) how many of them each row has.
        bag_B: int64 entries of the vocabulary, row by row.
        weights_B: weight of each.
        bag_sizes: (S) how many of these each row has.
        vocab_size: V, which sets how many rows go through the head at a time.
    """
    losses, token, entry = [], 0, 0
    for rows in _chunks(sizes, predictions_per_chunk(vocab_size)):
        tokens = slice(token, token := token + sum(sizes[rows]))
        entries = slice(entry, entry := entry + sum(bag_sizes[rows]))
        arguments = (head, hidden_PD[tokens], sizes[rows], bag_B[entries], weights_B[entries], bag_sizes[rows])
        whole = len(sizes[rows]) == len(sizes)
        losses.append(_loss(*arguments) if whole else checkpoint(_loss, *arguments, use_reentrant=False))
    return torch.stack(losses).sum()


def _loss(
    head: nn.Module, hidden_PD: Tensor, sizes: Sequence[int], bag_B: Tensor, weights_B: Tensor, bag_sizes: Sequence[int]
) -> Tensor:
    logarithms_SV = largest_logits(head, hidden_PD, sizes).log_softmax(-1)
    row_B = torch.arange(len(bag_sizes)).repeat_interleave(torch.tensor(bag_sizes)).to(bag_B.device)
    return -(weights_B * logarithms_SV[row_B, bag_B]).sum()


def _chunks(sizes: Sequence[int], max_tokens: int) -> Iterator[slice]:
    # Rows of at most so many tokens together, one row at least.
    ends, first, before = list(accumulate(sizes)), 0, 0
    for row in range(1, len(ends) + 1):
        if row == len(ends) or ends[row] - before > max_tokens:
            yield slice(first, row)
            first, before = row, ends[row - 1]
