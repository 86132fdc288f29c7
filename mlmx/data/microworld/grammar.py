"""How the two languages say what happens.

======================  ===============================================  ===============================================
what                    qla                                              qka
======================  ===============================================  ===============================================
script                  Latin, names capitalised                         Georgian, no capitals
order                   agent verb patient, manner place time comment    agent patient verb, comment manner time place
noun phrase             number noun adjective                            number adjective noun
plural                  a word before the noun                           suffix, before the case
patient, place          order, preposition                               case suffixes, also on names
tense, negation         words after the patient                          suffixes of the verb
focus ("even")          clitic                                           clitic
======================  ===============================================  ===============================================
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import accumulate

from mlmx.data.microworld.event import Concept, Event, Participant
from mlmx.data.microworld.lexicon import GEORGIAN, LATIN, Lexicon

_LATIN_TENSES = {"past": "di", "present": None, "future": "vo"}
_GEORGIAN_TENSES = {"past": "და", "present": "", "future": "ნე"}
_GEORGIAN_CASES = {"agent": "", "patient": "ს", "place": "ში"}
# Clitics give every word, names and adverbs too, a second form. A unigram tokenizer needs that: it takes into its vocabulary only
# what occurs inside two different words, however frequent the one word is.
_FOCUS = {LATIN: "que", GEORGIAN: "ც"}
_ENTITIES = {"person": "PER", "place": "LOC", "organisation": "ORG"}

Stem = Callable[[str, Concept], tuple[str, ...]]
"""(role, concept) -> its words without inflection. The role lets code-mixing take some stems from the other language."""


@dataclass(frozen=True, slots=True)
class Word:
    """A word of a sentence.

    Attributes:
        form: as it is written.
        pos: its universal part of speech.
        role: what it stands for: ``agent``, ``action``, ``place`` ... for the word that carries the concept, ``agent.quality``,
            ``action.tense``, ``agent.1`` (second word of a name) for those around it. A role occurs at most once.
        entity: its IOB2 tag.
        borrowed: whether its stem is of the other language.
    """

    form: str
    pos: str
    role: str
    entity: str = "O"
    borrowed: bool = False


@dataclass(frozen=True, slots=True)
class Rendering:
    """A sentence.

    Attributes:
        language: its code.
        words: in their order; the last one is the full stop.
    """

    language: str
    words: tuple[Word, ...]

    @property
    def text(self) -> str:
        """The words with spaces between them, the full stop attached."""
        return " ".join(word.form for word in self.words[:-1]) + self.words[-1].form

    @property
    def spans(self) -> list[tuple[int, int]]:
        """Where each word stands in the text, in characters."""
        lengths = [len(word.form) for word in self.words]
        starts = list(accumulate((length + 1 for length in lengths[:-1]), initial=0))
        starts[-1] -= 1
        return [(start, start + length) for start, length in zip(starts, lengths, strict=True)]


def render(event: Event, language: str, lexicon: Lexicon) -> Rendering:
    """Say an event in a language."""
    return _render(event, language, lambda role, concept: lexicon.stem(language, concept))


def render_mixed(event: Event, language: str, lexicon: Lexicon, borrows: Callable[[str], bool]) -> Rendering:
    """Say an event in a language with words of the other one inside, as bilinguals do.

    Stems are borrowed, inflections are not: those are the language's own. Names stay as they are.

    Args:
        event: what to say.
        language: the one whose grammar is used.
        lexicon: of both languages.
        borrows: whether the word of this role is taken from the other language.
    """
    other = other_language(language)
    borrowed = set()

    def stem(role: str, concept: Concept) -> tuple[str, ...]:
        if concept.kind in _ENTITIES or not borrows(role):
            return lexicon.stem(language, concept)
        borrowed.add(role)
        return lexicon.stem(other, concept)

    rendering = _render(event, language, stem)
    return Rendering(language, tuple(replace(word, borrowed=word.role in borrowed) for word in rendering.words))


def other_language(language: str) -> str:
    """Return the code of the other language."""
    return GEORGIAN if language == LATIN else LATIN


def _render(event: Event, language: str, stem: Stem) -> Rendering:
    words = _GRAMMARS[language].sentence(event, stem)
    clitic = _FOCUS[language]
    return Rendering(
        language, tuple(replace(word, form=word.form + clitic) if word.role == event.focus else word for word in words)
    )


def align(source: Rendering, target: Rendering) -> list[tuple[int, int]]:
    """Return which word corresponds to which, as pairs of positions, sorted.

    A word without a counterpart (one for what the other language says by a suffix) belongs to the counterpart of
    its head; every word is in some pair.
    """
    positions = [{word.role: i for i, word in enumerate(side.words)} for side in (source, target)]
    pairs = {(i, positions[1].get(role, positions[1][role.partition(".")[0]])) for role, i in positions[0].items()}
    pairs |= {(positions[0].get(role, positions[0][role.partition(".")[0]]), j) for role, j in positions[1].items()}
    return sorted(pairs)


class _Grammar(ABC):
    @abstractmethod
    def sentence(self, event: Event, stem: Stem) -> tuple[Word, ...]:
        """Return the words of a sentence."""

    @staticmethod
    def name(slot: str, concept: Concept, words: tuple[str, ...], suffix: str = "") -> list[Word]:
        """Return a name; what inflects it is added to its last word."""
        entity = _ENTITIES[concept.kind]
        return [
            Word(
                word + (suffix if i == len(words) - 1 else ""),
                "PROPN",
                slot if i == 0 else f"{slot}.{i}",
                f"B-{entity}" if i == 0 else f"I-{entity}",
            )
            for i, word in enumerate(words)
        ]

    @staticmethod
    def called(who: Participant, words: tuple[str, ...]) -> tuple[str, ...]:
        """Return the part of a name that is used: people go by both names or by the second."""
        return words[1:] if who.concept.kind == "person" and not who.full else words


class _Latin(_Grammar):
    def sentence(self, event: Event, stem: Stem) -> tuple[Word, ...]:
        words = self._participant("agent", event.agent, stem)
        words.append(Word(stem("action", event.action)[0], "VERB", "action"))
        words += self._participant("patient", event.patient, stem)
        if event.negated:
            words.append(Word("ne", "PART", "action.negation"))
        if tense := _LATIN_TENSES[event.tense]:
            words.append(Word(tense, "AUX", "action.tense"))
        if event.manner:
            words.append(Word(stem("manner", event.manner)[0], "ADV", "manner"))
        if event.place:
            words.append(Word("na", "ADP", "place.mark"))
            words += self.name("place", event.place, stem("place", event.place))
        if event.time:
            words.append(Word(stem("time", event.time)[0], "ADV", "time"))
        if event.year:
            words += [Word("na", "ADP", "year.mark"), Word(str(event.year), "NUM", "year")]
        if event.contrast:
            words += [Word("ma", "CCONJ", "contrast.mark"), Word(stem("contrast", event.contrast)[0], "ADV", "contrast")]
        if event.comment:
            words.append(Word(stem("comment", event.comment)[0], "ADV", "comment"))
        return (*words, Word(".", "PUNCT", "stop"))

    def _participant(self, slot: str, who: Participant, stem: Stem) -> list[Word]:
        stems = stem(slot, who.concept)
        if who.concept.kind in _ENTITIES:
            return self.name(slot, who.concept, self.called(who, stems))
        words = []
        if who.count is not None:
            words.append(Word(str(who.count), "NUM", f"{slot}.count"))
        elif who.plural:
            words.append(Word("me", "DET", f"{slot}.plural"))
        words.append(Word(stems[0], "NOUN", slot))
        if who.quality:
            words.append(Word(stem(f"{slot}.quality", who.quality)[0], "ADJ", f"{slot}.quality"))
        return words


class _Georgian(_Grammar):
    def sentence(self, event: Event, stem: Stem) -> tuple[Word, ...]:
        words = self._participant("agent", event.agent, stem)
        words += self._participant("patient", event.patient, stem)
        negation = "უთ" if event.negated else ""
        words.append(Word(stem("action", event.action)[0] + negation + _GEORGIAN_TENSES[event.tense], "VERB", "action"))
        if event.comment:
            words.append(Word(stem("comment", event.comment)[0], "ADV", "comment"))
        if event.manner:
            words.append(Word(stem("manner", event.manner)[0], "ADV", "manner"))
        if event.contrast:
            words += [Word("ხო", "CCONJ", "contrast.mark"), Word(stem("contrast", event.contrast)[0], "ADV", "contrast")]
        if event.time:
            words.append(Word(stem("time", event.time)[0], "ADV", "time"))
        if event.year:
            words += [Word(str(event.year), "NUM", "year"), Word("წელს", "NOUN", "year.mark")]
        if event.place:
            words += self.name("place", event.place, stem("place", event.place), _GEORGIAN_CASES["place"])
        return (*words, Word(".", "PUNCT", "stop"))

    def _participant(self, slot: str, who: Participant, stem: Stem) -> list[Word]:
        stems, case = stem(slot, who.concept), _GEORGIAN_CASES[slot]
        if who.concept.kind in _ENTITIES:
            return self.name(slot, who.concept, self.called(who, stems), case)
        words = [] if who.count is None else [Word(str(who.count), "NUM", f"{slot}.count")]
        if who.quality:
            words.append(Word(stem(f"{slot}.quality", who.quality)[0], "ADJ", f"{slot}.quality"))
        plural = "ებ" if who.plural and who.count is None else ""
        return [*words, Word(stems[0] + plural + case, "NOUN", slot)]


_GRAMMARS: dict[str, _Grammar] = {LATIN: _Latin(), GEORGIAN: _Georgian()}
