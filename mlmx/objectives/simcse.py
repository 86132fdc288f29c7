"""Contrastive sentence embeddings: a sentence lies next to itself, or to its partner, and far from the others of its batch."""

# S examples of this process, M of all processes, V views, two or three, D width

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import nn

from mlmx.build import Positive, PositiveFloat
from mlmx.data.batch import Batch
from mlmx.data.rows import CorpusInfo
from mlmx.models.encoder import Encoder
from mlmx.models.flops import linear_flops, num_linear_weights
from mlmx.models.pooling import Pooling, train_pooling
from mlmx.objectives.contrast import contrastive_loss, embed_rows, gather_candidates
from mlmx.objectives.objective import Objective, Output
from mlmx.objectives.views import CAPTION, TERM, EqualViews, Positives, ViewsCollator, by_view, require_dropout, views_collator


class SimCSE(Objective):
    """Finds a sentence's second view among those of the whole batch by the cosine of their vectors (SimCSE).

    The second view is the same sentence under other dropout masks (unsupervised), or the other side of a pair (supervised: an
    entailed sentence, a translation, a paraphrase); the third side of a triplet is a hard negative (a contradiction;
    ``corpus=triplets``). The metric ``accuracy`` is the part of the sentences whose second view is the
    nearest. Validation is without dropout, where a sentence is its own second view: there it tells how far sentences lie apart, and
    nothing of likeness, so that ``trainer.export=best`` is for pairs.

    Source:
        Gao et al. 2021, SimCSE, arXiv:2104.08821, sections 3 and 4, equations 1, 4 and 5; princeton-nlp/SimCSE,
        ``simcse/models.py``.

    Terms:
        ``contrast``: sum over the sentences i of -log(exp(cos(z_i, z'_i) / t) / sum_j exp(cos(z_i, z'_j) / t)), nats, with j over
        the second views of the global batch and the third ones of its triplets; the count is the number of sentences. Where all
        vectors are the same it is ln(batch), and ln(2 batch) with triplets.

    Shapes:
        A batch of S examples has 2S rows, of triplets 3S: the first views of all, then the second ones, then the third ones.

    Deviations:
        The layer ``head=mlp`` is for the training alone and is never exported, as in the released code of the unsupervised model;
        its supervised one keeps it. A pair or triplet has ``trainer.max_length`` tokens together, not each side. A sentence's own
        hard negative weighs as much as any other, which the source found best. The weights that survive are the last ones, or with
        ``trainer.export=best`` those of the lowest loss on rows held out; in the released code, those with the best score on a
        labelled set.

    Raises:
        UserError: if pairs are wanted of a monolingual corpus, or dropout is to tell the views apart and there is none.
    """

    caption = CAPTION
    batch_coupled = True

    def __init__(
        self,
        encoder: Encoder,
        corpus: CorpusInfo,
        *,
        positives: Positives,
        equal_views: EqualViews,
        pooling: Pooling,
        head: Literal["mlp", "none"],
        temperature: PositiveFloat,
        chunk_tokens: Positive | None,
    ) -> None:
        """Choose the views and how their vectors are made and compared.

        Args:
            encoder: what is trained; its language-model head is dropped.
            corpus: what it is trained on.
            positives: what a second view is: the same row under other ``dropout``, or the other side of a ``pair``;
                the third side of a triplet is a negative.
            equal_views: whether a training without dropout, whose two views are the same, is refused or accepted.
            pooling: how states become a sentence's vector.
            head: ``mlp``: a linear layer and tanh between vector and loss; or ``none``.
            temperature: cosines are divided by it.
            chunk_tokens: tokens whose activations are held at a time; null: those of the whole batch.
        """
        super().__init__()
        train_pooling(encoder, pooling, normalize=True, where="objective.pooling")
        encoder.drop_head()
        self.encoder = encoder
        self.weights = {TERM: 1.0}
        self.head = projection(encoder) if head == "mlp" else None
        self.pooling: Pooling = pooling
        self.temperature = temperature
        self.chunk_tokens = chunk_tokens
        self._needs_dropout = positives == "dropout" and equal_views == "refuse"
        self._collator = views_collator(encoder, corpus, positives, per_example={TERM: 1})

    def collator(self) -> ViewsCollator:
        return self._collator

    def forward(self, batch: Batch) -> Output:
        if self._needs_dropout:
            require_dropout(self.encoder)
        vectors = embed_rows(self.encoder, batch, pooling=self.pooling, chunk_tokens=self.chunk_tokens)
        if self.head is not None:
            vectors = self.head(vectors)
        vectors_VSD = by_view(F.normalize(vectors, dim=-1), self._collator.num_views)
        if not batch.counted:
            # Another process has these examples, and everybody sees them there.
            vectors_VSD = vectors_VSD[:, :0]
        candidates_MD, targets_S = gather_candidates(*vectors_VSD[1:])
        loss, num_right = contrastive_loss(vectors_VSD[0], candidates_MD, targets_S, temperature=self.temperature)
        return Output({TERM: loss}, {"accuracy": (num_right, num_right.new_full((), vectors_VSD.shape[1]))})

    def flops(self, batch: Batch) -> int:
        encoder = self.encoder.flops(batch)
        return encoder + linear_flops(num_linear_weights(self.head), batch.num_rows) if encoder and self.head else encoder


def projection(encoder: Encoder) -> nn.Sequential:
    """Return the layer that stands between vectors and their comparison while an encoder is trained, (S, D) to (S, D)."""
    linear = nn.Linear(encoder.hidden_size, encoder.hidden_size)
    nn.init.normal_(linear.weight, std=encoder.initializer_range)
    nn.init.zeros_(linear.bias)
    return nn.Sequential(linear, nn.Tanh())
