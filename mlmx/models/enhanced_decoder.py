"""The enhanced decoding of RetroMAE: each position rebuilds its token from the text's vector and a context of its own."""

# S rows, T tokens of all rows, N rows of one length, L their length, C contexts of a row, D width

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from mlmx.data.batch import Batch
from mlmx.data.positions import position_offset
from mlmx.keyed import begin_fold, end_fold, fold, integers, stream, uniform
from mlmx.models.decoder import DecoderLayer, SortedRows
from mlmx.models.encoder import Encoder
from mlmx.models.flops import attention_flops, linear_flops, num_linear_weights

Parity = Literal["paper", "released_code"]

_MAX_CONTEXTS = 256
"""Different contexts that the released code draws for a row, however long it is."""


class EnhancedDecoder(nn.Module):
    """One layer whose queries are a text's vector plus a position, and whose keys and values are the vector and the other tokens.

    The vector stands in the place of the first token, and all positions see it. No position sees its own token.
    """

    def __init__(self, encoder: Encoder, mask_ratio: float, parity: Parity) -> None:
        """Share the encoder's table of positions; draw the weights of the layer from torch's global generator.

        Args:
            encoder: whose width, heads and positions the decoder has. Where it has no table of positions, the decoder has its own,
                and adds it to keys and values too.
            mask_ratio: part of the ordinary tokens that a position does not see.
            parity: how contexts are drawn, see ``contexts``.
        """
        super().__init__()
        config = encoder.base.config
        table = _position_table(encoder)
        self.has_own_positions = table is None
        if table is None:
            table = nn.Embedding(encoder.max_length, encoder.hidden_size)
            nn.init.normal_(table.weight, std=getattr(config, "initializer_range", 0.02))
        self.positions = table
        self.layer = DecoderLayer(config)
        self.mask_ratio = mask_ratio
        self.parity: Parity = parity
        self._position_offset = 0 if self.has_own_positions else position_offset(encoder.base)

    def forward(self, hidden_TD: Tensor, embeddings_TD: Tensor, batch: Batch) -> Tensor:
        """Return what rebuilds the token at each position, (T, D); that of the first token of a row means nothing.

        Args:
            hidden_TD: the encoder's vectors; only those of first tokens are used.
            embeddings_TD: of the tokens as they were, as the encoder's first layer gets them.
            batch: with ``words`` (T,), the word of each token within its row, -1 for special ones.
        """
        cu_seqlens = batch.tensors["cu_seqlens"].long()
        vectors_SD = hidden_TD[cu_seqlens[:-1]]
        positions_TD = self.positions(batch.tensors["position_ids"] + self._position_offset)
        source_TD = embeddings_TD + positions_TD if self.has_own_positions else embeddings_TD
        source_TD = source_TD.index_copy(0, cu_seqlens[:-1], vectors_SD.to(source_TD.dtype))
        of_rows_TD = vectors_SD.repeat_interleave(cu_seqlens.diff(), dim=0, output_size=batch.num_tokens)
        rows = SortedRows(cu_seqlens, batch.num_tokens)
        rebuilt_TD: Tensor = self.layer(
            rows.sort(self.queries(of_rows_TD, positions_TD)), rows.sort(source_TD), rows, self._visible(batch, rows)
        )
        return rebuilt_TD.index_select(0, rows.places)

    def queries(self, vectors_TD: Tensor, positions_TD: Tensor) -> Tensor:
        """Return the queries (T, D) of texts' vectors and positions."""
        return vectors_TD + positions_TD

    def flops(self, batch: Batch) -> int:
        """Return the FLOPs of a forward and a backward pass, see ``mlmx.models.flops``."""
        lengths = np.diff(batch.tensors["cu_seqlens"].numpy()).astype(np.int64)
        weights = num_linear_weights(self.layer)
        return linear_flops(weights, batch.num_tokens) + attention_flops(self.positions.embedding_dim, lengths, [None])

    @torch.no_grad()
    def _visible(self, batch: Batch, rows: SortedRows) -> list[Tensor]:
        # (N, L, L) for each run of rows of one length.
        lengths = batch.tensors["cu_seqlens"].diff().long()
        keys_T = batch.keys.repeat_interleave(lengths, output_size=batch.num_tokens)
        of_runs = zip(rows.split(rows.sort(keys_T)), rows.split(rows.sort(batch.tensors["words"])), strict=True)
        return [contexts(keys_NL[:, 0], words_NL, self.mask_ratio, self.parity) for keys_NL, words_NL in of_runs]


