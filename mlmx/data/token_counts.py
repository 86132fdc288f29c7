"""How often each token occurs in a corpus."""

# V vocabulary

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlmx.data.statistic import Statistic, segment_blocks
from mlmx.data.store import TokenStore


@dataclass(frozen=True, kw_only=True)
class TokenCounts(Statistic):
    """How often each token occurs in the corpus.

    Collects ``count`` (V,) int64; tokens that only rows have count 0.
    """

    def collect(self, store: TokenStore, *, show_progress: bool) -> Iterator[Mapping[str, NDArray[Any]]]:
        counts = np.zeros(store.meta["vocabulary_size"], np.int64)
        offsets = store.arrays["piece_offsets"]
        for block in segment_blocks(store, "count tokens", show_progress=show_progress):
            pieces = store.arrays["pieces"][offsets[block.start] : offsets[block.stop]]
            counts += np.bincount(pieces, minlength=len(counts))
        yield {"count": counts}
