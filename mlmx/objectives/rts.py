"""Random token substitution: which tokens were replaced by random ones?"""

# T tokens of all rows, P selected tokens

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mlmx.data.batch import Batch, BatchContext, Collator, packed_batch
from mlmx.data.rows import CorpusInfo, TokenRows
from mlmx.data.vocabulary import Separator
from mlmx.masking.corrupt import Corruption, corrupt
from mlmx.masking.select import BernoulliTokens
from mlmx.masking.units import Draws
from mlmx.models.detection import DetectionHead, detection_loss, detection_metrics
from mlmx.models.encoder import Encoder
from mlmx.models.flops import linear_flops, num_linear_weights
from mlmx.objectives.masked import ratio_metric, select
from mlmx.objectives.objective import Objective, Output
from mlmx.schedules import ScheduledRatio

_ALWAYS_RANDOM = Corruption(mask=0.0, random=1.0, keep=0.0)
_NO_MASK = -1


@dataclass(frozen=True, kw_only=True)
class SubstitutionCollator(Collator):
    """Replaces tokens at random places by random ones.

    Adds to the batch ``replaced`` (T,) bool, whether a token is another one than before, and ``chosen`` (T,) bool, whether one was
    drawn for it.

    Attributes:
        policy: selects the tokens.
        ordinary_ids: what random tokens are drawn from.
        view: what a row is.
        separator: how the sides of a pair are joined.
    """

    policy: BernoulliTokens
    ordinary_ids: NDArray[np.int64]
    view: Literal["segment", "pair"] = "segment"
    separator: Separator = "template"

    def __call__(self, rows: TokenRows, context: BatchContext) -> Batch:
        draws = Draws(context.keys)
        selection, scheduled = select(self.policy, rows, draws, context)
        input_ids = corrupt(
            rows.input_ids, selection, draws, corruption=_ALWAYS_RANDOM, mask_id=_NO_MASK, ordinary_ids=self.ordinary_ids
        )
        chosen = np.zeros(len(input_ids), bool)
        chosen[selection.positions] = True
        arrays = {"replaced": input_ids != rows.input_ids, "chosen": chosen, **scheduled}
        return packed_batch(rows, context, counts={"detection": len(input_ids)}, input_ids=input_ids, **arrays)


class RandomTokenSubstitution(Objective):
    """Tells for every token whether it was replaced by a random one (RTS): no generator, no vocabulary.

    Metrics are those of ``mlmx.models.detection.detection_metrics``.

    Source:
        Di Liello et al. 2022, Effective Pretraining Objectives for Transformer-based Autoencoders, arXiv:2210.13536, section 3;
        Di Liello 2023, arXiv:2309.08272.

    Terms:
        ``detection``: sum over all tokens of the binary cross-entropy of "was replaced", nats; the count is the number of tokens,
        special ones included, which never are.

    Shapes:
        ``replaced``, ``chosen`` (T,): whether the token at each position is another one than before, and whether one was drawn.

    Deviations:
        One logit and the sigmoid in place of two and the softmax, which is the same function. ``parity: released_code`` calls a
        token replaced for which the token that stood there was drawn; with ``parity: paper`` it is none. Random tokens are never
        special.
    """

    caption = "Marked are the tokens that were replaced; for every token, special ones too, the encoder tells whether it was."

    def __init__(
        self, encoder: Encoder, corpus: CorpusInfo, *, replace_ratio: ScheduledRatio, parity: Literal["paper", "released_code"]
    ) -> None:
        """Choose how many tokens are replaced.

        Args:
            encoder: what is trained; its language-model head is dropped.
            corpus: what it is trained on.
            replace_ratio: probability of each ordinary token to be replaced, in [0, 1].
            parity: what a token is called for which itself was drawn, see *Deviations*.
        """
        super().__init__()
        encoder.drop_head()
        self.encoder = encoder
        self.weights = {"detection": 1.0}
        self.labels = "replaced" if parity == "paper" else "chosen"
        self.head = DetectionHead(encoder.hidden_size, initializer_range=encoder.initializer_range)
        self._collator = SubstitutionCollator(policy=BernoulliTokens(replace_ratio), ordinary_ids=encoder.vocabulary.ordinary_ids)

    def collator(self) -> SubstitutionCollator:
        return self._collator

    def forward(self, batch: Batch) -> Output:
        logits_T = self.head(self.encoder(batch))
        replaced_T = batch.tensors[self.labels]
        metrics = {**detection_metrics(logits_T, replaced_T), **ratio_metric(batch)}
        return Output({"detection": detection_loss(logits_T, replaced_T)}, metrics)

    def flops(self, batch: Batch) -> int:
        encoder = self.encoder.flops(batch)
        return encoder + linear_flops(num_linear_weights(self.head), batch.num_tokens) if encoder else 0
