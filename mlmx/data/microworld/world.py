"""The world: an endless, numbered sequence of events.

Event ``i`` is a pure function of (seed, i): each of its choices hashes the name of the choice with ``i`` (`mlmx.keyed`). So it does
not depend on how many events are asked for, or in which order, and many are drawn at once by numpy.
"""

# N events, T topics, C concepts of a kind

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlmx.data.microworld.event import Concept, Event, Participant
from mlmx.data.microworld.lexicon import SIZES, Lexicon
from mlmx.keyed import fold, stream, uniform

SPLITS = ("train", "dev", "test")
_SPLIT_ODDS = (0.9, 0.95)  # cumulative, as all odds below

NUM_TOPICS = 20
# A concept is at home in some topics, and there so many times as frequent as elsewhere: masked words follow a little from their
# context. Boosts of 3 and 60 were tried, with one seed: with 60 a small model learned the topics and hardly the translations.
_HOME_RATIO = 0.06
_HOME_BOOST = 4.0
# Mandelbrot's law rather than Zipf's own: a flat head and a steep, long tail, so that sentences differ and yet a short training
# meets their words often enough.
_ZIPF_SHIFT, _ZIPF_EXPONENT = 6.0, 1.7

_AGENT_KINDS, _AGENT_ODDS = ("role", "person", "organisation"), (0.4, 0.8)
_PATIENT_KINDS, _PATIENT_ODDS = ("object", "person", "organisation"), (0.8, 0.92)
_TENSES, _TENSE_ODDS = ("past", "present", "future"), (0.5, 0.8)
_JUDGED_RATIO = 0.45
_CONTRAST_RATIO = 0.25
# Where something is judged, negation is so frequent that the judging word alone tells little.
_NEGATED_RATIO, _JUDGED_NEGATED_RATIO = 0.15, 0.4

_CHUNK = 1024

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


class World:
    """Topics, people, places, organisations, and what happens to them.

    Args:
        seed: another seed is another world with other languages.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.lexicon = Lexicon(seed)
        self._cumulative = {kind: self._topical(kind, size) for kind, size in SIZES.items()}
        self._topics = np.cumsum(_zipf(NUM_TOPICS, shift=6.0, exponent=1.0))[:-1]

    def event(self, index: int) -> Event:
        """Return event number ``index``."""
        return _Draws(self, np.array([index], np.int64)).events()[0]

    def events(self, split: str) -> Iterator[Event]:
        """Yield the events of a split, without end, in the order of their numbers.

        A hash of *who does what to whom* decides the split, so that a test sentence was never a training sentence, not even in
        another tense or place: 90% are in ``train``, 5% each in ``dev`` and ``test``.
        """
        wanted = SPLITS.index(split)
        start = 0
        while True:
            indices = np.arange(start, start + _CHUNK, dtype=np.int64)
            chosen = indices[_Draws(self, indices).split() == wanted]
            yield from _Draws(self, chosen).events()
            start += _CHUNK

    def split(self, index: int) -> str:
        """Return the split that event number ``index`` belongs to."""
        return SPLITS[int(_Draws(self, np.array([index], np.int64)).split()[0])]

    def topics(self, draws: Floats) -> Integers:
        """Turn uniform draws (N,) into topics (N,)."""
        return np.searchsorted(self._topics, draws, side="right").astype(np.int64)

    def concepts(self, kind: str, topics: Integers, draws: Floats) -> Integers:
        """Turn uniform draws (N,) into numbers of concepts (N,), each as frequent as it is in the event's topic."""
        found = np.searchsorted(self._cumulative[kind], topics + draws, side="right")
        return np.asarray(np.clip(found - topics * SIZES[kind], 0, SIZES[kind] - 1), np.int64)

    def _topical(self, kind: str, size: int) -> Floats:
        """Return the cumulative distribution of a kind in every topic, one after the other: topic ``t`` covers [t, t + 1]."""
        topics, concepts = np.arange(NUM_TOPICS, dtype=np.int64), np.arange(size, dtype=np.int64)
        keys = fold(fold(np.full((NUM_TOPICS, 1), self.seed, np.int64), stream(f"microworld home {kind}")), topics[:, None])
        at_home = uniform(fold(keys, concepts[None])) < _HOME_RATIO
        weights = _zipf(size, shift=_ZIPF_SHIFT, exponent=_ZIPF_EXPONENT) * np.where(at_home, _HOME_BOOST, 1.0)  # (T, C)
        cumulative = np.cumsum(weights / weights.sum(axis=1, keepdims=True), axis=1)
        cumulative[:, -1] = 1.0
        return np.asarray((cumulative + topics[:, None]).ravel(), np.float64)


