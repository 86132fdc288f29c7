"""Batches of a rank, step by step, made in loader workers; a pure function of the plan, the seed and the step."""

from __future__ import annotations

import ctypes
import itertools
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from mlmx import keyed
from mlmx.data.batch import Batch, BatchContext, Collator
from mlmx.data.plan import partition
from mlmx.data.rows import RowDataset

_PR_SET_PDEATHSIG = 1


class Plan(Protocol):
    """Which rows make up each global batch: ``mlmx.data.plan.BatchPlan``, or the one batch that is held out."""

    @property
    def num_steps(self) -> int | None:
        """How many batches there are; None: as many as are asked for."""

    def rows_of(self, step: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the rows of a global batch, (S,), and how often each has been seen before, (S,)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepBatches(Dataset[list[Batch]]):
    """The micro-batches of one rank at each step.

    Attributes:
        plan: the rows of each global batch.
        rows: the data.
        collator: makes a micro-batch of rows.
        seed: the run's seed.
        micro_batch_tokens: most tokens of a micro-batch; None: one micro-batch per rank.
        rank: which rank.
        size: of how many.
        held_out: whether these rows are judged by, not trained on: as at the end of the training.
    """

    plan: Plan
    rows: RowDataset
    collator: Collator
    seed: int
    micro_batch_tokens: int | None
    rank: int
    size: int
    held_out: bool = False

    def __getitem__(self, step: int) -> list[Batch]:
        rows, seen = self.plan.rows_of(step)
        parts = self.parts(rows)
        micro_batches = []
        for part in parts[self.rank]:
            if len(part):
                micro_batches.append(self._batch(rows[part], seen[part], step))
            elif self.size > 1:
                # Every process makes the same number of calls, since they wait for each other in some of them.
                one = parts[0][0][:1]
                micro_batches.append(replace(self._batch(rows[one], seen[one], step), counted=False))
        return micro_batches

    def _batch(self, rows: NDArray[np.int64], seen: NDArray[np.int64], step: int) -> Batch:
        keys = keyed.row_keys(seed=self.seed, epoch=seen, row_ids=rows)
        context = BatchContext(keys=keys, seed=self.seed, step=step, progress=self._progress(step), held_out=self.held_out)
        return self.collator(self.rows.take(rows), context)

    def _progress(self, step: int) -> float | None:
        if self.held_out:
            return 1.0
        return step / self.plan.num_steps if self.plan.num_steps is not None else None

    def parts(self, rows: NDArray[np.int64]) -> list[list[NDArray[np.int64]]]:
        """Return for each rank its micro-batches, as indices into the rows of a global batch."""
        return partition(self.rows.lengths[rows], self.size, self.micro_batch_tokens)

    def row_ids(self, step: int, micro_batch: int) -> list[int]:
        """Return the rows of one of this rank's micro-batches, for messages."""
        rows, _ = self.plan.rows_of(step)
        ids: list[int] = rows[self.parts(rows)[self.rank][micro_batch]].tolist()
        return ids

    def load(self, start: int, *, num_workers: int, pin_memory: bool = False) -> Iterator[list[Batch]]:
        """Yield the micro-batches of the steps from ``start`` to the end of the plan, without end where it has none.

        Args:
            start: the first step.
            num_workers: processes that make them ahead of time; 0: this one makes them when they are asked for.
            pin_memory: whether a GPU is to copy them by itself.
        """
        num_steps = self.plan.num_steps
        return iter(
            DataLoader(
                self,
                batch_size=None,
                sampler=range(start, num_steps) if num_steps is not None else itertools.count(start),
                num_workers=num_workers,
                collate_fn=_as_is,
                pin_memory=pin_memory,
                prefetch_factor=8 if num_workers else None,
                worker_init_fn=_obey_parent_only,
                # A generator of its own: the loader draws a seed for its workers, which nothing here uses.
                generator=torch.Generator(),
            )
        )


def _obey_parent_only(_: int) -> None:
    # Ctrl-C and SIGTERM may reach the whole process group. The trainer answers with a checkpoint, for which it needs its workers
    # no less than before; they end when it does.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _as_is(batches: list[Batch]) -> list[Batch]:
    return batches
