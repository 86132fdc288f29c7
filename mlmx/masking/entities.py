"""Which tokens to predict, where words of some kinds come first."""

# S rows, N units (words or entity spans), P selected tokens

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mlmx.masking.select import one_token_each
from mlmx.masking.units import Rows, Selection, Words, budgets, count_before, random_order, rank_in_group, unit_keys

ENTITY, ENTITY_START = "entity", "entity_start"


@dataclass(frozen=True, slots=True)
class UnitType:
    """A kind of unit that is selected first.

    Attributes:
        layer: the annotation layer that tells, ``entity`` or ``pos``.
        classes: the classes of that layer that belong to the type.
        cap_ratio: at most ``max(1, round(cap_ratio * the type's tokens in the row))`` of its units are selected first; 0 takes the
            type out, as if it were not listed.
    """

    layer: str
    classes: frozenset[int]
    cap_ratio: float


@dataclass(frozen=True, slots=True)
class EntitiesFirst:
    """One token of each selected unit; units of given types are selected before the others.

    The budget is ``max(1, round(ratio * length))`` tokens per row. First come units that have a type, in random order and up to the
    cap of their type; then, with ``fill="backfill"``, units that were not selected, in random order, until the budget is met.

    Attributes:
        types: kinds of units; a word belongs to the first type that fits.
        ratio: the budget's part of the row.
        count_specials: whether the row length counts special tokens.
        rule: ``word``: each word is a unit; ``span``: the words of one entity are one unit, all others units by themselves.
        order: ``shared``: all types compete in one random order; ``by_type``: the first type is exhausted before the second begins.
        fill: ``backfill`` or ``none``: whether the rest of the budget goes to other units.
        parity: ``released_code`` reproduces a slip of the released code: its backfill walks over all units, the selected ones too,
            and ends after as many steps as tokens are missing, so that rows get fewer tokens than the budget; ``paper`` goes on
            until the budget is met.
    """

    types: tuple[UnitType, ...]
    ratio: float
    count_specials: bool
    rule: Literal["word", "span"]
    order: Literal["shared", "by_type"]
    fill: Literal["backfill", "none"]
    parity: Literal["paper", "released_code"]

    def __call__(self, rows: Rows, keys: NDArray[np.int64]) -> Selection:
        units, types = self.units(rows)
        budget = budgets(rows, units.tokens, self.ratio, count_specials=self.count_specials)[units.row]
        order = random_order(units.row, unit_keys(keys, units.row, units.index, "select"))
        # From here on, arrays stand in random order within each row; `units.row` is the row in that order too.
        types = types[order]
        first = self._first(units, types, order, budget)
        if self.fill == "backfill":
            missing = budget - _total(first, units.row)
            others = ~first
            steps = count_before(others.astype(np.int64), units.row) if self.parity == "paper" else rank_in_group(units.row)
            first = first | (others & (steps < missing))
        return one_token_each(units, np.sort(order[first]), keys)

    def units(self, rows: Rows) -> tuple[Words, NDArray[np.int64]]:
        """Return the units of rows and (N,) the type of each, -1 for none."""
        words = Words.of(rows)
        types = np.full(len(words.first), -1, np.int64)
        head = words.tokens.position[words.first]
        for number, kind in reversed(list(enumerate(self.types))):
            if kind.cap_ratio > 0:
                types[np.isin(rows.tags[kind.layer][head], list(kind.classes))] = number
        if self.rule == "word":
            return words, types
        begins = ~self._continues(rows, words, types, head)
        first = words.first[begins]
        return Words.from_starts(words.tokens, rows.words[words.tokens.position].astype(np.int64), first), types[begins]

    def _continues(self, rows: Rows, words: Words, types: NDArray[np.int64], head: NDArray[np.int64]) -> NDArray[np.bool_]:
        # Whether a word goes on with the entity of the word before it.
        by_entity = np.array([kind.layer == ENTITY for kind in self.types] + [False])
        entity = rows.tags[ENTITY][head] if ENTITY in rows.tags else np.zeros(len(head), np.uint8)
        continues = np.zeros(len(head), bool)
        continues[1:] = (
            by_entity[types[1:]]
            & (types[1:] == types[:-1])
            & (entity[1:] == entity[:-1])
            & (words.row[1:] == words.row[:-1])
            & (rows.segments[head[1:]] == rows.segments[head[:-1]])
        )
        if continues.any():
            continues &= rows.tags[ENTITY_START][head] == 0
        return continues

    def _first(
        self, units: Words, types: NDArray[np.int64], order: NDArray[np.int64], budget: NDArray[np.int64]
    ) -> NDArray[np.bool_]:
        # Which units are selected for their type, in the random order.
        size = units.size[order]
        within_cap = np.zeros(len(types), bool)
        num_before = np.zeros(len(types), np.int64)
        for number, kind in enumerate(self.types):
            typed = types == number
            cap = np.maximum(1, np.rint(kind.cap_ratio * _total(np.where(typed, size, 0), units.row)))
            within_cap |= typed & (count_before(typed.astype(np.int64), units.row) < cap)
        if self.order == "shared":
            return within_cap & (count_before(within_cap.astype(np.int64), units.row) < budget)
        for number in range(len(self.types)):
            typed = within_cap & (types == number)
            earlier = _total(within_cap & (types >= 0) & (types < number), units.row)
            num_before[typed] = (earlier + count_before(typed.astype(np.int64), units.row))[typed]
        return within_cap & (num_before < budget)


def marked_classes(types: tuple[UnitType, ...]) -> Mapping[str, frozenset[int]]:
    """Return layer -> the classes of all types, by which selected tokens are counted as typed."""
    layers = {kind.layer for kind in types if kind.cap_ratio > 0}
    return {
        layer: frozenset().union(*(kind.classes for kind in types if kind.layer == layer and kind.cap_ratio > 0))
        for layer in layers
    }


def _total(values: NDArray[np.bool_] | NDArray[np.int64], row: NDArray[np.int64]) -> NDArray[np.int64]:
    # For each element the sum over its row.
    totals = np.bincount(row, weights=values, minlength=1)
    return totals.astype(np.int64)[row]
