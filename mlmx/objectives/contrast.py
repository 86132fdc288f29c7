"""What contrastive objectives share: embeddings of a batch whose size neither memory nor the number of processes limits.

Each row is compared with those of all processes, and the activations of a few rows at a time are held. Both are exact: losses and
gradients are those of one process that holds the whole batch at once, where there is no dropout; with it, other draws of the same
distribution.
"""

# S rows of a batch, N rows of this process, M rows of all processes, K layers, D width

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mlmx.data.batch import Batch
from mlmx.data.plan import partition
from mlmx.models.encoder import Encoder
from mlmx.models.pooling import Pooling, pool

Similarity = Literal["cosine", "dot"]
"""How vectors are compared: as they are by ``dot``, the inner product; by ``cosine`` after they are scaled to length 1."""


def embed_rows(encoder: Encoder, batch: Batch, *, pooling: Pooling, chunk_tokens: int | None) -> Tensor:
    """Return the pooled vectors of a batch's rows, (S, D) in float32 or better; see ``embed_layers``."""
    return embed_layers(encoder, batch, layers=(encoder.num_layers,), pooling=pooling, chunk_tokens=chunk_tokens)[:, 0]


def embed_layers(encoder: Encoder, batch: Batch, *, layers: Sequence[int], pooling: Pooling, chunk_tokens: int | None) -> Tensor:
    """Return what each of some layers makes of a batch's rows, pooled: (S, K, D) in float32 or better, by one forward pass.

    Source: gradient caching (Gao et al., arXiv 2101.06983). Where the batch has more than ``chunk_tokens`` tokens, it is cut into
    chunks; their activations are not kept but computed again in the backward pass, one chunk at a time, with the same dropout. So
    memory grows with the chunk, and not with the batch.

    Args:
        encoder: the encoder.
        batch: the rows.
        layers: indices into ``Encoder.hidden_states``.
        pooling: see ``mlmx.models.pooling.pool``.
        chunk_tokens: tokens of a chunk, about; None: the batch is one chunk.
    """
    lengths = batch.tensors["cu_seqlens"].diff().tolist()
    num_chunks = 1
    if chunk_tokens is not None:
        # The same for all processes, since they wait for each other inside an encoder whose weights are divided among them.
        needed, num_rows = -(-sum(lengths) // chunk_tokens), len(lengths)
        device = batch.tensors["cu_seqlens"].device
        num_chunks = min(max(_everyones(needed, device)), min(_everyones(num_rows, device)))
    if num_chunks == 1:
        return _embed(encoder, batch, layers, pooling)
    chunks = [torch.from_numpy(part) for (part,) in partition(lengths, num_chunks)]
    embeddings = torch.cat(
        [checkpoint(_embed, encoder, _rows_of(batch, chunk), layers, pooling, use_reentrant=False) for chunk in chunks]
    )
    return embeddings[torch.cat(chunks).argsort().to(embeddings.device)]


def gather_rows(rows: Tensor) -> tuple[Tensor, int]:
    """Return the rows (N, ...) of all processes, (M, ...), in the order of their ranks, and which is the first of this process.

    The gradient of a process' rows is summed over the processes that made use of them, as is right where each process' loss is a
    part of one sum. Processes may have different numbers of rows, none included; every process makes this call.
    """
    sizes = _everyones(len(rows), rows.device)
    if len(sizes) == 1:
        return rows, 0
    gathered: Tensor = _Gather.apply(rows, sizes)  # type: ignore[no-untyped-call]
    return gathered, sum(sizes[: dist.get_rank()])


def gather_candidates(positives: Tensor, *negatives: Tensor) -> tuple[Tensor, Tensor]:
    """Return what each query is compared with, of all processes, and which of them belongs to each query of this one, (N,).

    Args:
        positives: (N, ...) what belongs to each query.
        negatives: (N, ...) each, what is like a query and does not belong to it.
    """
    gathered, first = gather_rows(torch.stack([positives, *negatives], dim=1))
    return torch.cat(gathered.unbind(dim=1)), first + torch.arange(len(positives), device=positives.device)


def contrastive_loss(
    queries_ND: Tensor, candidates_MD: Tensor, targets_N: Tensor, *, temperature: float, left_out_NM: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return the summed cross-entropy, in nats, of choosing each query's target among all candidates, and how many are right.

    Source: InfoNCE (van den Oord et al., arXiv 1807.03748, equation 4), with similarities in float32 or better.

    Args:
        queries_ND: (N, D).
        candidates_MD: (M, D).
        targets_N: (N,) the candidate that belongs to each query.
        temperature: similarities are divided by it.
        left_out_NM: (N, M) True where a candidate is no negative of a query; its target never is.
    """
    logits_NM = similarities(queries_ND, candidates_MD, temperature=temperature)
    if left_out_NM is not None:
        logits_NM = logits_NM.masked_fill(left_out_NM, -torch.inf)
    loss = F.cross_entropy(logits_NM, targets_N, reduction="sum")
    return loss, (logits_NM.argmax(dim=1) == targets_N).sum()


def similarities(queries_ND: Tensor, candidates_MD: Tensor, *, temperature: float) -> Tensor:
    """Return the inner products of queries and candidates over a temperature, (N, M), in float32 or better."""
    with torch.autocast(queries_ND.device.type, enabled=False):
        return _precise(queries_ND) @ _precise(candidates_MD).T / temperature


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, sizes: list[int]) -> Tensor:
        first = sum(sizes[: dist.get_rank()])
        ctx.own = slice(first, first + len(rows))
        # All ranks send equally much, so the rows are filled up to the largest number of them.
        padded = torch.cat([rows, rows.new_zeros(max(sizes) - len(rows), *rows.shape[1:])])
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        gradient = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient)
        return gradient[ctx.own], None


def _embed(encoder: Encoder, batch: Batch, layers: Sequence[int], pooling: Pooling) -> Tensor:
    # A model keeps the states of its layers only where they are asked for.
    only_last = set(layers) == {encoder.num_layers}
    states = dict.fromkeys(layers, encoder(batch)) if only_last else dict(enumerate(encoder.hidden_states(batch)))
    return torch.stack([pool(_precise(states[layer]), batch.tensors["cu_seqlens"], pooling) for layer in layers], dim=1)


def _rows_of(batch: Batch, rows: Tensor) -> Batch:
    # Only what an encoder reads of a batch.
    cu_seqlens = batch.tensors["cu_seqlens"].cpu().long()
    lengths = cu_seqlens.diff()[rows]
    ends = lengths.cumsum(0)
    tokens = torch.arange(int(ends[-1])) + (cu_seqlens[:-1][rows] - ends + lengths).repeat_interleave(lengths)
    device = batch.tensors["cu_seqlens"].device
    tensors = {name: batch.tensors[name][tokens.to(device)] for name in ("input_ids", "position_ids")}
    tensors["cu_seqlens"] = F.pad(ends, (1, 0)).int().to(device)
    return replace(batch, tensors=tensors, keys=batch.keys[rows.to(device)], max_seqlen=int(lengths.max()))


def _precise(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _everyones(number: int, device: torch.device) -> list[int]:
    # Every process' number, in the order of ranks.
    if not dist.is_available() or not dist.is_initialized():
        return [number]
    numbers = [torch.empty(1, dtype=torch.int64, device=device) for _ in range(dist.get_world_size())]
    dist.all_gather(numbers, torch.tensor([number], device=device))
    return [int(each) for each in numbers]
