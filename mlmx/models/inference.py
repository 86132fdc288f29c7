"""Going through rows without training: in batches of similar length, shared among the processes."""

# S rows of a batch, N rows of the dataset

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mlmx.data.progress import progress_bar
from mlmx.data.rows import RowDataset
from mlmx.data.saved_results import SavedResults
from mlmx.training.parallel import ProcessGroup, current

log = logging.getLogger(__name__)

# Batches that each process has between two exchanges: enough that nobody waits for long, few enough to hold in memory.
_BATCHES_OF_A_ROUND = 16
# Batches whose saved results are in memory at the same time.
_AT_ONCE = 64


_saved: SavedResults | None = None


@contextmanager
def results_saved(folder: Path, identity: str) -> Iterator[None]:
    """Let ``by_batch`` write down what it computes, and begin with what an interrupted process wrote down; for the main process.

    Args:
        folder: where; deleted at the end, unless it is the end of an error.
        identity: of all that results come from beside rows and settings: the model, the device.
    """
    global _saved
    _saved = SavedResults(folder, identity)
    try:
        yield
        _saved.remove()
    finally:
        _saved.close()
        _saved = None


def by_batch(
    rows: RowDataset,
    compute: Callable[[NDArray[np.int64]], NDArray[np.generic]],
    *,
    batch_tokens: int,
    what: str,
    settings: tuple[object, ...] = (),
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.generic]]]:
    """Yield the rows of each batch and what is computed from them, and show how far it is.

    Each process computes its share of the batches, and all get all results, in any order. Batches do not depend on the number of
    processes, so that results are the same to the bit. Every process makes this call.

    Args:
        rows: the rows.
        compute: (S,) rows of a batch -> an array of any shape; runs without gradients.
        batch_tokens: most tokens per batch; a longer row runs alone.
        what: what is being done, for the progress bar.
        settings: what a result depends on beside its rows, whose labels do not count, and the model.
    """
    processes = current()
    batches = batches_by_length(rows.lengths, batch_tokens)
    key = partial(_key, rows, repr((what, settings)))
    missing = []
    for start in range(0, len(batches), _AT_ONCE):
        some = batches[start : start + _AT_ONCE]
        found = _found(list(map(key, some)) if _saved else [], processes)
        missing += [batch for i, batch in enumerate(some) if i not in found]
        yield from ((some[i], result) for i, result in found.items())
    at_once = processes.size * _BATCHES_OF_A_ROUND if processes.size > 1 else 1
    rounds = [missing[start : start + at_once] for start in range(0, len(missing), at_once)]

    def num_tokens(some: list[NDArray[np.int64]]) -> int:
        return sum(int(rows.lengths[indices].sum()) for indices in some)

    total = sum(map(num_tokens, rounds))
    if len(missing) < len(batches) and processes.is_main:
        log.warning("%s: goes on after %d of %d batches", what, len(batches) - len(missing), len(batches))
    for some in progress_bar(rounds, f"{what}, tokens", total=total, size=num_tokens, show=processes.is_main):
        shares = [some[rank :: processes.size] for rank in range(processes.size)]
        with torch.inference_mode():
            own = [compute(indices) for indices in shares[processes.rank]]
        for share, results in zip(shares, processes.gather_arrays(own), strict=True):
            for indices, result in zip(share, results, strict=True):
                if _saved is not None:
                    _saved.add(key(indices), result)
                yield indices, result


def _found(keys: list[str], processes: ProcessGroup) -> dict[int, NDArray[Any]]:
    # Number of a batch -> its result, for those that the main process has on its disk. The others have no keys.
    numbers = processes.gather([i for i, key in enumerate(keys) if _saved is not None and key in _saved])[0]
    if not numbers:
        return {}
    results = processes.gather_arrays([_saved[keys[i]] for i in numbers] if _saved is not None else [])[0]
    return dict(zip(numbers, results, strict=True))


def _key(rows: RowDataset, how: str, indices: NDArray[np.int64]) -> str:
    taken = rows.take(indices)
    content = hashlib.sha256(how.encode())
    parts = (taken.input_ids, taken.cu_seqlens, taken.row_ids, taken.words, taken.segments, taken.languages)
    for array in (*parts, *taken.tags.values()):
        content.update(np.ascontiguousarray(array).tobytes())
    return content.hexdigest()[:32]


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
