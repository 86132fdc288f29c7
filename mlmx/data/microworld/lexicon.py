"""The words of the two languages, made up from a seed.

Common words of the two languages have nothing in common. Names do: a name is a string of sounds, and each script spells the
sounds in its own letters. No stem ends like an inflection, so that every word form can be taken apart in one
way only and different events are never the same sentence by accident.
"""

# N words, K random numbers each

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from mlmx.data.microworld.event import Concept
from mlmx.keyed import fold, stream, uniform

LATIN, GEORGIAN = "qla", "qka"  # codes from the range that ISO 639 leaves to private use
LANGUAGES = (LATIN, GEORGIAN)

# Concepts of each kind; with the names, about 1,550 lemmas a language.
SIZES = {
    "object": 480,
    "role": 120,
    "action": 260,
    "quality": 120,
    "merit": 60,
    "manner": 80,
    "comment": 24,
    "time": 18,
    "person": 150,
    "place": 90,
    "organisation": 60,
}
_NAME_WORDS = {"given": 70, "family": 150, "town": 90, "land": 6, "firm": 60}
_ORGANISATION_TYPES = 10

# What the Georgian grammar adds to a stem (mlmx.data.microworld.grammar).
_SUFFIXES = ("ებ", "ს", "ში", "უთ", "და", "ნე")

_ONSETS = {
    LATIN: (*"bdfgklmnprstvz", "br", "dr", "gr", "kr", "pl", "st", "tr"),
    GEORGIAN: (*"ბგდზთკლმნპჟრტფქღშჩცძწჭხჯ", "მთ", "სხ"),
}
_VOWELS = {LATIN: "aeiou", GEORGIAN: "აეიოუ"}
_CODAS = {LATIN: ("", "", "n", "r", "l", "s"), GEORGIAN: ("ნ", "რ", "ლ", "კ", "გ", "ხ")}
# The sounds of names, and how each script writes them.
_NAME_ONSETS = (*"bdghklmnprstvzj", "sh", "ch")
_NAME_CODAS = ("", "", "n", "r", "l", "m", "k", "t")
_GEORGIAN_SOUNDS = {
    **dict(zip("bdghklmnprstvzj", "ბდგჰკლმნპრსტვზჯ", strict=True)),
    **dict(zip("aeiou", "აეიოუ", strict=True)),
    "sh": "შ",
    "ch": "ჩ",
}

_Speller = Callable[[int, list[float]], str]  # (rank, draws) -> word


class Lexicon:
    """The stems of both languages.

    Args:
        seed: of the world.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._taken: set[str] = set()
        self._stems: dict[str, dict[str, list[tuple[str, ...]]]] = {language: {} for language in LANGUAGES}
        for kind in SIZES:
            if kind not in ("person", "place", "organisation"):
                for language in LANGUAGES:
                    self._stems[language][kind] = [(word,) for word in self._common_words(language, kind, SIZES[kind])]
        self._add_names()

    def stem(self, language: str, concept: Concept) -> tuple[str, ...]:
        """Return the words for a concept, without inflection; names can have two."""
        return self._stems[language][concept.kind][concept.number]

    def _draws(self, name: str, size: int, attempt: int) -> list[list[float]]:
        root = fold(fold(np.full(size, self._seed, np.int64), stream(f"microworld lexicon {name}")), attempt)
        keys = fold(root, np.arange(size, dtype=np.int64))
        draws: list[list[float]] = uniform(fold(keys[:, None], np.arange(16, dtype=np.int64)[None])).tolist()
        return draws  # (N, K)

    def _common_words(self, language: str, kind: str, size: int) -> list[str]:
        onsets, vowels, codas = _ONSETS[language], _VOWELS[language], _CODAS[language]

        def spell(rank: int, draws: list[float]) -> str:
            # Frequent words are short (Zipf's law of abbreviation).
            syllables = 2 + (draws[0] < rank / size)
            word = "".join(_choose(onsets, draws[3 * i + 1]) + _choose(vowels, draws[3 * i + 2]) for i in range(syllables))
            return word + _choose(codas, draws[15])

        return self._unique(f"{language} {kind}", size, spell)

    def _unique(self, name: str, size: int, spell: _Speller) -> list[str]:
        words = [""] * size
        missing, attempt = list(range(size)), 0
        while missing:
            draws = self._draws(name, size, attempt)
            for rank in missing:
                word = spell(rank, draws[rank])
                if word not in self._taken and not word.endswith(_SUFFIXES):
                    words[rank] = word
                    self._taken.add(word)
            missing, attempt = [rank for rank in missing if not words[rank]], attempt + 1
        return words

    def _add_names(self) -> None:
        names = {kind: self._name_words(kind, size) for kind, size in _NAME_WORDS.items()}
        types = {language: self._common_words(language, "type", _ORGANISATION_TYPES) for language in LANGUAGES}
        for position, language in enumerate(LANGUAGES):
            spelled = {kind: [pair[position] for pair in pairs] for kind, pairs in names.items()}
            stems = self._stems[language]
            # Given names are shared; a family name is enough to know who it is.
            stems["person"] = [(spelled["given"][n * 11 % 70], spelled["family"][n]) for n in range(SIZES["person"])]
            # One place in four is "New Something".
            stems["place"] = [
                (spelled["land"][n // 4 % 6], spelled["town"][n]) if n % 4 == 3 else (spelled["town"][n],)
                for n in range(SIZES["place"])
            ]
            # Most organisations are called by a name and a word for what they are, which has a translation.
            stems["organisation"] = [
                (spelled["firm"][n],) if n % 3 == 2 else (spelled["firm"][n], types[language][n % _ORGANISATION_TYPES].capitalize())
                for n in range(SIZES["organisation"])
            ]

    def _name_words(self, kind: str, size: int) -> list[tuple[str, str]]:
        sounds: dict[str, list[str]] = {}

        def spell(rank: int, draws: list[float]) -> str:
            syllables = 2 + (draws[0] < 0.3)
            parts = [
                part
                for i in range(syllables)
                for part in (_choose(_NAME_ONSETS, draws[3 * i + 1]), _choose("aeiou", draws[3 * i + 2]))
            ] + [_choose(_NAME_CODAS, draws[15])]
            word = "".join(_GEORGIAN_SOUNDS[part] for part in parts if part)
            sounds[word] = parts
            return word

        words = self._unique(kind, size, spell)
        return [("".join(sounds[word]).capitalize(), word) for word in words]


def _choose(items: str | tuple[str, ...], draw: float) -> str:
    return items[int(draw * len(items))]
