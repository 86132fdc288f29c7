"""Causal language modelling, and what objectives that predict the next token share."""

# S rows, T tokens of all rows, P predictions, D width, V vocabulary

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mlmx.data.batch import Batch, BatchContext, Collator, packed_batch
from mlmx.data.rows import CorpusInfo, TokenRows
from mlmx.models.cross_entropy import cross_entropy
from mlmx.models.encoder import Encoder
from mlmx.models.flops import linear_flops
from mlmx.objectives.objective import Objective, Output


class NextTokenCollator(Collator):
    """Adds to the batch ``selected`` (P,) int64, all tokens but the first of each row, and ``targets`` (P,), what they are."""

    def __call__(self, rows: TokenRows, context: BatchContext) -> Batch:
        selected = rows.places.nonzero()[0]
        input_ids, counts = self.given(rows, context), {"clm": len(selected)}
        return packed_batch(rows, context, counts=counts, input_ids=input_ids, selected=selected, targets=rows.input_ids[selected])

    def given(self, rows: TokenRows, context: BatchContext) -> NDArray[np.int64]:
        """Return (T,) what the encoder reads; here the rows as they are."""
        return rows.input_ids


class CausalLanguageModeling(Objective):
    """Predicts each token from those before it (CLM), whatever the encoder's own direction is.

    Which way tokens see in tasks and in the exported folder is the encoder's own direction, ``model.attention``. The metric is
    ``accuracy``.

    Source:
        Radford et al. 2018, Improving Language Understanding by Generative Pre-Training, equation 1; as a first phase before masked
        language modelling, Gisserot-Boukhlef et al. 2025, Should We Still Pretrain Encoders with Masked Language Modeling?,
        arXiv:2507.00994.

    Terms:
        ``clm``: sum over all tokens i but the first of each row of -log p(x_i | those before it), nats; the count is their number,
        special tokens included.

    Shapes:
        ``selected`` (P,), ``targets`` (P,): positions among the batch's packed tokens, and the ids that stand there. What predicts
        one is the vector of the token before it.

    Deviations:
        A row is a segment with the tokenizer's special tokens around it, not a window of a stream. An encoder that has a
        masked-language-model head predicts with it, so that both objectives train the same weights.

    Raises:
        UserError: if the encoder runs on padded rows and ignores causal attention.
    """

    caption = "Marked are the tokens to predict: all but the first of a row, each from those before it."

    def __init__(self, encoder: Encoder, corpus: CorpusInfo) -> None:
        """Keep the encoder.

        Args:
            encoder: what is trained.
            corpus: what it is trained on.
        """
        super().__init__()
        encoder.require("causal")
        encoder.add_head()
        self.encoder = encoder
        self.weights = {"clm": 1.0}
        self._collator = NextTokenCollator()

    def collator(self) -> Collator:
        return self._collator

    def forward(self, batch: Batch) -> Output:
        assert self.encoder.head is not None
        hidden_PD = self.encoder(batch, direction="causal")[batch.tensors["selected"] - 1]
        targets = batch.tensors["targets"]
        loss, num_right = cross_entropy(self.encoder.head, hidden_PD, targets, vocab_size=self.encoder.vocabulary.size)
        return next_token_output(loss, num_right, targets)

    def flops(self, batch: Batch) -> int:
        encoder = self.encoder.flops(batch, direction="causal")
        return encoder + linear_flops(self._num_head_weights, batch.counts["clm"]) if encoder else 0


def next_token_output(loss: Tensor, num_right: Tensor, targets: Tensor) -> Output:
    """Return the term ``clm`` and its accuracy over the predictions of ``targets`` (P,)."""
    return Output({"clm": loss}, {"accuracy": (num_right, targets.new_full((), len(targets)))})
