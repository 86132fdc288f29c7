"""Masked language modelling with a decoder between encoder and head, for the time of the pretraining."""

# T tokens of all rows, P selected tokens, D width

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from mlmx.build import Ratio
from mlmx.data.batch import Batch, extended
from mlmx.data.rows import CorpusInfo, TokenRows
from mlmx.errors import user_error
from mlmx.keyed import uniform
from mlmx.masking.corrupt import Corruption
from mlmx.masking.select import BernoulliTokens, ExactTokens
from mlmx.masking.units import Draws, Selection
from mlmx.models.decoder import DecoderLayer, SortedRows
from mlmx.models.encoder import Encoder
from mlmx.models.flops import attention_flops, linear_flops, num_linear_weights
from mlmx.objectives.masked import MaskedCollator, MaskedObjective, masked_collator
from mlmx.objectives.objective import Output
from mlmx.schedules import PredictedRatio

Mix = Literal["token", "scalar"]


@dataclass(frozen=True, kw_only=True)
class BPDecCollator(MaskedCollator):
    """Masks; adds draws in [0, 1), float64, for each selected token.

    Adds to the batch ``unmask_draws`` (P,): the token is visible in layers whose ratio is above it; ``mix_draws`` (P,), which
    decide between encoder and decoder.

    Attributes:
        mix: ``token``: a draw of its own for each token; ``scalar``: the same for all tokens of a row.
    """

    mix: Mix

    def predictions(
        self, rows: TokenRows, selection: Selection, draws: Draws
    ) -> tuple[dict[str, int], dict[str, NDArray[np.generic]]]:
        counts, arrays = super().predictions(rows, selection, draws)
        drawn_for = selection.places if self.mix == "token" else np.zeros_like(selection.places)
        arrays |= {
            "unmask_draws": uniform(draws.of("unmask", selection.row, selection.places)),
            "mix_draws": uniform(draws.of("mix", selection.row, drawn_for)),
        }
        return counts, arrays


