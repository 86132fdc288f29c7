"""What a classifier does class by class: precision, recall and F1 of each, and which it takes for which."""

# C classes

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

log = logging.getLogger(__name__)


def write_confusion(folder: Path, split: str, gold: Sequence[str], predicted: Sequence[str], labels: Sequence[str]) -> None:
    """Write ``tables/per_class_<split>.tsv``, ``tables/confusion_<split>.tsv`` and ``pictures/confusion_<split>.png``.

    Args:
        folder: where to.
        split: the split that was judged.
        gold: the labels' names.
        predicted: the predicted ones.
        labels: those of all classes, two at least.
    """
    scores = precision_recall_fscore_support(gold, predicted, labels=labels, zero_division=0)
    rows = [[label, *(f"{value:.6f}" for value in values[:3]), values[3]] for label, *values in zip(labels, *scores, strict=True)]
    _write_table(folder / "tables" / f"per_class_{split}.tsv", ["label", "precision", "recall", "f1", "examples"], rows)
    counts = confusion_matrix(gold, predicted, labels=labels)
    rows = [[label, *line] for label, line in zip(labels, counts.tolist(), strict=True)]
    _write_table(folder / "tables" / f"confusion_{split}.tsv", ["label", *(f"as {label}" for label in labels)], rows)
    _draw(folder / "pictures" / f"confusion_{split}.png", labels, counts)


def _write_table(path: Path, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    path.parent.mkdir(exist_ok=True)
    lines = ["\t".join(str(field).replace("\t", " ") for field in row) for row in (header, *rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _draw(path: Path, labels: Sequence[str], counts_CC: NDArray[np.int64]) -> None:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        log.warning("no picture of the confusions without matplotlib: pip install 'mlmx[plot]'")
        return
    size = max(3.0, 0.6 * len(labels) + 1.5)  # inches
    figure = Figure(figsize=(size, size), layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(counts_CC / np.maximum(counts_CC.sum(axis=1, keepdims=True), 1), cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(labels)), labels, rotation=45, ha="right")
    axes.set_yticks(range(len(labels)), labels)
    axes.set(xlabel="predicted", ylabel="gold", title="examples; colour: share of the gold class")
    for (row, column), count in np.ndenumerate(counts_CC):
        dark = 2 * count > counts_CC[row].sum()
        axes.text(column, row, str(count), ha="center", va="center", color="white" if dark else "black")
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=120)
