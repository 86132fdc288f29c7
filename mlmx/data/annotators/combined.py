"""Several annotators, each for what it knows best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NotRequired

import numpy as np
from pydantic import ConfigDict
from typing_extensions import TypedDict  # pydantic takes that of typing from Python 3.12 on only

from mlmx.data.corpus import Annotation, Annotator, Segment
from mlmx.data.words import align, split_words
from mlmx.errors import user_error


class Part(TypedDict):
    """One of several annotators, and what it is asked about; None: everything."""

    __pydantic_config__ = ConfigDict(extra="forbid", arbitrary_types_allowed=True)  # type: ignore[misc]
    annotator: Annotator
    languages: NotRequired[list[str] | None]
    layers: NotRequired[list[str] | None]


class CombinedAnnotator(Annotator):
    """Several annotators; for each word and layer the first that knows the word decides.

    Args:
        parts: name -> ``{annotator: <an annotator>, languages: <list or null for all>, layers: <list or null for all it fills>}``,
            asked in this order. Words are the corpus' own, or the tokenizer's; those of a part correspond by characters.
    """

    def __init__(self, *, parts: Mapping[str, Part]) -> None:
        if not parts:
            raise user_error("annotator.parts", "is empty: name -> {annotator: ..., languages: ..., layers: ...}.")
        for name, part in parts.items():
            if unknown := set(part.get("layers") or ()) - set(part["annotator"].layers):
                message = f"{', '.join(sorted(unknown))}: the annotator fills {', '.join(part['annotator'].layers)}."
                raise user_error(f"annotator.parts.{name}.layers", message)
        self.parts = list(parts.values())
        filled = {layer for part in self.parts for layer in part.get("layers") or part["annotator"].layers}
        self.layers = tuple(layer for layer in ("pos", "entity") if layer in filled)

    def load(self) -> None:
        for part in self.parts:
            part["annotator"].load()

    def annotate(self, segments: Sequence[Segment]) -> list[Annotation]:
        words = [split_words(segment.text) if segment.words is None else segment.words for segment in segments]
        merged: list[dict[str, list[str | None]]] = [{layer: [None] * len(spans) for layer in self.layers} for spans in words]
        for part in self.parts:
            languages = part.get("languages")
            chosen = [i for i, segment in enumerate(segments) if languages is None or segment.language in languages]
            layers = part.get("layers") or part["annotator"].layers
            for i, annotation in zip(chosen, part["annotator"].annotate([segments[i] for i in chosen]), strict=True):
                found = align(_array(words[i]), _array(annotation.words)).tolist()
                for layer in layers:
                    if layer in annotation.tags:
                        _fill(merged[i][layer], annotation.tags[layer], found)
        return [Annotation(spans, tags) for spans, tags in zip(words, merged, strict=True)]


def _fill(tags: list[str | None], others: Sequence[str | None], found: Sequence[int]) -> None:
    for word, other in enumerate(found):
        if tags[word] is None and other >= 0:
            tag = others[other]
            # The further words that one word of the part corresponds to are inside its entity.
            if tag is not None and tag.startswith("B-") and word and found[word - 1] == other and tags[word - 1] is not None:
                tag = f"I-{tag[2:]}"
            tags[word] = tag


def _array(spans: Sequence[tuple[int, int]]) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.array(spans, np.int64).reshape(-1, 2)
