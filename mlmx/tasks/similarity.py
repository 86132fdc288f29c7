"""Semantic similarity without training: does the cosine of two embeddings follow what people say?"""

# N pairs, D width

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from mlmx.build import Positive
from mlmx.models.encoder import Encoder
from mlmx.models.pooling import Pooling
from mlmx.objectives.objective import Objective
from mlmx.tasks.embedding import Embedding
from mlmx.tasks.metrics import SCORE_METRICS
from mlmx.tasks.similarity_data import SimilarityData
from mlmx.tasks.task import Evaluation, Score, Task


class Similarity(Task):
    """Cosine of sentence embeddings against the scores of pairs: Spearman's and Pearson's correlation, set by set.

    Source: SentEval (arXiv 1803.05449), protocol ``all``: one correlation over all pairs of a set, whatever its subsets. A set is
    the ``split`` of its scores.

    Args:
        name: the task's name.
        data: the pairs and their scores.
        layer: the layer whose states are pooled: 0 the embeddings, ``last`` or a number up to the number of layers, negative from
            the end.
        pooling: how states become a sentence's embedding; None: as the encoder's folder says, see ``mlmx.tasks.embedding``.
        width: how many coordinates of a sentence's embedding are kept, the first ones; None: as many as the encoder's folder says,
            or all.
        prefix: is put before each sentence, such as ``"query: "``; None: what the encoder's folder says.
        max_length: tokens of a sentence, special ones included; longer ones are cut, and the cut pieces reported. None: as many as
            the encoder's folder says.
        batch_tokens: tokens per forward.
    """

    def __init__(
        self,
        *,
        name: str,
        data: SimilarityData,
        layer: int | Literal["last"],
        pooling: Pooling | None,
        width: Positive | None,
        prefix: str | None,
        max_length: Positive | None,
        batch_tokens: Positive,
    ) -> None:
        self.name = name
        self.data = data
        self.embedding: Embedding = Embedding(
            layer=layer, pooling=pooling, normalize=True, max_length=max_length, prompts={None: prefix}, width=width
        )
        self.batch_tokens = batch_tokens

    def check_data(self) -> None:
        self.data.load()

    def evaluate(self, model: Encoder | Objective) -> Evaluation:
        encoder = model.encoder if isinstance(model, Objective) else model
        embedding = self.embedding.resolved(encoder, task=self.name)
        scores: list[Score] = []
        records: list[dict[str, Any]] = []
        for name, pairs in self.data.load().items():
            first, second = (
                embedding.vectors(
                    encoder,
                    [pair.texts[side] for pair in pairs],
                    task=self.name,
                    what=f"sentences of {name}",
                    batch_tokens=self.batch_tokens,
                )
                for side in (0, 1)
            )
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
                    settings=embedding.told(),
                )
                for metric in ("spearman", "pearson")
            ]
            records += [
                {"id": pair.id, "split": name, "label": pair.gold, "prediction": cosine, "texts": pair.texts}
                for pair, cosine in zip(pairs, cosines.tolist(), strict=True)
            ]
        return Evaluation(scores=scores, predictions=records)
