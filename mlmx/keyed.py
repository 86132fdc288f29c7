"""Keyed randomness: every random choice is a hash of what it is about.

A choice made with a generator depends on everything drawn before it, so masks change with the number of workers, ranks or
restarts. Here a draw is a pure function of its key, (seed, stream, epoch, row id, unit index), and can be made anywhere, in any
order, by numpy in a loader worker or by torch inside ``forward``, with the same result.

The functions take numpy ``int64`` arrays or torch ``int64`` tensors, both of which wrap around on overflow; this module imports no
torch.
"""

# S sequences (rows) of a batch, N draws

from __future__ import annotations

import hashlib
from functools import cache
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

Keys = TypeVar("Keys", NDArray[np.int64], "Tensor")


def _signed(value: int) -> int:
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >= 1 << 63 else value


# Constants of the splitmix64 generator (Steele, Lea, Flood 2014), as signed 64-bit integers.
_GOLDEN = _signed(0x9E3779B97F4A7C15)
_MIX_1 = _signed(0xBF58476D1CE4E5B9)
_MIX_2 = _signed(0x94D049BB133111EB)


# The same for numpy, as arrays: converting Python's integers takes longer than computing with them. Numpy shifts unsigned numbers.
_FACTOR_1, _FACTOR_2 = (np.array(factor).view(np.uint64) for factor in (_MIX_1, _MIX_2))
_SHIFT_30, _SHIFT_27, _SHIFT_31, _SHIFT_11 = (np.array(shift, np.uint64) for shift in (30, 27, 31, 11))


def _mix(x: Keys) -> Keys:
    # Overwrites its argument.
    if isinstance(x, np.ndarray):
        bits = x.view(np.uint64)
        shifted = bits >> _SHIFT_30
        bits ^= shifted
        bits *= _FACTOR_1
        np.right_shift(bits, _SHIFT_27, out=shifted)
        bits ^= shifted
        bits *= _FACTOR_2
        np.right_shift(bits, _SHIFT_31, out=shifted)
        bits ^= shifted
        return x
    # `>>` is arithmetic on signed integers; the masks make it logical.
    x = (x ^ ((x >> 30) & ((1 << 34) - 1))) * _MIX_1
    x = (x ^ ((x >> 27) & ((1 << 37) - 1))) * _MIX_2
    return x ^ ((x >> 31) & ((1 << 33) - 1))


@cache
def stream(name: str) -> int:
    """Return the 63-bit number of a named stream; draws of different streams are independent."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little") >> 1


def fold(keys: Keys, value: Keys | int) -> Keys:
    """Fold a value into keys.

    Args:
        keys: int64, any shape.
        value: an integer, or int64 that broadcasts against ``keys``.

    Returns:
        New keys, int64, of the broadcast shape.
    """
    return end_fold(begin_fold(keys), value)


def begin_fold(keys: Keys) -> Keys:
    """Return the half of :func:`fold` that needs the keys only: ``end_fold(begin_fold(k)[i], v)`` is ``fold(k[i], v)``."""
    return _mix(keys + _GOLDEN)


def end_fold(begun: Keys, value: Keys | int) -> Keys:
    """Fold a value into keys that :func:`begin_fold` has begun."""
    return _mix(begun ^ (_signed(value * _GOLDEN) if isinstance(value, int) else value * _GOLDEN))


def uniform(keys: Keys) -> Keys:
    """Turn keys into float64 draws, uniform in [0, 1) with 53 bits."""
    if isinstance(keys, np.ndarray):
        return (keys.view(np.uint64) >> _SHIFT_11) * 2.0**-53  # type: ignore[return-value]
    # Spelled out, since torch would promote to its default float32.
    return ((keys >> 11) & ((1 << 53) - 1)).double() * 2.0**-53


def integers(keys: Keys, high: Keys | int) -> Keys:
    """Turn keys into int64 draws, uniform in [0, high); the bias is below ``high / 2**53``."""
    draws = uniform(keys) * high
    return draws.astype(np.int64) if isinstance(draws, np.ndarray) else draws.long()


def row_keys(*, seed: int, epoch: NDArray[np.int64] | int, row_ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return one key per row, from which every choice about the row is derived.

    Args:
        seed: the run's seed.
        epoch: how often the row has been seen before, a number or (S,).
        row_ids: (S,) int64, the row's number in its dataset.
    """
    root = np.full(row_ids.shape, _signed(seed), np.int64)
    epochs = np.broadcast_to(np.asarray(epoch, np.int64), row_ids.shape)
    return fold(fold(fold(root, stream("row")), epochs), row_ids.astype(np.int64))


def permutation(size: int, *, seed: int, name: str, epoch: int = 0) -> NDArray[np.int64]:
    """Return a permutation of ``range(size)`` that depends only on its arguments."""
    root = np.full(size, _signed(seed), np.int64)
    keys = fold(fold(fold(root, stream(name)), epoch), np.arange(size, dtype=np.int64))
    return np.argsort(keys, kind="stable")
