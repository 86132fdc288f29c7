"""The annotation stage: a class for every word of a prepared corpus.

Annotations are keyed by example and word index: the arrays run parallel to the store's words, so nothing is looked up by sentence.
"""

# W words of the store, N words of a batch, M words of an annotator

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlmx.data.arrays import ArrayWriter, finished
from mlmx.data.corpus import Annotation, Annotator, Segment
from mlmx.data.entity_schemes import OUTSIDE
from mlmx.data.example_writer import Numbering
from mlmx.data.progress import progress_bar
from mlmx.data.store import ANNOTATION_META, FORMAT, TokenStore
from mlmx.data.words import align
from mlmx.errors import user_error

log = logging.getLogger(__name__)

_BATCH_SEGMENTS = 512


def annotate_store(
    store: TokenStore, annotator: Annotator, folder: Path, *, identity: str | None = None, show_progress: bool = True
) -> dict[str, Any]:
    """Annotate every word of a store; writes arrays that :meth:`TokenStore.with_annotations` attaches.

    Args:
        store: what to annotate.
        annotator: what annotates it; loaded here.
        folder: where the arrays lie in the end.
        identity: names store and annotator; an annotation that was interrupted under this name is gone on with, one that was
            finished is left as it is. None always begins anew.
        show_progress: whether to say how far it is.

    Returns:
        What ``annotations.json`` holds: class names per layer (index 0 is "", not annotated), and per language how many words have
        which class, and how many none.

    Raises:
        UserError: if no word at all is annotated.
    """
    if (meta := finished(folder, ANNOTATION_META, identity)) is not None:
        return meta
    annotator.load()
    with ArrayWriter(folder, identity) as writer:
        annotation = _Annotation(store, annotator, writer)
        batches = progress_bar(annotation.batches(), "annotate", total=store.num_segments, size=len, show=show_progress)
        for batch in batches:
            if batch.start >= annotation.num_written_before:
                annotation.add(batch)
                writer.save_now_and_then(annotation.state)
        return writer.finish(ANNOTATION_META, annotation.meta(), annotation.state())


class _Codes(dict[str | None, int]):
    # Tag -> twice its class, plus one where it says that an entity begins.

    def __init__(self, names: Numbering, iob2: bool) -> None:
        super().__init__()
        self.names = names
        self.iob2 = iob2

    def __missing__(self, tag: str | None) -> int:
        prefix, separator, rest = (tag or "").partition("-")
        marked = self.iob2 and bool(separator) and prefix in ("B", "I")
        self[tag] = 2 * self.names[rest if marked else tag or ""] + (marked and prefix == "B")
        return self[tag]


