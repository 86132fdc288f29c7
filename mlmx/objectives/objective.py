"""The contract every objective keeps.

An objective is one module that holds everything trained or needed to train: the encoder and whatever heads, generators or decoders
the method adds. The trainer knows nothing else of it, and it knows nothing of the trainer.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from torch import Tensor, nn

from mlmx.data.batch import Batch, Collator
from mlmx.models.encoder import Encoder
from mlmx.models.flops import linear_flops, num_linear_weights


@dataclass(frozen=True, slots=True)
class Output:
    """What forward returns.

    Attributes:
        terms: term -> the SUM of its losses over ``batch.counts[term]`` predictions, in nats. Never a mean: the trainer divides
            by the count totalled over all micro-batches and ranks, so accumulation and parallelism cannot change the loss.
        metrics: name -> (sum, count), totalled the same way.
    """

    terms: Mapping[str, Tensor]
    metrics: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=dict)


class Objective(nn.Module, ABC):
    """A pretraining objective, or what a task fine-tunes with.

    Subclasses take ``(encoder, corpus)`` positionally and their settings as keyword-only parameters: the constructor is the schema
    of the objective's YAML.

    Attributes:
        encoder: what survives into the next stage.
        weights: term -> weight in the total loss.
        batch_coupled: True where examples of a forward interact (contrastive losses), so that accumulation changes the mathematics.
        caption: what ``mlmx preview`` says above examples: which tokens are marked, who reads what is shown, what is predicted.
    """

    encoder: Encoder
    weights: Mapping[str, float]
    batch_coupled: bool = False
    caption: str = "Marked are the tokens to predict, in what the encoder reads."

    @abstractmethod
    def collator(self) -> Collator:
        """Return what turns rows into this objective's batches."""

    @abstractmethod
    def forward(self, batch: Batch) -> Output:
        """Return the summed terms; keys equal those of ``weights_of(batch)`` and of ``batch.counts``."""

    def weights_of(self, batch: Batch) -> Mapping[str, float]:
        """Return the weights of the terms that a batch has; here all of them, always the same."""
        return self.weights

    def flops(self, batch: Batch) -> int:
        """Return the model FLOPs of a forward and a backward pass over a batch on the CPU, from what is known before the forward.

        Here the encoder reads every token, and each linear layer beside it (language-model head, classifiers) sees each counted
        prediction once. Objectives that do otherwise say so by overriding this. 0 where the encoder's FLOPs are not known.
        """
        encoder = self.encoder.flops(batch)
        return encoder + linear_flops(self._num_head_weights, sum(batch.counts.values())) if encoder else 0

    @cached_property
    def _num_head_weights(self) -> int:
        return num_linear_weights(self) - num_linear_weights(self.encoder.base)

    def shown(self, batch: Batch) -> Batch:
        """Return the batch as the encoder reads it, as far as that is known before any training; here it is as it was collated."""
        return batch

    def before_step(self) -> None:
        """Prepare for the first micro-batch of a step; called again where a step is redone with smaller ones."""

    def after_step(self, step: int) -> None:
        """Update buffers after optimiser step ``step``, from all-reduced quantities only."""

    @property
    def exported(self) -> Encoder:
        """What ``export`` writes: the encoder, where subclasses do not say otherwise."""
        return self.encoder

    def export(self, folder: Path) -> None:
        """Write what survives as a Hugging Face folder."""
        self.exported.save(folder)
