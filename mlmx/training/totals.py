"""Sums: of what the losses are divided by, and of what is logged; over micro-batches and over ranks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from mlmx.data.batch import Batch
from mlmx.objectives.objective import Output


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


def numbers_of(output: Output, loss: Tensor, batch: Batch) -> dict[str, float]:
    """Return everything of a micro-batch that is summed for the log; one transfer from the device for all of it."""
    named: dict[str, Tensor] = {"loss": loss}
    named |= {f"loss/{name}": term for name, term in output.terms.items()}
    for name, (total, count) in output.metrics.items():
        named |= {f"{name}\0sum": total, f"{name}\0count": count}
    values = torch.stack([tensor.detach().double().reshape(()) for tensor in named.values()]).tolist()
    return {**dict(zip(named, values, strict=True)), "tokens": float(batch.num_tokens)}


def means_of(totals: Mapping[str, float], counts: Mapping[str, float]) -> dict[str, float]:
    """Return the mean of each term (``loss/<term>``) and of each metric, from totals over the global batch."""
    means = {f"loss/{name}": totals[f"loss/{name}"] / count if count else 0.0 for name, count in counts.items()}
    for key in totals:
        name, _, kind = key.partition("\0")
        if kind == "sum" and totals[f"{name}\0count"]:
            means[name] = totals[key] / totals[f"{name}\0count"]
    return means
