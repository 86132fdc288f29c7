"""What objectives share that train an encoder together with the smaller ones inside it: its first layers, cut to some width."""

# S examples of this process, M of all processes, N rows, K layers, D width

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from mlmx.data.batch import Batch
from mlmx.data.rows import CorpusInfo
from mlmx.errors import Problem, UserError
from mlmx.models.encoder import Encoder
from mlmx.models.pooling import Pooling, train_pooling
from mlmx.models.truncate import require_plain_layers
from mlmx.objectives.contrast import Similarity, embed_layers, gather_candidates, similarities
from mlmx.objectives.objective import Objective
from mlmx.objectives.views import CAPTION, EqualViews, Positives, ViewsCollator, by_view, require_dropout, views_collator

KLOn = Literal["scores", "coordinates"]

_LEAST_WIDTH = 8
"""The narrowest vector that is trained where nobody names one, as in the first release of 2D Matryoshka embeddings."""


@dataclass(frozen=True, slots=True)
class Views:
    """The vectors of views by some layers.

    Attributes:
        first: (S, K, D) the first views of this process' examples.
        second: (S, K, D) their second views.
        candidates: (M, K, D) the second views of all processes, and the third ones, of triplets.
        targets: (S,) which of these is each example's second view.
    """

    first: Tensor
    second: Tensor
    candidates: Tensor
    targets: Tensor


class SubmodelContrast(Objective):
    """Compares the views of examples by the vectors of several layers, each cut to some width, from one forward pass.

    Raises:
        UserError: if a shorter model would not have the vectors of these layers, if pairs are wanted of a monolingual corpus, or
            if dropout is to tell the views apart and there is none.
    """

    caption = CAPTION
    batch_coupled = True

    def __init__(
        self,
        encoder: Encoder,
        corpus: CorpusInfo,
        *,
        counts: Mapping[str, int],
        positives: Positives,
        equal_views: EqualViews,
        pooling: Pooling,
        similarity: Similarity,
        temperature: float,
        chunk_tokens: int | None,
    ) -> None:
        """Keep the encoder and how views are made and compared.

        Args:
            encoder: what is trained; its language-model head is dropped.
            corpus: what it is trained on.
            counts: term -> predictions of each example.
            positives: what a second view is: the same row under other ``dropout``, or the other side of a ``pair``;
                the third side of a triplet is a negative.
            equal_views: whether a training without dropout, whose two views are the same, is refused or accepted.
            pooling: how states of a layer become a vector.
            similarity: ``cosine``, after the vectors are cut; or ``dot``, the inner product.
            temperature: similarities are divided by it.
            chunk_tokens: tokens whose activations are held at a time; None: those of the whole batch.
        """
        super().__init__()
        require_plain_layers(encoder, where="model")
        train_pooling(encoder, pooling, normalize=similarity == "cosine", where="objective.pooling")
        encoder.drop_head()
        self.encoder = encoder
        self.pooling: Pooling = pooling
        self.similarity: Similarity = similarity
        self.temperature = temperature
        self.chunk_tokens = chunk_tokens
        self._needs_dropout = positives == "dropout" and equal_views == "refuse"
        self._collator = views_collator(encoder, corpus, positives, per_example=counts)

    def collator(self) -> ViewsCollator:
        return self._collator

    def views(self, batch: Batch, layers: Sequence[int]) -> Views:
        """Return the vectors that some layers make of a batch."""
        if self._needs_dropout:
            require_dropout(self.encoder)
        vectors = embed_layers(self.encoder, batch, layers=layers, pooling=self.pooling, chunk_tokens=self.chunk_tokens)
        views = by_view(vectors, self._collator.num_views)
        if not batch.counted:
            # Another process has these examples, and everybody sees them there.
            views = views[:, :0]
        return Views(views[0], views[1], *gather_candidates(*views[1:]))

    def logits(self, first_SD: Tensor, candidates_MD: Tensor) -> Tensor:
        """Return (S, M): the similarities of vectors, as they are cut, over the temperature."""
        if self.similarity == "cosine":
            first_SD, candidates_MD = F.normalize(first_SD, dim=-1), F.normalize(candidates_MD, dim=-1)
        return similarities(first_SD, candidates_MD, temperature=self.temperature)


def choice_loss(logits_SM: Tensor, targets_S: Tensor) -> Tensor:
    """Return the summed cross-entropy, in nats, of choosing each example's second view among all."""
    return F.cross_entropy(logits_SM, targets_S, reduction="sum")


def num_right(logits_SM: Tensor, targets_S: Tensor) -> tuple[Tensor, Tensor]:
    """Return how many examples are nearest to their own second view, and how many there are."""
    return (logits_SM.argmax(dim=1) == targets_S).sum(), targets_S.new_full((), len(targets_S))


def divergence(teacher: Tensor, student: Tensor, *, detach: bool) -> Tensor:
    """Return the summed Kullback-Leibler divergence KL(softmax(teacher) || softmax(student)) of rows (N, ...), in nats.

    Args:
        teacher: logits.
        student: logits.
        detach: whether only the student learns.
    """
    if detach:
        teacher = teacher.detach()
    return F.kl_div(student.log_softmax(-1), teacher.log_softmax(-1), reduction="sum", log_target=True)


def submodels_of(encoder: Encoder, pairs: Sequence[tuple[int, int]] | None) -> list[tuple[int, int]]:
    """Return the (layer, width) of the smaller encoders inside an encoder, the whole one not among them.

    Args:
        encoder: the encoder.
        pairs: these, or None: each layer but the last with half the width of the one above it, down to a width of 8.

    Raises:
        UserError: if there are none, or one is given twice, is the whole encoder, or is no part of it.
    """
    layers, width = encoder.num_layers, encoder.hidden_size
    if pairs is None:
        pairs = [(layer, width >> (layers - layer)) for layer in range(1, layers) if width >> (layers - layer) >= _LEAST_WIDTH]
    problems = [
        Problem(
            f"objective.pairs[{i}]",
            f"[{layer}, {wide}] is no smaller part of an encoder with {layers} layers of width {width}, which is trained anyway.",
        )
        for i, (layer, wide) in enumerate(pairs)
        if not (1 <= layer <= layers and 1 <= wide <= width) or (layer, wide) == (layers, width)
    ]
    chosen = [(layer, wide) for layer, wide in pairs]
    if not chosen or len(set(chosen)) < len(chosen):
        problems.append(Problem("objective.pairs", f"{[list(pair) for pair in chosen]}: name some parts, each once."))
    if problems:
        raise UserError(problems)
    return chosen


def name_of(pair: tuple[int, int]) -> str:
    """Return what a smaller encoder is called among terms and metrics."""
    return f"layer{pair[0]}_width{pair[1]}"
