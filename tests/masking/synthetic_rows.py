"""Rows with words of chosen sizes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mlmx.data.rows import TokenRows
from mlmx.keyed import row_keys
from mlmx.masking.units import Draws

CLS, SEP, MASK, FIRST_ORDINARY = 1, 2, 3, 4
VOCABULARY = 1000


def make_rows(sizes: Sequence[Sequence[int]], tags: dict[str, Sequence[Sequence[int]]] | None = None) -> TokenRows:
    """Rows whose words have these numbers of pieces, between two specials; tags are per word."""
    words, cu_seqlens, layers = [], [0], {layer: [] for layer in tags or {}}
    for s, row in enumerate(sizes):
        words += [-1, *np.repeat(np.arange(len(row)), row), -1]
        for layer, values in (tags or {}).items():
            layers[layer] += [0, *np.repeat(np.asarray(values[s], int), row), 0]
        cu_seqlens.append(len(words))
    word = np.array(words, np.int32)
    # Distinct from mask and specials, so that every replacement shows.
    ids = FIRST_ORDINARY + np.arange(len(word)) % (VOCABULARY - FIRST_ORDINARY)
    starts = np.array(cu_seqlens)
    ids[starts[:-1]], ids[starts[1:] - 1] = CLS, SEP
    return TokenRows(
        input_ids=ids.astype(np.int64),
        cu_seqlens=starts.astype(np.int32),
        words=word,
        segments=np.zeros(len(word), np.int8),
        languages=np.where(word < 0, -1, 0).astype(np.int8),
        row_ids=np.arange(len(sizes)),
        tags={layer: np.array(values, np.uint8) for layer, values in layers.items()},
    )


def draws_of(rows: TokenRows, seed: int = 0, epoch: int = 0) -> Draws:
    return Draws(row_keys(seed=seed, epoch=epoch, row_ids=rows.row_ids))


def random_sizes(num_rows: int, least: int, most: int, pieces: int = 4, seed: int = 3) -> list[list[int]]:
    """Rows of ``least`` to ``most`` words of 1 to ``pieces`` pieces."""
    generator = np.random.default_rng(seed)
    return [generator.integers(1, pieces + 1, generator.integers(least, most + 1)).tolist() for _ in range(num_rows)]


def per_row(rows: TokenRows, positions: np.ndarray) -> np.ndarray:
    return np.bincount(rows.row_of_token[positions], minlength=rows.num_rows)
