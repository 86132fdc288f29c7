"""Which tokens of a corpus are alike, by the tokens that stand around them."""

# V vocabulary, C contexts, N tokens that occur, K clusters, D dimensions, P pieces of a block

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from mlmx.build import NonNegative, Positive
from mlmx.data.statistic import Statistic, segment_blocks
from mlmx.data.store import TokenStore
from mlmx.data.token_counts import TokenCounts
from mlmx.errors import user_error


@dataclass(frozen=True, kw_only=True)
class TokenClusters(Statistic):
    """Tokens in clusters by k-means, of vectors that say which frequent tokens stand near them.

    A token's vector is its positive pointwise mutual information with the frequent tokens around it, reduced by a singular value
    decomposition and scaled to length 1 (Levy & Goldberg 2014). Collects ``cluster`` (V,) int32; tokens that do not occur are in
    none, -1.

    Attributes:
        num_clusters: how many.
        window: how far tokens are from each other that count as near, on either side and within a segment.
        num_contexts: the most frequent tokens, which vectors count.
        dimensions: length of the reduced vectors.
        seed: of the decomposition and of k-means.
    """

    num_clusters: Positive
    window: Positive
    num_contexts: Positive
    dimensions: Positive
    seed: NonNegative

    def collect(self, store: TokenStore, *, show_progress: bool) -> Iterator[Mapping[str, NDArray[Any]]]:
        from sklearn.cluster import MiniBatchKMeans

        (counted,) = TokenCounts().collect(store, show_progress=show_progress)
        counts = counted["count"]
        occurring = counts.nonzero()[0]
        if len(occurring) < self.num_clusters:
            message = f"{self.num_clusters} are more than the {len(occurring)} different tokens of the corpus."
            raise user_error("token_clusters.num_clusters", message)
        contexts = np.argsort(-counts, kind="stable")[: min(self.num_contexts, len(occurring))]
        near = self._near(store, contexts, len(counts), show_progress)[occurring]
        if not near.nnz:
            message = (
                f"{self.window}: no token has one of the {len(contexts)} most frequent ones so near to it within a text, so that "
                "nothing says which tokens are alike."
            )
            raise user_error("token_clusters.window", message)
        vectors = _unit_vectors(near, self.dimensions, self.seed)
        kmeans = MiniBatchKMeans(self.num_clusters, random_state=self.seed, n_init=3)
        cluster = np.full(len(counts), -1, np.int32)
        cluster[occurring] = kmeans.fit_predict(vectors)
        yield {"cluster": cluster}

    def _near(self, store: TokenStore, contexts: NDArray[np.int64], vocabulary_size: int, show_progress: bool) -> csr_array:
        # (V, C) how often each token is near each context.
        context_of = np.full(vocabulary_size, -1, np.int64)
        context_of[contexts] = np.arange(len(contexts))
        near = csr_array((vocabulary_size, len(contexts)), dtype=np.int64)
        offsets = store.arrays["piece_offsets"]
        for block in segment_blocks(store, "count neighbours", show_progress=show_progress):
            pieces = store.arrays["pieces"][offsets[block.start] : offsets[block.stop]].astype(np.int64)
            segment = np.arange(block.start, block.stop).repeat(np.diff(offsets[block.start : block.stop + 1]))
            for distance in range(1, self.window + 1):
                same = segment[distance:] == segment[:-distance]
                left, right = pieces[:-distance][same], pieces[distance:][same]
                tokens, others = np.concatenate([left, right]), context_of[np.concatenate([right, left])]
                counted = others >= 0
                ones = np.ones(counted.sum(), np.int64)
                near = near + csr_array((ones, (tokens[counted], others[counted])), shape=near.shape)
        return near


def _unit_vectors(near: csr_array, dimensions: int, seed: int) -> NDArray[np.float64]:
    # (N, D) of the counts (N, C).
    from sklearn.decomposition import TruncatedSVD
    from sklearn.preprocessing import normalize

    of_token, of_context, total = near.sum(axis=1), near.sum(axis=0), near.sum()
    cells = near.tocoo()
    information = np.log(cells.data * total / (of_token[cells.row].astype(np.float64) * of_context[cells.col]))
    positive = csr_array((np.maximum(information, 0), (cells.row, cells.col)), shape=near.shape)
    reduction = TruncatedSVD(min(dimensions, *positive.shape), random_state=seed)
    vectors: NDArray[np.float64] = normalize(reduction.fit_transform(positive))
    return vectors
