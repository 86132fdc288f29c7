"""Translation language modelling."""

from __future__ import annotations

from typing import Literal

from mlmx.data.rows import CorpusInfo
from mlmx.masking.corrupt import Corruption
from mlmx.masking.select import BernoulliTokens, ExactTokens
from mlmx.models.encoder import Encoder
from mlmx.objectives.masked import MaskedObjective, masked_collator, require_pairs
from mlmx.schedules import PredictedRatio


class TranslationLanguageModeling(MaskedObjective):
    """Masked language modelling over a sentence and its translation in one row (TLM).

    A token can be predicted from its own side and from the other one, which pulls the two languages together.

    Source:
        Lample and Conneau 2019, XLM, arXiv:1901.07291, section 3.3; ``xlm/trainer.py`` (``generate_batch``, ``mask_out``) of
        facebookresearch/XLM.

    Terms:
        ``mlm``: sum over the selected tokens of both sides of -log p(x_i | corrupted pair), nats; the count is their number.

    Shapes:
        ``selected`` (P,), ``targets`` (P,): positions among the batch's packed tokens, and the ids that stood there.

    Deviations:
        No language embeddings, which encoders such as XLM-R do not have. XLM starts positions anew with the second side and
        gives each side specials of its own: ``position_reset: true`` and ``separator: own``. XLM can select the specials
        inside a pair, here none is selected. Frequent words are not down-weighted.

    Raises:
        UserError: if the corpus is not parallel, or the tokenizer has no mask token.
    """

    def __init__(
        self,
        encoder: Encoder,
        corpus: CorpusInfo,
        *,
        mask_ratio: PredictedRatio,
        selection: Literal["bernoulli", "exact"],
        corruption: Corruption,
        position_reset: bool,
        separator: Literal["template", "own"],
    ) -> None:
        """Choose how pairs are joined, and how tokens are selected and corrupted.

        Args:
            encoder: what is trained.
            corpus: what it is trained on; parallel.
            mask_ratio: part of the ordinary tokens that is selected, in [0, 1].
            selection: ``bernoulli``: each token by itself; ``exact``: ``max(1, round(mask_ratio * ordinary tokens))`` per pair.
            corruption: parts of the selected tokens that are masked, replaced and kept; they sum to 1.
            position_reset: whether positions start at 0 again with the second side.
            separator: ``template``: the sides are joined as the tokenizer joins pairs; ``own``: each side has its own specials.
        """
        require_pairs(corpus)
        policy = BernoulliTokens(mask_ratio) if selection == "bernoulli" else ExactTokens(mask_ratio)
        collator = masked_collator(encoder, policy, corruption, view="pair", separator=separator, position_reset=position_reset)
        super().__init__(encoder, collator)
