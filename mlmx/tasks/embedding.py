"""From texts to vectors, as tasks that compare vectors make them."""

# N texts, D width

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mlmx.errors import user_error
from mlmx.models.encoder import Encoder
from mlmx.models.pooling import POOLINGS, Pooling, encode, resolve_layer
from mlmx.models.sentence import SentenceModel
from mlmx.tasks.search import check_finite, normalised
from mlmx.tasks.texts import text_rows

Purpose = Literal["query", "document"]

# Where nothing else is said: what encoders are usually judged with, whatever positions they have.
_MAX_LENGTH = 512
_NAMES: Mapping[Purpose | None, tuple[str, ...]] = {"query": ("query",), "document": ("document", "passage", "corpus"), None: ()}


@dataclass(frozen=True, kw_only=True, slots=True)
class Embedding:
    """How texts become vectors. What is None is as the folder of the encoder says, where Sentence-Transformers wrote it.

    Attributes:
        layer: the layer whose states are pooled: 0 the embeddings, ``last`` or a number up to the number of layers, negative from
            the end.
        pooling: how states become a vector; ``mean`` where no folder says it.
        normalize: whether vectors are scaled to length 1.
        max_length: tokens of a text, special ones included; 512, or what the encoder has positions for, where no folder says it.
        prompts: what is put before a text, by what the text is for (None: whatever for); nothing where no folder says it.
    """

    layer: int | Literal["last"]
    pooling: Pooling | None
    normalize: bool
    max_length: int | None
    prompts: Mapping[Purpose | None, str | None] = field(default_factory=dict)

    def resolved(self, encoder: Encoder, *, task: str) -> ResolvedEmbedding:
        """Return the same with everything said.

        Args:
            encoder: whose layers and folder hold.
            task: the task's name, for messages.

        Raises:
            UserError: if the encoder has no such layer, or its folder says what mlmx does not do.
        """
        folder = encoder.sentence
        pooling = self.pooling
        if pooling is None:
            pooling = "mean" if folder is None else _own_pooling(folder, where=f"task.{task}.pooling")
        own_length = folder.max_length if folder is not None and folder.max_length is not None else _MAX_LENGTH

        def prompt(purpose: Purpose | None) -> str:
            given = self.prompts.get(purpose)
            return given if given is not None else "" if folder is None else folder.prompt(*_NAMES[purpose])

        return ResolvedEmbedding(
            layer=resolve_layer(self.layer, encoder.num_layers, where=f"task.{task}.layer"),
            pooling=pooling,
            normalize=self.normalize,
            max_length=self.max_length if self.max_length is not None else min(own_length, encoder.max_length),
            prompts={purpose: prompt(purpose) for purpose in _NAMES},
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class ResolvedEmbedding:
    """How texts become vectors with an encoder.

    Attributes:
        layer: an index into ``hidden_states``.
        pooling: how its states become a vector.
        normalize: whether vectors are scaled to length 1.
        max_length: tokens of a text, special ones included.
        prompts: what is put before a text, by what the text is for.
    """

    layer: int
    pooling: Pooling
    normalize: bool
    max_length: int
    prompts: Mapping[Purpose | None, str]

    def vectors(
        self, encoder: Encoder, texts: Sequence[str], *, task: str, what: str, batch_tokens: int, purpose: Purpose | None = None
    ) -> NDArray[np.float32]:
        """Return the (N, D) vectors of texts.

        Args:
            encoder: the encoder.
            texts: the texts.
            task: the task's name, for messages.
            what: what the texts are, for messages.
            batch_tokens: most tokens per batch.
            purpose: what the texts are for.

        Raises:
            FloatingPointError: if a vector is not finite.
        """
        prompt = self.prompts[purpose]
        rows = text_rows(encoder, [prompt + text for text in texts], max_length=self.max_length, task=task, what=what)
        vectors = encode(
            encoder, rows, layer=self.layer, pooling=self.pooling, batch_tokens=batch_tokens, what=f"{task}: encode {what}"
        )
        if self.normalize:
            return normalised(vectors)
        check_finite(vectors)
        return vectors

    def told(self) -> dict[str, str | float]:
        """Return what scores depend on, for ``Score.settings``."""
        return {"layer": self.layer, "pooling": self.pooling, "max_length": self.max_length}


def _own_pooling(folder: SentenceModel, *, where: str) -> Pooling:
    if folder.other_modules:
        message = f"the encoder's folder makes vectors by what mlmx does not do: {', '.join(folder.other_modules)}"
        raise user_error(where, f"{message}; set {', '.join(POOLINGS)} to judge its states without that.")
    if folder.pooling not in POOLINGS:
        raise user_error(where, f"the encoder's folder says {folder.pooling!r}, which mlmx has not; set {', '.join(POOLINGS)}.")
    return folder.pooling
