"""One encoder for a few depths and widths, all of which are trained in each step and learn from the whole one."""

# S examples of this process, M of all processes, K layers, D width

from __future__ import annotations

import torch
from torch import Tensor

from mlmx.build import NonNegativeFloat, Positive, PositiveFloat
from mlmx.data.batch import Batch
from mlmx.data.rows import CorpusInfo
from mlmx.models.encoder import Encoder
from mlmx.models.pooling import Pooling
from mlmx.objectives.contrast import Similarity
from mlmx.objectives.objective import Output
from mlmx.objectives.submodels import (
    KLOn,
    SubmodelContrast,
    choice_loss,
    divergence,
    name_of,
    num_right,
    submodels_of,
)
from mlmx.objectives.views import EqualViews, Positives


class StarbucksSRL(SubmodelContrast):
    """Trains an encoder and some smaller ones inside it, each with a loss of its own and towards the whole one (Starbucks, SRL).

    Metrics are ``accuracy``, the part of the examples whose second view is the nearest by the whole encoder, and the same of each
    smaller one, named by its layer and width.

    Source:
        Zhuang et al. 2024, Starbucks, arXiv:2410.13230, section 3.1; ielab/Starbucks, ``retrieval/modeling.py`` at 515933d
        (``kl_on=scores``, ``similarity=dot``, temperature 1, ``pooling=cls``) and ``sts/starbucks_loss.py`` at 6cc89d2
        (``kl_on=coordinates``, ``kl_weight=0.3``, ``detach_teacher=false``, cosine, temperature 0.05).

    Terms:
        ``full`` and, for each pair of a layer l and a width d, ``layer<l>_width<d>``: the sum over the examples of -log softmax of
        the similarity to their second view, among the second views of the global batch (and the third ones, of triplets), by the
        first d coordinates of layer l; nats; each counts examples. ``kl``: KL(whole encoder || smaller one) in nats, summed over
        the pairs. With ``kl_on=scores`` the distributions are over these views, and it sums over the examples and counts them.
        With ``coordinates`` they are the softmax of a vector's first d coordinates, and it sums over the rows of the first two
        views and counts these.

    Shapes:
        A batch of S examples has 2S rows, of triplets 3S: the first views of all, then the second ones, then the third ones.

    Deviations:
        All pairs are trained in each step, as in the published runs; the released code can sample some.

    Raises:
        UserError: if the encoder has no such part, or has a norm after its last layer; those of ``simcse``.
    """

    def __init__(
        self,
        encoder: Encoder,
        corpus: CorpusInfo,
        *,
        pairs: tuple[tuple[Positive, Positive], ...] | None,
        kl_on: KLOn,
        kl_weight: NonNegativeFloat,
        detach_teacher: bool,
        positives: Positives,
        equal_views: EqualViews,
        pooling: Pooling,
        similarity: Similarity,
        temperature: PositiveFloat,
        chunk_tokens: Positive | None,
    ) -> None:
        """Choose the smaller encoders, what they learn of the whole one, and how views are made and compared.

        Args:
            encoder: what is trained; its language-model head is dropped.
            corpus: what it is trained on.
            pairs: (layer, width) of each smaller encoder, beside the whole one; null: each layer but the last, with half the width
                of the one above it, down to 8.
            kl_on: what distributions are over: the ``scores`` of the candidates, or the ``coordinates`` of a vector.
            kl_weight: weight of ``kl``; that of the others is 1.
            detach_teacher: whether only the smaller encoders learn from ``kl``.
            positives: what a second view is: the same row under other ``dropout``, or the other side of a ``pair``;
                the third side of a triplet is a negative.
            equal_views: whether a training without dropout, whose two views are the same, is refused or accepted.
            pooling: how states of a layer become a vector.
            similarity: ``cosine``, after the vectors are cut; or ``dot``, the inner product.
            temperature: similarities are divided by it.
            chunk_tokens: tokens whose activations are held at a time; null: those of the whole batch.
        """
        chosen = submodels_of(encoder, pairs)
        choices = ["full", *(name_of(pair) for pair in chosen)]
        super().__init__(
            encoder,
            corpus,
            counts={**dict.fromkeys(choices, 1), "kl": 1 if kl_on == "scores" else 2},
            positives=positives,
            equal_views=equal_views,
            pooling=pooling,
            similarity=similarity,
            temperature=temperature,
            chunk_tokens=chunk_tokens,
        )
        self.weights = {**dict.fromkeys(choices, 1.0), "kl": kl_weight}
        self.pairs = chosen
        self.kl_on: KLOn = kl_on
        self.detach_teacher = detach_teacher

    def forward(self, batch: Batch) -> Output:
        views = self.views(batch, [self.encoder.num_layers, *(layer for layer, _ in self.pairs)])
        whole_SM = self.logits(views.first[:, 0], views.candidates[:, 0])
        terms: dict[str, Tensor] = {"full": choice_loss(whole_SM, views.targets)}
        metrics = {"accuracy": num_right(whole_SM, views.targets)}
        divergences = []
        for k, (layer, width) in enumerate(self.pairs, start=1):
            logits_SM = self.logits(views.first[:, k, :width], views.candidates[:, k, :width])
            name = name_of((layer, width))
            terms[name] = choice_loss(logits_SM, views.targets)
            metrics[f"{name}_accuracy"] = num_right(logits_SM, views.targets)
            if self.kl_on == "scores":
                divergences.append(divergence(whole_SM, logits_SM, detach=self.detach_teacher))
            else:
                rows = torch.cat([views.first, views.second])[..., :width]
                divergences.append(divergence(rows[:, 0], rows[:, k], detach=self.detach_teacher))
        terms["kl"] = torch.stack(divergences).sum()
        return Output(terms, metrics)
