"""Exact search: for each query the documents of largest inner product, in blocks, so that memory is bounded.

The matrix of scores is made block by block and never held whole. Embeddings may be memory-mapped: only blocks of them are read, so
what has to fit into memory is a block of scores and the results, whatever the number of documents. Processes that judge together
share the blocks, which are the same for any number of them, and all get the same results: every process makes these calls.
"""

# Q queries, N documents, D width, B columns of a block, K results, G groups of columns

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mlmx.data.progress import progress_bar
from mlmx.tasks.lexical import LexicalQueries, parts
from mlmx.training.parallel import current

Floats = NDArray[np.float32]
Indices = NDArray[np.int64]

_CPU = torch.device("cpu")

# Queries and documents of a block: 64 MB of scores on a CPU, 2 GB on a GPU, which needs large products to be busy.
_CPU_BLOCK = (1024, 16384)
_GPU_BLOCK = (8192, 65536)


@dataclass(frozen=True, slots=True)
class Neighbours:
    """The nearest documents of every query, best first.

    Attributes:
        indices: (Q, K) documents.
        scores: (Q, K) their inner products, falling; equal ones in any order, of which the first is kept where K is 1.
    """

    indices: Indices
    scores: Floats


class Best:
    """The largest score of each row of a matrix that is seen block by block, and the first column where it stands.

    Attributes:
        scores: (Q,); -inf where none was seen.
        columns: (Q,).
    """

    def __init__(self, num_rows: int, device: torch.device) -> None:
        self.scores = torch.full((num_rows,), -torch.inf, device=device)
        self.columns = torch.zeros(num_rows, dtype=torch.int64, device=device)

    def update(self, rows: slice, first_column: int, scores_QB: Tensor) -> None:
        """Take in the scores of some rows in the columns from ``first_column`` on; columns come in their order."""
        scores, columns = scores_QB.max(dim=1)
        better = scores > self.scores[rows]
        self.columns[rows] = torch.where(better, columns + first_column, self.columns[rows])
        self.scores[rows] = torch.where(better, scores, self.scores[rows])

    def arrays(self) -> tuple[Indices, Floats]:
        """Return the columns and their scores, over what all processes have seen."""
        columns, scores = self.columns.cpu().numpy(), self.scores.cpu().numpy()
        for other_columns, other_scores in current().gather_arrays([columns, scores]):
            better = (other_scores > scores) | ((other_scores == scores) & (other_columns < columns))
            columns, scores = np.where(better, other_columns, columns), np.where(better, other_scores, scores)
        return columns, scores


