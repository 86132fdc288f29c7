"""One encoder for all depths and widths: a random part of it is trained beside the whole in each step."""

# S examples of this process, M of all processes, N rows, K layers, D width

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from mlmx.build import NonNegativeFloat, Positive, PositiveFloat
from mlmx.data.batch import Batch, BatchContext, extended
from mlmx.data.rows import CorpusInfo, TokenRows
from mlmx.errors import user_error
from mlmx.keyed import fold, integers, stream
from mlmx.models.encoder import Encoder
from mlmx.models.pooling import Pooling
from mlmx.objectives.contrast import Similarity
from mlmx.objectives.objective import Output
from mlmx.objectives.submodels import SubmodelContrast, choice_loss, divergence, num_right
from mlmx.objectives.views import EqualViews, Positives, ViewsCollator


@dataclass(frozen=True, kw_only=True)
class Matryoshka2dCollator(ViewsCollator):
    """Adds which part of the encoder a global batch trains: ``part`` (2,) int64, a layer and a width (held out: the middle ones).

    Attributes:
        num_layers: of the encoder; the layer is below it.
        hidden_size: of the encoder; the width is below it.
        width_step: the width is a multiple of it.
    """

    num_layers: int
    hidden_size: int
    width_step: int

    def __call__(self, rows: TokenRows, context: BatchContext) -> Batch:
        batch = super().__call__(rows, context)
        num_layers, num_widths = self.num_layers - 1, (self.hidden_size - 1) // self.width_step
        if context.held_out:
            layer, width = (num_layers + 1) // 2, (num_widths + 1) // 2
        else:
            # The same for all processes, so it depends on no row.
            key = fold(fold(np.array([context.seed]), stream("part")), context.step)
            layer, width = (1 + int(integers(fold(key, i), num)[0]) for i, num in enumerate((num_layers, num_widths)))
        return replace(batch, tensors={**batch.tensors, "part": torch.tensor([layer, self.width_step * width])})


class Matryoshka2d(SubmodelContrast):
    """Trains the vectors of the last layer and those of a random one, whole and cut to a random width (2DMSE).

    Held-out rows are judged by the layer and the width in the middle, so that their losses compare.
    Metrics are ``accuracy``, the part of the examples whose second view is the nearest by the whole encoder, and ``part_accuracy``,
    the same by the part that the step trains.

    Source:
        Li et al. 2024, 2D Matryoshka Sentence Embeddings, arXiv:2402.14776, section 3; SeanLee97/AnglE at 74e5ba2.

    Terms:
        With a layer l below the last one n and a width d below the whole one D, drawn for each step: ``full``, ``layer``, ``width``
        and ``both``, the sums over the examples of -log softmax of the similarity to their second view, among the second views of
        the global batch (and the third ones, of triplets), by the vectors of (n, D), (l, D), (n, d) and (l, d); nats; each counts
        examples. ``kl``: sum over the rows of the first two views of KL(softmax(h_n) || softmax(h_l)) between the coordinates of
        the whole vectors, nats; counts rows.

    Shapes:
        A batch of S examples has 2S rows, of triplets 3S: the first views of all, then the second ones, then the third ones.
        ``part`` (2,): the layer and the width.

    Deviations:
        The loss of similarity is that of ``simcse``; in the source that of AnglE. ``detach_teacher=false`` is as in the source:
        the last layer is drawn towards the others as well.

    Raises:
        UserError: if the encoder has no smaller part, or has a norm after its last layer; those of ``simcse``.
    """

    def __init__(
        self,
        encoder: Encoder,
        corpus: CorpusInfo,
        *,
        width_step: Positive,
        kl_weight: NonNegativeFloat,
        detach_teacher: bool,
        positives: Positives,
        equal_views: EqualViews,
        pooling: Pooling,
        similarity: Similarity,
        temperature: PositiveFloat,
        chunk_tokens: Positive | None,
    ) -> None:
        """Choose the widths, and how views are made and compared.

        Args:
            encoder: what is trained; its language-model head is dropped.
            corpus: what it is trained on.
            width_step: widths are multiples of it.
            kl_weight: weight of ``kl``; that of the others is 1.
            detach_teacher: whether only the lower layer learns from ``kl``.
            positives: what a second view is: the same row under other ``dropout``, or the other side of a ``pair``;
                the third side of a triplet is a negative.
            equal_views: whether a training without dropout, whose two views are the same, is refused or accepted.
            pooling: how states of a layer become a vector.
            similarity: ``cosine``, after the vectors are cut; or ``dot``, the inner product.
            temperature: similarities are divided by it.
            chunk_tokens: tokens whose activations are held at a time; null: those of the whole batch.
        """
        terms = ("full", "layer", "width", "both")
        super().__init__(
            encoder,
            corpus,
            counts={**dict.fromkeys(terms, 1), "kl": 2},
            positives=positives,
            equal_views=equal_views,
            pooling=pooling,
            similarity=similarity,
            temperature=temperature,
            chunk_tokens=chunk_tokens,
        )
        if encoder.num_layers < 2:
            raise user_error("model", "it has a single layer, so there is no lower one to train.")
        if width_step >= encoder.hidden_size:
            message = f"{width_step} leaves no width below that of the encoder, {encoder.hidden_size}."
            raise user_error("objective.width_step", message)
        self.weights = {**dict.fromkeys(terms, 1.0), "kl": kl_weight}
        self.detach_teacher = detach_teacher
        self._collator = extended(
            self._collator,
            Matryoshka2dCollator,
            num_layers=encoder.num_layers,
            hidden_size=encoder.hidden_size,
            width_step=width_step,
        )

    def forward(self, batch: Batch) -> Output:
        views = self.views(batch, range(1, self.encoder.num_layers + 1))
        layer, width = batch.tensors["part"]
        # Chosen and cut by tensors, on the device, which nobody then has to wait for.
        layers = torch.stack([layer.new_full((), self.encoder.num_layers), layer]) - 1
        first, second, candidates = (x.index_select(1, layers) for x in (views.first, views.second, views.candidates))
        kept_D = torch.arange(first.shape[-1], device=first.device) < width
        logits = {
            term: self.logits(*(x[:, k] * kept_D if cut else x[:, k] for x in (first, candidates)))
            for term, k, cut in (("full", 0, False), ("layer", 1, False), ("width", 0, True), ("both", 1, True))
        }
        rows_NKD = torch.cat([first, second])
        terms: dict[str, Tensor] = {term: choice_loss(of_term, views.targets) for term, of_term in logits.items()}
        terms["kl"] = divergence(rows_NKD[:, 0], rows_NKD[:, 1], detach=self.detach_teacher)
        metrics = {"accuracy": num_right(logits["full"], views.targets), "part_accuracy": num_right(logits["both"], views.targets)}
        return Output(terms, metrics)
