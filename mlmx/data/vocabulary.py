"""What objectives and datasets need to know of a tokenizer, without carrying it around."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from mlmx.errors import user_error

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Separator = Literal["template", "own"]


@dataclass(frozen=True, slots=True)
class RowLayout:
    """Where the special tokens of a row stand.

    Attributes:
        prefix: ids before the first side.
        middle: ids between two sides.
        suffix: ids after the last side.
        middle_split: how many of ``middle`` close the side before; the rest open the one after.
    """

    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    middle: tuple[int, ...] = ()
    middle_split: int = 0

    @property
    def num_special(self) -> int:
        return self.num_special_of(2)

    def num_special_of(self, num_sides: int) -> int:
        """Return the special tokens of a row with so many sides."""
        return len(self.prefix) + (num_sides - 1) * len(self.middle) + len(self.suffix)


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """The numbers of a tokenizer.

    Attributes:
        size: number of ids, special ones included.
        mask_id: the mask token; None for tokenizers without one.
        pad_id: the padding token; without one, that which ends a text: padding is never seen.
        special_ids: sorted ids of all special tokens.
        single: layout of a row with one side.
        pair: layout of a pair by the tokenizer's own template (XLM-R: ``<s> x </s></s> y </s>``).
    """

    size: int
    mask_id: int | None
    pad_id: int
    special_ids: tuple[int, ...]
    single: RowLayout
    pair: RowLayout

    @property
    def ordinary_ids(self) -> NDArray[np.int64]:
        """Sorted ids that are not special: what random replacements are drawn from."""
        return np.setdiff1d(np.arange(self.size), np.asarray(self.special_ids, np.int64))

    def required_mask_id(self) -> int:
        """Return the mask token.

        Raises:
            UserError: if there is none.
        """
        if self.mask_id is None:
            message = "its tokenizer has no mask token, which this objective needs; model.add_mask_token=true gives it one."
            raise user_error("model", message)
        return self.mask_id

    def pair_layout(self, separator: Separator) -> RowLayout:
        """Return how a pair is joined: by the tokenizer's template, or each side with its ``own`` specials (as in XLM)."""
        if separator == "template":
            return self.pair
        middle = (*self.single.suffix, *self.single.prefix)
        return RowLayout(self.single.prefix, self.single.suffix, middle, len(self.single.suffix))

    @classmethod
    def from_tokenizer(cls, tokenizer: PreTrainedTokenizerBase) -> Vocabulary:
        """Read the vocabulary off a tokenizer; its templates are found by encoding a probe.

        Raises:
            UserError: if the tokenizer has no padding token, and none that ends a text, which could stand for it.
        """
        pad_id = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        if pad_id is None:
            raise user_error("model", "the tokenizer has no padding token; add one and save the tokenizer again.")
        ordinary = next(i for i in range(len(tokenizer)) if i not in set(tokenizer.all_special_ids))
        probe = tokenizer.convert_ids_to_tokens(ordinary)
        single = _ids_around_probe(tokenizer, probe, None)
        pair = _ids_around_probe(tokenizer, probe, probe)
        return cls(
            size=len(tokenizer),
            mask_id=tokenizer.mask_token_id,
            pad_id=pad_id,
            special_ids=tuple(sorted(set(tokenizer.all_special_ids))),
            single=RowLayout(single[0], single[1]),
            pair=RowLayout(pair[0], pair[2], pair[1], _closing(pair[1], single)),
        )


def _closing(middle: tuple[int, ...], single: list[tuple[int, ...]]) -> int:
    # The ids between the sides that also close a single row close side 0; whatever follows opens side 1.
    closing = len(single[1])
    return closing if middle[:closing] == single[1] else len(middle)


def _ids_around_probe(tokenizer: PreTrainedTokenizerBase, first: str, second: str | None) -> list[tuple[int, ...]]:
    # The ids of the template before the first side, between the sides (of a pair), and after the last side.
    encoded = tokenizer([first], None if second is None else [second], is_split_into_words=True)
    runs: list[list[int]] = [[] for _ in range(2 if second is None else 3)]
    for token_id, side in zip(encoded["input_ids"], _sides(encoded.sequence_ids(0)), strict=True):
        if side is not None:
            runs[side].append(token_id)
    return [tuple(run) for run in runs]


def _sides(sequence_ids: list[int | None]) -> list[int | None]:
    # For each position: None inside a side, else the number of sides that ended or began before it.
    sides: list[int | None] = []
    seen = -1
    for sequence in sequence_ids:
        if sequence is not None:
            seen = sequence
        sides.append(None if sequence is not None else seen + 1)
    return sides
