"""Transformer layers that stand on an encoder while it is pretrained, and are no part of what survives."""

# T packed tokens, N rows of one length, L their length, D width, H heads, E width of a head

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import ACT2FN

from mlmx.models.attention import Runs
from mlmx.models.packing import sorted_by_length

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedConfig


class SortedRows:
    """Packed rows sorted by length: rows of one length are neighbours, and attention needs no padding.

    Attributes:
        sizes: (length, number of rows) of each run of rows of one length.
        places: (T,) int64 where each token of the batch stands among the sorted ones.
    """

    def __init__(self, cu_seqlens: Tensor, num_tokens: int) -> None:
        """Sort the rows that begin at ``cu_seqlens`` (S+1,) and have ``num_tokens`` tokens together."""
        self._order, sorted_cu_seqlens = sorted_by_length(cu_seqlens, num_tokens)
        self.sizes = Runs(sorted_cu_seqlens).sizes
        places = torch.arange(num_tokens, device=cu_seqlens.device)
        self.places = places if self._order is None else torch.empty_like(places).scatter_(0, self._order, places)

    def sort(self, values_T: Tensor) -> Tensor:
        """Return (T, ...) values of the batch's tokens in the order of the sorted rows."""
        return values_T if self._order is None else values_T.index_select(0, self._order)

    def split(self, sorted_T: Tensor) -> list[Tensor]:
        """Return views (N, L, ...) of the values of sorted tokens, one for each run."""
        parts = torch.split(sorted_T, [length * count for length, count in self.sizes])
        return [part.view(count, length, *part.shape[1:]) for part, (length, count) in zip(parts, self.sizes, strict=True)]


class DecoderLayer(nn.Module):
    """A Transformer layer whose queries may come from elsewhere than its keys and values, with a mask of who sees whom.

    Width, heads, feed-forward layer, activation and epsilon are those of an encoder's config. Norms follow the residual sums, as in
    BERT, whatever the encoder does; the residual is that of the queries.
    """

    def __init__(self, config: PreTrainedConfig) -> None:
        """Draw the weights from torch's global generator.

        Args:
            config: the encoder's.
        """
        super().__init__()
        width: int = config.hidden_size
        inner: int = _first_of(config, "intermediate_size", "hidden_dim", default=4 * width)
        epsilon: float = _first_of(config, "layer_norm_eps", "norm_eps", default=1e-12)
        self.num_heads: int = config.num_attention_heads
        self.query, self.key, self.value, self.output = (nn.Linear(width, width) for _ in range(4))
        self.attention_norm = nn.LayerNorm(width, eps=epsilon)
        self.expand, self.contract = nn.Linear(width, inner), nn.Linear(inner, width)
        self.norm = nn.LayerNorm(width, eps=epsilon)
        self.activation = ACT2FN[_first_of(config, "hidden_act", "hidden_activation", "activation", default="gelu")]
        self.dropout = nn.Dropout(_first_of(config, "hidden_dropout_prob", "dropout", default=0.0))
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=_first_of(config, "initializer_range", default=0.02))
                nn.init.zeros_(module.bias)

    def forward(self, queries_TD: Tensor, source_TD: Tensor, rows: SortedRows, visible: Sequence[Tensor]) -> Tensor:
        """Return (T, D), in the order of the sorted rows, as are the arguments.

        Args:
            queries_TD: what asks.
            source_TD: what is seen.
            rows: the sorted rows.
            visible: for each run of rows (N, L, L) bool, whether a token (second index) sees another (third); or (N, 1, L), where
                all see the same. A token that sees nothing gets zeros from attention.
        """
        projected = (self.query(queries_TD), self.key(source_TD), self.value(source_TD))
        heads = (rows.split(x.view(len(x), self.num_heads, -1)) for x in projected)
        attended = [self._attend(*run) for run in zip(*heads, visible, strict=True)]
        hidden = self.attention_norm(queries_TD + self.dropout(self.output(torch.cat(attended))))
        inner = self.contract(self.activation(self.expand(hidden)))
        normed: Tensor = self.norm(hidden + self.dropout(inner))
        return normed

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, visible: Tensor) -> Tensor:
        # (N, L, H, E) each, to (N * L, D).
        query, key, value = (x.transpose(1, 2) for x in (query, key, value))
        # Where nothing is seen, softmax would divide zero by zero: such a token sees all, and what it gets is dropped.
        sees = visible.any(-1, keepdim=True)
        attended = F.scaled_dot_product_attention(
            query, key, value, attn_mask=(visible | ~sees)[:, None], dropout_p=self.dropout.p if self.training else 0.0
        )
        return attended.transpose(1, 2).flatten(2).where(sees, 0).flatten(0, 1)


def _first_of(config: PreTrainedConfig, *names: str, default: Any) -> Any:
    # Every family has its own names.
    return next((getattr(config, name) for name in names if getattr(config, name, None) is not None), default)
