"""Sums: of what the losses are divided by, and of what is logged; over micro-batches and over ranks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mlmx.data.batch import Batch
from mlmx.objectives.objective import Objective, Output


@dataclass(frozen=True, slots=True)
class Work:
    """What a step has to do, known before its forward pass.

    Attributes:
        counts: term -> number of predictions.
        tokens: tokens that go through the model.
        flops: model FLOPs; 0 where they are not known.
    """

    counts: dict[str, float]
    tokens: int
    flops: int

    @classmethod
    def of(cls, objective: Objective, batches: Sequence[Batch]) -> Work:
        """Return the work that some micro-batches are."""
        counts = add_up(batch.counts for batch in batches)
        return cls(counts, sum(batch.num_tokens for batch in batches), sum(objective.flops(batch) for batch in batches))

    @classmethod
    def total(cls, works: Sequence[Work]) -> Work:
        """Return the work of all ranks."""
        return cls(add_up(work.counts for work in works), sum(work.tokens for work in works), sum(work.flops for work in works))

    @property
    def supervised_tokens(self) -> int:
        """How many predictions there are, of all terms."""
        return int(sum(self.counts.values()))


def add_up(records: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Return name -> the sum of the records' values."""
    totals: dict[str, float] = {}
    for record in records:
        for name, value in record.items():
            totals[name] = totals.get(name, 0) + value
    return totals


def weighted_loss(terms: Mapping[str, Tensor], weights: Mapping[str, float], counts: Mapping[str, float]) -> Tensor:
    """Return this micro-batch's part of the loss: summed terms, weighted, over the counts of the whole global batch."""
    if set(terms) != set(weights) or set(terms) != set(counts):
        raise ValueError(f"terms {sorted(terms)}, weights {sorted(weights)} and counts {sorted(counts)} must have the same names")
    # A term without predictions stays in the graph with a factor of 0, so that every parameter it reaches has a gradient.
    parts = [terms[name].float() * (weights[name] / counts[name] if counts[name] else 0.0) for name in sorted(terms)]
    return torch.stack(parts).sum()


def numbers_of(output: Output, loss: Tensor) -> dict[str, Tensor]:
    """Return everything of a micro-batch that is summed for the log, as it lies on the device."""
    named: dict[str, Tensor] = {"loss": loss}
    named |= {f"loss/{name}": term for name, term in output.terms.items()}
    for name, (total, count) in output.metrics.items():
        named |= {f"{name}\0sum": total, f"{name}\0count": count}
    return {name: tensor.detach().double().reshape(()) for name, tensor in named.items()}


def read(numbers: Sequence[Mapping[str, Tensor]], norm: Tensor) -> tuple[list[dict[str, float]], float]:
    """Return the numbers of all micro-batches and the gradient's norm; one transfer from the device, and one wait, for all."""
    tensors = [tensor for of_micro_batch in numbers for tensor in of_micro_batch.values()]
    *values, norm_value = torch.stack([*tensors, norm.detach().to(torch.float64)]).tolist()
    remaining = iter(values)
    return [{name: next(remaining) for name in of_micro_batch} for of_micro_batch in numbers], norm_value


def means_of(totals: Mapping[str, float], counts: Mapping[str, float]) -> dict[str, float]:
    """Return the mean of each term (``loss/<term>``) and of each metric, from totals over the global batch."""
    means = {f"loss/{name}": totals[f"loss/{name}"] / count if count else 0.0 for name, count in counts.items()}
    for key in totals:
        name, _, kind = key.partition("\0")
        if kind == "sum" and totals[f"{name}\0count"]:
            means[name] = totals[key] / totals[f"{name}\0count"]
    return means
