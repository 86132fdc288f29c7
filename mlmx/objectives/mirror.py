"""Contrastive sentence embeddings of raw sentences, one view of which lacks a span."""

# S examples of this process, N rows of this process (two for each example), M rows of all processes, D width

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from mlmx.build import NonNegative, Positive, PositiveFloat
from mlmx.data.batch import Batch, BatchContext, extended
from mlmx.data.rows import CorpusInfo, TokenRows
from mlmx.errors import user_error
from mlmx.keyed import integers
from mlmx.masking.units import Draws, Units
from mlmx.models.encoder import Encoder
from mlmx.models.pooling import Pooling, train_pooling
from mlmx.objectives.contrast import contrastive_loss, embed_rows, gather_candidates
from mlmx.objectives.objective import Objective, Output
from mlmx.objectives.views import TERM, EqualViews, ViewsCollator, require_dropout, views_collator


@dataclass(frozen=True, kw_only=True)
class MirrorCollator(ViewsCollator):
    """Masks a span of each row in its second view.

    Attributes:
        mask_id: the mask token.
        span_tokens: tokens of the span; 0: none.
        min_tokens: rows of fewer ordinary tokens stay as they are.
    """

    mask_id: int
    span_tokens: int
    min_tokens: int

    def __call__(self, rows: TokenRows, context: BatchContext) -> Batch:
        batch = super().__call__(rows, context)
        # The second view of all rows follows the first.
        second = len(rows.input_ids) + self.spans(rows, Draws(context.keys))
        batch.tensors["input_ids"][torch.from_numpy(second)] = self.mask_id
        return batch

    def spans(self, rows: TokenRows, draws: Draws) -> NDArray[np.int64]:
        """Return the positions of a span of each row that is long enough, drawn uniformly."""
        tokens = Units.tokens(rows)
        num_tokens = tokens.num_tokens(rows)
        long = np.flatnonzero(num_tokens >= self.min_tokens)
        first = tokens.first[tokens.row.searchsorted(long)]
        starts = first + integers(draws.of("select", long, np.zeros_like(long)), num_tokens[long] - self.span_tokens + 1)
        positions: NDArray[np.int64] = (starts[:, None] + np.arange(self.span_tokens)).ravel()
        return positions


class Mirror(Objective):
    """Finds among all rows of the batch the other view of the same sentence, of which one lacks a span (Mirror-BERT).

    Both views have dropout masks of their own, and each is looked for from the other. The metric ``accuracy`` is the part of the
    rows whose other view is the nearest.

    Source:
        Liu et al. 2021, Mirror-BERT, arXiv:2104.08027, section 2; cambridgeltl/mirror-bert, ``src/data_loader.py`` at 69ab7c3, and
        the NT-Xent loss of pytorch-metric-learning that it calls.

    Terms:
        ``contrast``: sum over the rows i of both views of -log(exp(cos(z_i, z_p(i)) / t) / sum_{j != i} exp(cos(z_i, z_j) / t)),
        nats, with p(i) the other view of row i and j over all rows of the global batch; the count is the number of rows, two for
        each sentence. It is ln(2 * batch - 1) where all vectors are the same.

    Shapes:
        A batch of S examples has 2S rows: the first views of all, then the second ones.

    Deviations:
        A span is one of tokens, each replaced by the mask token; in the released code it is one of 5 characters, replaced by one
        ``[MASK]`` (whatever the tokenizer calls it) in sentences of 30 characters and more, at the first place where these
        characters stand. ``pooling=mean`` is over the tokens of a row; the released code averages the padding as well, which packed
        rows do not have. No drophead.

    Raises:
        UserError: if the tokenizer has no mask token, or both views would be the same.
    """

    caption = "Marked are the tokens that are masked in the second view of a row; two vectors of a row are to be alike."
    batch_coupled = True

    def __init__(
        self,
        encoder: Encoder,
        corpus: CorpusInfo,
        *,
        span_tokens: NonNegative,
        min_tokens: NonNegative,
        equal_views: EqualViews,
        pooling: Pooling,
        temperature: PositiveFloat,
        chunk_tokens: Positive | None,
    ) -> None:
        """Choose the views and how their vectors are made and compared.

        Args:
            encoder: what is trained; its language-model head is dropped.
            corpus: what it is trained on.
            span_tokens: tokens that are masked in the second view, in a row; 0: none.
            min_tokens: rows of fewer ordinary tokens are not masked; at least ``span_tokens``.
            equal_views: whether a training without span and dropout, whose two views are the same, is refused or accepted.
            pooling: how states become a sentence's vector.
            temperature: cosines are divided by it.
            chunk_tokens: tokens whose activations are held at a time; null: those of the whole batch.
        """
        super().__init__()
        self.check_settings(span_tokens=span_tokens, min_tokens=min_tokens)
        mask_id = encoder.vocabulary.required_mask_id()
        train_pooling(encoder, pooling, normalize=True, where="objective.pooling")
        encoder.drop_head()
        self.encoder = encoder
        self.weights = {TERM: 1.0}
        self.pooling: Pooling = pooling
        self.temperature = temperature
        self.chunk_tokens = chunk_tokens
        self._needs_dropout = span_tokens == 0 and equal_views == "refuse"
        views = views_collator(encoder, corpus, "dropout", per_example={TERM: 2})
        self._collator = extended(views, MirrorCollator, mask_id=mask_id, span_tokens=span_tokens, min_tokens=min_tokens)

    @staticmethod
    def check_settings(*, span_tokens: int, min_tokens: int, **_: object) -> None:
        """Refuse spans that are longer than the rows they are cut from.

        Raises:
            UserError: if they are.
        """
        if min_tokens < span_tokens:
            message = f"{min_tokens} is less than span_tokens={span_tokens}: a row of so few tokens has no such span."
            raise user_error("objective.min_tokens", message)

    def collator(self) -> MirrorCollator:
        return self._collator

    def forward(self, batch: Batch) -> Output:
        if self._needs_dropout:
            require_dropout(self.encoder)
        vectors_ND = F.normalize(embed_rows(self.encoder, batch, pooling=self.pooling, chunk_tokens=self.chunk_tokens), dim=-1)
        if not batch.counted:
            # Another process has these examples, and everybody sees them there.
            vectors_ND = vectors_ND[:0]
        loss, num_right = other_views(vectors_ND, temperature=self.temperature)
        return Output({TERM: loss}, {"accuracy": (num_right, num_right.new_full((), len(vectors_ND)))})


def other_views(rows_ND: Tensor, *, temperature: float) -> tuple[Tensor, Tensor]:
    """Return the summed cross-entropy of choosing each row's other view among all other rows, and how many are right.

    Args:
        rows_ND: the first views of some examples, then the second ones.
        temperature: inner products are divided by it.
    """
    candidates_MD, own_N = gather_candidates(rows_ND)
    themselves_NM = torch.arange(len(candidates_MD), device=rows_ND.device) == own_N[:, None]
    others_N = own_N.roll(len(own_N) // 2)
    return contrastive_loss(rows_ND, candidates_MD, others_N, temperature=temperature, left_out_NM=themselves_NM)
