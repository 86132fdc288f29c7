"""Rows in two views that are to lie close together: the two sides of a pair, or one row under two dropout masks."""

# S examples of a batch, T tokens of all rows

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from mlmx.data.batch import Batch, BatchContext, Collator, packed_batch
from mlmx.data.gather import Side, Source, gather
from mlmx.data.rows import CorpusInfo, TokenRows
from mlmx.data.vocabulary import RowLayout
from mlmx.errors import user_error
from mlmx.keyed import fold
from mlmx.models.dropout import dropout_of
from mlmx.models.encoder import Encoder
from mlmx.objectives.masked import require_pairs

TERM = "contrast"

Positives = Literal["dropout", "pair"]
EqualViews = Literal["refuse", "accept"]

_NUM_VIEWS = 2


@dataclass(frozen=True, kw_only=True)
class ViewsCollator(Collator):
    """Makes two rows of each example: first those of all examples in the first view, then those in the second.

    Attributes:
        single: layout of a row of one side.
        view: ``segment``: both rows are the example; ``pair``: they are its two sides.
        per_example: term -> predictions of each example.
    """

    single: RowLayout
    view: Literal["segment", "pair"]
    per_example: Mapping[str, int]

    def arranged(self, rows: TokenRows, context: BatchContext) -> TokenRows:
        return stacked([rows, rows] if self.view == "segment" else sides_of(rows, self.single))

    def __call__(self, rows: TokenRows, context: BatchContext) -> Batch:
        arranged = self.arranged(rows, context)
        keys = np.concatenate([fold(context.keys, view) for view in range(_NUM_VIEWS)])
        counts = {term: number * rows.num_rows for term, number in self.per_example.items()}
        return packed_batch(arranged, replace(context, keys=keys), counts=counts)


def views_collator(encoder: Encoder, corpus: CorpusInfo, positives: Positives, *, per_example: Mapping[str, int]) -> ViewsCollator:
    """Return the collator for an encoder's vocabulary.

    Args:
        encoder: the encoder.
        corpus: what it is trained on.
        positives: what a second view is.
        per_example: term -> predictions of each example.

    Raises:
        UserError: if ``positives`` is ``pair`` and the corpus is monolingual.
    """
    if positives == "pair":
        require_pairs(corpus)
    view: Literal["segment", "pair"] = "pair" if positives == "pair" else "segment"
    return ViewsCollator(single=encoder.vocabulary.single, view=view, per_example=per_example)


def require_dropout(encoder: Encoder) -> None:
    """Refuse an encoder in training that would make the same vector of a row both times.

    Raises:
        UserError: if it has no dropout.
    """
    if encoder.training and dropout_of(encoder.base) == 0:
        message = (
            "is 0, so that both views of a row are the same and nothing is learned of their likeness; set it to 0.1, or say "
            "objective.equal_views=accept where this is what you want to see."
        )
        raise user_error("trainer.dropout", message)


def stacked(views: Sequence[TokenRows]) -> TokenRows:
    """Return the rows of all views, one view after the other."""

    def joined(name: str) -> np.ndarray:
        return np.concatenate([getattr(rows, name) for rows in views])

    ends = np.concatenate([[0], joined("lengths").cumsum()])
    return TokenRows(
        **{name: joined(name) for name in ("input_ids", "words", "segments", "languages", "row_ids")},
        cu_seqlens=ends.astype(np.int32),
        sources=None if any(rows.sources is None for rows in views) else joined("sources"),
        tags={layer: np.concatenate([rows.tags[layer] for rows in views]) for layer in views[0].tags},
    )


def sides_of(rows: TokenRows, layout: RowLayout) -> list[TokenRows]:
    """Return the first sides of pairs, each in a row of its own, and the second ones.

    Args:
        rows: the pairs.
        layout: that of a row of one side.
    """
    ordinary = ~rows.special
    # A row has no more words than tokens, so that its words are numbered from its first token on.
    word_of_token = (rows.cu_seqlens[rows.row_of_token] + rows.words)[ordinary]
    tags = {layer: np.zeros_like(classes) for layer, classes in rows.tags.items()}
    for layer, classes in rows.tags.items():
        tags[layer][word_of_token] = classes[ordinary]
    source = Source(pieces=rows.input_ids, words=rows.words, tags=tags)
    sides = []
    for number in range(_NUM_VIEWS):
        own = np.flatnonzero(ordinary & (rows.segments == number))
        lengths = np.bincount(rows.row_of_token[own], minlength=rows.num_rows)
        starts = own[np.minimum(lengths.cumsum() - lengths, len(own) - 1)]
        languages = rows.languages[starts]
        side = Side(starts=starts, lengths=lengths, languages=languages, first_words=rows.cu_seqlens[:-1].astype(np.int64))
        taken = gather(layout, source, [side], rows.row_ids)
        # The sides of a pair are neighbours in the corpus.
        sources = None if rows.sources is None else rows.sources + number
        sides.append(replace(taken, segments=np.full_like(taken.segments, number), sources=sources))
    return sides
