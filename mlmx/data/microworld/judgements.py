"""Judged sentences and pairs: is it a sentence, does it mean the same, does it follow, how much do two have in common?

A label is a relation between events, or a property of the order of words. None can be read off the words: whatever the label, the
words are as frequent, and the two sentences of a pair are in different languages, so that they share numbers at most.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby

import numpy as np

from mlmx.data.microworld.event import Concept, Event
from mlmx.data.microworld.grammar import Rendering, Word, render
from mlmx.data.microworld.lexicon import LANGUAGES
from mlmx.data.microworld.world import World
from mlmx.keyed import fold, stream, uniform

ACCEPTABILITY = ("unacceptable", "acceptable")
PARAPHRASE = ("different", "paraphrase")
ENTAILMENT = ("entailment", "neutral", "contradiction")
MAX_SIMILARITY = 5  # one for each of _SLOTS

_TENSES = ("past", "present", "future")
_NAMED = ("person", "organisation")
_SLOTS = ("agent", "action", "patient", "tense", "negated")
_CIRCUMSTANCES = ("place", "time", "year", "agent.quality", "patient.quality")
# Premise and hypothesis negated or not, and which of them says more, by what that makes of the pair: what happened happened with
# fewer circumstances told too; what did not happen did not happen in any.
_RELATIONS: dict[str, list[tuple[bool, bool, bool]]] = {  # (premise negated, hypothesis negated, hypothesis says more)
    "entailment": [(False, False, False), (True, True, True)],
    "neutral": [(False, False, True), (True, True, False), (False, True, True), (True, False, False)],
    "contradiction": [(False, True, False), (True, False, True)],
}


def acceptability_examples(*, seed: int, split: str, num_examples: int) -> list[tuple[tuple[str], str]]:
    """Return sentences of both languages in turn, half of them with two neighbouring phrases, or the words of one, exchanged.

    Args:
        seed: of the world.
        split: ``train``, ``dev`` or ``test``.
        num_examples: how many.
    """
    world = World(seed)
    examples: list[tuple[tuple[str], str]] = []
    for event in world.events(split):
        if len(examples) == num_examples:
            break
        rendering = render(event, LANGUAGES[len(examples) % 2], world.lexicon)
        label = ACCEPTABILITY[_chosen(seed, event, "acceptable", 2)]
        if label == "unacceptable":
            wrong = _disordered(rendering.words)
            rendering = Rendering(rendering.language, wrong[_chosen(seed, event, "disorder", len(wrong))])
        examples.append(((rendering.text,), label))
    return examples


def paraphrase_examples(*, seed: int, split: str, num_examples: int) -> list[tuple[tuple[str, str], str]]:
    """Return pairs that tell the same event, with another stress, comment or name, or one that differs in a small thing.

    What differs is whether it happens, or who does it to whom, as in PAWS (arXiv 1904.01130).

    Args:
        seed: of the world.
        split: ``train``, ``dev`` or ``test``.
        num_examples: how many.
    """
    world = World(seed)
    examples: list[tuple[tuple[str, str], str]] = []
    for event in world.events(split):
        if len(examples) == num_examples:
            break
        event = _plain(seed, event)
        label = PARAPHRASE[_chosen(seed, event, "paraphrase", 2)]
        other = event if label == "paraphrase" else _different(seed, event)
        sides = [_retold(seed, told, side) for side, told in enumerate((event, other))]
        examples.append((_texts(world, sides, len(examples)), label))
    return examples


def entailment_examples(*, seed: int, split: str, num_examples: int) -> list[tuple[tuple[str, str], str]]:
    """Return premises and hypotheses, of which one says a circumstance more, and one, both or none is negated.

    Args:
        seed: of the world.
        split: ``train``, ``dev`` or ``test``.
        num_examples: how many.
    """
    world = World(seed)
    examples: list[tuple[tuple[str, str], str]] = []
    for event in world.events(split):
        if len(examples) == num_examples:
            break
        longer = replace(event, manner=None, contrast=None, comment=None, focus=None)
        told = [part for part in _CIRCUMSTANCES if _circumstance(longer, part) is not None]
        if not told:
            continue
        shorter = _without(longer, told[_chosen(seed, event, "circumstance", len(told))])
        label = ENTAILMENT[_chosen(seed, event, "entailment", 3)]
        relations = _RELATIONS[label]
        premise_negated, hypothesis_negated, says_more = relations[_chosen(seed, event, "relation", len(relations))]
        premise, hypothesis = (shorter, longer) if says_more else (longer, shorter)
        sides = [replace(premise, negated=premise_negated), replace(hypothesis, negated=hypothesis_negated)]
        examples.append((_texts(world, sides, len(examples)), label))
    return examples


def similarity_examples(*, seed: int, split: str, num_examples: int) -> list[tuple[tuple[str, str], float]]:
    """Return pairs that have 0 to 5 of these in common: who acts, what is done, to whom, when, and whether it happens.

    Args:
        seed: of the world.
        split: ``train``, ``dev`` or ``test``.
        num_examples: how many.
    """
    world = World(seed)
    examples: list[tuple[tuple[str, str], float]] = []
    events = world.events(split)
    for event, stranger in zip(events, events, strict=False):
        if len(examples) == num_examples:
            break
        first, second = (_plain(seed, one) for one in (event, stranger))
        num_kept = _chosen(seed, event, "kept", MAX_SIMILARITY + 1)
        ranks = {slot: _draw(seed, event, f"rank {slot}") for slot in _SLOTS}
        kept = sorted(_SLOTS, key=lambda slot: ranks[slot])[:num_kept]
        other = replace(first, **{slot: getattr(first if slot in kept else second, slot) for slot in _SLOTS})
        common = sum(getattr(first, slot) == getattr(other, slot) for slot in _SLOTS)
        examples.append((_texts(world, [first, other], len(examples)), float(common)))
    return examples


def _draw(seed: int, event: Event, name: str) -> float:
    keys = fold(fold(np.array([seed], np.int64), stream(f"microworld judgement {name}")), event.index)
    return float(uniform(keys)[0])


def _chosen(seed: int, event: Event, name: str, num_choices: int) -> int:
    return int(_draw(seed, event, name) * num_choices)


def _texts(world: World, sides: Sequence[Event], number: int) -> tuple[str, str]:
    languages = (LANGUAGES[number % 2], LANGUAGES[(number + 1) % 2])
    first, second = (render(event, language, world.lexicon).text for event, language in zip(sides, languages, strict=True))
    return first, second


def _disordered(words: Sequence[Word]) -> list[tuple[Word, ...]]:
    """Return the sentence in every wrong order that exchanging two neighbouring phrases, or turning one around, gives."""
    phrases = [list(phrase) for _, phrase in groupby(words[:-1], key=lambda word: word.role.partition(".")[0])]
    swapped = [[*phrases[:i], phrases[i + 1], phrases[i], *phrases[i + 2 :]] for i in range(len(phrases) - 1)]
    turned = [[*phrases[:i], phrase[::-1], *phrases[i + 1 :]] for i, phrase in enumerate(phrases) if len(phrase) > 1]
    return [(*(word for phrase in order for word in phrase), words[-1]) for order in swapped + turned]


def _retold(seed: int, event: Event, side: int) -> Event:
    """Return an event as somebody else would tell it: what is stressed, commented on and called by its full name differs."""
    comment = None
    if event.polarity != 0 and _draw(seed, event, f"commented {side}") < 0.5:
        comment = Concept("comment", 2 * _chosen(seed, event, f"comment {side}", 12) + (event.polarity < 0))
    told = replace(
        event,
        agent=replace(event.agent, full=_draw(seed, event, f"agent full {side}") < 0.5),
        patient=replace(event.patient, full=_draw(seed, event, f"patient full {side}") < 0.5),
        comment=comment,
        focus=None,
    )
    if _draw(seed, event, f"focused {side}") < 0.5:
        return told
    return replace(told, focus=told.parts[_chosen(seed, event, f"focus {side}", len(told.parts))])


def _different(seed: int, event: Event) -> Event:
    """Return an event that differs in who does it to whom, where both have names, or in whether it happens."""
    by_names = event.agent.concept.kind in _NAMED and event.patient.concept.kind in _NAMED
    if by_names and _chosen(seed, event, "exchanged", 2):
        return replace(event, agent=event.patient, patient=event.agent)
    return replace(event, negated=not event.negated)


def _circumstance(event: Event, part: str) -> object:
    slot, _, quality = part.partition(".")
    return getattr(event, slot).quality if quality else getattr(event, slot)


def _without(event: Event, part: str) -> Event:
    if part == "agent.quality":
        return replace(event, agent=replace(event.agent, quality=None))
    if part == "patient.quality":
        return replace(event, patient=replace(event.patient, quality=None))
    return replace(event, **{part: None})  # type: ignore[arg-type]


def _plain(seed: int, event: Event) -> Event:
    """Return an event without what agrees with its tense and polarity, which are drawn anew, each as frequent as the others."""
    return replace(
        event,
        negated=bool(_chosen(seed, event, "negated", 2)),
        tense=_TENSES[_chosen(seed, event, "tense", 3)],
        time=None,
        year=None,
        comment=None,
        focus=None,
    )
