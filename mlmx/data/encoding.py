"""Texts to pieces and words: the one place where a tokenizer's word ids become the words that objectives mask.

A *word* here is what the tokenizer's word ids say, with two corrections that make the words of all tokenizers comparable:

- SentencePiece models glue punctuation to its word (``Colombo,`` has one word id). A piece that is only punctuation or symbols is a
  word of its own, so that masking a name does not mask its comma.
- The pattern of GPT-2's byte-level pre-tokenizer cuts Indic words at every vowel sign, since combining marks and joiners are no
  letters to it. Pieces on both sides of a mark or joiner with no space between them are one word.
"""

# P pieces of all texts, W words of all texts, N texts, C characters of all texts

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mlmx.errors import user_error

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SPACE, _PUNCTUATION, _MARK = 1, 2, 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """Pieces and words of some texts, laid end to end, without special tokens.

    Attributes:
        pieces: (P,) int32 token ids.
        words: (P,) int32 index of the piece's word within its text.
        piece_offsets: (N+1,) int64; text n holds pieces ``piece_offsets[n]:piece_offsets[n + 1]``.
        word_pieces: (W,) int64 first piece of each word.
        word_spans: (W, 2) int32 characters of each word within its text, without surrounding spaces.
        word_offsets: (N+1,) int64; text n holds words ``word_offsets[n]:word_offsets[n + 1]``.
    """

    pieces: NDArray[np.int32]
    words: NDArray[np.int32]
    piece_offsets: NDArray[np.int64]
    word_pieces: NDArray[np.int64]
    word_spans: NDArray[np.int32]
    word_offsets: NDArray[np.int64]


def offsets_of(lengths: Sequence[int] | NDArray[Any]) -> NDArray[np.int64]:
    """Return where each of some runs begins, laid end to end, and where the last one ends."""
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def backend_of(tokenizer: PreTrainedTokenizerBase) -> Any:
    """Return a copy of a fast tokenizer's Rust object that neither truncates nor pads nor reads special tokens in plain text.

    Raises:
        UserError: if the tokenizer has none.
    """
    if not getattr(tokenizer, "is_fast", False):
        message = f"the tokenizer {type(tokenizer).__name__} is a slow one without word ids; convert it to a tokenizer.json."
        raise user_error("model", message)
    from tokenizers import Tokenizer

    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.no_truncation()
    backend.no_padding()
    # A corpus that contains "[MASK]" literally means these six characters, not the special token.
    backend.encode_special_tokens = True
    return backend


