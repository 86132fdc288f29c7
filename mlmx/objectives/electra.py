"""Replaced token detection: which tokens did a small generator make up?"""

# T tokens of all rows, P selected tokens, D width, V vocabulary

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from mlmx.build import PositiveFloat
from mlmx.data.batch import Batch, extended
from mlmx.data.rows import CorpusInfo, TokenRows
from mlmx.keyed import uniform
from mlmx.masking.corrupt import Corruption
from mlmx.masking.select import ExactTokens
from mlmx.masking.units import Draws, Selection
from mlmx.models.cross_entropy import cross_entropy_and_samples
from mlmx.models.detection import DetectionHead, detection_loss, detection_metrics
from mlmx.models.encoder import Encoder
from mlmx.models.flops import linear_flops, num_linear_weights
from mlmx.models.generator import small_generator
from mlmx.objectives.masked import MaskedCollator, masked_collator, ratio_metric
from mlmx.objectives.objective import Objective, Output
from mlmx.schedules import ScheduledRatio

_CORRUPTIONS = {
    "paper": Corruption(mask=1.0, random=0.0, keep=0.0),
    "released_code": Corruption(mask=0.85, random=0.0, keep=0.15),
}


@dataclass(frozen=True, kw_only=True)
class ElectraCollator(MaskedCollator):
    """Masks for the generator; adds ``draws`` (P,) float64 in [0, 1), which decide what it makes up."""

    def predictions(
        self, rows: TokenRows, selection: Selection, draws: Draws
    ) -> tuple[dict[str, int], dict[str, NDArray[np.generic]]]:
        counts, arrays = super().predictions(rows, selection, draws)
        arrays["draws"] = uniform(draws.of("sample", selection.row, selection.places))
        return counts | {"detection": len(rows.input_ids)}, arrays


class Electra(Objective):
    """Tells for every token whether a small masked language model, trained beside, made it up (ELECTRA).

    The generator fills in masked tokens; the encoder, the discriminator, reads the row with what was filled in and never sees a
    mask. Both share the word embeddings. Metrics of the discriminator are those of ``mlmx.models.detection.detection_metrics``;
    ``generator_accuracy`` is the part of the selected tokens whose likeliest word is the right one.

    Source:
        Clark et al. 2020, ELECTRA, arXiv:2003.10555, section 2; google-research/electra, ``run_pretraining.py``.

    Terms:
        ``mlm``: the generator's, sum over the selected tokens i of -log p_G(x_i | masked row), nats; the count is their number.
        ``detection``: sum over all tokens, special ones included, of the binary cross-entropy of "is not the original", nats; the
        count is the number of tokens. A token that the generator gets right is an original. Its gradient reaches the generator
        through the word embeddings only.

    Shapes:
        ``selected``, ``targets``, ``draws`` (P,): positions among the batch's packed tokens, the ids that stood there, and numbers
        in [0, 1) that decide what is made up.

    Deviations:
        ``parity: paper`` masks all selected tokens for the generator, ``released_code`` 85% of them and keeps the rest. The
        selected tokens of a row are different ones, exactly ``max(1, round(mask_ratio * ordinary tokens))`` (the released code
        draws them with replacement and counts special tokens). What is made up is never a special token. Word embeddings are
        shared, position embeddings are not. What is drawn is a function of seed, epoch and row, by the inverse of the summed
        probabilities rather than by Gumbel noise: the same distribution. The validation loss is judged on what the generator makes
        up at the time.

    Raises:
        UserError: if the tokenizer has no mask token, or the generator would have no width.
    """

    caption = (
        "Marked are the tokens to predict, in what the generator reads. The encoder reads in their places what the generator makes "
        "up, and tells for every token, special ones too, whether it is the original."
    )

    forbidden: Tensor

    def __init__(
        self,
        encoder: Encoder,
        corpus: CorpusInfo,
        *,
        mask_ratio: ScheduledRatio,
        parity: Literal["paper", "released_code"],
        generator_ratio: Annotated[float, Field(gt=0, le=1)],
        detection_weight: PositiveFloat,
        export: Literal["discriminator", "generator"],
    ) -> None:
        """Choose the generator and the weight of what it is for.

        Args:
            encoder: the discriminator; its language-model head is dropped.
            corpus: what it is trained on.
            mask_ratio: part of a row's ordinary tokens that the generator predicts, in [0, 1].
            parity: how many of the selected tokens the generator sees masked, see *Deviations*.
            generator_ratio: width of the generator's layers over the encoder's, in (0, 1]; both have the same number of layers.
            detection_weight: weight of ``detection``; that of ``mlm`` is 1.
            export: what survives into the next stage.
        """
        super().__init__()
        encoder.drop_head()
        self.encoder = encoder
        self.generator = small_generator(encoder, generator_ratio)
        self.head = DetectionHead(encoder.hidden_size, initializer_range=encoder.initializer_range)
        self.weights = {"mlm": 1.0, "detection": detection_weight}
        self._export = export
        forbidden = np.ones(encoder.base.get_input_embeddings().num_embeddings, bool)
        forbidden[encoder.vocabulary.ordinary_ids] = False
        self.register_buffer("forbidden", torch.from_numpy(forbidden), persistent=False)
        collator = masked_collator(encoder, ExactTokens(mask_ratio), _CORRUPTIONS[parity])
        self._collator = extended(collator, ElectraCollator)

    def collator(self) -> ElectraCollator:
        return self._collator

    def forward(self, batch: Batch) -> Output:
        selected, targets = batch.tensors["selected"], batch.tensors["targets"]
        assert self.generator.head is not None
        loss, num_right, made_up = cross_entropy_and_samples(
            self.generator.head,
            self.generator(batch)[selected],
            targets,
            draws_P=batch.tensors["draws"],
            forbidden_V=self.forbidden,
        )
        originals = batch.tensors["input_ids"].index_copy(0, selected, targets)
        filled_in = originals.index_copy(0, selected, made_up)
        replaced = filled_in != originals
        logits_T = self.head(self.encoder(replace(batch, tensors={**batch.tensors, "input_ids": filled_in})))
        metrics = {
            "generator_accuracy": (num_right, targets.new_full((), len(targets))),
            **detection_metrics(logits_T, replaced),
            **ratio_metric(batch),
        }
        return Output({"mlm": loss, "detection": detection_loss(logits_T, replaced)}, metrics)

    def flops(self, batch: Batch) -> int:
        encoder, generator = self.encoder.flops(batch), self.generator.flops(batch)
        if not encoder or not generator or self.generator.head is None:
            return 0
        head = linear_flops(num_linear_weights(self.generator.head), batch.counts["mlm"])
        return encoder + generator + head + linear_flops(num_linear_weights(self.head), batch.num_tokens)

    @property
    def exported(self) -> Encoder:
        return self.encoder if self._export == "discriminator" else self.generator
