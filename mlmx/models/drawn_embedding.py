"""Word embeddings that are drawn for each row, and predictions by the same draw."""

# S rows, T tokens, P predictions, V vocabulary, D width, L longest row

from __future__ import annotations

import math
from typing import Final, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mlmx.keyed import fold, stream

MAX_NUMBERS: Final = 2**23
"""Numbers held at a time, of drawn tables or logits: 64 MiB as they are drawn, in float64."""


def drawn_embeddings(keys: Tensor, ids: Tensor, width: int, std: float, dtype: torch.dtype) -> Tensor:
    """Return the vectors of some ids in the language of some rows, normally distributed around 0.

    A vector is a function of its row's key and its id alone, so that what an encoder reads and what it is asked for are one draw.

    Args:
        keys: int64 of rows, any shape.
        ids: int64 that broadcasts against ``keys``.
        width: D.
        std: standard deviation of each number.
        dtype: of the result; draws are float64, since those of float32 would differ by the place where a number stands.

    Returns:
        The broadcast shape with D at its end.
    """
    pairs = torch.arange(-(-width // 2), device=ids.device)
    hashed = fold(fold(fold(keys, stream("embedding")), ids)[..., None], pairs)
    # The Box-Muller transform: two uniform numbers, from either half of a hash, give two normal ones.
    radius = (((hashed >> 32) & _LOW) + 0.5).double().mul_(2.0**-32).log_().mul_(-2 * std**2).sqrt_()
    angle = (hashed & _LOW).double().mul_(2 * math.pi * 2.0**-32)
    return torch.cat([radius * angle.cos(), radius * angle.sin()], dim=-1)[..., :width].to(dtype)


_LOW = (1 << 32) - 1


def exported_embeddings(words_VD: Tensor, std: float) -> Tensor:
    """Return the one draw that stands for the word embeddings of an exported encoder, like them in shape and type."""
    ids = torch.arange(len(words_VD), device=words_VD.device)
    return drawn_embeddings(ids.new_full((), stream("exported")), ids, words_VD.shape[1], std, words_VD.dtype)


def std_of_exported(words_VD: Tensor) -> float | None:
    """Return the standard deviation of what an encoder was trained to read, if that were drawn vectors; else None.

    Whether its word embeddings are what ``exported_embeddings`` left tells it: any training of them since then shows.

    Args:
        words_VD: the encoder's word embeddings.
    """
    some = words_VD[:_ENOUGH].double()
    unit = exported_embeddings(some, 1.0)
    std = (some * unit).sum() / unit.square().sum()
    # The tolerance is that of a folder in half precision.
    return std.item() if std > 0 and torch.allclose(some, std * unit, rtol=1e-2, atol=0) else None


# Vectors of ids that are looked at: no other table agrees with a draw in so many numbers, and all would take long.
_ENOUGH = 64


def drawn_cross_entropy(
    hidden_PD: Tensor,
    targets_P: Tensor,
    sizes_S: Tensor,
    keys_S: Tensor,
    *,
    vocab_size: int,
    std: float,
    reduction: Literal["sum", "none"] = "sum",
) -> tuple[Tensor, Tensor]:
    """Return what predictions cost that are made by the inner product with the drawn vectors, and how many are right.

    Where the tables of all rows together would have more than ``MAX_NUMBERS`` numbers, they are drawn for some rows at a time, and
    again in the backward pass.

    Args:
        hidden_PD: the vectors to predict from, row by row.
        targets_P: int64, the right ids.
        sizes_S: predictions of each row.
        keys_S: int64 of each row.
        vocab_size: V.
        std: as for ``drawn_embeddings``.
        reduction: ``none``: the loss of each prediction instead of their sum.

    Returns:
        The sum of the losses in nats, () in float32 or finer, or (P,) of them, and the number of predictions whose likeliest id is
        right, () int64.
    """
    sizes = sizes_S.tolist()
    at_once = max(1, MAX_NUMBERS // (vocab_size * max([hidden_PD.shape[1], *sizes])))
    losses, num_right = [], targets_P.new_zeros(())
    start = 0
    for first in range(0, len(sizes), at_once):
        rows = slice(first, first + at_once)
        predictions = slice(start, start := start + sum(sizes[rows]))
        chunk = (hidden_PD[predictions], targets_P[predictions], sizes_S[rows], keys_S[rows], vocab_size, std, reduction)
        some_loss, some_right = (
            _cross_entropy(*chunk) if len(sizes) <= at_once else checkpoint(_cross_entropy, *chunk, use_reentrant=False)
        )
        losses.append(some_loss)
        num_right = num_right + some_right
    nothing = hidden_PD.new_zeros((), dtype=torch.promote_types(hidden_PD.dtype, torch.float32))
    return sum(losses, nothing) if reduction == "sum" else torch.cat([nothing.new_zeros(0), *losses]), num_right


def _cross_entropy(
    hidden_PD: Tensor, targets_P: Tensor, sizes_S: Tensor, keys_S: Tensor, vocab_size: int, std: float, reduction: str
) -> tuple[Tensor, Tensor]:
    is_one_SL = torch.arange(int(sizes_S.max()), device=sizes_S.device) < sizes_S[:, None]
    rows_SLD = hidden_PD.new_zeros(*is_one_SL.shape, hidden_PD.shape[1])
    rows_SLD[is_one_SL] = hidden_PD
    vocabulary = torch.arange(vocab_size, device=keys_S.device)
    tables_SVD = drawn_embeddings(keys_S[:, None], vocabulary, hidden_PD.shape[1], std, hidden_PD.dtype)
    logits_PV = (rows_SLD @ tables_SVD.mT)[is_one_SL]
    logits_PV = logits_PV.to(torch.promote_types(logits_PV.dtype, torch.float32))
    return F.cross_entropy(logits_PV, targets_P, reduction=reduction), (logits_PV.argmax(dim=1) == targets_P).sum()
