"""Masked language modelling of spans, and of their words from what stands around a span."""

# T tokens of all rows, P selected tokens, Q of them that the boundary predicts, D width, E width of an embedding, V vocabulary

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from mlmx.build import NonNegativeFloat, Positive
from mlmx.data.batch import Batch, extended
from mlmx.data.rows import CorpusInfo, TokenRows
from mlmx.masking.corrupt import Corruption
from mlmx.masking.spans import GeometricSpans
from mlmx.masking.units import Draws, Selection
from mlmx.models.cross_entropy import cross_entropy
from mlmx.models.encoder import Encoder
from mlmx.models.flops import linear_flops, num_linear_weights
from mlmx.objectives.masked import MaskedCollator, MaskedObjective, masked_collator
from mlmx.objectives.objective import Output
from mlmx.schedules import PredictedRatio


@dataclass(frozen=True, kw_only=True)
class SpanCollator(MaskedCollator):
    """Selects spans; adds what their boundaries predict.

    Adds to the batch ``boundaries`` (Q, 2) int64, the positions right before and right after the span of a token; ``in_span`` (Q,)
    int64, the token's place within its span, from 0; ``boundary_targets`` (Q,) int64, the token.

    Attributes:
        max_boundary_tokens: tokens of a span that its boundary predicts; those after them it does not.
        whole_rows: whether a special token can be a boundary, so that spans at the ends of a text are predicted too.
    """

    max_boundary_tokens: int
    whole_rows: bool

    def predictions(
        self, rows: TokenRows, selection: Selection, draws: Draws
    ) -> tuple[dict[str, int], dict[str, NDArray[np.generic]]]:
        counts, arrays = super().predictions(rows, selection, draws)
        # A unit of the selection is a span, and its number is the place of the span's first token.
        in_span = selection.places - selection.units
        begins = (in_span == 0).nonzero()[0]
        sizes = np.diff(begins, append=len(in_span))
        before, after = selection.positions[begins] - 1, selection.positions[begins] + sizes
        # Where no special tokens stand around a text, the spans at its ends have no boundary.
        row = rows.row_of_token[selection.positions[begins]]
        bounded = (before >= rows.cu_seqlens[row]) & (after < rows.cu_seqlens[row + 1])
        if not self.whole_rows:
            bounded[bounded] &= ~(rows.special[before[bounded]] | rows.special[after[bounded]])
        predicted = (in_span < self.max_boundary_tokens) & bounded.repeat(sizes)
        boundaries = np.stack([before, after], axis=1).repeat(sizes, axis=0)
        arrays |= {
            "boundaries": boundaries[predicted],
            "in_span": in_span[predicted],
            "boundary_targets": rows.input_ids[selection.positions[predicted]],
        }
        return counts | {"sbo": int(predicted.sum())}, arrays


