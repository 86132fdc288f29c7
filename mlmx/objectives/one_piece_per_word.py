"""Masked language modelling of one piece per word: what LEM has to beat."""

from __future__ import annotations

from typing import Literal

from mlmx.data.rows import CorpusInfo
from mlmx.masking.corrupt import Corruption
from mlmx.masking.select import OnePiecePerWord
from mlmx.models.encoder import Encoder
from mlmx.objectives.masked import MaskedObjective, masked_collator, resolve_view
from mlmx.schedules import PredictedRatio


class OnePiecePerWordMasking(MaskedObjective):
    """Predicts one piece of each selected word, the words drawn without regard to what they are.

    The control for linguistic entity masking: LEM with no entity types is not MLM but this, so that a comparison of LEM with MLM
    alone cannot tell *which words* from *how many pieces of a word*.

    Source:
        Own; the released LEM script with all type ratios 0 (aloka-fernando/Linguistic-Entity-Masking-LEM, 7b3cda3^).

    Terms:
        ``mlm``: sum over the selected tokens i of -log p(x_i | corrupted row), nats; the count is their number.

    Shapes:
        ``selected`` (P,), ``targets`` (P,): positions among the batch's packed tokens, and the ids that stood there.

    Deviations:
        none.

    Raises:
        UserError: if the tokenizer has no mask token, or ``view`` asks for pairs of a corpus that has none.
    """

    def __init__(
        self,
        encoder: Encoder,
        corpus: CorpusInfo,
        *,
        mask_ratio: PredictedRatio,
        count_specials: bool,
        corruption: Corruption,
        view: Literal["segment", "pair", "corpus"],
        position_reset: bool,
    ) -> None:
        """Choose how words are selected and corrupted.

        Args:
            encoder: what is trained.
            corpus: what it is trained on.
            mask_ratio: ``max(1, round(mask_ratio * length))`` words are selected per row, or all if there are fewer.
            count_specials: whether that length counts special tokens; as in LEM, to which this is the control.
            corruption: parts of the selected tokens that are masked, replaced and kept; they sum to 1.
            view: a row is a ``segment``, a ``pair``, or what the ``corpus`` has: pairs where it is parallel.
            position_reset: whether positions start at 0 again with the second side of a pair; rows with one side are as they are.
        """
        policy = OnePiecePerWord(mask_ratio, count_specials)
        collator = masked_collator(encoder, policy, corruption, view=resolve_view(view, corpus), position_reset=position_reset)
        super().__init__(encoder, collator)