class NormedQueriesDecoder(EnhancedDecoder):
    """An enhanced decoder whose queries go through a norm and dropout, as embeddings do."""

    def __init__(self, encoder: Encoder, mask_ratio: float, parity: Parity) -> None:
        super().__init__(encoder, mask_ratio, parity)
        self.query_norm = nn.LayerNorm(encoder.hidden_size, eps=self.layer.norm.eps)

    def queries(self, vectors_TD: Tensor, positions_TD: Tensor) -> Tensor:
        normed: Tensor = self.layer.dropout(self.query_norm(super().queries(vectors_TD, positions_TD)))
        return normed


def contexts(keys_N: Tensor, words_NL: Tensor, mask_ratio: float, parity: Parity) -> Tensor:
    """Return which tokens each position of some rows sees: (N, L, L) bool, position by token.

    It never sees its own token, and always sees the first place of the row, and special tokens.

    Args:
        keys_N: int64 key of each row, which decides.
        words_NL: int64 word of each token within its row, -1 for special ones.
        mask_ratio: part of the ordinary tokens that is hidden, in [0, 1].
        parity: ``paper``: each position has a context of its own, in which each token is hidden by itself; ``released_code``: a row
            has ``min(L, 256)`` contexts, of which each position takes one at random; in a context whole words are hidden, in random
            order until the part is reached.
    """
    places_L = torch.arange(words_NL.shape[1], device=words_NL.device)
    special_NL = words_NL < 0
    keys_N = fold(keys_N, stream("context"))
    if parity == "paper":
        hidden_NLL = uniform(_pairs(keys_N, places_L[None], places_L[None])) < mask_ratio
    else:
        contexts_NCL = _hidden_words(keys_N, words_NL, mask_ratio, min(len(places_L), _MAX_CONTEXTS))
        keys_NL = end_fold(begin_fold(fold(keys_N, stream("choice")))[:, None], places_L[None])
        chosen_NL = integers(keys_NL, contexts_NCL.shape[1])
        hidden_NLL = contexts_NCL.gather(1, chosen_NL[:, :, None].expand(-1, -1, len(places_L)))
    visible_NLL = ~hidden_NLL | special_NL[:, None] | (places_L == 0)
    visible_NLL &= places_L[:, None] != places_L
    visible_NLL[:, 0, 0] = True
    return visible_NLL


def _hidden_words(keys_N: Tensor, words_NL: Tensor, mask_ratio: float, num_contexts: int) -> Tensor:
    # (N, C, L): in each context words are hidden in the order of draws, which all tokens of a word share, until the budget is met.
    # The word that reaches past it is hidden with the probability that makes the part right on average.
    numbers_NC = torch.arange(num_contexts, device=words_NL.device)[None]
    special_NL = words_NL < 0
    draws_NCL = uniform(_pairs(keys_N, numbers_NC, words_NL)).masked_fill(special_NL[:, None], 1.0)
    sorted_NCL = draws_NCL.sort(-1).values
    before_NCL, through_NCL = (torch.searchsorted(sorted_NCL, draws_NCL, right=right) for right in (False, True))
    last_NCL = uniform(_pairs(fold(keys_N, stream("last")), numbers_NC, words_NL))
    budget_N = (~special_NL).sum(1) * mask_ratio
    return before_NCL + last_NCL * (through_NCL - before_NCL) < budget_N[:, None, None]


def _pairs(keys_N: Tensor, first_NI: Tensor, second_NJ: Tensor) -> Tensor:
    # (N, I, J): one key each for pairs of two numbers.
    firsts_NI = end_fold(begin_fold(keys_N)[:, None], first_NI)
    return end_fold(begin_fold(firsts_NI)[:, :, None], second_NJ[:, None])


def _position_table(encoder: Encoder) -> nn.Embedding | None:
    # As wide as the layers: that of some families is narrower, and projected with the words.
    for name, module in encoder.base.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            return module if module.embedding_dim == encoder.hidden_size else None
    return None
