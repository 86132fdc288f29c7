"""Corpora to memory-mapped arrays, and tokenizers out of corpora: what the preparation stages do.

Memory stays flat however large the corpus is: examples are read, tokenised and written batch by batch.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mlmx.data.corpus import Corpus, Example, Segment
from mlmx.data.encoding import Encoded, PieceEncoder, offsets_of
from mlmx.data.progress import progress_bar
from mlmx.data.store import FORMAT, META, ArrayWriter
from mlmx.data.tokenizer import TrainedTokenizer
from mlmx.errors import user_error

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Enough for the tokenizer's threads to have work, little enough for memory: documents may be long.
_BATCH_EXAMPLES = 1000
_BATCH_CHARACTERS = 2_000_000

NO_TOKENS = "no tokens"


def train_tokenizer(
    node: TrainedTokenizer, corpora: Sequence[Corpus], folder: Path, *, show_progress: bool = True
) -> dict[str, Any]:
    """Train a tokenizer on corpora and save it.

    Args:
        node: what to train.
        corpora: what to train on, each seen once.
        folder: where ``AutoTokenizer`` shall find it.
        show_progress: whether to show a progress bar.

    Returns:
        What the stage reports: ``vocabulary_size``, ``vocabulary_size_asked``, ``num_texts``.
    """
    num_texts = 0

    def texts() -> Iterator[str]:
        nonlocal num_texts
        for corpus in corpora:
            for example in progress_bar(corpus.examples(), "tokenizer", total=len(corpus), show=show_progress):
                for segment in example.segments:
                    num_texts += 1
                    yield segment.text

    tokenizer = node.train(texts())
    save_atomically(folder, tokenizer.save_pretrained)
    return {"vocabulary_size": len(tokenizer), "vocabulary_size_asked": node.vocab_size, "num_texts": num_texts}


def prepare_corpus(
    corpus: Corpus, tokenizer: PreTrainedTokenizerBase, folder: Path, *, show_progress: bool = True
) -> dict[str, Any]:
    """Tokenise a corpus into a folder that :class:`mlmx.data.store.TokenStore` opens.

    Returns:
        What ``meta.json`` holds.

    Raises:
        UserError: if the corpus is malformed, or no example has tokens on all its sides.
    """
    meta: dict[str, Any] = {}

    def write(partial: Path) -> None:
        with ArrayWriter(partial) as writer:
            preparation = _Preparation(corpus, tokenizer, writer)
            examples = progress_bar(corpus.examples(), "tokenise", total=len(corpus), show=show_progress)
            for batch in batched(examples):
                preparation.add(batch)
            meta.update(preparation.meta())
        (partial / META).write_text(json.dumps(meta, ensure_ascii=False, indent=1), "utf-8")

    save_atomically(folder, write)
    return meta


def save_atomically(folder: Path, write: Any) -> None:
    """Let ``write`` fill a new folder beside this one, and rename it when it is complete."""
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.parent.mkdir(parents=True, exist_ok=True)
    write(partial)
    if folder.exists():
        shutil.rmtree(folder)
    partial.replace(folder)


def batched(examples: Iterable[Example]) -> Iterator[list[Example]]:
    """Yield the examples in batches, limited in number and in characters."""
    iterator = iter(examples)
    batch: list[Example] = []
    num_characters = 0
    for example in iterator:
        batch.append(example)
        num_characters += sum(len(segment.text) for segment in example.segments)
        if len(batch) == _BATCH_EXAMPLES or num_characters >= _BATCH_CHARACTERS:
            yield batch
            batch, num_characters = [], 0
    if batch:
        yield batch


class Numbering(dict[str, int]):
    """Gives each new name the next number."""

    def __missing__(self, name: str) -> int:
        self[name] = len(self)
        return self[name]


class _Preparation:
    # Writes batches of examples and counts what goes by.

    def __init__(self, corpus: Corpus, tokenizer: PreTrainedTokenizerBase, writer: ArrayWriter) -> None:
        self.corpus = corpus
        self.encoder = PieceEncoder(tokenizer)
        self.writer = writer
        self.vocabulary_size = len(tokenizer)
        self.unknown_id = tokenizer.unk_token_id
        self.piece_dtype = np.dtype(np.uint16 if self.vocabulary_size <= 1 << 16 else np.int32)
        self.languages = tuple(corpus.languages)
        self.num_sides = 2 if corpus.parallel else 1
        self.weights = getattr(corpus, "part_weights", None)
        self.gold_names: dict[str, Numbering] = {}
        self.gold_written: Counter[str] = Counter()
        self.num_gold_words = 0
        self.totals = {"examples": 0, "pieces": 0, "words": 0, "bytes": 0}
        self.without_tokens: list[str] = []
        self.num_without_tokens = 0
        self.by_language = {
            language: dict.fromkeys(("segments", "characters", "words", "pieces", "unknown_pieces"), 0)
            for language in self.languages
        }
        for name in ("piece_offsets", "word_offsets", "text_offsets", "gold_offsets"):
            writer.append(name, np.zeros(1, np.int64))

    def add(self, batch: list[Example]) -> None:
        segments = self._segments(batch)
        encoded = self.encoder.encode([segment.text for segment in segments])
        empty = (np.diff(encoded.piece_offsets) == 0).reshape(-1, self.num_sides).any(axis=1)
        if empty.any():
            dropped = [example.where for example, drop in zip(batch, empty, strict=True) if drop]
            self.num_without_tokens += len(dropped)
            self.without_tokens = (self.without_tokens + dropped)[:3]
            batch = [example for example, drop in zip(batch, empty, strict=True) if not drop]
            if not batch:
                return
            segments = self._segments(batch)
            encoded = self.encoder.encode([segment.text for segment in segments])
        self._write_pieces(segments, encoded)
        self._write_texts(segments)
        self._write_gold(segments)
        if self.weights is not None:
            self.writer.append("parts", np.array([example.part for example in batch], np.uint16))  # type: ignore[attr-defined]
        self.totals["examples"] += len(batch)

    def _segments(self, batch: list[Example]) -> list[Segment]:
        for example in batch:
            assert len(example.segments) == self.num_sides, f"{example.where}: {len(example.segments)} sides"
            for segment in example.segments:
                try:
                    segment.text.encode("utf-8")
                except UnicodeEncodeError as error:
                    # JSON can spell half of a surrogate pair, which no encoding can hold.
                    raise user_error(example.where, f"the text is not valid Unicode: {error}.") from error
        return [segment for example in batch for segment in example.segments]

    def _write_pieces(self, segments: list[Segment], encoded: Encoded) -> None:
        append, totals = self.writer.append, self.totals
        append("pieces", encoded.pieces.astype(self.piece_dtype))
        append("words", encoded.words)
        append("piece_offsets", encoded.piece_offsets[1:] + totals["pieces"])
        append("word_pieces", encoded.word_pieces + totals["pieces"])
        append("word_spans", encoded.word_spans)
        append("word_offsets", encoded.word_offsets[1:] + totals["words"])
        totals["pieces"] += len(encoded.pieces)
        totals["words"] += len(encoded.word_pieces)

        number = {language: i for i, language in enumerate(self.languages)}
        languages = np.array([number[segment.language] for segment in segments], np.int8)
        append("languages", languages)
        lengths = np.diff(encoded.piece_offsets)
        unknown = np.zeros(len(encoded.pieces), bool) if self.unknown_id is None else encoded.pieces == self.unknown_id
        counts = {
            "segments": np.ones(len(segments)),
            "characters": np.array([len(segment.text) for segment in segments]),
            "words": np.diff(encoded.word_offsets),
            "pieces": lengths,
            "unknown_pieces": np.diff(offsets_of(unknown)[encoded.piece_offsets]),
        }
        for name, values in counts.items():
            for i, total in enumerate(np.bincount(languages, weights=values, minlength=len(self.languages))):
                self.by_language[self.languages[i]][name] += int(total)

    def _write_texts(self, segments: list[Segment]) -> None:
        texts = [segment.text.encode("utf-8") for segment in segments]
        offsets = offsets_of([len(text) for text in texts])
        self.writer.append("text", np.frombuffer(b"".join(texts), np.uint8))
        self.writer.append("text_offsets", offsets[1:] + self.totals["bytes"])
        self.totals["bytes"] += int(offsets[-1])

    def _write_gold(self, segments: list[Segment]) -> None:
        counts = [len(segment.words) if segment.words is not None and segment.tags else 0 for segment in segments]
        offsets = offsets_of(counts)
        with_gold = [segment for segment, count in zip(segments, counts, strict=True) if count]
        self.writer.append("gold_offsets", offsets[1:] + self.num_gold_words)
        spans = [span for segment in with_gold for span in segment.words or ()]
        self.writer.append("gold_spans", np.array(spans, np.int32).reshape(-1, 2))
        for layer in sorted({layer for segment in with_gold for layer in segment.tags} | set(self.gold_names)):
            # The empty name stands for a layer that a segment lacks.
            names = self.gold_names.setdefault(layer, Numbering({"": 0}))
            tags = (segment.tags.get(layer) or [""] * len(segment.words or ()) for segment in with_gold)
            ids = np.fromiter(map(names.__getitem__, chain.from_iterable(tags)), np.uint16, len(spans))
            if self.gold_written[layer] < self.num_gold_words:
                missing = self.num_gold_words - self.gold_written[layer]
                self.writer.append(f"gold_{layer}", np.zeros(missing, np.uint16))
            self.writer.append(f"gold_{layer}", ids)
            self.gold_written[layer] = self.num_gold_words + len(ids)
        self.num_gold_words += len(spans)

    def meta(self) -> dict[str, Any]:
        skipped = dict(self.corpus.skipped)
        if self.num_without_tokens:
            skipped[NO_TOKENS] = skipped.get(NO_TOKENS, 0) + self.num_without_tokens
        if not self.totals["examples"]:
            reasons = "; ".join(f"{reason}: {count}" for reason, count in skipped.items())
            raise user_error("corpus", f"has no example with tokens ({reasons or 'it is empty'}).")
        return {
            "format": FORMAT,
            "parallel": self.corpus.parallel,
            "languages": list(self.languages),
            "num_examples": self.totals["examples"],
            "num_segments": self.totals["examples"] * self.num_sides,
            "num_pieces": self.totals["pieces"],
            "num_words": self.totals["words"],
            "num_gold_words": self.num_gold_words,
            "vocabulary_size": self.vocabulary_size,
            "by_language": self.by_language,
            "skipped": skipped,
            "skipped_examples": self.without_tokens,
            "gold_tags": {layer: list(names) for layer, names in self.gold_names.items()},
            "part_weights": None if self.weights is None else list(self.weights),
            "dtypes": self.writer.dtypes,
        }
