"""Documents of several sentences, and questions that one of them answers, with and without shared words."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from mlmx.data.microworld.event import Event
from mlmx.data.microworld.grammar import render
from mlmx.data.microworld.lexicon import GEORGIAN, LATIN
from mlmx.data.microworld.world import World
from mlmx.keyed import fold, integers, stream

_SHORTEST, _LONGEST = 2, 4  # sentences of a document


@dataclass(frozen=True, slots=True)
class Query:
    """A question.

    Attributes:
        text: an event of its document, told anew.
        document: which document tells of it, and no other does.
        shared: whether it is in the document's language; otherwise it has no word in common with any document.
    """

    text: str
    document: int
    shared: bool


def retrieval_collection(*, seed: int, split: str, num_documents: int) -> tuple[list[str], list[Query]]:
    """Return documents in ``qla``, and two questions to each, in ``qla`` and in ``qka``.

    A document tells of two to four events of one topic. Its questions are about one of them: who does, or does not, what to whom.
    Tense, place, time and judgement are left out, and so are years and counts, which both languages write in the same digits. No
    two documents tell of the same agent doing the same to the same patient.

    Args:
        seed: of the world.
        split: ``train``, ``dev`` or ``test``.
        num_documents: how many.
    """
    world = World(seed)
    documents: list[str] = []
    queries: list[Query] = []
    for number, events in enumerate(_groups(world, split, num_documents)):
        documents.append(" ".join(render(event, LATIN, world.lexicon).text for event in events))
        asked = _heart(events[_draw(seed, f"microworld asked {split}", number, len(events))])
        queries += [
            Query(render(asked, language, world.lexicon).text, number, shared=language == LATIN) for language in (LATIN, GEORGIAN)
        ]
    return documents, queries


def _groups(world: World, split: str, number: int) -> Iterator[list[Event]]:
    # Events of one topic each, in the order in which they are complete.
    open_groups: dict[int, list[Event]] = {}
    told: set[tuple[object, ...]] = set()
    found = 0
    events = world.events(split)
    while found < number:
        event = next(events)
        heart = (event.agent.concept, event.action, event.patient.concept)
        if heart in told:
            continue
        told.add(heart)
        group = open_groups.setdefault(event.topic, [])
        group.append(event)
        size = _SHORTEST + _draw(world.seed, "microworld sentences", group[0].index, _LONGEST - _SHORTEST + 1)
        if len(group) == size:
            found += 1
            yield open_groups.pop(event.topic)


def _heart(event: Event) -> Event:
    agent, patient = (replace(who, count=None) for who in (event.agent, event.patient))
    told = replace(event, agent=agent, patient=patient, tense="present", place=None, time=None, year=None)
    return replace(told, manner=None, contrast=None, comment=None, focus=None)


def _draw(seed: int, name: str, number: int, high: int) -> int:
    keys = fold(np.array([seed], np.int64), stream(name))
    return int(integers(fold(keys, number), high)[0])
