"""From rows to one vector each."""

# S rows of a batch, T packed tokens, P ordinary ones, N rows of the dataset, D width, K entries of the vocabulary

from __future__ import annotations

from dataclasses import replace
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mlmx.data.batch import BatchContext, packed_batch
from mlmx.data.rows import RowDataset, TokenRows
from mlmx.errors import user_error
from mlmx.models.bag_of_words import largest_entries
from mlmx.models.encoder import Encoder
from mlmx.models.inference import by_batch
from mlmx.models.sentence import SentenceModel

# What a layer of width 384 makes of so many tokens, 12 MiB between its two large linear layers, stays in the cache of a CPU.
_CPU_BATCH_TOKENS = 2048

Pooling = Literal["mean", "cls", "max"]
POOLINGS: tuple[Pooling, ...] = get_args(Pooling)


def pool(states: Tensor, cu_seqlens: Tensor, pooling: Pooling) -> Tensor:
    """Pool packed vectors row by row.

    Args:
        states: (T, D).
        cu_seqlens: (S+1,) where rows begin.
        pooling: ``cls`` takes the first token; ``mean`` and ``max`` go over all tokens of the row, special ones included, as
            Sentence-Transformers does.

    Returns:
        (S, D).
    """
    starts = cu_seqlens[:-1].long()
    if pooling == "cls":
        return states[starts]
    lengths = cu_seqlens.diff().long()
    rows = torch.arange(len(lengths), device=states.device).repeat_interleave(lengths, output_size=len(states))
    index = rows[:, None].expand_as(states)
    pooled = states.new_zeros(len(lengths), states.shape[1])
    return pooled.scatter_reduce(0, index, states, "mean" if pooling == "mean" else "amax", include_self=False)


def require_pooling(encoder: Encoder, pooling: Pooling, *, where: str) -> None:
    """Refuse the first token's state where it knows nothing of a text.

    Raises:
        UserError: if ``pooling`` is ``cls``, and the tokenizer puts no special token before a text or the encoder is causal.
    """
    if pooling == "cls" and not encoder.vocabulary.single.prefix:
        raise user_error(where, "its tokenizer puts no special token before a text, whose vector could stand for the text (cls).")
    if pooling == "cls" and encoder.direction == "causal":
        raise user_error(
            where, "the first token of a causal encoder sees nothing of the text, so that its vector (cls) is always the same."
        )


def train_pooling(encoder: Encoder, pooling: Pooling, *, normalize: bool, where: str) -> None:
    """Take down how texts become vectors in a training, so that tasks and the exported folder make them in the same way.

    Raises:
        UserError: as ``require_pooling`` does.
    """
    require_pooling(encoder, pooling, where=where)
    told = SentenceModel(pooling=pooling, normalize=normalize, max_length=None)
    if (before := encoder.sentence) is not None:
        told = replace(told, max_length=before.max_length, prompts=before.prompts, default_prompt=before.default_prompt)
    encoder.sentence = told


def resolve_layer(layer: int | Literal["last"], num_layers: int, *, where: str) -> int:
    """Return a layer as an index into ``hidden_states``, 0 being the embeddings.

    Raises:
        UserError: if the encoder has no such layer.
    """
    if layer == "last":
        return num_layers
    index = layer if layer >= 0 else num_layers + 1 + layer
    if not 0 <= index <= num_layers:
        allowed = f"0 (the embeddings) to {num_layers}, -{num_layers + 1} to -1, or last"
        raise user_error(where, f"{layer} is no layer of this encoder; allowed are {allowed}.")
    return index


def encode(
    encoder: Encoder,
    rows: RowDataset,
    *,
    layer: int,
    pooling: Pooling,
    batch_tokens: int,
    what: str = "encode",
    num_entries: int = 0,
) -> NDArray[np.float32]:
    """Return one vector per row, in the dataset's order.

    Rows run in batches of similar length, so nothing is padded, and the encoder is put into evaluation mode for the duration.
    Several processes share the batches, see ``mlmx.models.inference``.

    Args:
        encoder: the encoder.
        rows: the rows.
        layer: an index into ``hidden_states``, as ``resolve_layer`` gives it.
        pooling: see ``pool``.
        batch_tokens: most tokens per batch, on a CPU no more than fit its cache; a longer row runs alone.
        what: what is being done, for the progress bar.
        num_entries: K; above 0, the largest logits that a text's ordinary tokens give to entries of the vocabulary stand after its
            vector, and then these entries. For the last layer of an encoder with a language-model head.

    Returns:
        (N, D + 2K) float32.
    """
    training = encoder.training
    encoder.eval()
    device = encoder.base.device
    if device.type == "cpu":
        batch_tokens = min(batch_tokens, _CPU_BATCH_TOKENS)

    def pooled(indices: NDArray[np.int64]) -> NDArray[np.generic]:
        taken = rows.take(indices)
        batch = packed_batch(taken, BatchContext(keys=np.zeros(len(indices), np.int64)), counts={}).to(device)
        states = encoder.states_at(batch, layer)
        parts = [pool(states.float(), batch.tensors["cu_seqlens"], pooling)]
        if num_entries:
            parts += _lexical(encoder, states, taken, num_entries)
        return torch.cat(parts, dim=1).cpu().numpy()

    vectors = np.empty((len(rows), encoder.hidden_size + 2 * num_entries), np.float32)
    settings = (layer, pooling, num_entries)
    for indices, of_batch in by_batch(rows, pooled, batch_tokens=batch_tokens, what=what, settings=settings):
        vectors[indices] = of_batch
    encoder.train(training)
    return vectors


def _lexical(encoder: Encoder, states_TD: Tensor, rows: TokenRows, num_entries: int) -> list[Tensor]:
    # Logits and entries, (S, K) each.
    assert encoder.head is not None
    ordinary = np.flatnonzero(~rows.special)
    sizes = np.bincount(rows.row_of_token[ordinary], minlength=rows.num_rows).tolist()
    hidden_PD = states_TD[torch.from_numpy(ordinary).to(states_TD.device)]
    logits, entries = largest_entries(encoder.head, hidden_PD, sizes, num_entries, vocab_size=encoder.vocabulary.size)
    # A text says nothing by the words it has least to do with; two negative weights would make a product above 0.
    return [logits.float().clamp(min=0), entries.float()]
