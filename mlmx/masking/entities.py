"""Which tokens to predict, where words of some kinds come first."""

# S rows, N units (words or entity spans), P selected tokens

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, reduce
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mlmx.masking.select import fixed, one_token_each, random_units
from mlmx.masking.units import Draws, Rows, Selection, Units, budgets, first_of_rows, random_order, row_sums
from mlmx.schedules import Schedule

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


@dataclass(frozen=True)
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
    ratio: float | Schedule
    count_specials: bool
    rule: Literal["word", "span"]
    order: Literal["shared", "by_type"]
    fill: Literal["backfill", "none"]
    parity: Literal["paper", "released_code"]

    def __call__(self, rows: Rows, draws: Draws) -> Selection:
        units, types = self._units(rows)
        select = draws.order(units)
        budget = budgets(rows.lengths if self.count_specials else units.num_tokens(rows), fixed(self.ratio))
        capped = self._capped(units, types, select, len(budget))
        untyped = capped == len(self.types)
        # In each row the units with a type come first, all in one random order or type by type, and then the others.
        order = random_order(units.row, select, untyped if self.order == "shared" else capped, len(self.types) + 1)
        # Units stay in their rows under every order, so `units.row` is also the row of each unit in that order.
        chosen = order[first_of_rows(units.row, budget)]
        if self.fill == "none" or self.parity == "released_code":
            chosen = chosen[~untyped[chosen]]
        if self.fill == "backfill" and self.parity == "released_code":
            missing = np.minimum(budget, units.num_tokens(rows)) - np.bincount(units.row[chosen], minlength=len(budget))
            chosen = np.union1d(chosen, random_units(units, select, missing))
        chosen.sort()
        return Selection.of(rows, one_token_each(units, chosen, draws), typed=types[chosen] < len(self.types))

    def _units(self, rows: Rows) -> tuple[Units, NDArray[np.int64]]:
        # The units, and (N,) the number of each one's type; units without a type have the number after the last.
        words = Units.words(rows)
        of_layers = [table[rows.tags[layer][words.first]] for layer, table in self._type_of_class.items()]
        types = reduce(np.minimum, of_layers) if of_layers else np.full(len(words.first), len(self.types))
        if self.rule == "word":
            return words, types
        begins = np.flatnonzero(~self._continues(rows, words, types))
        return words.joined(begins), types[begins]

    @cached_property
    def _type_of_class(self) -> Mapping[str, NDArray[np.int64]]:
        # Layer -> (256,) the first type that a class belongs to.
        tables: dict[str, NDArray[np.int64]] = {}
        for number, kind in reversed(list(enumerate(self.types))):
            if kind.cap_ratio > 0:
                tables.setdefault(kind.layer, np.full(256, len(self.types)))[list(kind.classes)] = number
        return tables

    def _continues(self, rows: Rows, words: Units, types: NDArray[np.int64]) -> NDArray[np.bool_]:
        # Whether a word goes on with the entity of the word before it.
        by_entity = np.array([kind.layer == ENTITY for kind in self.types] + [False])
        entity = rows.tags[ENTITY][words.first] if ENTITY in rows.tags else np.zeros(len(words.first), np.uint8)
        segment = rows.segments[words.first]
        continues = np.zeros(len(words.first), bool)
        continues[1:] = by_entity[types[1:]]
        for same in (types, entity, words.row, segment):
            continues[1:] &= same[1:] == same[:-1]
        if continues.any():
            continues &= rows.tags[ENTITY_START][words.first] == 0
        return continues

    def _capped(self, units: Units, types: NDArray[np.int64], select: NDArray[np.int64], num_rows: int) -> NDArray[np.int64]:
        # The types, without that of units past their type's cap.
        for number, kind in enumerate(self.types):
            # A type has no more units than tokens: a cap of all its tokens bounds nothing.
            if kind.cap_ratio < 1:
                typed = np.flatnonzero(types == number)
                row = units.row[typed]
                cap = np.maximum(1, np.rint(kind.cap_ratio * row_sums(row, units.size[typed], num_rows))).astype(np.int64)
                past = typed[random_order(row, select[typed])[~first_of_rows(row, cap)]]
                types = types.copy()
                types[past] = len(self.types)
        return types
