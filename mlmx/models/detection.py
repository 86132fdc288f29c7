"""Telling tokens that were replaced from those that were not."""

# T tokens, D width

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class DetectionHead(nn.Module):
    """One logit per token, (T, D) to (T,): a layer with GELU, and a linear one."""

    def __init__(self, hidden_size: int, *, initializer_range: float) -> None:
        super().__init__()
        self.dense = nn.Linear(hidden_size, hidden_size)
        self.logit = nn.Linear(hidden_size, 1)
        for linear in (self.dense, self.logit):
            nn.init.normal_(linear.weight, std=initializer_range)
            nn.init.zeros_(linear.bias)

    def forward(self, hidden_TD: Tensor) -> Tensor:
        """Return the logits (T,) of being replaced."""
        logits: Tensor = self.logit(F.gelu(self.dense(hidden_TD)))[:, 0]
        return logits


def detection_loss(logits_T: Tensor, replaced_T: Tensor) -> Tensor:
    """Return the sum of the binary cross-entropies in nats, () in float32 or finer.

    Args:
        logits_T: (T,) of being replaced.
        replaced_T: (T,) bool.
    """
    logits_T = logits_T.to(torch.promote_types(logits_T.dtype, torch.float32))
    return F.binary_cross_entropy_with_logits(logits_T, replaced_T.to(logits_T.dtype), reduction="sum")


@torch.no_grad()
def detection_metrics(logits_T: Tensor, replaced_T: Tensor) -> Mapping[str, tuple[Tensor, Tensor]]:
    """Return (part, whole) of what is known of a detector.

    ``detection_accuracy`` is that of all tokens: to call every one an original gets ``1 - replaced_ratio``. ``detection_f1`` is
    that of the replaced ones, at a probability of 0.5. ``detection_auc`` is the part of the pairs of a replaced token and an
    original one, of the same micro-batch, of which the replaced one has the higher logit, ties counting half. ``replaced_ratio``
    is the part of all tokens that was replaced.

    Args:
        logits_T: (T,) of being replaced.
        replaced_T: (T,) bool.
    """
    said = logits_T > 0  # a probability above 0.5
    num_tokens = replaced_T.new_full((), len(replaced_T), dtype=torch.int64)
    num_replaced, num_said, num_hits = replaced_T.sum(), said.sum(), (said & replaced_T).sum()
    ranked = logits_T.sort().values
    # Where a token stands among all, from 1; tokens of the same logit stand in the middle of them.
    ranks = (torch.searchsorted(ranked, logits_T) + torch.searchsorted(ranked, logits_T, right=True) + 1).double() / 2
    num_in_order = (ranks * replaced_T).sum() - (num_replaced * (num_replaced + 1)).double() / 2
    return {
        "detection_accuracy": ((said == replaced_T).sum(), num_tokens),
        "detection_f1": (2 * num_hits, num_said + num_replaced),
        "detection_auc": (num_in_order, num_replaced * (num_tokens - num_replaced)),
        "replaced_ratio": (num_replaced, num_tokens),
    }
