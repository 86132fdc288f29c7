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
from mlmx.models.pooling import POOLINGS, Pooling, encode, require_pooling, resolve_layer
from mlmx.models.sentence import SentenceModel
from mlmx.tasks.lexical import Lexical, parts
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
        lexical: the entries of the vocabulary that follow a text's vector, see ``mlmx.tasks.lexical``; None for none.
        width: how many coordinates a vector keeps, the first ones, before it is scaled; all where no folder says it.
    """

    layer: int | Literal["last"]
    pooling: Pooling | None
    normalize: bool
    max_length: int | None
    prompts: Mapping[Purpose | None, str | None] = field(default_factory=dict)
    lexical: Lexical | None = None
    width: int | None = None

    def resolved(self, encoder: Encoder, *, task: str) -> ResolvedEmbedding:
        """Return the same with everything said.

        Args:
            encoder: whose layers and folder hold.
            task: the task's name, for messages.

        Raises:
            UserError: if the encoder has no such layer or width, its folder says what mlmx does not do, or it lacks what the
                lexical part is made of.
        """
        if self.width is not None and self.width > encoder.hidden_size:
            raise user_error(f"task.{task}.width", f"{self.width} is more than the width of the encoder, {encoder.hidden_size}.")
        if self.lexical is not None:
            _check_lexical(self.lexical, encoder, where=f"task.{task}.lexical")
        folder = encoder.sentence
        pooling = self.pooling
        if pooling is None:
            pooling = "mean" if folder is None else _own_pooling(folder, where=f"task.{task}.pooling")
        require_pooling(encoder, pooling, where=f"task.{task}.pooling")
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
            lexical=self.lexical,
            width=self.width if self.width is not None else folder.width if folder is not None else None,
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
        lexical: the entries of the vocabulary that follow a text's vector; None for none.
        width: how many coordinates a vector keeps; None: all.
    """

    layer: int
    pooling: Pooling
    normalize: bool
    max_length: int
    prompts: Mapping[Purpose | None, str]
    lexical: Lexical | None
    width: int | None

    @property
    def num_entries(self) -> int:
        """K, entries of the vocabulary that follow a text's vector."""
        return 0 if self.lexical is None else self.lexical.num_entries

    def num_columns(self, encoder: Encoder) -> int:
        """Return D + 2K, the numbers of a text's representation."""
        return (self.width or encoder.hidden_size) + 2 * self.num_entries

    def vectors(
        self, encoder: Encoder, texts: Sequence[str], *, task: str, what: str, batch_tokens: int, purpose: Purpose | None = None
    ) -> NDArray[np.float32]:
        """Return the (N, D + 2K) vectors of texts, with weights and entries of their lexical parts after them.

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
            encoder,
            rows,
            layer=self.layer,
            pooling=self.pooling,
            batch_tokens=batch_tokens,
            what=f"{task}: encode {what}",
            num_entries=self.num_entries,
        )
        check_finite(vectors)
        if self.width is not None:
            vectors = np.delete(vectors, np.s_[self.width : encoder.hidden_size], axis=1)
        dense, weights, _ = parts(vectors, self.num_entries)
        if self.normalize:
            dense[:], weights[:] = normalised(dense), normalised(weights)
        if self.lexical is not None:
            # Both sides of a product have it.
            weights *= self.lexical.weight**0.5
        return vectors

    def told(self) -> dict[str, str | float]:
        """Return what scores depend on, for ``Score.settings``."""
        told: dict[str, str | float] = {"layer": self.layer, "pooling": self.pooling, "max_length": self.max_length}
        if self.width is not None:
            told["width"] = self.width
        if self.lexical is not None:
            told |= {"lexical_entries": self.lexical.num_entries, "lexical_weight": self.lexical.weight}
        return told


def _check_lexical(lexical: Lexical, encoder: Encoder, *, where: str) -> None:
    if encoder.head is None:
        raise user_error(where, "the encoder has no language-model head, which tells the words of a text.")
    if lexical.num_entries > encoder.vocabulary.size:
        raise user_error(
            f"{where}.num_entries", f"{lexical.num_entries} is more than the {encoder.vocabulary.size} of the vocabulary."
        )


def _own_pooling(folder: SentenceModel, *, where: str) -> Pooling:
    if folder.other_modules:
        message = f"the encoder's folder makes vectors by what mlmx does not do: {', '.join(folder.other_modules)}"
        raise user_error(where, f"{message}; set {', '.join(POOLINGS)} to judge its states without that.")
    if folder.pooling not in POOLINGS:
        raise user_error(where, f"the encoder's folder says {folder.pooling!r}, which mlmx has not; set {', '.join(POOLINGS)}.")
    return folder.pooling
