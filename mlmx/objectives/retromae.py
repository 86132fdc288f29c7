"""Masked auto-encoding of whole texts: a weak decoder rebuilds a text from the vector of its first token."""

# S rows, T tokens of all rows, P selected tokens, Q decoded tokens, N rows of one length, L their length, D width

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mlmx.build import PositiveFloat, Ratio
from mlmx.data.batch import Batch, extended
from mlmx.data.rows import CorpusInfo, TokenRows
from mlmx.masking.corrupt import Corruption
from mlmx.masking.select import BernoulliTokens, WholeWords
from mlmx.masking.units import Draws, Selection
from mlmx.models.cross_entropy import cross_entropy
from mlmx.models.encoder import Encoder
from mlmx.models.enhanced_decoder import EnhancedDecoder, Parity
from mlmx.models.flops import linear_flops, num_linear_weights
from mlmx.models.pooling import train_pooling
from mlmx.objectives.masked import MaskedCollator, MaskedObjective, masked_collator, resolve_view
from mlmx.objectives.objective import Output
from mlmx.schedules import ScheduledRatio


@dataclass(frozen=True, kw_only=True)
class RetroMAECollator(MaskedCollator):
    """Masks for the encoder; adds what the decoder rebuilds.

    Adds to the batch ``decoded`` (Q,) int64, the positions of all ordinary tokens; ``decoded_targets`` (Q,) int64, what stood
    there; ``words`` (T,) int64, the word of each token within its row, -1 for special ones.
    """

    def predictions(
        self, rows: TokenRows, selection: Selection, draws: Draws
    ) -> tuple[dict[str, int], dict[str, NDArray[np.generic]]]:
        counts, arrays = super().predictions(rows, selection, draws)
        decoded = np.flatnonzero(~rows.special)
        arrays |= {"decoded": decoded, "decoded_targets": rows.input_ids[decoded], "words": rows.words.astype(np.int64)}
        return counts | {"decoder": len(decoded)}, arrays


class RetroMAE(MaskedObjective):
    """Rebuilds every token of a text from the vector of its first one and a few other tokens, beside masked language modelling.

    The encoder reads the text with some tokens masked. Its vector of the first token, and the text without any mask, are all that a
    single Transformer layer gets: its queries are that vector plus the position to rebuild, its keys and values the vector and the
    embeddings of the tokens, and each position sees other tokens than the next one, never its own. What the few tokens do not tell
    has to be in the vector. Metrics are those of ``mlm`` and ``decoder_accuracy``.

    Source:
        Xiao et al. 2022, RetroMAE, arXiv:2205.12035, section 3; staoxiao/RetroMAE, ``src/pretrain/modeling.py``,
        ``enhancedDecoder.py``, ``data.py``.

    Terms:
        ``mlm``: sum over the selected tokens i of -log p(x_i | corrupted row), nats; the count is their number.
        ``decoder``: sum over all ordinary tokens i of -log p(x_i | vector, tokens that i sees), nats; the count is their number.

    Shapes:
        ``selected``, ``targets`` (P,): positions among the batch's packed tokens, and the ids that stood there; ``decoded``,
        ``decoded_targets`` (Q,): the same for what the decoder rebuilds; ``words`` (T,): word of each token, -1 for special ones.

    Deviations:
        ``parity: paper`` masks single tokens, and each position has a context of its own, in which each token is hidden by itself.
        ``parity: released_code`` masks whole words until the part is reached, in the encoder and in the contexts, of which a row of
        L tokens has ``min(L, 256)`` for its positions to choose from at random. Beside that code, the word that reaches past the
        part is masked as often as makes the part right on average (there it is skipped), special tokens are not counted, and what
        becomes of a word (mask, random, keep) is drawn once for all its pieces. Rows may be pairs. Where the encoder has no table
        of positions, as with rotary ones, the decoder has its own and adds it to keys and values too; its norms follow the residual
        sums whatever the encoder's do.

    Raises:
        UserError: if the tokenizer has no mask token or puts none before a text, or if ``view`` asks for pairs of a corpus that has
            none.
    """

    caption = (
        f"{MaskedObjective.caption} A decoder predicts every token from the first one's vector and what it sees of the others."
    )

    collator_class = RetroMAECollator
    decoder_class = EnhancedDecoder

    def __init__(
        self,
        encoder: Encoder,
        corpus: CorpusInfo,
        *,
        mask_ratio: ScheduledRatio,
        decoder_mask_ratio: Ratio,
        decoder_weight: PositiveFloat,
        parity: Parity,
        corruption: Corruption,
        view: Literal["segment", "pair", "corpus"],
    ) -> None:
        """Choose what the encoder and the decoder see.

        Args:
            encoder: what is trained.
            corpus: what it is trained on.
            mask_ratio: part of the ordinary tokens that is selected for the encoder to predict, in [0, 1].
            decoder_mask_ratio: part of the ordinary tokens that a position of the decoder does not see, in [0, 1].
            decoder_weight: weight of ``decoder``; that of ``mlm`` is 1.
            parity: what is masked and how contexts are drawn, see *Deviations*.
            corruption: parts of the selected tokens that are masked, replaced and kept; they sum to 1.
            view: a row is a ``segment``, a ``pair``, or what the ``corpus`` has: pairs where it is parallel.
        """
        train_pooling(encoder, "cls", normalize=False, where="model")
        policy = BernoulliTokens(mask_ratio) if parity == "paper" else WholeWords(mask_ratio, False, "fair")
        collator = masked_collator(encoder, policy, corruption, view=resolve_view(view, corpus))
        super().__init__(encoder, extended(collator, self.collator_class))
        self.weights = {"mlm": 1.0, "decoder": decoder_weight}
        self.decoder = self.decoder_class(encoder, decoder_mask_ratio, parity)

    def forward(self, batch: Batch) -> Output:
        return self.rebuild(self.encoder(batch), batch)

    def rebuild(self, hidden_TD: Tensor, batch: Batch) -> Output:
        """Return the terms ``mlm`` and ``decoder`` and their metrics, from the encoder's vectors."""
        assert self.encoder.head is not None
        output = self.predict(hidden_TD, batch)
        targets = batch.tensors["decoded_targets"]
        # The decoder reads the text itself, without masks.
        originals_T = batch.tensors["input_ids"].index_copy(0, batch.tensors["selected"], batch.tensors["targets"])
        embeddings_TD = self.encoder.states_at(replace(batch, tensors={**batch.tensors, "input_ids": originals_T}), 0)
        rebuilt_QD = self.decoder(hidden_TD, embeddings_TD, batch)[batch.tensors["decoded"]]
        loss, num_right = cross_entropy(self.encoder.head, rebuilt_QD, targets, vocab_size=self.encoder.vocabulary.size)
        accuracy = (num_right, targets.new_full((), len(targets)))
        return Output({**output.terms, "decoder": loss}, {**output.metrics, "decoder_accuracy": accuracy})

    def flops(self, batch: Batch) -> int:
        encoder = self.encoder.flops(batch)
        if not encoder or self.encoder.head is None:
            return 0
        head = linear_flops(num_linear_weights(self.encoder.head), batch.counts["mlm"] + batch.counts["decoder"])
        return encoder + head + self.decoder.flops(batch)
