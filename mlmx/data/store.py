"""A tokenised corpus on disk: flat memory-mapped arrays.

A segment is a sentence or document in one language; segment ``side + num_sides * example`` is a side of an example. The arrays:

==================  =======  =========================================================================
``pieces``          (P,)     token ids, without special tokens
``words``           (P,)     index of the piece's word within its segment
``piece_offsets``   (G+1,)   where the segments begin in ``pieces``
``word_pieces``     (W,)     first piece of each word
``word_spans``      (W, 2)   characters of each word within its segment
``word_offsets``    (G+1,)   where the segments begin in ``word_spans``
``text``            bytes    UTF-8
``text_offsets``    (G+1,)   where the segments begin in ``text``
``languages``       (G,)     index into ``meta.languages``
``parts``           (E,)     the part of a mixture that an example belongs to
``gold_spans``      (H, 2)   characters of the words that the source itself has, ``gold_offsets`` (G+1,)
``gold_<layer>``    (H,)     their tags, indices into ``meta.gold_tags[layer]``
==================  =======  =========================================================================
"""

# E examples, G segments, P pieces, W words, H gold words

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlmx.data.arrays import Arrays
from mlmx.data.corpus import Segment
from mlmx.data.rows import CorpusInfo

FORMAT = 1
META = "meta.json"
ANNOTATION_META = "annotations.json"
LAYERS = ("pos", "entity", "entity_start")


class TokenStore:
    """A tokenised corpus.

    Attributes:
        folder: where it lies.
        meta: what ``meta.json`` holds: counts per language, skipped lines per reason, gold tag names.
        arrays: the flat arrays.
        annotations: those of an annotation stage, or None.
        tag_names: layer -> class names, index 0 being "" (not annotated); empty without annotations.
    """

    def __init__(self, folder: Path, annotation_folder: Path | None = None) -> None:
        self.folder = folder
        self.meta: dict[str, Any] = json.loads((folder / META).read_text("utf-8"))
        if self.meta["format"] != FORMAT:
            raise ValueError(f"{folder}: format {self.meta['format']}; this mlmx reads format {FORMAT}")
        self.arrays = Arrays(folder, self.meta)
        self.annotations: Arrays | None = None
        self.annotation_meta: dict[str, Any] = {}
        self.tag_names: dict[str, tuple[str, ...]] = {}
        if annotation_folder is not None:
            self._attach(annotation_folder)

    @classmethod
    def open(cls, folder: Path | str) -> TokenStore:
        """Open the store in a folder."""
        return cls(Path(folder))

    def with_annotations(self, folder: Path | str) -> TokenStore:
        """Return the store with the arrays of an annotation stage attached."""
        return TokenStore(self.folder, Path(folder))

    def _attach(self, folder: Path) -> None:
        meta = json.loads((folder / ANNOTATION_META).read_text("utf-8"))
        if meta["num_words"] != self.num_words:
            raise ValueError(f"{folder}: annotates {meta['num_words']} words, but {self.folder} has {self.num_words}")
        self.annotation_meta = meta
        self.annotations = Arrays(folder, meta)
        self.tag_names = {layer: tuple(names) for layer, names in meta["tag_names"].items()}

    @property
    def info(self) -> CorpusInfo:
        """What an objective may know of the corpus."""
        return CorpusInfo(num_sides=self.num_sides, languages=self.languages, tag_names=self.tag_names)

    @property
    def languages(self) -> tuple[str, ...]:
        return tuple(self.meta["languages"])

    @property
    def num_sides(self) -> int:
        """How many segments an example has."""
        return self.num_segments // self.num_examples

    @property
    def num_examples(self) -> int:
        return int(self.meta["num_examples"])

    @property
    def num_segments(self) -> int:
        return int(self.meta["num_segments"])

    @property
    def num_words(self) -> int:
        return int(self.meta["num_words"])

    @property
    def num_pieces(self) -> int:
        return int(self.meta["num_pieces"])

    @property
    def tags(self) -> dict[str, NDArray[np.uint8]]:
        """Layer -> (W,) class of each word; empty without annotations."""
        return {} if self.annotations is None else {layer: self.annotations[layer] for layer in LAYERS if layer in self.annotations}

    @property
    def part_weights(self) -> NDArray[np.float64] | None:
        """How often the rows of each part of a mixture are seen per epoch, or None."""
        weights = self.meta.get("part_weights")
        return None if weights is None else np.array(weights, np.float64)

    def text(self, example: int, side: int = 0) -> str:
        """Return the text of a segment."""
        segment = example * self.num_sides + side
        start, end = self.arrays["text_offsets"][segment : segment + 2]
        return bytes(self.arrays["text"][start:end]).decode("utf-8")

    def words(self, example: int, side: int = 0) -> NDArray[np.int32]:
        """Return the (n, 2) character spans of a segment's words, as the tokenizer sees them."""
        segment = example * self.num_sides + side
        start, end = self.arrays["word_offsets"][segment : segment + 2]
        spans: NDArray[np.int32] = self.arrays["word_spans"][start:end]
        return spans

    def pieces(self, example: int, side: int = 0) -> NDArray[np.int64]:
        """Return the token ids of a segment, without special tokens."""
        segment = example * self.num_sides + side
        start, end = self.arrays["piece_offsets"][segment : segment + 2]
        return self.arrays["pieces"][start:end].astype(np.int64)

    def language(self, example: int, side: int = 0) -> str:
        """Return the language code of a segment."""
        return self.languages[int(self.arrays["languages"][example * self.num_sides + side])]

    def segment(self, example: int, side: int = 0) -> Segment:
        """Return a segment with the source's own words and gold tags where it has them, else with the tokenizer's words."""
        number = example * self.num_sides + side
        start, end = self.arrays["gold_offsets"][number : number + 2]
        if end > start:
            words = self.arrays["gold_spans"][start:end]
            tags = {
                layer: [names[i] for i in self.arrays[f"gold_{layer}"][start:end]]
                for layer, names in self.meta["gold_tags"].items()
            }
            # The empty name stands for a layer that this segment lacks.
            tags = {layer: values for layer, values in tags.items() if any(values)}
        else:
            words, tags = self.words(example, side), {}
        return Segment(self.text(example, side), self.language(example, side), list(map(tuple, words.tolist())), tags)
