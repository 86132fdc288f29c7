"""Attention over packed rows, for every Transformers model that asks the attention registry.

Rows lie end to end in one sequence of T tokens. A function registered in ``AttentionInterface`` sees the queries, keys and values
of all of them and the keyword arguments of the model call, so it alone must know where rows begin; the rest of the model works
token by token. A model that ignores the registry lets rows see each other without an error: that is what the probe in
``mlmx.models.encoder`` finds out.
"""

# T packed tokens, H heads, E width of a head, N rows of one length, L their length, B x L padded rows

from __future__ import annotations

from itertools import groupby, pairwise
from typing import Any, Final, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface, AttentionMaskInterface

PACKED: Final = "mlmx_packed"

Direction = Literal["causal", "bidirectional"]
"""Whether a token sees those before it and itself, or all of its row."""


class Runs:
    """Runs of neighbouring rows of equal length.

    No tuple, and no dataclass: into these the compiler looks, and would compile anew for each batch.

    Attributes:
        sizes: (length, number of rows) of each run; empty rows are in none.
    """

    def __init__(self, cu_seqlens: Tensor) -> None:
        """Find the runs of rows that begin at ``cu_seqlens`` (S+1,)."""
        lengths = [end - start for start, end in pairwise(cu_seqlens.tolist()) if end > start]
        self.sizes = [(length, len(list(rows))) for length, rows in groupby(lengths)]


def uses_kernel(device: torch.device, dtype: torch.dtype, dropout: float) -> bool:
    """Tell whether the variable-length kernel serves: CUDA, half precision, and no dropout, which it does not have."""
    return device.type == "cuda" and dtype in (torch.float16, torch.bfloat16) and dropout == 0.0


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    cu_seqlens: Tensor | None = None,
    max_seqlen: int = 0,
    runs: Runs | None = None,
    causal: bool | None = None,
    keys: Tensor | None = None,
    selves: bool = False,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attend within each row.

    Args:
        module: the attention layer that asks.
        query: (1, H, T, E).
        key: (1, H or fewer, T, E).
        value: as ``key``.
        attention_mask: None, since the registered mask function makes none.
        scaling: of the scores; 1/sqrt(E) if None.
        dropout: probability, already 0 in evaluation.
        sliding_window: Transformers' convention: a token sees those at a distance below this number.
        cu_seqlens: (S+1,) int32 where rows begin; for the kernel, where it serves.
        max_seqlen: length of the longest row or more, for the kernel.
        runs: of the rows, instead of both, where the kernel does not serve or is not wanted.
        causal: whether tokens see only those before them and themselves; None: as the layer has it.
        keys: (T,) bool which tokens can be seen, of which every token must see one; None: all. The kernel does not have it.
        selves: whether a token that is not among ``keys`` sees itself all the same.

    Returns:
        (1, T, H, E) and None for the weights.
    """
    if attention_mask is not None:
        raise ValueError("packed attention takes no mask")
    query, key, value = (x[0].transpose(0, 1) for x in (query, key, value))  # (T, H, E)
    if causal is None:
        causal = bool(getattr(module, "is_causal", False))
    grouped_heads = query.shape[1] != key.shape[1]
    if cu_seqlens is not None and keys is None and uses_kernel(query.device, query.dtype, dropout):
        reach = -1 if sliding_window is None else sliding_window - 1
        window = (reach, 0 if causal else reach)
        attended = varlen_attn(
            query, key, value, cu_seqlens, cu_seqlens, max_seqlen, max_seqlen,
            scale=scaling, window_size=window, enable_gqa=grouped_heads,
        )  # fmt: skip
        assert isinstance(attended, Tensor)
        return attended[None], None
    attended = _attend_by_length(
        query, key, value, runs, cu_seqlens, keys, selves=selves,
        causal=causal, window=sliding_window, dropout=dropout, scaling=scaling, grouped_heads=grouped_heads,
    )  # fmt: skip
    return attended[None], None


# Its shapes are those of a batch's rows, and compiled code would be made anew for each batch.
@torch.compiler.disable  # type: ignore[untyped-decorator]
def _attend_by_length(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    runs: Runs | None,
    cu_seqlens: Tensor | None,
    keys: Tensor | None,
    *,
    selves: bool,
    causal: bool,
    window: int | None,
    dropout: float,
    scaling: float | None,
    grouped_heads: bool,
) -> Tensor:
    # (T, H, E) each, and so the result.
    if runs is None:
        if cu_seqlens is None:
            raise ValueError("packed attention needs to know where rows begin")
        runs = Runs(cu_seqlens)
    sizes = [length * count for length, count in runs.sizes]
    # One split, since the backward pass of a slice writes zeros for all the rest of the tensor.
    parts = zip(*(torch.split(x, sizes) for x in (query, key, value)), strict=True)
    keys_of = [None] * len(sizes) if keys is None else torch.split(keys, sizes)
    outputs = []
    for (length, count), part, seen in zip(runs.sizes, parts, keys_of, strict=True):
        # Neighbouring rows of one length are a plain batch: views in, no padding and no mask.
        q, k, v = (x.view(count, length, *x.shape[1:]).transpose(1, 2) for x in part)  # (N, H, L, E)
        seen = None if seen is None else _seen(seen.view(count, length), selves)
        mask = _mask(length, window, seen, causal=causal, device=q.device)
        attended = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, dropout_p=dropout, scale=scaling,
            is_causal=causal and mask is None, enable_gqa=grouped_heads,
        )  # fmt: skip
        outputs.append(attended.transpose(1, 2).flatten(0, 1))
    return torch.cat(outputs)


def _seen(keys: Tensor, selves: bool) -> Tensor:
    # (N, 1, 1 or L, L) bool what is seen of rows, of the keys (N, L).
    seen = keys[:, None, None]
    return seen | torch.eye(keys.shape[1], dtype=torch.bool, device=keys.device) if selves else seen


def _mask(length: int, window: int | None, seen: Tensor | None, *, causal: bool, device: torch.device) -> Tensor | None:
    # (L, L) or (N, 1, 1 or L, L) bool what is seen, where that is not said by `is_causal` alone.
    windowed = window is not None and length > window
    if not windowed and (seen is None or not causal):
        return seen
    positions = torch.arange(length, device=device)
    distance = positions[:, None] - positions
    near = (distance >= 0) if causal else torch.ones_like(distance, dtype=torch.bool)
    if window is not None:
        near &= distance.abs() < window
    return near if seen is None else near & seen


def padded_mask(tokens: Tensor, dtype: torch.dtype, *, causal: bool, keys: Tensor | None, selves: bool = False) -> Tensor:
    """Return what is added to the scores of padded rows, (B, 1, 1 or L, L): 0 where a token is seen, the least number elsewhere.

    Args:
        tokens: (B, L) bool which are tokens and not padding, which follows them.
        dtype: of the scores.
        causal: whether tokens see only those before them and themselves.
        keys: (B, L) bool which tokens can be seen; None: all.
        selves: whether a token that is not among ``keys`` sees itself all the same.
    """
    seen = _seen(tokens if keys is None else tokens & keys, selves)
    if causal:
        length = tokens.shape[1]
        seen = seen & torch.ones(length, length, dtype=torch.bool, device=tokens.device).tril()
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, torch.finfo(dtype).min)


def _no_mask(*_: Any, **__: Any) -> None:
    return None


def register() -> None:
    """Register the function and its mask under the name ``PACKED``; calling it again changes nothing."""
    AttentionInterface.register(PACKED, packed_attention)
    AttentionMaskInterface.register(PACKED, _no_mask)
