"""What happens in the microworld, before anybody has said it in a language.

An event names concepts, never words. Whatever is to be asked about meaning later (paraphrase, entailment, graded similarity,
which document answers a query) is a relation between events, and needs no look at their sentences.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class Concept(NamedTuple):
    """Something the world has a word or a name for.

    Attributes:
        kind: one of `mlmx.data.microworld.lexicon.SIZES`.
        number: its rank among its kind, 0 the most frequent.
    """

    kind: str
    number: int


def valence(concept: Concept) -> int:
    """Return +1 or -1 for an evaluating concept: they alternate, so that praise and blame are equally frequent."""
    return 1 if concept.number % 2 == 0 else -1


@dataclass(frozen=True, slots=True)
class Participant:
    """Who acts, or what is acted upon.

    Attributes:
        concept: a ``role``, ``object``, ``person`` or ``organisation``.
        quality: what it is like, or None.
        plural: whether there are several; never of a name.
        count: how many there are, where that is said (then it is plural).
        full: whether a person is called by both names.
    """

    concept: Concept
    quality: Concept | None = None
    plural: bool = False
    count: int | None = None
    full: bool = True


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happens, or does not.

    Attributes:
        index: its number in the world.
        topic: what it is about; draws its concepts together.
        agent: who acts.
        action: what is done.
        patient: whom or what it is done to.
        tense: ``past``, ``present`` or ``future``.
        negated: whether it does *not* happen; turns the judgement of ``manner`` around.
        place: where, or None.
        time: when, or None; agrees with the tense.
        year: when, as a number, or None; never beside ``time``.
        manner: how well, a judgement, or None.
        contrast: "but ...": a second judgement, opposite to what came before, which decides; never without ``manner``.
        comment: what the speaker feels about it ("sadly"); always agrees with the polarity.
        focus: the part that is stressed ("even ..."): the role of a word (`mlmx.data.microworld.grammar.Word`), or None.
    """

    index: int
    topic: int
    agent: Participant
    action: Concept
    patient: Participant
    tense: str
    negated: bool
    place: Concept | None = None
    time: Concept | None = None
    year: int | None = None
    manner: Concept | None = None
    contrast: Concept | None = None
    comment: Concept | None = None
    focus: str | None = None

    @property
    def parts(self) -> list[str]:
        """The roles of the words that carry its concepts."""
        optional = ("place", "time", "manner", "contrast", "comment")
        qualified = [f"{slot}.quality" for slot in ("agent", "patient") if getattr(self, slot).quality]
        return ["agent", "action", "patient", *(slot for slot in optional if getattr(self, slot)), *qualified]

    @property
    def polarity(self) -> int:
        """+1 good, -1 bad, 0 not judged."""
        if self.contrast is not None:
            return valence(self.contrast)
        if self.manner is None:
            return 0
        return -valence(self.manner) if self.negated else valence(self.manner)
