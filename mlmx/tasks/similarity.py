"""Semantic similarity without training: does the cosine of two embeddings follow what people say?"""

# N pairs, D width

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mlmx.build import Positive
from mlmx.models.encoder import Encoder
from mlmx.models.pooling import encode, resolve_layer
from mlmx.objectives.objective import Objective
from mlmx.tasks.metrics import SCORE_METRICS
from mlmx.tasks.search import normalised
from mlmx.tasks.similarity_data import SimilarityData
from mlmx.tasks.task import Evaluation, Score, Task
from mlmx.tasks.texts import text_rows


class Similarity(Task):
    """Cosine of sentence embeddings against the scores of pairs: Spearman's and Pearson's correlation, set by set.

    Source: SentEval (arXiv 1803.05449), protocol ``all``: one correlation over all pairs of a set, whatever its subsets. A set is
    the ``split`` of its scores.

    Args:
        name: the task's name.
        data: the pairs and their scores.
        layer: the layer whose states are pooled: 0 the embeddings, ``last`` or a number up to the number of layers, negative from
            the end.
        pooling: how states become a sentence's embedding.
        max_length: tokens of a sentence, special ones included; longer ones are cut, and the cut pieces reported.
        batch_tokens: tokens per forward.
    """

    def __init__(
        self,
        *,
        name: str,
        data: SimilarityData,
        layer: int | Literal["last"],
        pooling: Literal["mean", "cls", "max"],
        max_length: Positive,
        batch_tokens: Positive,
    ) -> None:
        self.name = name
        self.data = data
        self.layer: int | Literal["last"] = layer
        self.pooling: Literal["mean", "cls", "max"] = pooling
        self.max_length = max_length
        self.batch_tokens = batch_tokens

    def evaluate(self, model: Encoder | Objective) -> Evaluation:
        encoder = model.encoder if isinstance(model, Objective) else model
        layer = resolve_layer(self.layer, encoder.num_layers, where=f"task.{self.name}.layer")
        scores: list[Score] = []
        records: list[dict[str, Any]] = []
        for name, pairs in self.data.load().items():
            first, second = (self._embeddings(encoder, [pair.texts[side] for pair in pairs], layer, name) for side in (0, 1))
            cosines = np.einsum("nd,nd->n", first, second, dtype=np.float64)
            gold = np.array([pair.gold for pair in pairs], np.float64)
            scores += [
                Score(
                    task=self.name,
                    split=name,
                    metric=f"cosine_{metric}",
                    value=SCORE_METRICS[metric](gold, cosines),
                    num_examples=len(pairs),
                    higher_is_better=True,
                    trivial=0.0,
                )
                for metric in ("spearman", "pearson")
            ]
            records += [
                {"id": pair.id, "split": name, "label": pair.gold, "prediction": cosine}
                for pair, cosine in zip(pairs, cosines.tolist(), strict=True)
            ]
        return Evaluation(scores=scores, predictions=records)

    def _embeddings(self, encoder: Encoder, texts: Sequence[str], layer: int, name: str) -> NDArray[np.float32]:
        rows = text_rows(encoder, texts, max_length=self.max_length, task=self.name, what=f"sentences of {name}")
        return normalised(encode(encoder, rows, layer=layer, pooling=self.pooling, batch_tokens=self.batch_tokens))
