"""Masked auto-encoding twice over: from the vector of the first token, and from those of all the others."""

# S rows, T tokens of all rows, P selected tokens, Q decoded tokens, B entries of all bags, V vocabulary

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mlmx.build import PositiveFloat, Ratio
from mlmx.data.batch import Batch
from mlmx.data.rows import CorpusInfo, TokenRows
from mlmx.masking.corrupt import Corruption
from mlmx.masking.units import Draws, Selection
from mlmx.models.bag_of_words import bag_of_words_loss
from mlmx.models.encoder import Encoder
from mlmx.models.enhanced_decoder import NormedQueriesDecoder, Parity
from mlmx.models.flops import linear_flops, num_linear_weights
from mlmx.objectives.objective import Output
from mlmx.objectives.retromae import RetroMAE, RetroMAECollator
from mlmx.schedules import ScheduledRatio

_MORE_THAN_ENTRIES = 2**32  # of any vocabulary


@dataclass(frozen=True, kw_only=True)
class DupMAECollator(RetroMAECollator):
    """Adds the bag of words of each row.

    Adds to the batch ``bag`` (B,) int64, the different ordinary tokens of each row, row by row;
    ``num_decoded``, ``num_in_bag`` (S,) int64, how many decoded and how many different tokens a row has.
    """

    def predictions(
        self, rows: TokenRows, selection: Selection, draws: Draws
    ) -> tuple[dict[str, int], dict[str, NDArray[np.generic]]]:
        counts, arrays = super().predictions(rows, selection, draws)
        row_of_decoded = rows.row_of_token[arrays["decoded"]]
        # A row and a token in one number are sorted faster than in two.
        row_of_bag, arrays["bag"] = np.divmod(
            np.unique(row_of_decoded * _MORE_THAN_ENTRIES + arrays["decoded_targets"]), _MORE_THAN_ENTRIES
        )
        for name, row_of in (("num_in_bag", row_of_bag), ("num_decoded", row_of_decoded)):
            arrays[name] = np.bincount(row_of, minlength=rows.num_rows)
        return counts | {"bow": rows.num_rows}, arrays


class DupMAE(RetroMAE):
    """RetroMAE, and the words of a text told from the vectors of its other tokens (DupMAE, RetroMAE v2).

    The third term asks which tokens the text has, without order and number: each entry of the vocabulary is scored by the largest
    logit that the language-model head gives it at any ordinary position of the masked text. What it trains is a representation of
    its own, that ``lexical`` of the retrieval tasks uses beside the vector. Metrics are those of ``retromae``.

    Source:
        Liu et al. 2023, RetroMAE-2, arXiv:2305.02564 (first arXiv:2211.08769), section 3; staoxiao/RetroMAE,
        ``src/pretrain/modeling_duplex.py``, ``data.py``.

    Terms:
        ``mlm``, ``decoder``: those of ``retromae``. ``bow``: sum over the rows of sum over their different ordinary tokens v of
        -w log softmax(u)_v, nats, where u (V,) has the largest logits; the count is the number of rows.

    Shapes:
        those of ``retromae``; ``bag`` (B,): the different tokens of each row; ``num_in_bag``, ``num_decoded`` (S,): how many
        of them, and of all ordinary tokens, a row has.

    Deviations:
        Those of ``retromae``. ``parity: released_code`` has w = 1 / (the row's ordinary tokens), so that a row's weights add up to
        no more than 1, and it weighs the term 0.1; ``parity: paper`` has w = 1, and the paper adds the terms as they are
        (``bow_weight: 1.0``). The closing special token has no part in u. The decoder's queries, vector plus position, go through a
        norm of its own, where the released code uses that of the embeddings, with their token type.

    Raises:
        UserError: as ``retromae`` does.
    """

    caption = f"{RetroMAE.caption} The different words of a row are told from the vectors of its other tokens."

    collator_class = DupMAECollator
    decoder_class = NormedQueriesDecoder

    def __init__(
        self,
        encoder: Encoder,
        corpus: CorpusInfo,
        *,
        mask_ratio: ScheduledRatio,
        decoder_mask_ratio: Ratio,
        decoder_weight: PositiveFloat,
        bow_weight: PositiveFloat,
        parity: Parity,
        corruption: Corruption,
        view: Literal["segment", "pair", "corpus"],
    ) -> None:
        """Choose what the encoder and the decoder see, and the weight of the bag of words.

        Args:
            encoder: what is trained.
            corpus: what it is trained on.
            mask_ratio: part of the ordinary tokens that is selected for the encoder to predict, in [0, 1].
            decoder_mask_ratio: part of the ordinary tokens that a position of the decoder does not see, in [0, 1].
            decoder_weight: weight of ``decoder``; that of ``mlm`` is 1.
            bow_weight: weight of ``bow``.
            parity: what is masked, how contexts are drawn, and what a word of the bag weighs, see *Deviations*.
            corruption: parts of the selected tokens that are masked, replaced and kept; they sum to 1.
            view: a row is a ``segment``, a ``pair``, or what the ``corpus`` has: pairs where it is parallel.
        """
        super().__init__(
            encoder,
            corpus,
            mask_ratio=mask_ratio,
            decoder_mask_ratio=decoder_mask_ratio,
            decoder_weight=decoder_weight,
            parity=parity,
            corruption=corruption,
            view=view,
        )
        self.weights = {**self.weights, "bow": bow_weight}
        self.parity: Parity = parity

    def forward(self, batch: Batch) -> Output:
        hidden_TD = self.encoder(batch)
        output = self.rebuild(hidden_TD, batch)
        return Output({**output.terms, "bow": self.bag_of_words(hidden_TD, batch)}, output.metrics)

    def bag_of_words(self, hidden_TD: Tensor, batch: Batch) -> Tensor:
        """Return the term ``bow``, from the encoder's vectors."""
        assert self.encoder.head is not None
        bag_B, num_in_bag_S, num_decoded_S = (batch.tensors[name] for name in ("bag", "num_in_bag", "num_decoded"))
        weights_B = hidden_TD.new_ones(len(bag_B))
        if self.parity == "released_code":
            weights_B /= num_decoded_S.repeat_interleave(num_in_bag_S, output_size=len(bag_B))
        return bag_of_words_loss(
            self.encoder.head,
            hidden_TD[batch.tensors["decoded"]],
            num_decoded_S.tolist(),
            bag_B,
            weights_B,
            num_in_bag_S.tolist(),
            vocab_size=self.encoder.vocabulary.size,
        )

    def flops(self, batch: Batch) -> int:
        rebuilding = super().flops(batch)
        if not rebuilding or self.encoder.head is None:
            return 0
        return rebuilding + linear_flops(num_linear_weights(self.encoder.head), batch.counts["decoder"])
