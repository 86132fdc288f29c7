"""Noise as crawled parallel corpora have it, put into a clean one, so that it is known which pairs are bad."""

# N pairs

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mlmx.build import NonNegative, Ratio
from mlmx.errors import user_error
from mlmx.keyed import fold, integers, stream, uniform

Kind = Literal["shuffled", "truncated", "copied", "wrong_language", "mangled"]


@dataclass(frozen=True, slots=True)
class Pair:
    """A pair of a corpus that may be noisy.

    Attributes:
        where: the file and line it came from, for messages.
        source: its first side.
        target: its second side.
        noise: what was done to it; None where nothing was.
    """

    where: str
    source: str
    target: str
    noise: Kind | None = None


class Noise(ABC):
    """Spoils some pairs of a clean corpus. Settings are keyword-only parameters of the constructor."""

    @abstractmethod
    def spoil(self, pairs: Sequence[Pair]) -> list[Pair]:
        """Return the pairs in their order, some of them spoilt and marked as such."""


class InjectedNoise(Noise):
    """Spoils the targets of some pairs, each in one way, after the kinds of noise that crawled corpora are found to have.

    ``shuffled``: the target of another pair. ``truncated``: only the beginning of the target. ``copied``: the source itself.
    ``wrong_language``: a sentence of the source's language that is not the source. ``mangled``: words lost, said twice, swapped, or
    taken from elsewhere, as bad machine translation has them.

    Source: Khayrallah and Koehn 2018, arXiv 1805.12282, table 1; Kreutzer et al. 2022, arXiv 2103.12028.

    Args:
        seed: of all choices, which are keyed by it and the pair's number.
        ratios: the part of the pairs that has each kind of noise; together at most 1.
        truncated_ratio: the part of its words that a truncated target keeps.
        mangled_ratio: the part of its words at which a mangled target is broken, one at least.
    """

    def __init__(self, *, seed: NonNegative, ratios: Mapping[Kind, Ratio], truncated_ratio: Ratio, mangled_ratio: Ratio) -> None:
        if sum(ratios.values()) > 1:
            raise user_error("noise.ratios", f"add up to {sum(ratios.values()):g}; more than 1 is more pairs than there are.")
        self.seed = seed
        self.ratios = ratios
        self.truncated_ratio = truncated_ratio
        self.mangled_ratio = mangled_ratio

    def spoil(self, pairs: Sequence[Pair]) -> list[Pair]:
        sources, targets = [pair.source for pair in pairs], [pair.target for pair in pairs]
        if len(set(sources)) < 2 or len(set(targets)) < 2:
            raise user_error("task corpus", "needs two different sentences on each side for noise to be made of.")
        kinds: list[Kind | None] = [*self.ratios, None]
        keys = fold(np.full(len(pairs), self.seed, np.int64), stream("curation noise"))
        keys = fold(keys, np.arange(len(pairs), dtype=np.int64))
        chosen = np.searchsorted(np.cumsum([self.ratios[kind] for kind in self.ratios]), uniform(keys), side="right")
        spoilt = []
        for i, (pair, kind) in enumerate(zip(pairs, [kinds[number] for number in chosen.tolist()], strict=True)):
            target = pair.target if kind is None else self._spoilt(kind, i, sources, targets, fold(keys[i : i + 1], stream(kind)))
            # A target of one letter cannot be truncated: what stays as it was is not noise.
            spoilt.append(pair if target == pair.target else replace(pair, target=target, noise=kind))
        return spoilt

    def _spoilt(self, kind: Kind, i: int, sources: Sequence[str], targets: Sequence[str], key: NDArray[np.int64]) -> str:
        if kind == "shuffled":
            return _another(targets, i, key)
        if kind == "wrong_language":
            return _another(sources, i, key)
        if kind == "copied":
            return sources[i]
        return self._truncated(targets[i]) if kind == "truncated" else self._mangled(targets, i, key)

    def _truncated(self, text: str) -> str:
        units = text.split()
        joined = " "
        if len(units) == 1:
            units, joined = list(text), ""
        kept = round(self.truncated_ratio * len(units))
        return joined.join(units[: max(1, min(kept, len(units) - 1))])

    def _mangled(self, targets: Sequence[str], i: int, key: NDArray[np.int64]) -> str:
        words = targets[i].split()
        keys = fold(np.repeat(key, len(words)), np.arange(len(words), dtype=np.int64))
        draws = uniform(keys)
        broken = draws <= max(self.mangled_ratio, draws.min())
        how = integers(fold(keys, stream("how")), 4)
        elsewhere = targets[int(integers(fold(key, stream("elsewhere")), len(targets))[0])].split()
        said: list[str] = []
        for place, word in enumerate(words):
            if not broken[place]:
                said.append(word)
            elif how[place] == 1:
                said += [word, word]
            elif how[place] == 2:
                said.insert(max(0, len(said) - 1), word)
            elif how[place] == 3:
                said.append(elsewhere[place % len(elsewhere)])
        mangled = " ".join(said)
        # What came out whole, or as nothing, is said twice, as a decoder in a loop does.
        return mangled if mangled not in ("", " ".join(words)) else f"{targets[i]} {targets[i]}"


def _another(texts: Sequence[str], i: int, key: NDArray[np.int64]) -> str:
    # The first one from a place drawn at random that is not the same text.
    start = int(integers(key, len(texts))[0])
    return next(text for text in (texts[(start + step) % len(texts)] for step in range(len(texts))) if text != texts[i])
