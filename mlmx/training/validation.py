"""The loss on rows that are held out of the training."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mlmx import keyed
from mlmx.objectives.objective import Objective
from mlmx.training.loader import StepBatches
from mlmx.training.parallel import ProcessGroup
from mlmx.training.totals import Work, add_up, means_of, sums_of, weighted_loss


class HeldOut:
    """A plan of one batch: the rows that are held out, always with the same masks.

    Args:
        size: rows of the dataset.
        num_rows: how many of them are held out.
        seed: the run's seed.
        weights: (size,) how often each row is seen per epoch (mixtures): a row is held out the more likely, and never one that
            is never seen; None: all alike.

    Attributes:
        rows: (num_rows,) which ones, rising.
        num_steps: 1.
    """

    num_steps = 1

    def __init__(self, size: int, num_rows: int, *, seed: int, weights: NDArray[np.float64] | None = None) -> None:
        order = keyed.permutation(size, seed=seed, name="validation")
        if weights is not None:
            # Arrivals at rates in proportion to the weights, by evenly spread numbers in (0, 1): the first ones are drawn so too.
            with np.errstate(divide="ignore"):
                order = order[np.argsort(-np.log1p(-(np.arange(size) + 0.5) / size) / weights[order], kind="stable")]
        self.rows = np.sort(order[:num_rows])

    def rows_of(self, step: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the rows, and zeros, since the training has never seen them."""
        return self.rows, np.zeros(len(self.rows), np.int64)


@torch.no_grad()
def validate(
    objective: Objective, batches: StepBatches, processes: ProcessGroup, autocast: Callable[[], AbstractContextManager[Any]]
) -> dict[str, float]:
    """Return ``loss``, ``loss/<term>`` and metrics over held-out rows; every process calls this at the same time.

    Args:
        objective: without dropout while this runs.
        batches: of a plan ``HeldOut``.
        processes: who shares the rows.
        autocast: the precision of the forward pass.
    """
    objective.eval()
    micro_batches = batches[0]
    work = Work.total(Work(**told) for told in processes.gather(Work.of(objective, micro_batches).to_json()))
    sums = []
    for batch in micro_batches:
        batch = replace(batch, progress=1.0)
        with autocast():
            output = objective(batch.to(processes.device))
        loss = weighted_loss(output.terms, objective.weights_of(batch), work.counts, counted=batch.counted)
        sums.append({name: float(value) for name, value in sums_of(output, loss, counted=batch.counted).items()})
    objective.train()
    totals = add_up(processes.gather(add_up(sums)))
    return {"loss": totals["loss"], **means_of(totals, work.counts)}
