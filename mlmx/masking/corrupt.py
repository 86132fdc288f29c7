"""What selected tokens are replaced by."""

# S rows, T tokens of all rows, P selected tokens, V ordinary ids

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from mlmx.keyed import integers, uniform
from mlmx.masking.units import Draws, Selection


@dataclass(frozen=True, slots=True)
class Corruption:
    """How often a selected token becomes the mask token, a random one, or is kept; the three sum to 1.

    Attributes:
        mask: the part that becomes the mask token.
        random: the part that becomes a random token, uniform over all that are not special.
        keep: the part that stays as it is (and is predicted all the same).
    """

    # Read by pydantic, when settings become an instance: a key that is not a field is an error.
    __pydantic_config__: ClassVar[Mapping[str, str]] = {"extra": "forbid"}

    mask: float
    random: float
    keep: float

    def __post_init__(self) -> None:
        parts = (self.mask, self.random, self.keep)
        if min(parts) < 0 or not math.isclose(sum(parts), 1, abs_tol=1e-9):
            raise ValueError(f"mask, random and keep must be at least 0 and sum to 1, not {' + '.join(map(str, parts))}")


def corrupt(
    input_ids: NDArray[np.int64],
    selection: Selection,
    draws: Draws,
    *,
    corruption: Corruption,
    mask_id: int,
    ordinary_ids: NDArray[np.int64],
) -> NDArray[np.int64]:
    """Return the ids with the selected tokens replaced.

    Whether a token is masked, replaced or kept is decided once for each unit of the selection (otherwise a word could be read off
    its pieces that were kept); the random token is drawn for each position.

    Args:
        input_ids: (T,) ids.
        selection: what is selected.
        draws: the rows' random choices.
        corruption: the parts.
        mask_id: the mask token.
        ordinary_ids: (V,) ids that are not special.
    """
    action = uniform(draws.of("corrupt", selection.row, selection.units))
    masked = action < corruption.mask
    corrupted = input_ids.copy()
    corrupted[selection.positions[masked]] = mask_id
    if corruption.random > 0:
        # Written this way so that mask + random == 1 leaves nothing to rounding.
        random = (~masked & (action < 1 - corruption.keep)).nonzero()[0]
        drawn = draws.of("random", selection.row[random], selection.places[random])
        corrupted[selection.positions[random]] = ordinary_ids[integers(drawn, len(ordinary_ids))]
    return corrupted