class _Draws:
    """The choices about some events (N,). Those that decide the split are drawn at once, the others when events are built."""

    def __init__(self, world: World, indices: Integers) -> None:
        self._world, self._indices = world, indices
        self._keys = fold(fold(np.full(indices.shape, world.seed, np.int64), stream("microworld event")), indices)
        self._topics = world.topics(self._uniform("topic"))
        self._actions = self._concepts("action")
        self._agent_kinds, self._agents = self._participants("agent", _AGENT_KINDS, _AGENT_ODDS)
        self._patient_kinds, self._patients = self._participants("patient", _PATIENT_KINDS, _PATIENT_ODDS)
        # Nobody does anything to himself: that would take pronouns.
        same = (self._agents == self._patients) & (self._agent_kinds == self._patient_kinds) & (self._agent_kinds > 0)
        self._patients = np.where(same, (self._patients + 1) % SIZES["organisation"], self._patients)

    def split(self) -> Integers:
        """Return the number of each event's split."""
        keys = np.full(self._indices.shape, self._world.seed, np.int64)
        for value in (self._actions, self._agent_kinds, self._agents, self._patient_kinds, self._patients):
            keys = fold(keys, value)
        return np.searchsorted(_SPLIT_ODDS, uniform(fold(keys, stream("microworld split"))), side="right").astype(np.int64)

    def events(self) -> list[Event]:
        """Build the events."""
        tenses = np.searchsorted(_TENSE_ODDS, self._uniform("tense"), side="right")
        judged = self._happens("judged", _JUDGED_RATIO)
        contrasted = judged & self._happens("contrasted", _CONTRAST_RATIO)
        negated = self._happens("negated", np.where(judged, _JUDGED_NEGATED_RATIO, _NEGATED_RATIO))
        good = self._happens("good", 0.5)
        # Long sentences are kept to 14 words: not everything is said at once.
        placed = self._happens("placed", 0.35) & ~contrasted
        timed = self._happens("timed", 0.25) & ~(judged & placed)
        in_year = ~(timed | placed | judged) & self._happens("in year", 0.06)
        # What comes before "but" is judged the other way round.
        manner_good = good ^ negated ^ contrasted
        columns: dict[str, NDArray[Any] | list[Any]] = {
            "topic": self._topics,
            "agent": self._agents,
            "agent_kind": self._agent_kinds,
            "agent_quality": self._optional(
                self._concepts("quality", "agent quality"), self._happens("agent qualified", 0.1) & ~(placed | judged)
            ),
            "agent_plural": self._happens("agent plural", 0.1),
            "agent_full": self._happens("agent full", 0.2),
            "action": self._actions,
            "patient": self._patients,
            "patient_kind": self._patient_kinds,
            "patient_quality": self._optional(
                self._concepts("quality", "patient quality"), self._happens("patient qualified", 0.12)
            ),
            "patient_merit": self._optional(self._evaluating("merit", manner_good), judged & self._happens("merit", 0.25)),
            "patient_plural": self._happens("patient plural", 0.15),
            "patient_count": self._optional(self._counts(), self._happens("counted", 0.06)),
            "patient_full": self._happens("patient full", 0.2),
            "tense": tenses,
            "negated": negated,
            "place": self._optional(self._concepts("place"), placed),
            "time": self._optional(self._concepts("time") // 3 * 3 + tenses, timed),
            "year": self._optional(1950 + (75 * self._uniform("year")).astype(np.int64), in_year),
            "manner": self._optional(self._evaluating("manner", manner_good), judged),
            "contrast": self._optional(self._evaluating("manner", good, "contrast"), contrasted),
            "comment": self._optional(self._evaluating("comment", good), judged & self._happens("commented", 0.4)),
            "focus": self._optional(self._uniform("focus"), self._happens("focused", 0.25)),
        }
        lists = [column if isinstance(column, list) else column.tolist() for column in columns.values()]
        rows = zip(self._indices.tolist(), *lists, strict=True)
        return [_event(index, dict(zip(columns, values, strict=True))) for index, *values in rows]

    def _uniform(self, name: str) -> Floats:
        return uniform(fold(self._keys, stream(name))).view(np.float64)

    def _happens(self, name: str, ratio: float | Floats) -> NDArray[np.bool_]:
        return self._uniform(name) < ratio

    def _concepts(self, kind: str, name: str | None = None) -> Integers:
        return self._world.concepts(kind, self._topics, self._uniform(name or kind))

    def _evaluating(self, kind: str, good: NDArray[np.bool_], name: str | None = None) -> Integers:
        """Draw evaluating concepts of a given valence (`mlmx.data.microworld.event.valence`)."""
        return self._concepts(kind, name) // 2 * 2 + ~good

    def _counts(self) -> Integers:
        return (2 * 25 ** self._uniform("count")).astype(np.int64)  # 2 to 49, small ones more frequent

    def _participants(self, name: str, kinds: tuple[str, ...], odds: tuple[float, ...]) -> tuple[Integers, Integers]:
        chosen = np.searchsorted(odds, self._uniform(f"{name} kind"), side="right").astype(np.int64)
        return chosen, np.choose(chosen, [self._concepts(kind, name) for kind in kinds])

    @staticmethod
    def _optional(numbers: NDArray[Any], present: NDArray[np.bool_]) -> list[Any]:
        return [number if there else None for number, there in zip(numbers.tolist(), present.tolist(), strict=True)]


def _event(index: int, row: dict[str, Any]) -> Event:
    def concept(kind: str, name: str | None = None) -> Concept | None:
        number = row[name or kind]
        return None if number is None else Concept(kind, number)

    def participant(slot: str, kind: str) -> Participant:
        who = Concept(kind, row[slot])
        if kind in ("person", "organisation"):
            return Participant(who, full=row[f"{slot}_full"])
        count = row.get(f"{slot}_count")
        quality = (
            concept("merit", f"{slot}_merit") if row.get(f"{slot}_merit") is not None else concept("quality", f"{slot}_quality")
        )
        return Participant(who, quality, plural=row[f"{slot}_plural"] or count is not None, count=count)

    event = Event(
        index=index,
        topic=row["topic"],
        agent=participant("agent", _AGENT_KINDS[row["agent_kind"]]),
        action=Concept("action", row["action"]),
        patient=participant("patient", _PATIENT_KINDS[row["patient_kind"]]),
        tense=_TENSES[row["tense"]],
        negated=row["negated"],
        place=concept("place"),
        time=concept("time"),
        year=row["year"],
        manner=concept("manner"),
        contrast=concept("manner", "contrast"),
        comment=concept("comment"),
    )
    focus = row["focus"]
    return event if focus is None else replace(event, focus=event.parts[int(focus * len(event.parts))])


def _zipf(size: int, *, shift: float, exponent: float) -> Floats:
    """Return the shares of ``size`` ranks under the law of Zipf and Mandelbrot."""
    weights = (np.arange(size) + shift) ** -exponent
    return np.asarray(weights / weights.sum(), np.float64)
