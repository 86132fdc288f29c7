"""Batches of examples to the arrays of a store, and the counts that go with them."""

from __future__ import annotations

import logging
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from mlmx.data.arrays import ArrayWriter
from mlmx.data.corpus import NUM_NAMED, Corpus, Example, Segment
from mlmx.data.encoding import Encoded, PieceEncoder, offsets_of
from mlmx.data.store import FORMAT
from mlmx.errors import user_error

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

NO_TOKENS = "no tokens"
_COUNTED = ("segments", "characters", "words", "pieces", "unknown_pieces")


class Numbering(dict[str, int]):
    """Gives each new name the next number."""

    def __missing__(self, name: str) -> int:
        self[name] = len(self)
        return self[name]


@dataclass(slots=True)
class _Counts:
    # How far a preparation is: all that it needs to go on, beside the arrays.
    num_read: int = 0
    read_crc32: int = 0
    num_examples: int = 0
    num_pieces: int = 0
    num_words: int = 0
    num_gold_words: int = 0
    num_bytes: int = 0
    num_without_tokens: int = 0
    without_tokens: list[str] = field(default_factory=list)
    by_language: dict[str, dict[str, int]] = field(default_factory=dict)
    gold_names: dict[str, dict[str, int]] = field(default_factory=dict)


class ExampleWriter:
    """Tokenises batches of examples, appends them to arrays, and counts what goes by.

    Args:
        corpus: where the examples come from.
        tokenizer: a fast one.
        writer: of the arrays; if they were begun before, the examples in them are passed over.
    """

    def __init__(self, corpus: Corpus, tokenizer: PreTrainedTokenizerBase, writer: ArrayWriter) -> None:
        self._corpus = corpus
        self._encoder = PieceEncoder(tokenizer)
        self._writer = writer
        self._vocabulary_size = len(tokenizer)
        self._unknown_id = tokenizer.unk_token_id
        self._piece_dtype = np.dtype(np.uint16 if self._vocabulary_size <= 1 << 16 else np.int32)
        self._languages = tuple(corpus.languages)
        self._num_sides = corpus.num_sides
        self._weights = getattr(corpus, "part_weights", None)
        self._counts = _Counts(**(writer.state or {}))
        self._before = (self._counts.num_read, self._counts.read_crc32)
        self._counts.num_read = self._counts.read_crc32 = 0
        self._gold_names = {layer: Numbering(names) for layer, names in self._counts.gold_names.items()}
        if self.num_written_before:
            log.warning("goes on after %s examples that are tokenised already", f"{self.num_written_before:,}")
        else:
            self._counts.by_language = {language: dict.fromkeys(_COUNTED, 0) for language in self._languages}
            for name in ("piece_offsets", "word_offsets", "text_offsets", "gold_offsets"):
                writer.append(name, np.zeros(1, np.int64))

    @property
    def num_written_before(self) -> int:
        """How many examples were read before the interruption."""
        return self._before[0]

    def is_new(self, batch: Sequence[Example]) -> bool:
        """Tell whether a batch is still to be written; to be asked of every batch, in order.

        Raises:
            UserError: if the examples before it are others than those that were written.
        """
        counts = self._counts
        is_new = counts.num_read >= self.num_written_before
        counts.num_read += len(batch)
        texts = "".join(f"{segment.text}\n" for example in batch for segment in example.segments)
        counts.read_crc32 = zlib.crc32(texts.encode("utf-8", "surrogatepass"), counts.read_crc32)
        if not is_new and counts.num_read >= self.num_written_before:
            self._check_same()
        return is_new

    def _check_same(self) -> None:
        if (self._counts.num_read, self._counts.read_crc32) != self._before:
            message = "has changed since this preparation was interrupted; begin anew with --fresh."
            raise user_error("corpus", message)

    def add(self, batch: Sequence[Example]) -> None:
        """Append a batch; examples with a side without tokens are left out and counted.

        Raises:
            UserError: if a text is not valid Unicode.
        """
        segments = self._segments(batch)
        encoded = self._encoder.encode([segment.text for segment in segments])
        empty = (np.diff(encoded.piece_offsets) == 0).reshape(-1, self._num_sides).any(axis=1)
        if empty.any():
            dropped = [example.where for example, drop in zip(batch, empty, strict=True) if drop]
            self._counts.num_without_tokens += len(dropped)
            self._counts.without_tokens = (self._counts.without_tokens + dropped)[:NUM_NAMED]
            batch = [example for example, drop in zip(batch, empty, strict=True) if not drop]
            if not batch:
                return
            segments = self._segments(batch)
            encoded = self._encoder.encode([segment.text for segment in segments])
        self._write_pieces(segments, encoded)
        self._write_texts(segments)
        self._write_gold(segments)
        if self._weights is not None:
            self._writer.append("parts", np.array([example.part for example in batch], np.uint16))  # type: ignore[attr-defined]
        self._counts.num_examples += len(batch)

    def _segments(self, batch: Sequence[Example]) -> list[Segment]:
        for example in batch:
            assert len(example.segments) == self._num_sides, f"{example.where}: {len(example.segments)} sides"
            for segment in example.segments:
                try:
                    segment.text.encode("utf-8")
                except UnicodeEncodeError as error:
                    # JSON can spell half of a surrogate pair, which no encoding can hold.
                    raise user_error(example.where, f"the text is not valid Unicode: {error}.") from error
        return [segment for example in batch for segment in example.segments]

    def _write_pieces(self, segments: Sequence[Segment], encoded: Encoded) -> None:
        append, counts = self._writer.append, self._counts
        append("pieces", encoded.pieces.astype(self._piece_dtype))
        append("words", encoded.words)
        append("piece_offsets", encoded.piece_offsets[1:] + counts.num_pieces)
        append("word_pieces", encoded.word_pieces + counts.num_pieces)
        append("word_spans", encoded.word_spans)
        append("word_offsets", encoded.word_offsets[1:] + counts.num_words)
        counts.num_pieces += len(encoded.pieces)
        counts.num_words += len(encoded.word_pieces)
        number = {language: i for i, language in enumerate(self._languages)}
        languages = np.array([number[segment.language] for segment in segments], np.int8)
        append("languages", languages)
        self._count(segments, encoded, languages)

    def _count(self, segments: Sequence[Segment], encoded: Encoded, languages: np.ndarray[Any, np.dtype[np.int8]]) -> None:
        unknown = np.zeros(len(encoded.pieces), bool) if self._unknown_id is None else encoded.pieces == self._unknown_id
        counted = (
            np.ones(len(segments)),
            np.array([len(segment.text) for segment in segments]),
            np.diff(encoded.word_offsets),
            np.diff(encoded.piece_offsets),
            np.diff(offsets_of(unknown)[encoded.piece_offsets]),
        )
        for name, values in zip(_COUNTED, counted, strict=True):
            for i, total in enumerate(np.bincount(languages, weights=values, minlength=len(self._languages))):
                self._counts.by_language[self._languages[i]][name] += int(total)

    def _write_texts(self, segments: Sequence[Segment]) -> None:
        texts = [segment.text.encode("utf-8") for segment in segments]
        offsets = offsets_of([len(text) for text in texts])
        self._writer.append("text", np.frombuffer(b"".join(texts), np.uint8))
        self._writer.append("text_offsets", offsets[1:] + self._counts.num_bytes)
        self._counts.num_bytes += int(offsets[-1])

    def _write_gold(self, segments: Sequence[Segment]) -> None:
        counts = [len(segment.words) if segment.words is not None and segment.tags else 0 for segment in segments]
        with_gold = [segment for segment, count in zip(segments, counts, strict=True) if count]
        self._writer.append("gold_offsets", offsets_of(counts)[1:] + self._counts.num_gold_words)
        spans = [span for segment in with_gold for span in segment.words or ()]
        self._writer.append("gold_spans", np.array(spans, np.int32).reshape(-1, 2))
        for layer in sorted({layer for segment in with_gold for layer in segment.tags} | set(self._gold_names)):
            if layer not in self._gold_names:
                # The empty name stands for a layer that a segment lacks.
                self._gold_names[layer] = Numbering({"": 0})
                self._writer.append(f"gold_{layer}", np.zeros(self._counts.num_gold_words, np.uint16))
            names = self._gold_names[layer]
            tags = (segment.tags.get(layer) or [""] * len(segment.words or ()) for segment in with_gold)
            ids = np.fromiter(map(names.__getitem__, chain.from_iterable(tags)), np.uint16, len(spans))
            self._writer.append(f"gold_{layer}", ids)
        self._counts.num_gold_words += len(spans)

    def state(self) -> dict[str, Any]:
        """Return what is needed to go on after the examples added so far; JSON."""
        self._counts.gold_names = dict(self._gold_names)
        return asdict(self._counts)

    def meta(self) -> dict[str, Any]:
        """Return what ``meta.json`` says of the corpus, when all of it was added.

        Raises:
            UserError: if nothing was.
        """
        counts = self._counts
        if counts.num_read < self.num_written_before:
            self._check_same()
        skipped = dict(self._corpus.skipped)
        if counts.num_without_tokens:
            skipped[NO_TOKENS] = skipped.get(NO_TOKENS, 0) + counts.num_without_tokens
        reasons = "; ".join(f"{reason}: {count}" for reason, count in skipped.items())
        if not counts.num_examples:
            raise user_error("corpus", f"has no example with tokens ({reasons or 'it is empty'}).")
        skipped_at = [*self._corpus.skipped_at, *counts.without_tokens][:NUM_NAMED]
        # Blank lines part the paragraphs of many a text; half a pair is a loss.
        if self._num_sides > 1 and skipped:
            named = f", such as {', '.join(skipped_at)}" if skipped_at else ""
            num_skipped = sum(skipped.values())
            total = counts.num_examples + num_skipped
            log.warning("corpus: %d of %d examples left out (%s)%s", num_skipped, total, reasons, named)
        return {
            "format": FORMAT,
            "languages": list(self._languages),
            "num_examples": counts.num_examples,
            "num_segments": counts.num_examples * self._num_sides,
            "num_pieces": counts.num_pieces,
            "num_words": counts.num_words,
            "num_gold_words": counts.num_gold_words,
            "vocabulary_size": self._vocabulary_size,
            "by_language": counts.by_language,
            "skipped": skipped,
            "skipped_examples": skipped_at,
            "gold_tags": {layer: list(names) for layer, names in self._gold_names.items()},
            "part_weights": None if self._weights is None else list(self._weights),
        }
