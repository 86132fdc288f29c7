"""Rules that pairs of a noisy corpus have to pass, whatever their embeddings say."""

# N pairs

from __future__ import annotations

import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cache
from typing import Any, Literal

from mlmx.build import PositiveFloat, Ratio
from mlmx.data.words import plain_words
from mlmx.errors import nearest, user_error


class Filter(ABC):
    """A rule. Settings are keyword-only parameters of the constructor."""

    @abstractmethod
    def passes(self, pairs: Sequence[tuple[str, str]]) -> list[bool]:
        """Tell for each of the pairs, best first, whether it passes."""


class Duplicates(Filter):
    """Drops pairs that say again what a better one says; case, punctuation and spaces make no difference.

    Args:
        of: what is not to be repeated: the ``pair``, or its ``source``, its ``target``, or ``either`` of them.
    """

    def __init__(self, *, of: Literal["pair", "source", "target", "either"]) -> None:
        self.of = of

    def passes(self, pairs: Sequence[tuple[str, str]]) -> list[bool]:
        seen: set[tuple[str, str]] = set()
        passed = []
        for pair in pairs:
            # What has no words is compared as it is.
            source, target = (" ".join(plain_words(text)) or text for text in pair)
            said = [(side, text) for side, text in (("source", source), ("target", target)) if self.of in (side, "either")]
            said = [(source, target)] if self.of == "pair" else said
            passed.append(seen.isdisjoint(said))
            if passed[-1]:
                seen.update(said)
        return passed


class LengthRatio(Filter):
    """Drops pairs of which one side is much longer than the other.

    Args:
        unit: what lengths are counted in.
        max_ratio: the longer length over the shorter one; 1 or more.
    """

    def __init__(self, *, unit: Literal["words", "characters"], max_ratio: PositiveFloat) -> None:
        if max_ratio < 1:
            raise user_error("filters.length_ratio.max_ratio", f"{max_ratio:g} is less than 1, the ratio of equal lengths.")
        self.unit = unit
        self.max_ratio = max_ratio

    def passes(self, pairs: Sequence[tuple[str, str]]) -> list[bool]:
        lengths = [sorted(len(text.split()) if self.unit == "words" else len(text) for text in pair) for pair in pairs]
        return [longer <= self.max_ratio * shorter for shorter, longer in lengths]


class CopyOverlap(Filter):
    """Drops pairs whose sides share words: copies, and sentences that were hardly translated.

    Args:
        max_ratio: the different words that both sides have, as part of those of the side that has fewer.
    """

    def __init__(self, *, max_ratio: Ratio) -> None:
        self.max_ratio = max_ratio

    def passes(self, pairs: Sequence[tuple[str, str]]) -> list[bool]:
        words = [(set(plain_words(source)), set(plain_words(target))) for source, target in pairs]
        return [len(source & target) <= self.max_ratio * min(len(source), len(target)) for source, target in words]


class Scripts(Filter):
    """Drops pairs of which a side is not written in the script of its language.

    Args:
        scripts: of the source and of the target, as the names of characters begin in Unicode: ``latin``, ``sinhala``, ``cjk`` ...
        min_ratio: the part of a side's letters that its script needs to have.
    """

    def __init__(self, *, scripts: tuple[str, str], min_ratio: Ratio) -> None:
        self.scripts = tuple(script.upper() for script in scripts)
        self.min_ratio = min_ratio

    def passes(self, pairs: Sequence[tuple[str, str]]) -> list[bool]:
        return [all(self._is_written(text, script) for text, script in zip(pair, self.scripts, strict=True)) for pair in pairs]

    def _is_written(self, text: str, script: str) -> bool:
        of_letters = [_script_of(character) for character in text if character.isalpha()]
        return of_letters.count(script) >= self.min_ratio * len(of_letters)


@cache
def _script_of(character: str) -> str:
    return unicodedata.name(character, "").partition(" ")[0].partition("-")[0]


class Languages(Filter):
    """Drops pairs of which a side is in another language, as ``py3langid`` identifies it; needs ``pip install 'mlmx[langid]'``.

    Args:
        languages: of the source and of the target, as ISO 639-1 codes.
    """

    def __init__(self, *, languages: tuple[str, str]) -> None:
        known = sorted(code for code, _ in _langid().rank(""))
        for i, language in enumerate(languages):
            if language not in known:
                message = f"{language!r} is none of {', '.join(known)}."
                raise user_error(f"filters.languages.{i}", message, nearest(language, known))
        self.languages = languages

    def passes(self, pairs: Sequence[tuple[str, str]]) -> list[bool]:
        classify = _langid().classify
        return [all(classify(text)[0] == language for text, language in zip(pair, self.languages, strict=True)) for pair in pairs]


def _langid() -> Any:
    try:
        import py3langid
    except ImportError as error:
        message = "py3langid is not installed; install it with: pip install 'mlmx[langid]'."
        raise user_error("filters.languages", message) from error
    return py3langid