class SpanMasking(MaskedObjective):
    """Predicts the tokens of masked spans, each from its own place and once more from the two tokens around its span (SpanBERT).

    Source:
        Joshi et al. 2020, SpanBERT, arXiv:1907.10529, sections 3.1 and 3.2, equations 1 and 2; facebookresearch/SpanBERT,
        5dd2131, ``pretraining/fairseq/data/masking.py`` and ``models/pair_bert.py``, with the options of its published run.

    Terms:
        ``mlm``: sum over the selected tokens i of -log p(x_i | h_i), nats; the count is their number. ``sbo``, the span boundary
        objective: sum over the tokens of spans (s, e) of -log p(x_i | h_(s-1), h_(e+1), place i-s), nats; the count is the number
        of tokens at the first ``max_boundary_tokens`` places of their spans. The metric ``boundary_accuracy`` is that of ``sbo``.

    Shapes:
        ``selected``, ``targets`` (P,): positions among the batch's packed tokens, and the ids that stood there; ``boundaries``
        (Q, 2), ``in_span``, ``boundary_targets`` (Q,): where the two boundary tokens of a token stand, its place in its span, and
        its id.

    Deviations:
        ``parity: paper`` follows the text: a span begins at any word with the same probability, all its words are whole, so that
        the last one may reach past the budget, and every span has a boundary, which may be a special token. ``parity:
        released_code``: a span begins with the word of a random token, the last one is cut at the budget, and spans at the ends of
        a row have no boundary prediction. In both the boundary predicts no more than ``max_boundary_tokens`` tokens of a span, as
        in the released code; the text knows no such limit. Where the tokenizer puts no special token before or after a text,
        spans there have no boundary prediction either. Random tokens are uniform over the ids that are not special (the
        released code draws them as often as they are in the corpus). The two terms are each divided by their own count.

    Raises:
        UserError: if the tokenizer has no mask token.
    """

    caption = (
        f"{MaskedObjective.caption} The first max_boundary_tokens of a span are predicted once more, from the tokens right before "
        "and right after the span."
    )

    def __init__(
        self,
        encoder: Encoder,
        corpus: CorpusInfo,
        *,
        mask_ratio: PredictedRatio,
        geometric_p: Annotated[float, Field(gt=0, lt=1)],
        max_words: Positive,
        boundary_weight: NonNegativeFloat,
        max_boundary_tokens: Positive,
        position_size: Positive,
        parity: Literal["paper", "released_code"],
        corruption: Corruption,
    ) -> None:
        """Choose how spans are drawn and corrupted, and what their boundaries predict.

        Args:
            encoder: what is trained.
            corpus: what it is trained on.
            mask_ratio: the budget is ``ceil(mask_ratio * ordinary tokens)`` per row.
            geometric_p: parameter of the geometric distribution of lengths in words, in (0, 1).
            max_words: words of the longest span; lengths above it are not drawn. Spans that touch become one, which may be longer.
            boundary_weight: weight of ``sbo``; that of ``mlm`` is 1.
            max_boundary_tokens: tokens of a span that its boundary predicts.
            position_size: width of the embedding of a place within a span.
            parity: where a span begins and how the last one ends, see *Deviations*.
            corruption: parts of the spans that are masked, replaced and kept, each as a whole; they sum to 1.
        """
        policy = GeometricSpans(mask_ratio, geometric_p, max_words, parity)
        collator = masked_collator(encoder, policy, corruption)
        super().__init__(
            encoder,
            extended(collator, SpanCollator, max_boundary_tokens=max_boundary_tokens, whole_rows=parity == "paper"),
        )
        self.weights = {"mlm": 1.0, "sbo": boundary_weight}
        self.boundary_head = BoundaryHead(encoder, max_boundary_tokens, position_size)

    def forward(self, batch: Batch) -> Output:
        hidden_TD = self.encoder(batch)
        output = self.predict(hidden_TD, batch)
        targets = batch.tensors["boundary_targets"]
        known_QK = self.boundary_head.known(hidden_TD, batch.tensors["boundaries"], batch.tensors["in_span"])
        loss, num_right = cross_entropy(self.boundary_head, known_QK, targets, vocab_size=self.encoder.vocabulary.size)
        metrics = {**output.metrics, "boundary_accuracy": (num_right, targets.new_full((), len(targets)))}
        return Output({**output.terms, "sbo": loss}, metrics)

    def flops(self, batch: Batch) -> int:
        encoder = self.encoder.flops(batch)
        if not encoder:
            return 0
        heads = {"mlm": self.encoder.head, "sbo": self.boundary_head}
        return encoder + sum(linear_flops(num_linear_weights(head), batch.counts[term]) for term, head in heads.items() if head)


class BoundaryHead(nn.Module):
    """Predicts a token of a span from the vectors around the span and the token's place in it, (Q, 2D + position_size) to (Q, V).

    Two layers with GELU and layer normalisation, then the encoder's word embeddings, with a bias for each word.
    """

    def __init__(self, encoder: Encoder, num_places: int, position_size: int) -> None:
        super().__init__()
        words = encoder.base.get_input_embeddings().weight
        vocab_size, embedding_size = words.shape
        self.places = nn.Embedding(num_places, position_size)
        hidden = nn.Linear(2 * encoder.hidden_size + position_size, encoder.hidden_size)
        narrow = nn.Linear(encoder.hidden_size, embedding_size)
        self.layers = nn.Sequential(
            hidden, nn.GELU(), nn.LayerNorm(encoder.hidden_size), narrow, nn.GELU(), nn.LayerNorm(embedding_size)
        )
        self.decoder = nn.Linear(embedding_size, vocab_size)
        for module in (self.places, hidden, narrow):
            nn.init.normal_(module.weight, std=encoder.initializer_range)
        for linear in (hidden, narrow, self.decoder):
            nn.init.zeros_(linear.bias)
        self.decoder.weight = words

    def known(self, hidden_TD: Tensor, boundaries_Q2: Tensor, in_span_Q: Tensor) -> Tensor:
        """Return what is known of each token: the two boundary vectors and the place, (Q, 2D + position_size)."""
        return torch.cat([hidden_TD[boundaries_Q2].flatten(1), self.places(in_span_Q).to(hidden_TD.dtype)], dim=1)

    def forward(self, known: Tensor) -> Tensor:
        """Return logits (Q, V)."""
        logits: Tensor = self.decoder(self.layers(known))
        return logits