class BPDec(MaskedObjective):
    """Predicts masked tokens with Transformer layers on top of the encoder, which are dropped after the pretraining (BPDec).

    The first of these layers sees few of the mask tokens and the last sees all, so that a prediction leans on tokens that are there
    before it leans on guesses. The head gets the decoder's vectors and the encoder's, mixed at random. Metrics are ``mlm``'s.

    Source:
        Liang and Liang 2024, BPDec, arXiv:2401.15861 (first called DrBERT), section 3; there is no released code.

    Terms:
        ``mlm``: sum over the selected tokens i of -log p(x_i | corrupted row), nats; the count is their number.

    Shapes:
        ``selected``, ``targets`` (P,): positions among the batch's packed tokens, and the ids that stood there; ``unmask_draws``,
        ``mix_draws`` (P,): numbers in [0, 1) that decide which layers see a mask token, and between encoder and decoder.

    Deviations:
        What the paper does not say is a setting. ``visible_mask_ratios`` has one number for each layer: the part of the mask tokens
        that are keys of its attention, the same ones and more in each layer (the paper has two layers: a random part, and all).
        ``mix: token`` takes a token's vector from the decoder with probability ``decoder_ratio``, otherwise from the encoder;
        ``mix: scalar`` sums both, with the decoder's weight drawn for each row, uniform around ``decoder_ratio`` as far as [0, 1]
        allows. Both paths have one head. Validation mixes as training does. The layers have the encoder's sizes, and norms after
        the residual sums whatever the encoder has.

    Raises:
        UserError: if the tokenizer has no mask token, or a layer sees fewer mask tokens than the one below.
    """

    def __init__(
        self,
        encoder: Encoder,
        corpus: CorpusInfo,
        *,
        mask_ratio: PredictedRatio,
        selection: Literal["bernoulli", "exact"],
        corruption: Corruption,
        visible_mask_ratios: Annotated[tuple[Ratio, ...], Field(min_length=1)],
        mix: Mix,
        decoder_ratio: Ratio,
    ) -> None:
        """Choose what is masked, and what the decoder's layers see of it.

        Args:
            encoder: what is trained.
            corpus: what it is trained on.
            mask_ratio: part of the ordinary tokens that is selected, in [0, 1].
            selection: ``bernoulli``: each token by itself; ``exact``: ``max(1, round(mask_ratio * ordinary tokens))`` per row.
            corruption: parts of the selected tokens that are masked, replaced and kept; they sum to 1.
            visible_mask_ratios: for each layer of the decoder, the part of the mask tokens that others may attend to, in [0, 1] and
                never falling.
            mix: how the vectors of decoder and encoder come together, see *Deviations*.
            decoder_ratio: part of the decoder in what the head gets, in [0, 1]; 1: nothing of the encoder's.
        """
        self.check_settings(visible_mask_ratios=visible_mask_ratios)
        policy = BernoulliTokens(mask_ratio) if selection == "bernoulli" else ExactTokens(mask_ratio)
        collator = masked_collator(encoder, policy, corruption)
        super().__init__(encoder, extended(collator, BPDecCollator, mix=mix))
        self.decoder = nn.ModuleList(DecoderLayer(encoder.base.config) for _ in visible_mask_ratios)
        self.visible_mask_ratios = visible_mask_ratios
        self.mix: Mix = mix
        self.decoder_ratio = decoder_ratio

    @staticmethod
    def check_settings(*, visible_mask_ratios: tuple[float, ...], **_: object) -> None:
        """Refuse layers that see less than the one below.

        Raises:
            UserError: if the ratios fall.
        """
        if list(visible_mask_ratios) != sorted(visible_mask_ratios):
            message = f"{list(visible_mask_ratios)}: no layer may see fewer mask tokens than the one below."
            raise user_error("objective.visible_mask_ratios", message)

    def forward(self, batch: Batch) -> Output:
        encoded_TD, selected = self.encoder(batch), batch.tensors["selected"]
        decoded_PD = self.decode(encoded_TD, batch)[selected]
        draws_P1 = batch.tensors["mix_draws"][:, None].to(decoded_PD.dtype)
        encoded_PD = encoded_TD[selected].to(decoded_PD.dtype)
        if self.mix == "token":
            mixed_PD = torch.where(draws_P1 < self.decoder_ratio, decoded_PD, encoded_PD)
        else:
            reach = min(self.decoder_ratio, 1 - self.decoder_ratio)
            mixed_PD = torch.lerp(encoded_PD, decoded_PD, self.decoder_ratio + reach * (2 * draws_P1 - 1))
        return self.predict(encoded_TD.to(decoded_PD.dtype).index_copy(0, selected, mixed_PD), batch)

    def decode(self, encoded_TD: Tensor, batch: Batch) -> Tensor:
        """Return the decoder's vectors (T, D), from the encoder's."""
        rows = SortedRows(batch.tensors["cu_seqlens"], batch.num_tokens)
        hidden_TD = rows.sort(encoded_TD)
        draws_T = rows.sort(self._unmask_draws(batch))
        for layer, ratio in zip(self.decoder, self.visible_mask_ratios, strict=True):
            hidden_TD = layer(hidden_TD, hidden_TD, rows, [(draws_NL < ratio)[:, None] for draws_NL in rows.split(draws_T)])
        return hidden_TD.index_select(0, rows.places)

    def _unmask_draws(self, batch: Batch) -> Tensor:
        # (T,), below 0 for what is no mask token: always visible.
        selected, draws_P = batch.tensors["selected"], batch.tensors["unmask_draws"]
        masked_P = batch.tensors["input_ids"][selected] == self.encoder.vocabulary.required_mask_id()
        nowhere_T = draws_P.new_full((batch.num_tokens,), -1.0)
        return nowhere_T.index_copy(0, selected, draws_P.masked_fill(~masked_P, -1.0))

    def flops(self, batch: Batch) -> int:
        encoder = self.encoder.flops(batch)
        if not encoder or self.encoder.head is None:
            return 0
        lengths = np.diff(batch.tensors["cu_seqlens"].numpy()).astype(np.int64)
        decoder = linear_flops(num_linear_weights(self.decoder), batch.num_tokens)
        decoder += attention_flops(self.encoder.hidden_size, lengths, [None] * len(self.decoder))
        return encoder + decoder + linear_flops(num_linear_weights(self.encoder.head), batch.counts["mlm"])
