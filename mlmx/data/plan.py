"""Which rows make up which global batch, and how a global batch is dealt out: pure functions, nothing to save and restore.

A global batch is a run of consecutive rows of the epoch's permutation. Its tokens never depend on how many processes share it; a
run is resumed by its step number alone.
"""

# N rows of the dataset, S rows of a batch

from __future__ import annotations

import bisect
import heapq
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlmx import keyed
from mlmx.data.encoding import offsets_of
from mlmx.errors import user_error


class BatchPlan:
    """The global batches of a training.

    Rows are permuted anew in each epoch. A batch takes as many of the next rows as fit into the budget, at least one; the last
    two batches of an epoch share their rows evenly where the last would be less than half full. No batch mixes epochs.

    Where rows have weights (mixtures), a row of weight 2.5 is seen two or three times per epoch, three times in every second
    epoch; which rows get the extra turn rotates, so that after enough epochs all have been seen equally often.

    Args:
        lengths: (N,) tokens per row.
        seed: the run's seed.
        batch_tokens: tokens per batch at most, special tokens included; or
        batch_examples: rows per batch.
        max_steps: how many batches there are; epochs roll on as long as it takes.
        epochs: how often the data is seen.
        max_tokens: there are as many batches as it takes to reach this number of tokens. At most one of these three; with none of
            them there is no last batch.
        batch_warmup_tokens: over this many tokens batches grow linearly to their full size; None: all have it.
        batch_warmup_start_ratio: part of the full size that the first batch has.
        weights: (N,) how often each row is seen per epoch; None for once.

    Attributes:
        num_steps: how many batches there are; None: as many as are asked for.
    """

    def __init__(
        self,
        lengths: NDArray[np.integer[Any]],
        *,
        seed: int,
        batch_tokens: int | None = None,
        batch_examples: int | None = None,
        max_steps: int | None = None,
        epochs: int | None = None,
        max_tokens: int | None = None,
        batch_warmup_tokens: int | None = None,
        batch_warmup_start_ratio: float | None = None,
        weights: NDArray[np.float64] | None = None,
    ) -> None:
        assert (batch_tokens is None) != (batch_examples is None), "the trainer checks its settings"
        assert sum(end is not None for end in (max_steps, epochs, max_tokens)) <= 1, "the trainer checks its settings"
        assert (batch_warmup_tokens is None) == (batch_warmup_start_ratio is None), "the trainer checks its settings"
        if len(lengths) == 0:
            raise user_error("corpus", "has no rows to train on.")
        if weights is not None and not weights.sum() > 0:
            raise user_error("corpus", "all weights of the mixture are 0.")
        self.lengths = np.asarray(lengths)
        self.seed = seed
        self.batch_tokens = batch_tokens
        self.batch_examples = batch_examples
        self.weights = weights
        self._warmup = (batch_warmup_tokens, batch_warmup_start_ratio)
        # First step of each epoch planned so far, and the first step after the last of them; and the tokens before these steps.
        self._epoch_steps = [0]
        self._epoch_tokens = [0]
        self._epoch: tuple[int, NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]] | None = None
        self.num_steps = max_steps
        if epochs is not None:
            while len(self._epoch_steps) <= epochs:
                self._plan_epoch(len(self._epoch_steps) - 1)
            self.num_steps = self._epoch_steps[-1]
        if max_tokens is not None:
            while self._epoch_tokens[-1] < max_tokens:
                self._plan_epoch(len(self._epoch_steps) - 1)
            self.num_steps = self._step_reaching(max_tokens)

    def rows_of(self, step: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the rows of a global batch, (S,), and how often each has been seen before, (S,).

        The second is what ``mlmx.keyed.row_keys`` takes as ``epoch``: a row that a weight brings up twice in one epoch gets
        another number, and so another mask, the second time.
        """
        while step >= self._epoch_steps[-1]:
            self._plan_epoch(len(self._epoch_steps) - 1)
        epoch = self.epoch_of(step)
        if self._epoch is None or self._epoch[0] != epoch:
            self._plan_epoch(epoch)
        assert self._epoch is not None
        _, rows, seen, boundaries = self._epoch
        batch = step - self._epoch_steps[epoch]
        run = slice(int(boundaries[batch]), int(boundaries[batch + 1]))
        return rows[run], seen[run]

    def epoch_of(self, step: int) -> int:
        """Return the epoch a step lies in, from 0."""
        while step >= self._epoch_steps[-1]:
            self._plan_epoch(len(self._epoch_steps) - 1)
        return int(np.searchsorted(self._epoch_steps, step, side="right")) - 1

    @property
    def steps_per_epoch(self) -> int:
        """How many batches the first epoch has."""
        if len(self._epoch_steps) == 1:
            self._plan_epoch(0)
        return self._epoch_steps[1]

    def _step_reaching(self, tokens: int) -> int:
        # How many steps it takes to these tokens, which the last planned epoch reaches.
        assert self._epoch is not None
        epoch, rows, _, boundaries = self._epoch
        reached = self._epoch_tokens[epoch] + offsets_of(self.lengths[rows])[boundaries]
        return self._epoch_steps[epoch] + int(np.searchsorted(reached, tokens, side="left"))

    def _plan_epoch(self, epoch: int) -> None:
        rows, seen = self._rows_of_epoch(epoch)
        lengths = self.lengths[rows]
        boundaries = self._boundaries(lengths, self._epoch_tokens[epoch])
        if epoch == len(self._epoch_steps) - 1:
            self._epoch_steps.append(self._epoch_steps[-1] + len(boundaries) - 1)
            self._epoch_tokens.append(self._epoch_tokens[-1] + int(lengths.sum()))
        self._epoch = (epoch, rows, seen, boundaries)

    def _rows_of_epoch(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        size = len(self.lengths)
        if self.weights is None:
            order = keyed.permutation(size, seed=self.seed, name="plan", epoch=epoch)
            return order, np.broadcast_to(np.int64(epoch), size)
        turns_before = self._turns(epoch)
        turns = self._turns(epoch + 1) - turns_before
        rows = np.repeat(np.arange(size), turns)
        within = np.arange(len(rows)) - np.repeat(offsets_of(turns)[:-1], turns)
        order = keyed.permutation(len(rows), seed=self.seed, name="plan", epoch=epoch)
        return rows[order], (turns_before[rows] + within)[order]

    def _turns(self, epochs: int) -> NDArray[np.int64]:
        # (N,) how often each row is seen in the first `epochs` epochs. A shift of its own per row, evenly spread over [0, 1),
        # spreads the fractional turns over the rows.
        assert self.weights is not None
        size = len(self.lengths)
        shift = (keyed.permutation(size, seed=self.seed, name="plan.shift") + 0.5) / size
        # The tiny term keeps 0.1 * 10 from falling short of 1.
        return np.floor(self.weights * epochs + shift + 1e-9).astype(np.int64)

    def _boundaries(self, lengths: NDArray[Any], tokens_before: int) -> NDArray[np.int64]:
        # Where the batches of an epoch begin, and where the last ends.
        if len(lengths) == 0:
            return np.zeros(1, np.int64)
        tokens = offsets_of(lengths)
        cumulative = tokens if self.batch_tokens is not None else np.arange(len(lengths) + 1)
        boundaries, size = [0], 0
        while boundaries[-1] < len(lengths):
            first = boundaries[-1]
            size = self._batch_size(tokens_before + int(tokens[first]))
            following = int(np.searchsorted(cumulative, cumulative[first] + size, side="right")) - 1
            boundaries.append(max(following, first + 1))
        if len(boundaries) > 2 and cumulative[boundaries[-1]] - cumulative[boundaries[-2]] < size / 2:
            middle = (cumulative[boundaries[-3]] + cumulative[boundaries[-1]]) / 2
            cut = int(np.searchsorted(cumulative, middle, side="left"))
            if boundaries[-3] < cut <= boundaries[-2]:
                boundaries[-2] = cut
        return np.array(boundaries, np.int64)

    def _batch_size(self, tokens_before: int) -> int:
        # Tokens (or rows) of a batch at most, where so many tokens came before it.
        full = self.batch_tokens if self.batch_tokens is not None else self.batch_examples
        assert full is not None
        warmup_tokens, start_ratio = self._warmup
        if warmup_tokens is None or start_ratio is None:
            return full
        grown = start_ratio + (1.0 - start_ratio) * min(1.0, tokens_before / warmup_tokens)
        # The tiny term keeps rounding from taking a token off a full batch.
        return math.floor(full * grown + 1e-9)


def partition(
    lengths: NDArray[np.integer[Any]] | Sequence[int], num_parts: int, micro_batch_tokens: int | None = None
) -> list[list[NDArray[np.int64]]]:
    """Deal the rows of a global batch out to processes, in micro-batches.

    There are as few micro-batches as it takes, the same number for each process. Rows go, longest first, to the emptiest
    micro-batch, which makes all alike; where that needs more of them than best-fit packing does, they are packed by best fit.
    Depends on its arguments only.

    Args:
        lengths: (S,) tokens per row.
        num_parts: how many processes there are.
        micro_batch_tokens: tokens per micro-batch at most (a longer row is alone in one); None for one micro-batch per process.

    Returns:
        For each process its micro-batches, each a rising array of indices into ``lengths``; empty ones where rows are few.
    """
    tokens = np.asarray(lengths, np.int64)
    order = np.argsort(-tokens, kind="stable").tolist()
    sizes = tokens.tolist()
    least = 1 if micro_batch_tokens is None else max(1, -(-int(tokens.clip(max=micro_batch_tokens).sum()) // micro_batch_tokens))
    num_bins = -(-least // num_parts) * num_parts
    bins = _pack_evenly(order, sizes, num_bins, micro_batch_tokens)
    if bins is None:
        assert micro_batch_tokens is not None
        bins = _pack_by_best_fit(order, sizes, micro_batch_tokens)
        num_bins = -(-len(bins) // num_parts) * num_parts
        bins = _pack_evenly(order, sizes, num_bins, micro_batch_tokens) or bins + [[] for _ in range(num_bins - len(bins))]
    # Fullest first, there and back again, so that the processes' totals and their n-th micro-batches are alike.
    bins.sort(key=lambda rows: (-sum(sizes[row] for row in rows), rows))
    parts: list[list[NDArray[np.int64]]] = [[] for _ in range(num_parts)]
    for number, rows in enumerate(bins):
        turn, place = divmod(number, num_parts)
        parts[place if turn % 2 == 0 else num_parts - 1 - place].append(np.array(sorted(rows), np.int64))
    return parts


def packing_efficiency(num_tokens: int, num_micro_batches: int, micro_batch_tokens: int) -> float:
    """Return which part of micro-batches of a fixed size is real tokens and not filling.

    Args:
        num_tokens: real tokens, over all micro-batches of all processes.
        num_micro_batches: how many there are, over all processes.
        micro_batch_tokens: the size they are filled up to.
    """
    return num_tokens / (num_micro_batches * micro_batch_tokens)


def _pack_evenly(order: list[int], sizes: list[int], num_bins: int, capacity: int | None) -> list[list[int]] | None:
    # Longest first into the emptiest bin; None if a row does not fit.
    heap = [(0, number) for number in range(num_bins)]
    bins: list[list[int]] = [[] for _ in range(num_bins)]
    for row in order:
        filled, number = heap[0]
        if capacity is not None and bins[number] and filled + sizes[row] > capacity:
            return None
        bins[number].append(row)
        heapq.heapreplace(heap, (filled + sizes[row], number))
    return bins


def _pack_by_best_fit(order: list[int], sizes: list[int], capacity: int) -> list[list[int]]:
    # Longest first into the fullest bin with room for it, or into a new one.
    rooms: list[tuple[int, int]] = []  # of each bin that is not full: free tokens and number, rising
    bins: list[list[int]] = []
    for row in order:
        place = bisect.bisect_left(rooms, (sizes[row], 0))
        room, number = rooms.pop(place) if place < len(rooms) else (capacity, len(bins))
        if number == len(bins):
            bins.append([])
        bins[number].append(row)
        if sizes[row] < room:
            bisect.insort(rooms, (room - sizes[row], number))
    return bins
