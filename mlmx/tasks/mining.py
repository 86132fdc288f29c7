"""Mining sentence pairs from two sets of embeddings with margin scores.

The margin of a pair is its cosine compared with the cosines of the nearest neighbours on both sides, so that sentences that are
close to everything do not win everywhere (Artetxe and Schwenk, arXiv 1811.01136, equations 1 to 3; LASER, ``mine_bitexts.py``).

Deviation from LASER: the best match is taken over *all* sentences of the other side, as in the evaluation of LEM's group, and not
only over the k nearest. The matrix of cosines is made in blocks and never held whole (``mlmx.tasks.search``).
"""

# S source sentences, R target sentences, D width, B and C those of a block, M mined pairs

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from mlmx.tasks.search import Best, Floats, Indices, Largest, score_blocks

Margin = Literal["ratio", "distance", "absolute"]
Retrieval = Literal["forward", "backward", "intersection", "max"]

log = logging.getLogger(__name__)

_CPU = torch.device("cpu")


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


def neighbour_means(
    source_SD: Floats, target_RD: Floats, num_neighbors: int, *, device: torch.device = _CPU
) -> tuple[Floats, Floats]:
    """Return the mean cosine of every sentence to its nearest neighbours on the other side.

    Args:
        source_SD: (S, D) of length 1.
        target_RD: (R, D) of length 1.
        num_neighbors: k; clipped to the size of the other side.
        device: where the products are made.

    Returns:
        (S,) for the sources and (R,) for the targets.
    """
    forward = Largest(len(source_SD), min(num_neighbors, len(target_RD)), device)
    backward = Largest(len(target_RD), min(num_neighbors, len(source_SD)), device)
    for rows, columns, cosines_BC in score_blocks(source_SD, target_RD, device=device):
        forward.update(rows, columns.start, cosines_BC)
        backward.update(columns, rows.start, cosines_BC.T)
    return forward.falling_scores().mean(axis=1), backward.falling_scores().mean(axis=1)


def best_matches(
    source_SD: Floats, target_RD: Floats, *, margin: Margin, num_neighbors: int, device: torch.device = _CPU
) -> Matches:
    """Return the best match of every sentence, both ways.

    Args:
        source_SD: (S, D) of length 1.
        target_RD: (R, D) of length 1.
        margin: the score, for cosine c and mean m of the two neighbourhoods' mean cosines: ``ratio`` c / m,
            ``distance`` c - m, ``absolute`` c.
        num_neighbors: k of the neighbourhoods.
        device: where the products are made.
    """
    means = _margin_means(source_SD, target_RD, margin, num_neighbors, device)
    source_means, target_means = (torch.from_numpy(side).to(device) for side in means)
    forward, backward = Best(len(source_SD), device), Best(len(target_RD), device)
    for rows, columns, cosines_BC in score_blocks(source_SD, target_RD, device=device):
        scores_BC = _margin_scores(cosines_BC, source_means[rows, None], target_means[columns], margin)
        forward.update(rows, columns.start, scores_BC)
        backward.update(columns, rows.start, scores_BC.T)
    return Matches(*forward.arrays(), *backward.arrays())


def pair_scores(
    source_SD: Floats, target_RD: Floats, pairs_M2: Indices, *, margin: Margin, num_neighbors: int, device: torch.device = _CPU
) -> Floats:
    """Return the (M,) margin scores of given pairs, whatever other sentence would match better.

    Args:
        source_SD: (S, D) of length 1.
        target_RD: (R, D) of length 1.
        pairs_M2: (M, 2) source and target index.
        margin: see ``best_matches``.
        num_neighbors: k of the neighbourhoods.
        device: where the products are made.
    """
    sources, targets = pairs_M2.T
    cosines = torch.from_numpy(np.einsum("md,md->m", source_SD[sources], target_RD[targets]))
    of_sources, of_targets = _margin_means(source_SD, target_RD, margin, num_neighbors, device)
    means = torch.from_numpy(of_sources[sources]), torch.from_numpy(of_targets[targets])
    scores: Floats = _margin_scores(cosines, *means, margin).numpy()
    return scores


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


def _positive(means: Floats, side: str) -> Floats:
    # A ratio to a mean that is not positive would turn the order of the scores around.
    floor = np.float32(1e-6)
    if (low := int((means < floor).sum())) > 0:
        message = "%d of %d %s sentences have no positive mean cosine to their neighbours; it is taken as %g"
        log.warning(message, low, len(means), side, floor)
    positive: Floats = np.maximum(means, floor)
    return positive


def _margin_means(
    source_SD: Floats, target_RD: Floats, margin: Margin, num_neighbors: int, device: torch.device
) -> tuple[Floats, Floats]:
    if margin == "absolute":
        return np.zeros(len(source_SD), np.float32), np.zeros(len(target_RD), np.float32)  # nobody looks at them
    source_means, target_means = neighbour_means(source_SD, target_RD, num_neighbors, device=device)
    return (
        (_positive(source_means, "source"), _positive(target_means, "target"))
        if margin == "ratio"
        else (source_means, target_means)
    )


def _margin_scores(cosines: Tensor, source_means: Tensor, target_means: Tensor, margin: Margin) -> Tensor:
    # Means broadcast against the cosines.
    if margin == "absolute":
        return cosines
    means = (source_means + target_means) / 2
    return cosines / means if margin == "ratio" else cosines - means


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
