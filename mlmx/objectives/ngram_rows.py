"""Rows in which a masked n-gram is one token, followed by a slot for each token that it covers."""

# S rows, T tokens of all rows, U units, P masked units, Q tokens of masked n-grams

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mlmx.data.batch import Batch, BatchContext, Collator, packed_batch
from mlmx.data.rows import TokenRows
from mlmx.keyed import uniform
from mlmx.masking.ngrams import NgramTable, fewest_units
from mlmx.masking.select import random_units
from mlmx.masking.units import Draws, Units, budgets, ranges, sums_before
from mlmx.objectives.masked import told_ratio
from mlmx.schedules import Schedule, ratio_at


@dataclass(frozen=True, slots=True)
class _Masked:
    """Rows whose masked n-grams are one token each, followed by slots.

    Attributes:
        rows: as they are before anything is masked: a masked n-gram stands there by its first token, a slot by its own.
        positions: (T,) where each token stands in its row of the corpus.
        context: where all but slots stand.
        masks: (P,) where the masked units stand.
        identities: (P,) what they are.
        slots: (Q,) where the slots stand.
        places: (Q,) the places of their tokens within the n-grams.
    """

    rows: TokenRows
    positions: NDArray[np.int64]
    context: NDArray[np.int64]
    masks: NDArray[np.int64]
    identities: NDArray[np.int64]
    slots: NDArray[np.int64]
    places: NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class NgramCollator(Collator):
    """Masks tokens and n-grams, each by one mask token, and appends to each row a slot for each token of a masked n-gram.

    Adds to the batch ``visible`` (T,) bool, what is no slot; ``masked`` (P,) int64, the positions of the masks, and ``identities``
    (P,) int64, the token or n-gram that stood there; ``slots``, ``slot_targets`` and ``slot_places`` (Q,) int64, the positions of
    the slots, their tokens, and their places within their n-grams. Where masks are filled in: ``draws`` (P,) float64 in [0, 1),
    which decide by what; ``made_up`` (P,) bool, whether they are; ``judged`` int64, the positions of all tokens but slots and masks
    that stay.

    Attributes:
        table: the n-grams.
        mask_ratio: part of the units of a row that is masked; where it is a schedule, the batch also holds ``mask_ratio`` ().
        made_up_ratio: part of the masks that is filled in; None: none, and nothing is judged.
        mask_id: the mask token.
        token_weights: (V,) see :class:`mlmx.masking.select.FrequencyWeighted`; None: all units are equally likely.
    """

    table: NgramTable
    mask_ratio: float | Schedule
    made_up_ratio: float | None
    mask_id: int
    token_weights: NDArray[np.float64] | None = None

    def arranged(self, rows: TokenRows, context: BatchContext) -> TokenRows:
        return self._masked(rows, Draws(context.keys), ratio_at(self.mask_ratio, context.progress)).rows

    def __call__(self, rows: TokenRows, context: BatchContext) -> Batch:
        draws = Draws(context.keys)
        masked = self._masked(rows, draws, ratio_at(self.mask_ratio, context.progress))
        input_ids = masked.rows.input_ids.copy()
        input_ids[masked.masks] = input_ids[masked.slots] = self.mask_id
        visible = np.zeros(len(input_ids), bool)
        visible[masked.context] = True
        counts = {"explicit": len(masked.masks), "comprehensive": len(masked.slots)}
        arrays: dict[str, NDArray[np.generic]] = {
            "visible": visible,
            "masked": masked.masks,
            "identities": masked.identities,
            "slots": masked.slots,
            "slot_targets": masked.rows.input_ids[masked.slots],
            "slot_places": masked.places,
            **told_ratio(self.mask_ratio, context),
        }
        if self.made_up_ratio is not None:
            row, place = masked.rows.row_of_token[masked.masks], masked.positions[masked.masks]
            made_up = uniform(draws.of("mix", row, place)) < self.made_up_ratio
            judged = np.setdiff1d(masked.context, masked.masks[~made_up], assume_unique=True)
            arrays |= {"draws": uniform(draws.of("sample", row, place)), "made_up": made_up, "judged": judged}
            counts |= {"generator": len(masked.masks), "detection": len(judged)}
        return packed_batch(masked.rows, context, counts=counts, input_ids=input_ids, position_ids=masked.positions, **arrays)

    def _masked(self, rows: TokenRows, draws: Draws, ratio: float) -> _Masked:
        units, identities = fewest_units(self.table, rows.input_ids, rows, draws)
        ordinary = (rows.words[units.first] >= 0).nonzero()[0]
        choices = Units(*(getattr(units, name)[ordinary] for name in ("first", "size", "row", "index")))
        budget = budgets(np.bincount(choices.row, minlength=rows.num_rows), ratio)
        draws = draws.weighted_by(self.token_weights, rows.input_ids)
        masked = ordinary[random_units(choices, draws.order(choices), budget)]
        masked.sort()
        # Slots are for n-grams: what a single token is, its mask is asked for.
        ngrams = masked[units.size[masked] > 1]
        covered = ranges(units.first[ngrams], units.size[ngrams])
        places = ranges(np.zeros_like(ngrams), units.size[ngrams])
        return _laid_out(rows, units.first[masked], identities[masked], covered, places)


def _laid_out(
    rows: TokenRows,
    firsts: NDArray[np.int64],
    identities: NDArray[np.int64],
    covered: NDArray[np.int64],
    places: NDArray[np.int64],
) -> _Masked:
    """Lay out rows without what masked n-grams cover beyond their first tokens, each followed by its slots.

    Args:
        rows: the rows.
        firsts: (P,) the first token of each masked unit.
        identities: (P,) what they are.
        covered: (Q,) the tokens of masked n-grams.
        places: (Q,) their places within the n-grams.
    """
    stays = np.ones(len(rows.input_ids), bool)
    stays[covered[places > 0]] = False
    staying = stays.nonzero()[0]
    row, row_of_slot = rows.row_of_token[staying], rows.row_of_token[covered]
    num_context = np.bincount(row, minlength=rows.num_rows)
    num_slots = np.bincount(row_of_slot, minlength=rows.num_rows)
    context = np.arange(len(staying)) + sums_before(num_slots)[row]
    slots = np.arange(len(covered)) + (sums_before(num_context) + num_context)[row_of_slot]
    # Which token of the rows each one is.
    origin = np.zeros(len(staying) + len(covered), np.int64)
    origin[context], origin[slots] = staying, covered
    segments = rows.segments[origin]
    segments[slots] += 2  # a side of their own
    laid_out = TokenRows(
        input_ids=rows.input_ids[origin],
        cu_seqlens=np.concatenate([[0], (num_context + num_slots).cumsum()]).astype(np.int32),
        words=rows.words[origin],
        segments=segments,
        languages=rows.languages[origin],
        row_ids=rows.row_ids,
        sources=rows.sources,
        tags={layer: classes[origin] for layer, classes in rows.tags.items()},
    )
    masks = context[staying.searchsorted(firsts)]
    return _Masked(laid_out, rows.places[origin], context, masks, identities, slots, places)
