"""Rows: what a collator gets, tokenised and laid end to end.

A row is one sequence of the model: a sentence, a window of a document, or the sides of a pair or triplet, with its special tokens.
Rows of a micro-batch are stored flat, so that masking and packing are vectorised over all of them.
"""

# S rows, T tokens of all rows

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from mlmx.data.arrays import Arrays


@dataclass(frozen=True, kw_only=True)
class TokenRows:
    """Rows laid end to end. What follows from where they begin is worked out once, for masking and batching alike.

    Attributes:
        input_ids: (T,) int64 token ids, special tokens included.
        cu_seqlens: (S+1,) int32; row s holds tokens ``cu_seqlens[s]:cu_seqlens[s+1]``.
        words: (T,) int32 index of the token's word within its row (rising through the sides of a pair), -1 for specials.
        segments: (T,) int8 side of a pair the token belongs to, from 0; specials count to the side they close (a first
            special opens side 0).
        languages: (T,) int8 index into the corpus' ``languages``, -1 for specials.
        row_ids: (S,) int64 number of the row in its dataset: what its random choices are keyed by.
        sources: (S,) int64 segment of the corpus that the row, or its first side, was cut from; None where it comes from no stored
            corpus.
        tags: layer -> (T,) uint8 class of the token's word. Layers: ``pos`` and ``entity`` (indices into
            ``CorpusInfo.tag_names[layer]``, 0 is "not annotated") and ``entity_start`` (1 where the word begins an entity
            span). Empty without annotation. Specials are 0.
        labels: what a task predicts: (S,) int64 classes, (S,) float32 scores, (T,) int64 token classes (-100 ignored),
            (S, R) int64 documents that answer a query (-1 ignored), or None.
    """

    input_ids: NDArray[np.int64]
    cu_seqlens: NDArray[np.int32]
    words: NDArray[np.int32]
    segments: NDArray[np.int8]
    languages: NDArray[np.int8]
    row_ids: NDArray[np.int64]
    sources: NDArray[np.int64] | None = None
    tags: Mapping[str, NDArray[np.uint8]] = field(default_factory=dict)
    labels: NDArray[np.int64] | NDArray[np.float32] | None = None

    @property
    def num_rows(self) -> int:
        return len(self.cu_seqlens) - 1

    @property
    def lengths(self) -> NDArray[np.int32]:
        """(S,) tokens per row."""
        return self.cu_seqlens[1:] - self.cu_seqlens[:-1]

    @cached_property
    def row_of_token(self) -> NDArray[np.int64]:
        """(T,) which row each token belongs to."""
        return np.arange(self.num_rows).repeat(self.lengths)

    @cached_property
    def places(self) -> NDArray[np.int64]:
        """(T,) index of each token within its row."""
        return np.arange(len(self.input_ids)) - self.cu_seqlens[self.row_of_token]

    @property
    def special(self) -> NDArray[np.bool_]:
        """(T,) True on special tokens, which no objective may select."""
        return self.words < 0


class RowDataset(ABC):
    """A picklable, random-access collection of rows.

    Attributes:
        lengths: (N,) int32 tokens per row, special tokens included: all that planning needs.
        num_truncated: language -> pieces that did not fit, for the report.
    """

    lengths: NDArray[np.int32]
    num_truncated: Mapping[str, int]

    def __len__(self) -> int:
        return len(self.lengths)

    @abstractmethod
    def take(self, indices: NDArray[np.int64]) -> TokenRows:
        """Return the rows with these indices, in this order; ``row_ids`` are the indices."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CorpusInfo:
    """What an objective may know of its corpus.

    Attributes:
        num_sides: how many texts an example has: 1, the 2 of a pair, the 3 of a triplet.
        languages: language codes; ``TokenRows.languages`` indexes it.
        tag_names: layer -> class names, index 0 being "" (not annotated); empty without an annotation stage.
        statistics: ``mlmx.data.statistic.Statistic`` -> the arrays that its stage collected; those that the objective's YAML lists.
    """

    num_sides: int
    languages: tuple[str, ...]
    tag_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    statistics: Mapping[Hashable, Arrays] = field(default_factory=dict)

    @property
    def parallel(self) -> bool:
        """Whether examples are pairs."""
        return self.num_sides == 2
