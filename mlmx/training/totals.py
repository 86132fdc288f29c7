"""Sums: of what the losses are divided by, and of what is logged; over micro-batches and over ranks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

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
        positions: for how many the encoder computes, filling and padding included.
        flops: model FLOPs; 0 where they are not known.
    """

    counts: dict[str, float]
    tokens: int
    positions: int
    flops: int

    @classmethod
    def of(cls, objective: Objective, batches: Sequence[Batch]) -> Work:
        """Return the work that some micro-batches are; those that do not count are none."""
        counted = [batch for batch in batches if batch.counted]
        # A name without predictions is still a name.
        counts = dict.fromkeys(batches[0].counts if batches else (), 0.0) | add_up(batch.counts for batch in counted)
        return cls(
            counts,
            tokens=sum(batch.num_tokens for batch in counted),
            positions=sum(objective.encoder.num_positions(batch) for batch in counted),
            flops=sum(objective.flops(batch) for batch in counted),
        )

    @classmethod
    def total(cls, works: Iterable[Work]) -> Work:
        """Return the work of all ranks."""
        works = list(works)
        return cls(
            add_up(work.counts for work in works),
            tokens=sum(work.tokens for work in works),
            positions=sum(work.positions for work in works),
            flops=sum(work.flops for work in works),
        )

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

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


def weighted_loss(
    terms: Mapping[str, Tensor], weights: Mapping[str, float], counts: Mapping[str, float], *, counted: bool = True
) -> Tensor:
    """Return a micro-batch's part of the loss: summed terms, weighted, over the counts of the whole global batch.

    Args:
        terms: term -> sum.
        weights: term -> weight.
        counts: term -> number of predictions of the global batch.
        counted: False for a micro-batch whose part is 0.
    """
    if set(terms) != set(weights) or set(terms) != set(counts):
        raise ValueError(f"terms {sorted(terms)}, weights {sorted(weights)} and counts {sorted(counts)} must have the same names")
    # A term without predictions stays in the graph with a factor of 0, so that every parameter it reaches has a gradient.
    parts = [
        terms[name].to(torch.promote_types(terms[name].dtype, torch.float32))
        * (weights[name] / counts[name] if counted and counts[name] else 0.0)
        for name in sorted(terms)
    ]
    return torch.stack(parts).sum()


def sums_of(output: Output, loss: Tensor, *, counted: bool = True) -> dict[str, Tensor]:
    """Return everything of a micro-batch that is summed for the log, as it lies on the device; zeros where nothing counts."""
    named: dict[str, Tensor] = {"loss": loss}
    named |= {f"loss/{name}": term for name, term in output.terms.items()}
    for name, (total, count) in output.metrics.items():
        named |= {f"{name}\0sum": total, f"{name}\0count": count}
    return {name: (t.detach() if counted else torch.zeros_like(t)).double().reshape(()) for name, t in named.items()}


def means_of(totals: Mapping[str, float], counts: Mapping[str, float]) -> dict[str, float]:
    """Return the mean of each term (``loss/<term>``) and of each metric, from totals over the global batch."""
    means = {f"loss/{name}": totals[f"loss/{name}"] / count if count else 0.0 for name, count in counts.items()}
    for key in totals:
        name, _, kind = key.partition("\0")
        if kind == "sum" and totals[f"{name}\0count"]:
            means[name] = totals[key] / totals[f"{name}\0count"]
    return means
