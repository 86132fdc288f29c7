"""Mining sentence pairs from two sets of embeddings with margin scores.

The margin of a pair is its cosine compared with the cosines of the nearest neighbours on both sides, so that sentences that are
close to everything do not win everywhere (Artetxe and Schwenk, arXiv 1811.01136, equations 1 to 3; LASER, ``mine_bitexts.py``).

Deviation from LASER: the best match is taken over *all* sentences of the other side, as in the evaluation of LEM's group, and not
only over the k nearest. The matrix of cosines is made in blocks and never held whole.
"""

# S source sentences, R target sentences, D width, B block of source sentences, K neighbours, M mined pairs

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Margin = Literal["ratio", "distance", "absolute"]
Retrieval = Literal["forward", "backward", "intersection", "max"]

Floats = NDArray[np.float32]
Indices = NDArray[np.int64]

log = logging.getLogger(__name__)

# Rows of the cosine matrix held at a time: 1,024 x 100,000 float32 are 0.4 GB.
_BLOCK_ROWS = 1024


@dataclass(frozen=True, slots=True)
class Matches:
    """The best match of every sentence under the margin score.

    Attributes:
        forward: (S,) the best target of each source; ties go to the first.
        forward_scores: (S,) its score.
        backward: (R,) the best source of each target.
        backward_scores: (R,) its score.
    """

    forward: Indices
    forward_scores: Floats
    backward: Indices
    backward_scores: Floats


@dataclass(frozen=True, slots=True)
class MinedPairs:
    """Mined pairs, best first.

    Attributes:
        pairs: (M, 2) source and target index.
        scores: (M,) margin scores, falling.
    """

    pairs: Indices
    scores: Floats

    def above(self, threshold: float) -> MinedPairs:
        """Return the pairs that score at least ``threshold``."""
        kept = self.scores >= threshold
        return MinedPairs(self.pairs[kept], self.scores[kept])


def normalised(embeddings: Floats) -> Floats:
    """Return embeddings of length 1 (all-zero ones stay zero).

    Raises:
        FloatingPointError: if an embedding is not finite.
    """
    if not np.isfinite(embeddings).all():
        raise FloatingPointError(
            f"{int((~np.isfinite(embeddings)).any(axis=1).sum())} of {len(embeddings)} embeddings are not finite"
        )
    norms = np.linalg.norm(embeddings, axis=1, keepdims=True)
    result: Floats = (embeddings / np.maximum(norms, np.finfo(np.float32).tiny)).astype(np.float32)
    return result


def neighbour_means(source_SD: Floats, target_RD: Floats, num_neighbors: int) -> tuple[Floats, Floats]:
    """Return the mean cosine of every sentence to its nearest neighbours on the other side.

    Args:
        source_SD: (S, D) of length 1.
        target_RD: (R, D) of length 1.
        num_neighbors: k; clipped to the size of the other side.

    Returns:
        (S,) for the sources and (R,) for the targets.
    """
    k_forward, k_backward = min(num_neighbors, len(target_RD)), min(num_neighbors, len(source_SD))
    forward = np.empty(len(source_SD), np.float32)
    backward_RK = np.full((len(target_RD), k_backward), -np.inf, np.float32)
    for rows, cosines_BR in _cosine_blocks(source_SD, target_RD):
        forward[rows] = _largest(cosines_BR, k_forward).mean(axis=1)
        backward_RK = _largest(np.concatenate([backward_RK, cosines_BR.T], axis=1), k_backward)
    return forward, backward_RK.mean(axis=1)