class _Annotation:
    # Annotates batches of segments and counts.

    def __init__(self, store: TokenStore, annotator: Annotator, writer: ArrayWriter) -> None:
        self.store = store
        self.annotator = annotator
        self.writer = writer
        state = writer.state or {"num_written": 0, "names": {}, "counts": []}
        self.num_written_before: int = state["num_written"]
        self._num_written = self.num_written_before
        if self.num_written_before:
            log.warning("goes on after %s of %s segments", f"{self.num_written_before:,}", f"{store.num_segments:,}")
        # "O" is a class of its own: annotated, and no entity.
        self.names = {
            layer: Numbering(state["names"].get(layer) or ({"": 0, OUTSIDE: 1} if layer == "entity" else {"": 0}))
            for layer in annotator.layers
        }
        self.codes = {layer: _Codes(names, layer == "entity") for layer, names in self.names.items()}
        self.counts = {
            (layer, language): Counter({int(i): total for i, total in counts.items()})
            for layer, language, counts in state["counts"]
        }

    def state(self) -> dict[str, Any]:
        # What is needed to go on after the segments added so far; JSON.
        counts = [[layer, language, counter] for (layer, language), counter in self.counts.items()]
        return {"num_written": self._num_written, "names": self.names, "counts": counts}

    def batches(self) -> Iterator[range]:
        for start in range(0, self.store.num_segments, _BATCH_SEGMENTS):
            yield range(start, min(start + _BATCH_SEGMENTS, self.store.num_segments))

    def add(self, numbers: range) -> None:
        segments = [self.store.segment(*divmod(number, self.store.num_sides)) for number in numbers]
        annotations = self.annotator.annotate(segments)
        word_offsets = self.store.arrays["word_offsets"][numbers.start : numbers.stop + 1]
        counts = np.diff(word_offsets)
        spans = self.store.arrays["word_spans"][word_offsets[0] : word_offsets[-1]].astype(np.int64)
        found, other_offsets = _aligned(spans, counts, segments, annotations)
        first = np.zeros(len(spans), bool)
        first[(word_offsets[:-1] - word_offsets[0])[counts > 0]] = True
        for layer in self.annotator.layers:
            classes, begins = self._classes(layer, annotations, other_offsets)
            own = np.where(found >= 0, np.append(classes, 0)[found], 0).astype(np.uint8)
            self.writer.append(layer, own)
            self._count(layer, own, np.repeat(self.store.arrays["languages"][numbers.start : numbers.stop], counts))
            if layer == "entity":
                starts = _entity_starts(own, found, first, np.append(begins, False))
                self.writer.append("entity_start", starts.astype(np.uint8))
        self._num_written = numbers.stop

    def _classes(
        self, layer: str, annotations: Sequence[Annotation], offsets: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        # (M,) class of each word of the annotator, and whether its tag says that an entity begins.
        names = self.names[layer]
        nothing = [[None] * count for count in np.diff(offsets).tolist()]
        tags = (annotation.tags.get(layer) or none for annotation, none in zip(annotations, nothing, strict=True))
        codes = np.fromiter(map(self.codes[layer].__getitem__, chain.from_iterable(tags)), np.int64, int(offsets[-1]))
        if len(names) > 256:
            raise user_error("annotator", f"gives more than 255 classes in layer {layer}; map them to fewer with tag_map.")
        return codes >> 1, (codes & 1).astype(bool)

    def _count(self, layer: str, classes: NDArray[np.uint8], languages: NDArray[np.int8]) -> None:
        for number, language in enumerate(self.store.languages):
            totals = np.bincount(classes[languages == number])
            counter = self.counts.setdefault((layer, language), Counter())
            counter.update({i: int(total) for i, total in enumerate(totals) if total})

    def _is_filled(self, layer: str) -> bool:
        counters = [self.counts[layer, language] for language in self.store.languages]
        return any(counter.total() > counter[0] for counter in counters)

    def meta(self) -> dict[str, Any]:
        by_layer = {}
        for layer, names in self.names.items():
            by_layer[layer] = {
                language: {
                    "words": self.counts[layer, language].total(),
                    "not_annotated": self.counts[layer, language][0],
                    "classes": {name: self.counts[layer, language][i] for name, i in names.items() if i},
                }
                for language in self.store.languages
            }
        if not any(map(self._is_filled, self.names)):
            layers = " and ".join(self.annotator.layers)
            message = (
                f"gave no word a tag ({layers}); does it fit the corpus and its languages ({', '.join(self.store.languages)})?"
            )
            raise user_error("annotator", message)
        return {
            "format": FORMAT,
            "num_words": self.store.num_words,
            # A layer that no word has (the entities of most treebanks) is as good as none.
            "tag_names": {layer: list(names) if self._is_filled(layer) else [""] for layer, names in self.names.items()},
            "by_layer": by_layer,
        }


def _aligned(
    spans: NDArray[np.int64], counts: NDArray[np.int64], segments: Sequence[Segment], annotations: Sequence[Annotation]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    # (N,) the annotator's word for each of the store's, -1 for none; and where the segments begin among the annotator's words.
    # Texts laid end to end, with a gap between, keep the words of different segments apart.
    lengths = np.array([len(segment.text) + 1 for segment in segments], np.int64)
    shifts = np.cumsum(lengths) - lengths
    numbers = [len(annotation.words) for annotation in annotations]
    others = np.array([span for annotation in annotations for span in annotation.words], np.int64).reshape(-1, 2)
    found = align(spans + np.repeat(shifts, counts)[:, None], others + np.repeat(shifts, numbers)[:, None])
    return found, np.concatenate([[0], np.cumsum(numbers)]).astype(np.int64)


def _entity_starts(
    classes: NDArray[np.uint8], found: NDArray[np.int64], first: NDArray[np.bool_], begins: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    # A word begins an entity where its tag says so (and no word before it has the same tag of the annotator), where the class
    # changes, and at the beginning of a text.
    before = np.maximum(np.arange(len(classes)) - 1, 0)
    inside = classes > 1
    says_so = begins[found] & (found != found[before])
    return np.asarray(inside & (first | says_so | (classes != classes[before])))
