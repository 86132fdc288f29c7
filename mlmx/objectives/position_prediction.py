"""Position prediction: where does each token stand, if nobody says?"""

# S rows, T tokens of all rows, P predictions, D width, C classes

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from mlmx.data.batch import Batch, BatchContext, Collator, packed_batch
from mlmx.data.rows import CorpusInfo, TokenRows
from mlmx.errors import user_error
from mlmx.masking.select import ExactTokens, Policy
from mlmx.masking.units import Draws
from mlmx.models import probe
from mlmx.models.encoder import Encoder
from mlmx.models.flops import linear_flops
from mlmx.objectives.masked import ratio_metric, select
from mlmx.objectives.objective import Objective, Output
from mlmx.schedules import ScheduledRatio


@dataclass(frozen=True, kw_only=True)
class PositionCollator(Collator):
    """Says of no token where it stands, and hides some.

    Adds to the batch ``visible`` (T,) bool, which tokens can be seen; ``selected`` (P,) int64, the ordinary tokens, and ``targets``
    (P,) int64, their places in their rows; ``first_of_kind`` (P,) bool, whether no token of its id stands before it in its row; and
    ``lengths`` (P,) int64 of their rows.

    Attributes:
        policy: selects the tokens that cannot be seen.
    """

    policy: Policy

    def __call__(self, rows: TokenRows, context: BatchContext) -> Batch:
        visible = np.ones(len(rows.input_ids), bool)
        hidden, told = select(self.policy, rows, Draws(context.keys), context)
        visible[hidden.positions] = False
        selected = (~rows.special).nonzero()[0]
        row = rows.row_of_token[selected]
        return packed_batch(
            rows,
            context,
            counts={"position": len(selected)},
            position_ids=np.zeros_like(rows.input_ids),
            visible=visible,
            selected=selected,
            targets=rows.places[selected],
            first_of_kind=_first_of_kind(row, rows.input_ids[selected]),
            lengths=rows.lengths[row].astype(np.int64),
            **told,
        )


class PositionPrediction(Objective):
    """Predicts the place of each token in its row from the tokens alone, of which only some can be seen (MP3).

    Metrics are ``accuracy``; ``accuracy_ceiling``, the most that is possible, since tokens of one id in one row look all the same
    and at most one of them is put right; and ``accuracy_chance``, what guessing gives.

    Source:
        Zhai et al. 2022, Position Prediction as an Effective Pretraining Strategy (MP3), arXiv:2207.07611, section 3: of images and
        speech, not of text; no released code was found.

    Terms:
        ``position``: sum over the ordinary tokens i of -log p(place of i | the visible tokens and i itself), nats, among the places
        of the row; the count is their number.

    Shapes:
        ``visible`` (T,): the keys of every layer. ``selected``, ``targets``, ``first_of_kind``, ``lengths`` (P,): positions among
        the batch's packed tokens, their places in their rows, whether they are the first of their id there, and tokens of the row.

    Deviations:
        Tokens have no position embeddings of their own: all have that of the first position, a constant. The others stay as they
        were, and are used again in tasks. Special tokens can always be seen and are not predicted, since their places are always
        the same. The part that is hidden is our choice.

    Raises:
        UserError: if the encoder tells positions by other means (local windows, distances), or the tokenizer has no special tokens
            for a token to see where all others are hidden.
    """

    caption = "Marked are the tokens whose places are predicted, all but special ones; those in brackets no other token sees."

    def __init__(self, encoder: Encoder, corpus: CorpusInfo, *, hidden_ratio: ScheduledRatio) -> None:
        """Choose how much is hidden.

        Args:
            encoder: what is trained; its language-model head is dropped.
            corpus: what it is trained on.
            hidden_ratio: part of a row's ordinary tokens that no other token can see, in [0, 1].
        """
        super().__init__()
        encoder.drop_head()
        encoder.require("bidirectional", keys=True)
        if encoder.base.device.type != "meta" and probe.knows_order(encoder):
            kind = encoder.base.config.model_type
            raise user_error("model", f"{kind!r} tells positions by other means than position ids, and only these are taken away.")
        if not encoder.vocabulary.single.num_special:
            raise user_error("model", "its tokenizer puts no special tokens around a text, which are what is seen of a hidden one.")
        self.encoder = encoder
        self.weights = {"position": 1.0}
        self.head = nn.Linear(encoder.hidden_size, encoder.max_length)
        nn.init.normal_(self.head.weight, std=encoder.initializer_range)
        nn.init.zeros_(self.head.bias)
        self._collator = PositionCollator(policy=ExactTokens(hidden_ratio))

    def collator(self) -> PositionCollator:
        return self._collator

    def forward(self, batch: Batch) -> Output:
        tensors = batch.tensors
        hidden_TD = self.encoder(batch, direction="bidirectional", keys=tensors["visible"])
        logits_PC = self._logits(hidden_TD[tensors["selected"]], tensors["lengths"], batch.max_seqlen)
        targets = tensors["targets"]
        loss = F.cross_entropy(logits_PC, targets, reduction="sum")
        count = targets.new_full((), len(targets))
        metrics: dict[str, tuple[Tensor, Tensor]] = {
            "accuracy": ((logits_PC.argmax(dim=1) == targets).sum(), count),
            "accuracy_ceiling": (tensors["first_of_kind"].sum(), count),
            "accuracy_chance": ((1 / tensors["lengths"]).sum(), count),
            **ratio_metric(batch),
        }
        return Output({"position": loss}, metrics)

    def _logits(self, hidden_PD: Tensor, lengths_P: Tensor, longest: int) -> Tensor:
        # Of the places of the longest row, those beyond the token's own row impossible.
        head = self.head
        logits_PC = F.linear(hidden_PD, head.weight[:longest], head.bias[:longest])
        beyond = torch.arange(longest, device=logits_PC.device) >= lengths_P[:, None]
        return logits_PC.to(torch.promote_types(logits_PC.dtype, torch.float32)).masked_fill(beyond, -torch.inf)

    def flops(self, batch: Batch) -> int:
        encoder = self.encoder.flops(batch, keys=batch.tensors["visible"])
        head = linear_flops(self.encoder.hidden_size * batch.max_seqlen, batch.counts["position"])
        return encoder + head if encoder else 0


def _first_of_kind(row: NDArray[np.int64], ids: NDArray[np.int64]) -> NDArray[np.bool_]:
    first = np.zeros(len(ids), bool)
    first[np.unique(np.stack([row, ids]), axis=1, return_index=True)[1]] = True
    return first
