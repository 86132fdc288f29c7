"""Texts as weighted entries of the vocabulary: what a language-model head finds in them, and what two texts share of it.

A text's representation is one row of float32 numbers: its vector (D), then K weights, then the K entries of the vocabulary they
belong to, whole numbers that float32 holds exactly up to 2^24. So it stays one array, in memory, on disk and between processes.
"""

# Q queries, N documents, B documents of a block, D width, K entries of a text, U different entries of all queries

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from mlmx.build import Positive, PositiveFloat


@dataclass(frozen=True, slots=True)
class Lexical:
    """How much of a text's representation is lexical.

    Attributes:
        num_entries: entries of the vocabulary that a text keeps, those with the largest logits at any of its ordinary tokens; one
            below 0 weighs nothing.
        weight: of the sum over entries that two texts share, beside the similarity of their vectors, which has 1.
    """

    __pydantic_config__: ClassVar[Mapping[str, str]] = {"extra": "forbid"}

    num_entries: Positive
    weight: PositiveFloat


def parts(rows_N: NDArray[np.float32], num_entries: int) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Return views of representations: vectors (N, D), weights (N, K) and entries (N, K)."""
    vectors, weights, entries = np.split(rows_N, [rows_N.shape[1] - 2 * num_entries, rows_N.shape[1] - num_entries], axis=1)
    return vectors, weights, entries


class LexicalQueries:
    """The lexical parts of some queries, to be compared with blocks of documents."""

    def __init__(self, weights_QK: Tensor, entries_QK: Tensor) -> None:
        """Take down the queries' weights and entries."""
        self.used_U, places_QK = torch.unique(entries_QK.long(), return_inverse=True)
        weights_QU = weights_QK.new_zeros(len(weights_QK), len(self.used_U)).scatter_(1, places_QK, weights_QK)
        self._weights_UQ = weights_QU.T.contiguous()

    def scores(self, weights_BK: Tensor, entries_BK: Tensor) -> Tensor:
        """Return (Q, B) the sums over shared entries of the products of their weights."""
        entries_BK = entries_BK.long()
        places_BK = torch.searchsorted(self.used_U, entries_BK).clamp_(max=len(self.used_U) - 1)
        shared_BK = self.used_U[places_BK] == entries_BK
        num_shared_B = shared_BK.sum(1)
        return F.embedding_bag(
            places_BK[shared_BK],
            self._weights_UQ,
            num_shared_B.cumsum(0) - num_shared_B,
            mode="sum",
            per_sample_weights=weights_BK[shared_BK],
        ).T
