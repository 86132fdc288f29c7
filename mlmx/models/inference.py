"""Going through rows without training: in batches of similar length, shared among the processes."""

# S rows of a batch, N rows of the dataset

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from mlmx.data.progress import progress_bar
from mlmx.data.rows import RowDataset
from mlmx.training.parallel import current

# Batches that each process has between two exchanges: enough that nobody waits for long, few enough to hold in memory.
_BATCHES_OF_A_ROUND = 16


def by_batch(
    rows: RowDataset, compute: Callable[[NDArray[np.int64]], NDArray[np.generic]], *, batch_tokens: int, what: str
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.generic]]]:
    """Yield the rows of each batch and what is computed from them, and show how far it is.

    Each process computes its share of the batches, and all get all results, in any order. Batches do not depend on the number of
    processes, so that results are the same to the bit. Every process makes this call.

    Args:
        rows: the rows.
        compute: (S,) rows of a batch -> an array of any shape; runs without gradients.
        batch_tokens: most tokens per batch; a longer row runs alone.
        what: what is being done, for the progress bar.
    """
    processes = current()
    batches = batches_by_length(rows.lengths, batch_tokens)
    at_once = processes.size * _BATCHES_OF_A_ROUND if processes.size > 1 else 1
    rounds = [batches[start : start + at_once] for start in range(0, len(batches), at_once)]

    def num_tokens(some: list[NDArray[np.int64]]) -> int:
        return sum(int(rows.lengths[indices].sum()) for indices in some)

    shown = progress_bar(rounds, f"{what}, tokens", total=int(rows.lengths.sum()), size=num_tokens, show=processes.is_main)
    for some in shown:
        shares = [some[rank :: processes.size] for rank in range(processes.size)]
        with torch.inference_mode():
            own = [compute(indices) for indices in shares[processes.rank]]
        for share, results in zip(shares, processes.gather_arrays(own), strict=True):
            yield from zip(share, results, strict=True)


def batches_by_length(lengths: NDArray[np.int32], batch_tokens: int) -> list[NDArray[np.int64]]:
    """Split rows, sorted by length, into batches of at most ``batch_tokens`` tokens (one row at least)."""
    order = np.argsort(lengths, kind="stable").astype(np.int64)
    batches, start, tokens = [], 0, 0
    for end, row in enumerate(order):
        if end > start and tokens + int(lengths[row]) > batch_tokens:
            batches.append(order[start:end])
            start, tokens = end, 0
        tokens += int(lengths[row])
    return [*batches, order[start:]] if len(order) else []
