"""The language-model head of a Transformers model by itself."""

# N selected tokens, D width, V vocabulary

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

from mlmx.models.early_exit import Reached, leaving_at

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class LanguageModelHead(nn.Module):
    """The head of a Transformers language model, masked or causal, by itself: (N, D) to (N, V).

    Every family has its own layers between the encoder and the vocabulary. They are run by the model's own ``forward``, in which
    the encoder is replaced by a stand-in that hands over the given vectors: one adapter for all families, and only the selected
    tokens pay for the vocabulary.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        """Take the head off a language model, leaving a stand-in where its encoder was."""
        super().__init__()
        setattr(model, model.base_model_prefix, _Given())
        self.model = model

    def forward(self, hidden: Tensor) -> Tensor:
        """Return logits (N, V)."""
        logits: Tensor = self.model(inputs_embeds=hidden[None], return_dict=True).logits
        return logits[0]

    def transform(self, hidden: Tensor) -> Tensor:
        """Return what the layer of the vocabulary, the head's last, is given: (N, width of an embedding). It does not run."""
        try:
            with leaving_at(self.model.get_output_embeddings()):
                self.model(inputs_embeds=hidden[None], return_dict=True)
        except Reached as reached:
            return reached.states[0]
        raise AssertionError("a language model's logits come from its output embeddings")

    def save(self, folder: Path, base: PreTrainedModel) -> None:
        """Write the whole language model."""
        stand_in = getattr(self.model, self.model.base_model_prefix)
        setattr(self.model, self.model.base_model_prefix, base)
        try:
            self.model.save_pretrained(folder)
        finally:
            setattr(self.model, self.model.base_model_prefix, stand_in)


class _Given(nn.Module):
    """Stands where a head's encoder was and returns the vectors the head is given."""

    def forward(self, *_: object, inputs_embeds: Tensor, **__: object) -> BaseModelOutputWithPastAndCrossAttentions:
        return BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=inputs_embeds)
