"""Masked language modelling of whole words."""

from __future__ import annotations

from typing import Literal

from mlmx.data.rows import CorpusInfo
from mlmx.masking.corrupt import Corruption
from mlmx.masking.select import WholeWords
from mlmx.models.encoder import Encoder
from mlmx.objectives.masked import MaskedObjective, masked_collator
from mlmx.schedules import PredictedRatio


class WholeWordMasking(MaskedObjective):
    """Predicts words of which no piece can be seen (WWM).

    Words are those of the tokenizer, whatever mark it gives them (``##``, ``▁``, ``Ġ``).

    Source:
        The whole-word checkpoints of google-research/bert (README of 31 May 2019; ``create_pretraining_data.py``, option
        ``do_whole_word_mask``).

    Terms:
        ``mlm``: sum over the tokens i of the selected words of -log p(x_i | corrupted row), nats; the count is their number.

    Shapes:
        ``selected`` (P,), ``targets`` (P,): positions among the batch's packed tokens, and the ids that stood there.

    Deviations:
        Whether a word is masked, replaced or kept is drawn once per word (the reference draws it per piece, so that kept
        pieces give their word away). The word that reaches past the budget is taken (``last_word: overshoot``) or taken as
        often as makes the expected number equal to the budget (``fair``); the reference skips it, which favours short words.

    Raises:
        UserError: if the tokenizer has no mask token.
    """

    def __init__(
        self,
        encoder: Encoder,
        corpus: CorpusInfo,
        *,
        mask_ratio: PredictedRatio,
        count_specials: bool,
        last_word: Literal["overshoot", "fair"],
        corruption: Corruption,
    ) -> None:
        """Choose how words are selected and corrupted.

        Args:
            encoder: what is trained.
            corpus: what it is trained on.
            mask_ratio: the budget is ``max(1, round(mask_ratio * length))`` tokens per row.
            count_specials: whether that length counts special tokens.
            last_word: what becomes of the word that reaches past the budget.
            corruption: parts of the selected words that are masked, replaced and kept; they sum to 1.
        """
        policy = WholeWords(mask_ratio, count_specials, last_word)
        super().__init__(encoder, masked_collator(encoder, policy, corruption))
