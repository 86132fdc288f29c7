"""The batch: what a collator makes and an objective consumes."""

# S rows, T tokens of all rows (packed: no padding)

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mlmx.data.rows import TokenRows


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """One micro-batch, packed.

    Attributes:
        tensors: always ``input_ids`` (T,) int64, ``position_ids`` (T,) int64 counted from 0 in each row, ``cu_seqlens``
            (S+1,) int32; beside them whatever the objective's forward needs.
        counts: term -> number of predictions the term sums over in this micro-batch; known before forward.
        keys: (S,) int64 key of each row, for random choices inside forward.
        max_seqlen: the longest row in tokens (or any upper bound).
        step: the optimiser step this batch belongs to, from 0.
        progress: in [0, 1], the part of the budget that is spent, for schedules. The trainer sets it when it takes the batch: a
            batch may be made long before its step, when nobody knows yet what part of some budgets (seconds, supervised tokens,
            FLOPs) will be spent by then.
        counted: False for a batch that is there only so that all processes make the same calls: nothing of it counts.
    """

    tensors: Mapping[str, Tensor]
    counts: Mapping[str, int]
    keys: Tensor
    max_seqlen: int
    step: int = 0
    progress: float = 0.0
    counted: bool = True

    @property
    def num_tokens(self) -> int:
        return len(self.tensors["input_ids"])

    @property
    def num_rows(self) -> int:
        return len(self.keys)

    def to(self, device: torch.device) -> Batch:
        """Return the batch on a device (the copy overlaps computation where memory is pinned)."""
        tensors = {name: tensor.to(device, non_blocking=True) for name, tensor in self.tensors.items()}
        return replace(self, tensors=tensors, keys=self.keys.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """Return the batch in memory from which a GPU copies by itself; torch's ``DataLoader`` calls this."""
        tensors = {name: tensor.pin_memory() for name, tensor in self.tensors.items()}
        return replace(self, tensors=tensors, keys=self.keys.pin_memory())


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchContext:
    """What a collator knows of the batch beside its rows.

    Attributes:
        keys: (S,) int64 key of each row: ``mlmx.keyed.row_keys`` of (seed, epoch, row id).
        seed: the run's seed, for what is chosen for a global batch as a whole.
        step: the optimiser step, from 0.
        progress: in [0, 1], the part of the budget that is spent; None where the plan does not say it (``Batch.progress``).
        held_out: whether the batch is there to judge by, and belongs to no step; its progress is 1.
    """

    keys: NDArray[np.int64]
    seed: int = 0
    step: int = 0
    progress: float | None = None
    held_out: bool = False


class Collator(ABC):
    """Turns rows into a batch: selects, corrupts, counts. Runs on the CPU in loader workers; picklable; no parameters.

    Attributes:
        view: what a row is to this objective: each ``segment`` of the corpus by itself, or each ``pair`` in one row. Rows
            of a corpus of triplets have three sides then: who needs two checks ``CorpusInfo.parallel``.
        separator: how the sides of a pair are joined, see ``mlmx.data.vocabulary.RowLayout``.
    """

    view: Literal["segment", "pair"] = "segment"
    separator: Literal["template", "own"] = "template"

    def arranged(self, rows: TokenRows, context: BatchContext) -> TokenRows:
        """Return the rows that the batch of these rows has, before anything is corrupted; here they are the same."""
        return rows

    @abstractmethod
    def __call__(self, rows: TokenRows, context: BatchContext) -> Batch:
        """Return the batch of these rows; a pure function of its arguments."""


Kind = TypeVar("Kind", bound=Collator)


def extended(collator: Collator, kind: type[Kind], **more: object) -> Kind:
    """Return a collator of a kind that has the given one's settings, which must be a dataclass, and more."""
    return kind(**{field.name: getattr(collator, field.name) for field in fields(collator)}, **more)  # type: ignore[arg-type]


def packed_batch(
    rows: TokenRows,
    context: BatchContext,
    *,
    counts: Mapping[str, int],
    input_ids: NDArray[np.int64] | None = None,
    position_ids: NDArray[np.int64] | None = None,
    **arrays: NDArray[np.generic],
) -> Batch:
    """Return rows as a packed batch.

    Args:
        rows: the rows.
        context: keys and step.
        counts: term -> number of predictions.
        input_ids: (T,) the corrupted ids; the rows' own if None.
        position_ids: (T,) positions from 0; restarting with each row if None.
        **arrays: further tensors of the batch.
    """
    tensors = {
        "input_ids": rows.input_ids if input_ids is None else input_ids,
        "position_ids": rows.places if position_ids is None else position_ids,
        "cu_seqlens": rows.cu_seqlens,
        **arrays,
    }
    return Batch(
        tensors={name: torch.from_numpy(array) for name, array in tensors.items()},
        counts=dict(counts),
        keys=torch.from_numpy(context.keys),
        max_seqlen=int(np.maximum.reduce(rows.lengths, initial=0)),
        step=context.step,
    )
