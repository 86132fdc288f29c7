"""Bitext mining: finding translations among sentence embeddings."""

# S source sentences, R target sentences, D width

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from mlmx.build import Positive
from mlmx.models.encoder import Encoder
from mlmx.models.pooling import Pooling
from mlmx.objectives.objective import Objective
from mlmx.tasks.bitext_data import BitextData, MiningSet
from mlmx.tasks.bitext_protocols import Protocol
from mlmx.tasks.embedding import Embedding
from mlmx.tasks.search import Floats
from mlmx.tasks.task import Evaluation, Score, Task, ratio_scores

MEAN = "mean"
"""The split that the mean over several sets stands under."""


class Bitext(Task):
    """Bitext mining and retrieval of translations by the cosine of sentence embeddings, without training.

    Each set of the data is a split of the scores; of several sets the split ``mean`` has the mean, each set counting alike. With
    each score stand the layer, resolved to its number, the pooling and the length.

    Args:
        name: the task's name.
        data: the sentences and the gold pairs.
        protocol: how they are matched and judged: ``margin``, ``cosine`` or ``tatoeba``, see ``mlmx.tasks.bitext_protocols``.
        layer: the layer whose states are pooled: 0 the embeddings, ``last`` or a number up to the number of layers, negative
            from the end.
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
        data: BitextData,
        protocol: Protocol,
        layer: int | Literal["last"],
        pooling: Pooling | None,
        width: Positive | None,
        prefix: str | None,
        max_length: Positive | None,
        batch_tokens: Positive,
    ) -> None:
        self.name = name
        self.data = data
        self.protocol = protocol
        self.embedding: Embedding = Embedding(
            layer=layer, pooling=pooling, normalize=True, max_length=max_length, prompts={None: prefix}, width=width
        )
        self.batch_tokens = batch_tokens

    def check_data(self) -> None:
        self.data.load()

    def evaluate(self, model: Encoder | Objective) -> Evaluation:
        encoder = model.encoder if isinstance(model, Objective) else model
        embedding = self.embedding.resolved(encoder, task=self.name)

        def vectors(texts: Sequence[str], what: str) -> Floats:
            return embedding.vectors(encoder, texts, task=self.name, what=what, batch_tokens=self.batch_tokens)

        def embed(data: MiningSet) -> tuple[Floats, Floats]:
            return vectors(data.source, "source sentences"), vectors(data.target, "target sentences")

        scores: list[Score] = []
        predictions: list[dict[str, Any]] = []
        sets = self.data.load()
        for name, data in sets.items():
            judgement = self.protocol.judge(name, data, embed, encoder.base.device)
            records = [{**record, "split": name} for record in judgement.records]
            settings = {**embedding.told(), **judgement.settings}
            scores += [
                replace(score, settings=settings, trivial=judgement.trivial.get(score.metric))
                for score in ratio_scores(records, task=self.name)
            ]
            predictions += records
        if len(sets) > 1:
            scores += mean_scores(scores, num_sets=len(sets))
        return Evaluation(scores=scores, predictions=predictions)


def mean_scores(scores: Sequence[Score], *, num_sets: int) -> list[Score]:
    """Return the mean of each metric that all sets have, under the split ``mean``; its examples are those of all sets."""
    by_metric: dict[str, list[Score]] = {}
    for score in scores:
        by_metric.setdefault(score.metric, []).append(score)
    return [
        replace(
            alike[0],
            split=MEAN,
            value=float(np.mean([score.value for score in alike])),
            num_examples=sum(score.num_examples for score in alike),
            trivial=_mean([score.trivial for score in alike]),
            settings={key: value for key, value in alike[0].settings.items() if all(one.settings[key] == value for one in alike)},
        )
        for alike in by_metric.values()
        if len(alike) == num_sets
    ]


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if len(known) == len(values) else None
