"""Rows in views: the sides of a pair or triplet, or one row under two dropout masks. The first two are to lie close together."""

# S examples of a batch, T tokens of all rows

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from torch import Tensor

from mlmx.data.batch import Batch, BatchContext, Collator, packed_batch
from mlmx.data.gather import Side, Source, gather
from mlmx.data.rows import CorpusInfo, TokenRows
from mlmx.data.vocabulary import RowLayout
from mlmx.errors import user_error
from mlmx.keyed import fold
from mlmx.models.dropout import dropout_of
from mlmx.models.encoder import Encoder

TERM = "contrast"
CAPTION = "No token is predicted: vectors of rows that belong together are to be alike."

Positives = Literal["dropout", "pair"]
EqualViews = Literal["refuse", "accept"]


@dataclass(frozen=True, kw_only=True)
class ViewsCollator(Collator):
    """Makes a row of each view of an example: first those of all examples in the first view, then those in the second, and so on.

    Attributes:
        single: layout of a row of one side.
        view: ``segment``: all its rows are the example; ``pair``: they are its sides.
        num_views: rows of an example.
        per_example: term -> predictions of each example.
    """

    single: RowLayout
    view: Literal["segment", "pair"]
    num_views: int
    per_example: Mapping[str, int]

    def arranged(self, rows: TokenRows, context: BatchContext) -> TokenRows:
        return stacked([rows] * self.num_views if self.view == "segment" else sides_of(rows, self.single, self.num_views))

    def __call__(self, rows: TokenRows, context: BatchContext) -> Batch:
        arranged = self.arranged(rows, context)
        keys = np.concatenate([fold(context.keys, view) for view in range(self.num_views)])
        counts = {term: number * rows.num_rows for term, number in self.per_example.items()}
        return packed_batch(arranged, replace(context, keys=keys), counts=counts)


def views_collator(encoder: Encoder, corpus: CorpusInfo, positives: Positives, *, per_example: Mapping[str, int]) -> ViewsCollator:
    """Return the collator for an encoder's vocabulary.

    Args:
        encoder: the encoder.
        corpus: what it is trained on.
        positives: what a second view is; a third one, of a triplet, is a negative.
        per_example: term -> predictions of each example.

    Raises:
        UserError: if ``positives`` is ``pair`` and the corpus is monolingual.
    """
    single = encoder.vocabulary.single
    if positives == "dropout":
        return ViewsCollator(single=single, view="segment", num_views=2, per_example=per_example)
    if corpus.num_sides == 1:
        raise user_error("corpus", "this objective compares the sentences of pairs or triplets, and the corpus is not parallel.")
    return ViewsCollator(single=single, view="pair", num_views=corpus.num_sides, per_example=per_example)


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


def by_view(vectors: Tensor, num_views: int) -> Tensor:
    """Return vectors (num_views x S, ...) as (num_views, S, ...)."""
    return vectors.view(num_views, len(vectors) // num_views, *vectors.shape[1:])


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


def sides_of(rows: TokenRows, layout: RowLayout, num_sides: int) -> list[TokenRows]:
    """Return the first sides of pairs or triplets, each in a row of its own, the second ones, and so on.

    Args:
        rows: the pairs or triplets.
        layout: that of a row of one side.
        num_sides: of an example.
    """
    ordinary = ~rows.special
    # A row has no more words than tokens, so that its words are numbered from its first token on.
    word_of_token = (rows.cu_seqlens[rows.row_of_token] + rows.words)[ordinary]
    tags = {layer: np.zeros_like(classes) for layer, classes in rows.tags.items()}
    for layer, classes in rows.tags.items():
        tags[layer][word_of_token] = classes[ordinary]
    source = Source(pieces=rows.input_ids, words=rows.words, tags=tags)
    sides = []
    for number in range(num_sides):
        own = np.flatnonzero(ordinary & (rows.segments == number))
        lengths = np.bincount(rows.row_of_token[own], minlength=rows.num_rows)
        starts = own[np.minimum(lengths.cumsum() - lengths, len(own) - 1)]
        languages = rows.languages[starts]
        side = Side(starts=starts, lengths=lengths, languages=languages, first_words=rows.cu_seqlens[:-1].astype(np.int64))
        taken = gather(layout, source, [side], rows.row_ids)
        # The sides of an example are neighbours in the corpus.
        sources = None if rows.sources is None else rows.sources + number
        sides.append(replace(taken, segments=np.full_like(taken.segments, number), sources=sources))
    return sides
