"""Masked auto-encoding by an encoder and the smaller ones inside it."""

# S rows, T tokens of all rows, P selected tokens, Q tokens that the decoder predicts, N rows of one length, L their length, D width

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from mlmx.build import Positive, Ratio
from mlmx.data.batch import Batch, BatchContext, extended
from mlmx.data.rows import CorpusInfo, TokenRows
from mlmx.errors import user_error
from mlmx.keyed import fold
from mlmx.masking.corrupt import Corruption, corrupt
from mlmx.masking.select import WholeWords, with_ratio
from mlmx.masking.units import Draws
from mlmx.models.cross_entropy import cross_entropy
from mlmx.models.decoder import DecoderLayer, SortedRows
from mlmx.models.encoder import Encoder
from mlmx.models.flops import attention_flops, linear_flops, num_linear_weights
from mlmx.models.pooling import train_pooling
from mlmx.models.truncate import require_plain_layers
from mlmx.objectives.masked import MaskedCollator, MaskedObjective, masked_collator, ratio_metric, resolve_view
from mlmx.objectives.objective import Output
from mlmx.objectives.submodels import name_of, submodels_of
from mlmx.schedules import Schedule, ScheduledRatio


@dataclass(frozen=True, kw_only=True)
class SMAECollator(MaskedCollator):
    """Masks for the encoder, and more for the decoder.

    Adds to the batch ``decoder_ids`` (T,) int64, what the decoder reads; ``decoded`` (Q,) int64, the positions that it predicts,
    with all those of the encoder; ``decoded_targets`` (Q,) int64, what stood there.

    Attributes:
        decoder_ratio: how many tokens are selected for the decoder, by the same policy.
        num_encoders: how many encoders predict each token.
    """

    decoder_ratio: float
    num_encoders: int

    def __call__(self, rows: TokenRows, context: BatchContext) -> Batch:
        batch = super().__call__(rows, context)
        # Words stand in the same random order, and the larger budget takes more of them; what becomes of them is drawn anew.
        selection = with_ratio(self.policy, self.decoder_ratio)(rows, Draws(context.keys))
        decoder_ids = corrupt(
            rows.input_ids,
            selection,
            Draws(fold(context.keys, 1)),
            corruption=self.corruption,
            mask_id=self.mask_id,
            ordinary_ids=self.ordinary_ids,
        )
        arrays = {
            "decoder_ids": decoder_ids,
            "decoded": selection.positions,
            "decoded_targets": rows.input_ids[selection.positions],
        }
        return replace(
            batch,
            tensors={**batch.tensors, **{name: torch.from_numpy(array) for name, array in arrays.items()}},
            counts={
                "mlm": self.num_encoders * batch.counts["mlm"],
                "decoder": self.num_encoders * len(selection.positions),
            },
        )


