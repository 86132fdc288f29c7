"""Masked language modelling."""

from __future__ import annotations

from typing import Literal

from mlmx.data.rows import CorpusInfo
from mlmx.masking.corrupt import Corruption
from mlmx.masking.select import BernoulliTokens, ExactTokens
from mlmx.models.encoder import Encoder
from mlmx.objectives.masked import MaskedObjective, masked_collator
from mlmx.schedules import PredictedRatio


class MaskedLanguageModeling(MaskedObjective):
    """Predicts tokens at random places from those around them (MLM).

    Source:
        Devlin et al. 2019, BERT, arXiv:1810.04805, section 3.1, with masks drawn anew in each epoch as in Liu et al. 2019, RoBERTa,
        arXiv:1907.11692. Where every selected token is replaced by a random one, swapped language modelling (SLM): Di Liello et al.
        2022, Effective Pretraining Objectives for Transformer-based Autoencoders, arXiv:2210.13536.

    Terms:
        ``mlm``: sum over the selected tokens i of -log p(x_i | corrupted row), nats; the count is the number of selected tokens.

    Shapes:
        ``selected`` (P,), ``targets`` (P,): positions among the batch's packed tokens, and the ids that stood there.

    Deviations:
        Random tokens are uniform over the ids that are not special (BERT's code draws over the whole vocabulary); the token that
        stood there may be drawn itself, and is predicted like the others. Rows are single segments, without next-sentence
        prediction.

    Raises:
        UserError: if ``corruption.mask`` is above 0 and the tokenizer has no mask token.
    """

    def __init__(
        self,
        encoder: Encoder,
        corpus: CorpusInfo,
        *,
        mask_ratio: PredictedRatio,
        selection: Literal["bernoulli", "exact"],
        corruption: Corruption,
    ) -> None:
        """Choose how tokens are selected and corrupted.

        Args:
            encoder: what is trained.
            corpus: what it is trained on.
            mask_ratio: part of the ordinary tokens that is selected, in [0, 1].
            selection: ``bernoulli``: each token by itself; ``exact``: ``max(1, round(mask_ratio * ordinary tokens))`` per row.
            corruption: parts of the selected tokens that are masked, replaced and kept; they sum to 1.
        """
        policy = BernoulliTokens(mask_ratio) if selection == "bernoulli" else ExactTokens(mask_ratio)
        super().__init__(encoder, masked_collator(encoder, policy, corruption))
