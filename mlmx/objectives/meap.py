"""Mask-enhanced autoregressive prediction."""

# S rows, T tokens of all rows, P masked tokens

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from mlmx.build import Positive
from mlmx.data.batch import Batch, BatchContext
from mlmx.data.rows import CorpusInfo, TokenRows
from mlmx.keyed import fold, stream
from mlmx.masking.select import random_units
from mlmx.masking.units import Draws, Units
from mlmx.models.encoder import Encoder
from mlmx.objectives.clm import CausalLanguageModeling, NextTokenCollator
from mlmx.objectives.masked import ratio_metric, told_ratio
from mlmx.objectives.objective import Output
from mlmx.schedules import Schedule, ScheduledRatio, ratio_at


@dataclass(frozen=True, kw_only=True)
class MaskedNextTokenCollator(NextTokenCollator):
    """Masks some tokens of what the encoder reads in training; what it predicts stays.

    Attributes:
        ratio: part of a row's tokens that is masked; where it is a schedule, the batch also holds ``mask_ratio`` ().
        mask_id: the mask token.
        num_shared_masks: how many masks there are, of which all rows of a step have the same; None: each row has its own.
        token_weights: (V,) see :class:`mlmx.masking.select.FrequencyWeighted`; None: all tokens are equally likely.
    """

    ratio: float | Schedule
    mask_id: int
    num_shared_masks: int | None
    token_weights: NDArray[np.float64] | None = None

    def __call__(self, rows: TokenRows, context: BatchContext) -> Batch:
        batch = super().__call__(rows, context)
        told = {} if context.held_out else told_ratio(self.ratio, context)
        return replace(batch, tensors={**batch.tensors, **{name: torch.from_numpy(array) for name, array in told.items()}})

    def given(self, rows: TokenRows, context: BatchContext) -> NDArray[np.int64]:
        if context.held_out:
            return rows.input_ids
        masked = rows.input_ids.copy()
        masked[self._places(rows, context)] = self.mask_id
        return masked

    def _places(self, rows: TokenRows, context: BatchContext) -> NDArray[np.int64]:
        tokens = Units.tokens(rows)
        # The last token predicts nothing, so that its mask would teach nothing.
        before_last = tokens.first + 1 < rows.cu_seqlens[tokens.row + 1]
        tokens = Units(*(part[before_last] for part in (tokens.first, tokens.size, tokens.row, tokens.index)))
        ratio = ratio_at(self.ratio, context.progress)
        num = np.maximum(np.floor(ratio * rows.lengths), ratio > 0).astype(np.int64)
        keys = context.keys
        if self.num_shared_masks is not None:
            keys = np.full_like(keys, fold(np.array([stream("shared mask")]), context.step % self.num_shared_masks)[0])
        draws = Draws(keys).weighted_by(self.token_weights, rows.input_ids)
        return tokens.first[random_units(tokens, draws.order(tokens), num)]


class MaskEnhancedAutoregression(CausalLanguageModeling):
    """Predicts each token from those before it, of which some are masked (MEAP).

    Held-out rows are read without masks, as a model is used. Metrics are ``accuracy`` and, of a part to mask that follows a
    schedule, ``mask_ratio``.

    Source:
        Zhuang et al. 2025, Mask-Enhanced Autoregressive Prediction: Pay Less Attention to Learn More, ICML, arXiv:2502.07490,
        section 3; scitix/MEAP, ``MEAP-Pretrain/pretrained/meap_1b.py``.

    Terms:
        ``clm``: sum over all tokens i but the first of each row of -log p(x_i | those before it, some of them masked), nats; the
        count is their number. After a mask, what is predicted is the next token, not the masked one.

    Shapes:
        As ``clm``.

    Deviations:
        Each row has its own masks, new ones in each epoch. The released code gives all rows of a step the same, and has only 51
        of them in turn: ``shared_mask_cycle: 51``, which ranks rows of several lengths by the same draws. Special tokens are never
        masked; the last token is not either, as in the released code.

    Raises:
        UserError: if the tokenizer has no mask token, or the encoder runs on padded rows and ignores causal attention.
    """

    caption = (
        "Marked are the tokens to predict: all but the first of a row, each from what the encoder reads before it. A mask hides a "
        "token from those after it; what the encoder predicts at a mask is the next token."
    )

    def __init__(
        self, encoder: Encoder, corpus: CorpusInfo, *, input_mask_ratio: ScheduledRatio, shared_mask_cycle: Positive | None
    ) -> None:
        """Choose how much is masked.

        Args:
            encoder: what is trained.
            corpus: what it is trained on.
            input_mask_ratio: part of a row's tokens that is masked, in [0, 1]: ``max(1, floor(input_mask_ratio * tokens))`` of
                them; 0 is ``clm``.
            shared_mask_cycle: how many masks there are, of which all rows of a step have the same; null: each row has its own.
        """
        super().__init__(encoder, corpus)
        mask_id = encoder.vocabulary.required_mask_id()
        self._collator = MaskedNextTokenCollator(ratio=input_mask_ratio, mask_id=mask_id, num_shared_masks=shared_mask_cycle)

    def forward(self, batch: Batch) -> Output:
        output = super().forward(batch)
        return replace(output, metrics={**output.metrics, **ratio_metric(batch)})