class StarbucksSMAE(MaskedObjective):
    """Predicts masked tokens by an encoder and smaller ones inside it, and by a decoder that has one vector of each (SMAE).

    The decoder reads a text with more masks, and in the place of its first token the encoder's vector of that token. Metrics are
    ``accuracy`` and ``decoder_accuracy`` over all encoders, and the former for each of them, named by layer and width.

    Source:
        Zhuang et al. 2024, Starbucks, arXiv:2410.13230, section 3.2; ielab/Starbucks, ``smae/modelling.py`` and ``smae/data.py`` at
        bb18db2.

    Terms:
        ``mlm``: sum over the encoders and the selected tokens i of -log p(x_i | T(h_i)), nats, where T is the language-model head
        given the first d coordinates of layer l and zeros for the others. ``decoder``: sum over the encoders and the tokens that
        are masked for the decoder of -log p(x_i | its output), nats. Each counts its predictions, so that it is the mean over
        encoders; both have the weight 1/2.

    Shapes:
        ``selected``, ``targets`` (P,): positions among the batch's packed tokens, and the ids that stood there; ``decoded``,
        ``decoded_targets`` (Q,): the same for the decoder, the former all among them; ``decoder_ids`` (T,): what it reads.

    Deviations:
        The decoder's layer begins with random weights, in the source with those of the checkpoint's first layer. The word that
        reaches past the part to mask is masked as often as makes the part right on average, where the released code skips it;
        special tokens are not counted; and what becomes of a word (mask, random, keep) is drawn once for all its pieces. Gradients
        that are not finite stop the training, see ``trainer.on_nonfinite``; the released code drops them.

    Raises:
        UserError: if the encoder has no such part, has a norm after its last layer or embeddings of another width than its layers,
            if the tokenizer has no mask token or puts none before a text, if the decoder has fewer masks than the encoder, or if
            ``view`` asks for pairs of a corpus that has none.
    """

    caption = f"{MaskedObjective.caption} A decoder predicts these and more, by the vector that each size has of the first token."

    def __init__(
        self,
        encoder: Encoder,
        corpus: CorpusInfo,
        *,
        pairs: tuple[tuple[Positive, Positive], ...] | None,
        mask_ratio: ScheduledRatio,
        decoder_mask_ratio: Ratio,
        corruption: Corruption,
        view: Literal["segment", "pair", "corpus"],
    ) -> None:
        """Choose the smaller encoders, and what is masked.

        Args:
            encoder: what is trained.
            corpus: what it is trained on.
            pairs: (layer, width) of each smaller encoder, beside the whole one; null: each layer but the last, with half the width
                of the one above it, down to 8.
            mask_ratio: part of the ordinary tokens that the encoders predict, in whole words, in [0, 1].
            decoder_mask_ratio: the same for the decoder, not below ``mask_ratio``.
            corruption: parts of both that are masked, replaced and kept; they sum to 1.
            view: a row is a ``segment``, a ``pair``, or what the ``corpus`` has: pairs where it is parallel.
        """
        self.check_settings(mask_ratio=mask_ratio, decoder_mask_ratio=decoder_mask_ratio)
        require_plain_layers(encoder, where="model")
        smaller = submodels_of(encoder, pairs)
        train_pooling(encoder, "cls", normalize=False, where="model")
        if encoder.base.get_input_embeddings().weight.shape[1] != encoder.hidden_size:
            raise user_error("model", "its embeddings have another width than its layers, so that no vector can stand among them.")
        policy = WholeWords(mask_ratio, False, "fair")
        collator = masked_collator(encoder, policy, corruption, view=resolve_view(view, corpus))
        super().__init__(encoder, extended(collator, SMAECollator, decoder_ratio=decoder_mask_ratio, num_encoders=len(smaller) + 1))
        self.weights = {"mlm": 0.5, "decoder": 0.5}
        self.pairs = [*smaller, (encoder.num_layers, encoder.hidden_size)]
        self.decoder = DecoderLayer(encoder.base.config)

    @staticmethod
    def check_settings(*, mask_ratio: float | Schedule, decoder_mask_ratio: float, **_: object) -> None:
        """Refuse a decoder that has fewer masks than the encoder.

        Raises:
            UserError: if it has.
        """
        most = mask_ratio.most if isinstance(mask_ratio, Schedule) else mask_ratio
        if decoder_mask_ratio < most:
            message = f"{decoder_mask_ratio} is below mask_ratio={most}: what the encoder predicts, the decoder predicts too."
            raise user_error("objective.decoder_mask_ratio", message)

    def forward(self, batch: Batch) -> Output:
        states = self.encoder.hidden_states(batch)
        embeddings_TD = self.encoder.states_at(
            replace(batch, tensors={**batch.tensors, "input_ids": batch.tensors["decoder_ids"]}), 0
        )
        rows = SortedRows(batch.tensors["cu_seqlens"].long(), batch.num_tokens)
        outputs = {}
        for layer, width in self.pairs:
            kept_D = torch.arange(self.encoder.hidden_size, device=embeddings_TD.device) < width
            outputs[name_of((layer, width))] = self._predictions(states[layer] * kept_D, embeddings_TD, rows, batch)
        terms = {term: torch.stack([of_one[term][0] for of_one in outputs.values()]).sum() for term in self.weights}
        right = {term: torch.stack([of_one[term][1] for of_one in outputs.values()]) for term in self.weights}
        counts = {"mlm": len(batch.tensors["selected"]), "decoder": len(batch.tensors["decoded"])}
        count = {term: right[term].new_full((), number) for term, number in counts.items()}
        metrics = {
            "accuracy": (right["mlm"].sum(), len(outputs) * count["mlm"]),
            "decoder_accuracy": (right["decoder"].sum(), len(outputs) * count["decoder"]),
            **ratio_metric(batch),
        }
        metrics |= {f"{name}_accuracy": (of_one["mlm"][1], count["mlm"]) for name, of_one in outputs.items()}
        return Output(terms, metrics)

    def flops(self, batch: Batch) -> int:
        encoder = self.encoder.flops(batch)
        if not encoder or self.encoder.head is None:
            return 0
        head = linear_flops(num_linear_weights(self.encoder.head), sum(batch.counts.values()))
        lengths = np.diff(batch.tensors["cu_seqlens"].numpy()).astype(np.int64)
        decoder = linear_flops(num_linear_weights(self.decoder), batch.num_tokens)
        decoder += attention_flops(self.encoder.hidden_size, lengths, [None])
        return encoder + head + len(self.pairs) * decoder

    def _predictions(
        self, hidden_TD: Tensor, embeddings_TD: Tensor, rows: SortedRows, batch: Batch
    ) -> dict[str, tuple[Tensor, Tensor]]:
        # The sum of each term, and how many predictions are right, from one encoder's vectors.
        head = self.encoder.head
        assert head is not None
        starts = batch.tensors["cu_seqlens"][:-1].long()
        source_TD = embeddings_TD.index_copy(0, starts, head.transform(hidden_TD[starts]).to(embeddings_TD.dtype))
        sorted_TD = rows.sort(source_TD)
        visible = [torch.ones(count, 1, length, dtype=torch.bool, device=starts.device) for length, count in rows.sizes]
        decoded_TD = self.decoder(sorted_TD, sorted_TD, rows, visible)[rows.places]
        size = self.encoder.vocabulary.size
        return {
            "mlm": cross_entropy(head, hidden_TD[batch.tensors["selected"]], batch.tensors["targets"], vocab_size=size),
            "decoder": cross_entropy(head, decoded_TD[batch.tensors["decoded"]], batch.tensors["decoded_targets"], vocab_size=size),
        }
