"""Packed batches made ready for a model: sorted by length, or filled up to sizes of which there are few."""

# S rows, T tokens of all rows

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from mlmx.data.batch import Batch


def sorted_by_length(cu_seqlens: Tensor, num_tokens: int) -> tuple[Tensor | None, Tensor]:
    """Return in which order tokens stand when rows are sorted by length, and where the sorted rows begin.

    Args:
        cu_seqlens: (S+1,) int32 where rows begin.
        num_tokens: T.

    Returns:
        (T,) int64 where each token of the sorted rows comes from, None if rows are sorted already; and (S+1,) int32.
    """
    starts = cu_seqlens[:-1].long()
    lengths = cu_seqlens.diff().long()
    if bool((lengths.diff() >= 0).all()):
        return None, cu_seqlens
    rows = lengths.argsort(stable=True)
    sorted_lengths = lengths[rows]
    ends = sorted_lengths.cumsum(0)
    shift = starts[rows] - (ends - sorted_lengths)
    order = torch.arange(num_tokens, device=rows.device) + shift.repeat_interleave(sorted_lengths, output_size=num_tokens)
    return order, torch.cat([ends.new_zeros(1), ends]).int()


def filled_up(batch: Batch, multiple: int, pad_id: int) -> Batch:
    """Return a batch of a size that many others share: what compiled code needs, which is made anew for each size.

    Tokens are filled up to a multiple, by rows of padding after the real ones that are no longer than these; the number of rows and
    the bound of their length to a power of two. No value is read, so that a GPU need not be waited for.

    Args:
        batch: the batch; only what an encoder reads of it is filled up.
        multiple: of tokens.
        pad_id: the token that fills.
    """
    tokens, cu_seqlens = batch.num_tokens, batch.tensors["cu_seqlens"]
    filling = -tokens % multiple
    num_rows = len(cu_seqlens) - 1
    more_rows = _power_of_two(num_rows + -(-filling // batch.max_seqlen)) - num_rows
    # The last of them are empty.
    ends = tokens + batch.max_seqlen * torch.arange(1, more_rows + 1, device=cu_seqlens.device)
    positions = torch.arange(filling, device=cu_seqlens.device) % batch.max_seqlen
    tensors = {
        **batch.tensors,
        "input_ids": F.pad(batch.tensors["input_ids"], (0, filling), value=pad_id),
        "position_ids": torch.cat([batch.tensors["position_ids"], positions]),
        "cu_seqlens": torch.cat([cu_seqlens, ends.clamp(max=tokens + filling).to(cu_seqlens.dtype)]),
    }
    return replace(batch, tensors=tensors, max_seqlen=_power_of_two(batch.max_seqlen))


def _power_of_two(number: int) -> int:
    return 1 << max(number - 1, 0).bit_length()
