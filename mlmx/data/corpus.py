"""The contract every corpus and every annotator keeps.

A corpus yields examples one by one, so that memory stays flat however large it is.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from mlmx.errors import user_error

NUM_NAMED = 3
"""Of the examples that are left out, so many are told where they stand."""


@dataclass(frozen=True, slots=True)
class Segment:
    """One sentence or document in one language.

    Attributes:
        text: as it is given to the tokenizer.
        language: its code.
        words: character spans of the words, where the source has words of its own (CoNLL, microworld).
        tags: layer -> one tag per word, gold. Layers: ``pos`` (universal POS where possible), ``entity`` (IOB2: ``B-PER``,
            ``I-PER``, ``O``) and ``language`` (of words in code-mixed text).
    """

    text: str
    language: str
    words: Sequence[tuple[int, int]] | None = None
    tags: Mapping[str, Sequence[str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Example:
    """One line of a corpus.

    Attributes:
        where: the file and line it came from, for messages.
        segments: its sides: one text, the two of a pair, or the three of a triplet.
    """

    where: str
    segments: tuple[Segment, ...]


class Corpus(ABC):
    """A source of examples. Settings are keyword-only parameters of the constructor.

    Attributes:
        num_sides: how many segments an example has: 1, the 2 of a pair, the 3 of a triplet.
        languages: the codes of its languages, in a fixed order (for a pair: first side first).
        skipped: reason -> number of lines left out so far; filled while iterating.
        skipped_at: where the first of them stand.
    """

    num_sides: int
    languages: tuple[str, ...]
    skipped: dict[str, int]
    skipped_at: Sequence[str] = ()

    @abstractmethod
    def examples(self) -> Iterator[Example]:
        """Yield the examples in their order; the same ones each time."""

    @property
    def parallel(self) -> bool:
        """Whether examples are pairs."""
        return self.num_sides == 2

    def __len__(self) -> int:
        """Return about how many examples there are, for progress bars; 0 if unknown."""
        return 0


class Annotator(ABC):
    """Gives words their part of speech and entity class. Settings are keyword-only parameters of the constructor.

    Attributes:
        layers: which of ``pos`` and ``entity`` it fills.
    """

    layers: tuple[str, ...]

    def load(self) -> None:  # noqa: B027 - most have nothing to load
        """Load the taggers that it needs; called once, before it annotates."""

    @abstractmethod
    def annotate(self, segments: Sequence[Segment]) -> list[Annotation]:
        """Annotate a batch of segments."""


def require_package(name: str) -> None:
    """Refuse an annotator whose package is not installed.

    Raises:
        UserError: that says how to install it.
    """
    try:
        importlib.import_module(name)
    except ImportError as error:
        raise user_error("annotator", f"{name} is not installed; install it with: pip install 'mlmx[{name}]'.") from error


@dataclass(frozen=True, slots=True)
class Annotation:
    """The words of one segment and their tags.

    Attributes:
        words: character spans.
        tags: layer -> one tag per word; None where the annotator does not know the word.
    """

    words: Sequence[tuple[int, int]]
    tags: Mapping[str, Sequence[str | None]]
