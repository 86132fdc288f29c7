"""Metrics of predicted classes and scores, by scikit-learn and scipy; and of translations, by sacrebleu."""

# N examples

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

Values = NDArray[Any]  # (N,) classes or scores


def binary_f1(gold: Values, predicted: Values) -> float:
    """Return the F1 of class 1; 0 where it neither occurs nor is predicted."""
    return float(f1_score(gold, predicted, zero_division=0))


def macro_f1(gold: Values, predicted: Values) -> float:
    """Return the mean F1 of the classes that occur in ``gold``; a class that is never predicted has F1 0."""
    return float(f1_score(gold, predicted, labels=np.unique(gold), average="macro", zero_division=0))


def weighted_f1(gold: Values, predicted: Values) -> float:
    """Return the mean F1 of the classes, weighted by how often each occurs in ``gold``."""
    return float(f1_score(gold, predicted, labels=np.unique(gold), average="weighted", zero_division=0))


def pearson(gold: Values, predicted: Values) -> float:
    """Return Pearson's correlation; 0 where one side is constant, of which nothing can be told."""
    return 0.0 if _constant(gold) or _constant(predicted) else float(pearsonr(gold, predicted).statistic)


def spearman(gold: Values, predicted: Values) -> float:
    """Return Spearman's rank correlation, ties by their mean rank; 0 where one side is constant."""
    return 0.0 if _constant(gold) or _constant(predicted) else float(spearmanr(gold, predicted).statistic)


def _constant(values: Values) -> bool:
    return bool(np.all(values == values[:1]))


def matthews(gold: Values, predicted: Values) -> float:
    """Return Matthews' correlation; 0 where one side is constant, of which nothing can be told."""
    return 0.0 if _constant(gold) or _constant(predicted) else float(matthews_corrcoef(gold, predicted))


def chrf(references: Values, translations: Values) -> float:
    """Return the chrF of all translations together, by ``sacrebleu`` with its defaults."""
    import sacrebleu  # only where something was translated

    return float(sacrebleu.corpus_chrf(translations.tolist(), [references.tolist()]).score)


def bleu(references: Values, translations: Values) -> float:
    """Return the BLEU of all translations together, by ``sacrebleu`` with its defaults."""
    import sacrebleu

    return float(sacrebleu.corpus_bleu(translations.tolist(), [references.tolist()]).score)


CLASS_METRICS: Mapping[str, Callable[[Values, Values], float]] = {
    "matthews": matthews,
    "accuracy": lambda gold, predicted: float(accuracy_score(gold, predicted)),
    "f1": binary_f1,
    "macro_f1": macro_f1,
    "weighted_f1": weighted_f1,
}

SCORE_METRICS: Mapping[str, Callable[[Values, Values], float]] = {"pearson": pearson, "spearman": spearman}

TRANSLATION_METRICS: Mapping[str, Callable[[Values, Values], float]] = {"chrf": chrf, "bleu": bleu}
"""Of references and translations."""
