"""Several corpora as one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from pydantic import ConfigDict
from typing_extensions import TypedDict  # pydantic takes that of typing from Python 3.12 on only

from mlmx.build import NonNegativeFloat
from mlmx.data.corpus import Corpus, Example
from mlmx.errors import user_error


@dataclass(frozen=True, slots=True)
class PartExample(Example):
    """An example of a mixture.

    Attributes:
        part: which part it comes from.
    """

    part: int = 0


class Part(TypedDict):
    """A part of a mixture: how often its rows are seen per epoch."""

    __pydantic_config__ = ConfigDict(extra="forbid", arbitrary_types_allowed=True)  # type: ignore[misc]
    corpus: Corpus
    weight: NonNegativeFloat


class MixtureCorpus(Corpus):
    """Several corpora as one, each seen a number of times per epoch.

    Args:
        parts: name -> ``{corpus: <a corpus>, weight: <number>}``. The weight is how often the part's rows are seen per epoch:
            2 twice, 0.5 every second epoch each; that of a mixture in a mixture multiplies those of its parts. The examples of
            all parts are of one kind, such as pairs; their languages are united. What objectives need to know of a corpus (how
            often tokens occur, clusters, n-grams, word sets) counts each example once, whatever its weight.
    """

    def __init__(self, *, parts: Mapping[str, Part]) -> None:
        if not parts:
            raise user_error("corpus.parts", "a mixture needs parts: name -> {corpus: ..., weight: ...}.")
        self.parts: dict[str, Corpus] = {name: part["corpus"] for name, part in parts.items()}
        self.part_weights = [float(part["weight"]) * inner for part in parts.values() for inner in _inner_weights(part["corpus"])]
        kinds = {name: corpus.num_sides for name, corpus in self.parts.items()}
        if len(set(kinds.values())) > 1:
            told = ", ".join(f"those of {name} have {number}" for name, number in kinds.items())
            raise user_error("corpus.parts", f"their examples must have equally many texts each, and {told}.")
        self.num_sides = next(iter(kinds.values()))
        self.languages = tuple(dict.fromkeys(code for corpus in self.parts.values() for code in corpus.languages))

    @property
    def skipped(self) -> dict[str, int]:  # type: ignore[override]
        """Reason -> lines left out, each reason with the part's name."""
        return {f"{name}: {reason}": n for name, corpus in self.parts.items() for reason, n in corpus.skipped.items()}

    @property
    def skipped_at(self) -> list[str]:  # type: ignore[override]
        """Where the first lines stand that each part left out."""
        return [where for corpus in self.parts.values() for where in corpus.skipped_at]

    def examples(self) -> Iterator[Example]:
        first = 0
        for corpus in self.parts.values():
            for example in corpus.examples():
                inner = example.part if isinstance(example, PartExample) else 0
                yield PartExample(example.where, example.segments, first + inner)
            first += len(_inner_weights(corpus))

    def __len__(self) -> int:
        lengths = [len(corpus) for corpus in self.parts.values()]
        return sum(lengths) if all(lengths) else 0


def _inner_weights(corpus: Corpus) -> list[float]:
    return corpus.part_weights if isinstance(corpus, MixtureCorpus) else [1.0]
