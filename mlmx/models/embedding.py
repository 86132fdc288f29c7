"""Word embeddings whose gradient costs as much as a batch has tokens, not as much as the vocabulary has entries."""

# B... any shape, V vocabulary, D width

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Variable
from torch.autograd.graph import get_gradient_edge


def add_gradients_by_row(embedding: nn.Module) -> bool:
    """Let an embedding add its gradient to ``weight.grad`` row by row, at the end of each backward pass, in place.

    Autograd writes a gradient of all V rows, nearly all of them zero, and adds it to the one of the head that shares the weights:
    with 250,000 entries a quarter of a step on a CPU. The gradient is the same, up to the order in which the rows of one token are
    added. It is for CPUs: a GPU has the bandwidth, and adds rows in an order that changes from run to run.

    Who asks for the gradient otherwise (``torch.autograd.grad``, a hook of the weight, a gradient of the gradient) is given
    autograd's.

    Args:
        embedding: of words, on a CPU, its weight not divided among processes.

    Returns:
        Whether it is done: classes with a ``forward`` of their own stay as they are.
    """
    plain = type(embedding) is nn.Embedding
    if not plain or embedding.max_norm is not None or embedding.scale_grad_by_freq or embedding.sparse:
        return False
    embedding.forward = partial(_lookup, embedding)
    return True


def _lookup(embedding: nn.Embedding, input_ids: Tensor) -> Tensor:
    vectors: Tensor = _Lookup.apply(embedding.weight, input_ids, embedding.padding_idx)  # type: ignore[no-untyped-call]
    return vectors


class _Lookup(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: nn.Parameter, input_ids: Tensor, padding_idx: int | None) -> Tensor:
        ctx.weight, ctx.padding_idx = weight, padding_idx
        ctx.save_for_backward(input_ids)
        return F.embedding(input_ids, weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None, None]:
        (gradient,), (input_ids,), weight = gradients, ctx.saved_tensors, ctx.weight
        if ctx.padding_idx is not None:
            gradient = gradient.masked_fill((input_ids == ctx.padding_idx)[..., None], 0.0)
        input_ids, gradient = input_ids.flatten(), gradient.flatten(end_dim=-2).to(weight.dtype)
        if not _is_only_added_up(weight):
            return torch.zeros_like(weight).index_add(0, input_ids, gradient), None, None

        def add() -> None:
            if weight.grad is None:
                weight.grad = torch.zeros_like(weight)
            weight.grad.index_add_(0, input_ids, gradient)

        # The head's part arrives in ``weight.grad`` only after this: what waits for all of a pass is called at its end.
        Variable._execution_engine.queue_callback(add)
        return None, None, None


def _is_only_added_up(weight: Tensor) -> bool:
    # Whether all that becomes of a gradient in this backward pass is to be added to `weight.grad`.
    if torch.is_grad_enabled() or weight._backward_hooks or weight._post_accumulate_grad_hooks:
        return False
    try:
        return torch._C._will_engine_execute_node(get_gradient_edge(weight).node)
    except RuntimeError:  # which is how it tells that this is `torch.autograd.grad`
        return False