def best_matches(source_SD: Floats, target_RD: Floats, *, margin: Margin, num_neighbors: int) -> Matches:
    """Return the best match of every sentence, both ways.

    Args:
        source_SD: (S, D) of length 1.
        target_RD: (R, D) of length 1.
        margin: the score, for cosine c and mean m of the two neighbourhoods' mean cosines: ``ratio`` c / m,
            ``distance`` c - m, ``absolute`` c.
        num_neighbors: k of the neighbourhoods.
    """
    source_means, target_means = neighbour_means(source_SD, target_RD, num_neighbors)
    if margin == "ratio":
        source_means, target_means = _positive(source_means, "source"), _positive(target_means, "target")
    forward = np.empty(len(source_SD), np.int64)
    forward_scores = np.empty(len(source_SD), np.float32)
    backward = np.zeros(len(target_RD), np.int64)
    backward_scores = np.full(len(target_RD), -np.inf, np.float32)
    for rows, cosines_BR in _cosine_blocks(source_SD, target_RD):
        scores_BR = _margin_scores(cosines_BR, source_means[rows], target_means, margin)
        forward[rows] = scores_BR.argmax(axis=1)
        forward_scores[rows] = scores_BR.max(axis=1)
        best = scores_BR.argmax(axis=0)
        best_scores = scores_BR.max(axis=0)
        better = best_scores > backward_scores
        backward[better] = best[better] + rows.start
        backward_scores[better] = best_scores[better]
    return Matches(forward, forward_scores, backward, backward_scores)


def mine(matches: Matches, retrieval: Retrieval) -> MinedPairs:
    """Turn best matches into mined pairs, best first.

    Args:
        matches: the best matches both ways.
        retrieval: ``forward`` keeps every source's best target, ``backward`` every target's best source, ``intersection`` the pairs
            in both, ``max`` goes through the pairs in either by falling score and uses each sentence once.
    """
    sources, targets = np.arange(len(matches.forward)), np.arange(len(matches.backward))
    forward = np.stack([sources, matches.forward], axis=1)
    backward = np.stack([matches.backward, targets], axis=1)
    if retrieval == "forward":
        pairs, scores = forward, matches.forward_scores
    elif retrieval == "backward":
        pairs, scores = backward, matches.backward_scores
    elif retrieval == "intersection":
        mutual = matches.backward[matches.forward] == sources
        pairs, scores = forward[mutual], matches.forward_scores[mutual]
    else:
        pairs = np.concatenate([forward, backward])
        scores = np.concatenate([matches.forward_scores, matches.backward_scores])
    order = np.argsort(-scores, kind="stable")
    pairs, scores = pairs[order], scores[order]
    if retrieval == "max":
        kept = _each_sentence_once(pairs)
        pairs, scores = pairs[kept], scores[kept]
    return MinedPairs(pairs, scores)


def _cosine_blocks(source_SD: Floats, target_RD: Floats) -> Iterator[tuple[slice, Floats]]:
    for start in range(0, len(source_SD), _BLOCK_ROWS):
        rows = slice(start, min(start + _BLOCK_ROWS, len(source_SD)))
        yield rows, source_SD[rows] @ target_RD.T


def _largest(values: Floats, k: int) -> Floats:
    # The k largest of each row, in no order.
    if k == values.shape[1]:
        return values
    return np.partition(values, values.shape[1] - k, axis=1)[:, -k:]


def _positive(means: Floats, side: str) -> Floats:
    # A ratio to a mean that is not positive would turn the order of the scores around.
    floor = np.float32(1e-6)
    if (low := int((means < floor).sum())) > 0:
        message = "%d of %d %s sentences have no positive mean cosine to their neighbours; it is taken as %g"
        log.warning(message, low, len(means), side, floor)
    positive: Floats = np.maximum(means, floor)
    return positive


def _margin_scores(cosines_BR: Floats, source_means: Floats, target_means: Floats, margin: Margin) -> Floats:
    if margin == "absolute":
        return cosines_BR
    means_BR = (source_means[:, None] + target_means[None, :]) / np.float32(2)
    scores_BR: Floats = cosines_BR / means_BR if margin == "ratio" else cosines_BR - means_BR
    return scores_BR


def _each_sentence_once(pairs: Indices) -> list[int]:
    used_sources: set[int] = set()
    used_targets: set[int] = set()
    kept = []
    for i, (source, target) in enumerate(pairs.tolist()):
        if source not in used_sources and target not in used_targets:
            kept.append(i)
            used_sources.add(source)
            used_targets.add(target)
    return kept