class Largest:
    """The largest scores of each row of a matrix that is seen block by block, from the first column on.

    Attributes:
        scores: (Q, K) in no order; -inf where fewer than K were seen.
        columns: (Q, K) where they stand; -1 where fewer than K were seen.
    """

    def __init__(self, num_rows: int, num_kept: int, device: torch.device) -> None:
        self.scores = torch.full((num_rows, num_kept), -torch.inf, device=device)
        self.columns = torch.full((num_rows, num_kept), -1, device=device)

    def update(self, rows: slice, first_column: int, scores_QB: Tensor) -> None:
        """Take in the scores of some rows in the columns from ``first_column`` on."""
        num_kept = self.scores.shape[1]
        columns = self._candidates(scores_QB, self.scores[rows].amin(dim=1), first_column)
        if columns is None:
            return
        scores = torch.cat([self.scores[rows], scores_QB.gather(1, columns)], dim=1)
        self.scores[rows], kept = scores.topk(num_kept, sorted=False)
        self.columns[rows] = torch.cat([self.columns[rows], columns + first_column], dim=1).gather(1, kept)

    def falling_scores(self) -> Floats:
        """Return the (Q, K) scores in falling order, over what all processes have seen."""
        found = [torch.from_numpy(scores) for (scores,) in current().gather_arrays([self.scores.cpu().numpy()])]
        scores: Floats = torch.cat(found, dim=1).topk(self.scores.shape[1]).values.numpy()
        return scores

    def _candidates(self, scores_QB: Tensor, worst_Q: Tensor, num_seen: int) -> Tensor | None:
        # Columns among which are all that belong to the K largest so far. Column c is in group c % G. The K largest of a row lie in
        # the K groups with the largest maxima, and in groups whose maximum beats the worst one kept, which after the first block
        # are few: a pass over the scores finds them, where selecting K of all would take several.
        num_kept, num_columns = self.scores.shape[1], scores_QB.shape[1]
        expected = max(1, num_kept * num_columns // (num_seen + num_columns))
        size = max(1, math.isqrt(num_columns // expected))
        num_groups = num_columns // size
        grouped = size * num_groups
        maxima_QG = scores_QB[:, :grouped].reshape(-1, size, num_groups).amax(dim=1)
        rest = torch.arange(grouped, num_columns, device=scores_QB.device).expand(len(scores_QB), -1)
        num_better = int((maxima_QG > worst_Q[:, None]).sum(dim=1).max())
        if num_better == 0 and grouped == num_columns:
            return None
        groups = maxima_QG.topk(min(num_kept, num_better), sorted=False).indices
        members = torch.arange(0, grouped, num_groups, device=scores_QB.device)
        return torch.cat([(groups[:, :, None] + members).flatten(1), rest], dim=1)


def nearest(
    queries_QD: Floats, documents_ND: Floats, num_results: int, *, device: torch.device = _CPU, num_entries: int = 0
) -> Neighbours:
    """Return the documents of largest inner product with each query.

    Args:
        queries_QD: (Q, D).
        documents_ND: (N, D), in memory or memory-mapped.
        num_results: K; all documents if there are fewer.
        device: where the products are made.
        num_entries: of the lexical part at the end of each row, see ``mlmx.tasks.lexical``; its score is added.
    """
    num_results = min(num_results, len(documents_ND))
    if num_results == 1:
        best_of_all = Best(len(queries_QD), device)
        for rows, columns, scores_QB in score_blocks(queries_QD, documents_ND, device=device, num_entries=num_entries):
            best_of_all.update(rows, columns.start, scores_QB)
        index, score = best_of_all.arrays()
        return Neighbours(index[:, None], score[:, None])
    own: list[NDArray[Any]] = []  # of each block: its first query, its indices, its scores
    for rows, columns, scores_QB in score_blocks(queries_QD, documents_ND, device=device, num_entries=num_entries):
        if columns.start == 0:
            best = Largest(len(scores_QB), num_results, device)
        best.update(slice(None), columns.start, scores_QB)
        if columns.stop == len(documents_ND):
            falling, order = best.scores.sort(dim=1, descending=True)
            own += [np.array([rows.start]), best.columns.gather(1, order).cpu().numpy(), falling.cpu().numpy()]
    indices = np.empty((len(queries_QD), num_results), np.int64)
    scores = np.empty((len(queries_QD), num_results), np.float32)
    for arrays in current().gather_arrays(own):
        for (start,), block, block_scores in zip(arrays[::3], arrays[1::3], arrays[2::3], strict=True):
            indices[start : start + len(block)], scores[start : start + len(block)] = block, block_scores
    return Neighbours(indices, scores)


def score_blocks(
    queries_QD: Floats, documents_ND: Floats, *, device: torch.device = _CPU, num_entries: int = 0
) -> Iterator[tuple[slice, slice, Tensor]]:
    """Yield this process' share of the inner products of all queries with all documents, block by block, and show how far it is.

    Args:
        queries_QD: (Q, D).
        documents_ND: (N, D).
        device: where the products are made.
        num_entries: of the lexical part at the end of each row, whose score is added.

    Yields:
        The queries of the block, its documents, and their (queries, documents) scores, to be read before the next block is made.
    """
    num_queries, num_documents = _CPU_BLOCK if device.type == "cpu" else _GPU_BLOCK
    num_queries, num_documents = min(num_queries, len(queries_QD)), min(num_documents, len(documents_ND))
    # One piece of memory for all blocks: a CPU takes a part of the time of a product to clear fresh memory of its size.
    memory = torch.empty(num_queries * num_documents, device=device)
    processes = current()
    own_rows = _slices(len(queries_QD), num_queries)[processes.rank :: processes.size]
    blocks = product(own_rows, _slices(len(documents_ND), num_documents))
    total = sum(rows.stop - rows.start for rows in own_rows) * len(documents_ND)
    for rows, columns in progress_bar(blocks, "search, pairs", total=total, size=_num_scores, show=processes.is_main):
        if columns.start == 0:
            block_QD, *lexical = _tensors(queries_QD[rows], num_entries, device)
            words = LexicalQueries(*lexical) if num_entries else None
        block_BD, *lexical = _tensors(documents_ND[columns], num_entries, device)
        scores_QB = memory[: len(block_QD) * len(block_BD)].view(len(block_QD), len(block_BD))
        torch.mm(block_QD, block_BD.T, out=scores_QB)
        if words is not None:
            scores_QB += words.scores(*lexical)
        yield rows, columns, scores_QB


def normalised(embeddings: Floats) -> Floats:
    """Return embeddings of length 1 (all-zero ones stay zero).

    Raises:
        FloatingPointError: if an embedding is not finite.
    """
    check_finite(embeddings)
    norms = np.linalg.norm(embeddings, axis=1, keepdims=True)
    result: Floats = (embeddings / np.maximum(norms, np.finfo(np.float32).tiny)).astype(np.float32)
    return result


def check_finite(embeddings: Floats) -> None:
    """Refuse embeddings that cannot be compared.

    Raises:
        FloatingPointError: if an embedding is not finite.
    """
    if num_wrong := int((~np.isfinite(embeddings)).any(axis=1).sum()):
        raise FloatingPointError(f"{num_wrong} of {len(embeddings)} embeddings are not finite")


def _slices(number: int, step: int) -> list[slice]:
    return [slice(start, min(start + step, number)) for start in range(0, number, max(1, step))]


def _num_scores(block: tuple[slice, slice]) -> int:
    rows, columns = block
    return int((rows.stop - rows.start) * (columns.stop - columns.start))


def _tensors(block: Floats, num_entries: int, device: torch.device) -> list[Tensor]:
    # Vectors, weights and entries. torch shares memory with arrays that may be written to, and copies a block of one that is mapped
    # for reading only.
    return [torch.from_numpy(np.require(part, np.float32, ["C", "W"])).to(device) for part in parts(block, num_entries)]