class PieceEncoder:
    """Encodes batches of texts with a fast tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.backend = backend_of(tokenizer)

    def encode(self, texts: Sequence[str]) -> Encoded:
        """Encode plain texts; words are found as the module describes."""
        encodings = self.backend.encode_batch(list(texts), add_special_tokens=False)
        pieces, word_ids, piece_offsets = _pieces_and_word_ids(encodings)
        spans = np.fromiter(chain.from_iterable(chain.from_iterable(e.offsets for e in encodings)), np.int64, 2 * len(pieces))
        text_offsets = offsets_of([len(text) for text in texts])
        spans = spans.reshape(-1, 2) + np.repeat(text_offsets[:-1], np.diff(piece_offsets))[:, None]
        first = np.zeros(len(pieces), bool)
        first[piece_offsets[:-1][np.diff(piece_offsets) > 0]] = True
        starts, ends, begins = _word_boundaries("".join(texts), spans, word_ids, first)
        return _with_words(pieces, piece_offsets, begins, starts, ends, text_offsets)

    def encode_words(self, sentences: Sequence[Sequence[str]]) -> Encoded:
        """Encode sentences that are split into words already.

        The words stay as they are: ``Encoded.words`` is the position in the sentence, ``word_spans`` those of the words joined by
        spaces. A word for which the tokenizer has no pieces has none here either.
        """
        encodings = self.backend.encode_batch([list(words) for words in sentences], is_pretokenized=True, add_special_tokens=False)
        pieces, word_ids, piece_offsets = _pieces_and_word_ids(encodings)
        lengths = [len(words) for words in sentences]
        word_offsets = offsets_of(lengths)
        where = np.repeat(word_offsets[:-1], np.diff(piece_offsets)) + word_ids
        word_pieces = np.searchsorted(where, np.arange(word_offsets[-1]))
        word_spans = np.array([span for words in sentences for span in joined_spans(words)], np.int32).reshape(-1, 2)
        return Encoded(
            pieces=pieces,
            words=word_ids.astype(np.int32),
            piece_offsets=piece_offsets,
            word_pieces=word_pieces.astype(np.int64),
            word_spans=word_spans,
            word_offsets=word_offsets,
        )


def joined_spans(words: Sequence[str]) -> list[tuple[int, int]]:
    """Return the character spans of words joined by single spaces."""
    spans, position = [], 0
    for word in words:
        spans.append((position, position + len(word)))
        position += len(word) + 1
    return spans


def _pieces_and_word_ids(encodings: Sequence[Any]) -> tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.int64]]:
    piece_offsets = offsets_of([len(e) for e in encodings])
    total = int(piece_offsets[-1])
    pieces = np.fromiter(chain.from_iterable(e.ids for e in encodings), np.int32, total)
    word_ids = np.fromiter(chain.from_iterable(e.word_ids for e in encodings), np.int64, total)
    return pieces, word_ids, piece_offsets


@cache
def _character_classes() -> NDArray[np.uint8]:
    # (0x110000,) bits of every code point. Beyond the first two planes only tags and variation selectors are no letters.
    classes = np.zeros(0x110000, np.uint8)
    for point in chain(range(0x20000), range(0xE0000, 0xE0200)):
        category = unicodedata.category(chr(point))
        if category[0] in "PS":
            classes[point] = _PUNCTUATION
        elif category[0] == "M" or category == "Cf":
            classes[point] = _MARK
        elif category[0] == "Z" or chr(point).isspace():
            classes[point] = _SPACE
    return classes


def punctuation_points() -> list[int]:
    """Return the code points of all punctuation marks and symbols, rising."""
    return np.flatnonzero(_character_classes() == _PUNCTUATION).tolist()


def _word_boundaries(
    text: str, spans: NDArray[np.int64], word_ids: NDArray[np.int64], first: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
    # Returns the pieces' spans without surrounding spaces, and which pieces begin a word.
    classes = _character_classes()[np.frombuffer(text.encode("utf-32-le"), np.uint32)]
    space, punctuation, mark = ((classes & bit) > 0 for bit in (_SPACE, _PUNCTUATION, _MARK))
    starts, ends = _trimmed(spans, space)
    num_spaces, num_punctuation, num_marks = (offsets_of(flags) for flags in (space, punctuation, mark))

    empty = starts >= ends
    num_symbols = num_punctuation[ends] - num_punctuation[starts]
    only_symbols = (num_symbols > 0) & (num_symbols + num_marks[ends] - num_marks[starts] == ends - starts)
    # A piece without characters of its own (a bare word-start marker) goes with the piece that follows.
    following = np.where(empty, len(spans), np.arange(len(spans)))
    following = np.minimum(np.minimum.accumulate(following[::-1])[::-1], max(len(spans) - 1, 0))
    only_symbols = only_symbols[following]

    before = np.maximum(np.arange(len(spans)) - 1, 0)
    begins = first | (word_ids != word_ids[before]) | (only_symbols != only_symbols[before])
    padded = np.append(mark, False)
    starts_with_mark = padded[starts] & ~empty
    after_mark = padded[ends[before] - 1] & ~empty[before] & ~only_symbols & ~only_symbols[before] & ~empty
    apart = num_spaces[np.maximum(starts, ends[before])] > num_spaces[ends[before]]
    begins &= first | apart | ~(starts_with_mark | after_mark)
    return starts, ends, begins


def _trimmed(spans: NDArray[np.int64], space: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    # Spans without the spaces at their ends; a span of spaces only becomes empty at its end.
    size = len(space)
    positions = np.arange(size)
    next_visible = np.append(np.minimum.accumulate(np.where(space, size, positions)[::-1])[::-1], size)
    end_of_visible = np.concatenate([[0], np.maximum.accumulate(np.where(space, 0, positions + 1))])
    starts = np.minimum(next_visible[spans[:, 0]], spans[:, 1])
    return starts, np.maximum(end_of_visible[spans[:, 1]], starts)


def _with_words(
    pieces: NDArray[np.int32],
    piece_offsets: NDArray[np.int64],
    begins: NDArray[np.bool_],
    starts: NDArray[np.int64],
    ends: NDArray[np.int64],
    text_offsets: NDArray[np.int64],
) -> Encoded:
    word_pieces = np.flatnonzero(begins)
    words_before = offsets_of(begins)
    word_offsets = words_before[piece_offsets]
    text_of_word = np.repeat(np.arange(len(piece_offsets) - 1), np.diff(word_offsets))
    words = words_before[1:] - 1 - np.repeat(word_offsets[:-1], np.diff(piece_offsets))
    if len(word_pieces):
        empty = starts >= ends
        word_starts = np.minimum.reduceat(np.where(empty, np.iinfo(np.int64).max, starts), word_pieces)
        word_ends = np.maximum.reduceat(np.where(empty, -1, ends), word_pieces)
        nothing = word_ends < 0
        word_starts[nothing] = word_ends[nothing] = ends[word_pieces[nothing]]
        word_spans = np.stack([word_starts, word_ends], axis=1) - text_offsets[text_of_word][:, None]
    else:
        word_spans = np.zeros((0, 2), np.int64)
    return Encoded(
        pieces=pieces,
        words=words.astype(np.int32),
        piece_offsets=piece_offsets,
        word_pieces=word_pieces.astype(np.int64),
        word_spans=word_spans.astype(np.int32),
        word_offsets=word_offsets,
    )
