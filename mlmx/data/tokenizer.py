"""Tokenizers trained on the corpus, with the ``tokenizers`` library.

All of them cut a text into words first: at spaces, and around every punctuation mark or symbol (with the combining marks that
follow it). Combining marks and zero-width joiners stay inside their word, which Indic scripts need. So the word ids of all
algorithms agree, and masking a word never masks the comma behind it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mlmx.build import Positive
from mlmx.errors import user_error

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

Algorithm = Literal["unigram", "wordpiece", "bpe", "byte", "character"]

PAD, UNKNOWN, BEGIN, SEPARATOR, MASK = SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")

# A word, or one punctuation mark or symbol, with the word-start marker "▁" before it (which is a symbol itself).
_MARKED_WORD = r"▁?(?:[^\s▁\p{P}\p{S}]+|[\p{P}\p{S}&&[^▁]]\p{M}*)"
# The same with a space before it, for byte-level tokenizers.
_SPACED_WORD = r" ?(?:[^\s\p{P}\p{S}]+|[\p{P}\p{S}]\p{M}*)|\s+"
_PLAIN_WORD = r"[^\s\p{P}\p{S}]+|[\p{P}\p{S}]\p{M}*"

_BYTE_LEVEL = ("bpe", "byte")


class TrainedTokenizer:
    """A tokenizer to be trained on the corpus of the run.

    ``unigram`` (SentencePiece's model, with ``▁`` before words), ``wordpiece`` (BERT's, with ``##`` inside words), ``bpe`` (on
    bytes, so nothing is unknown), ``byte`` (one piece per byte, no training), ``character`` (one piece per character).

    Args:
        algorithm: which one.
        vocab_size: token ids at most, special ones included. A corpus that does not give as many yields fewer, which is reported;
            ``byte`` always has 261.
        lowercase: whether texts are lowercased.
        normalization: Unicode normal form; ``nfc`` changes no letter, ``nfkc`` also folds widths and ligatures, ``none`` keeps code
            points as they are. None of them drops the zero-width joiners of Indic scripts.
        min_count: how often a piece (``wordpiece``, ``bpe``) or a character (``character``) must occur to get an id.
    """

    def __init__(
        self,
        *,
        algorithm: Algorithm,
        vocab_size: Positive,
        lowercase: bool,
        normalization: Literal["nfc", "nfkc", "none"],
        min_count: Positive,
    ) -> None:
        self.algorithm = algorithm
        self.vocab_size = vocab_size
        self.lowercase = lowercase
        self.normalization = normalization
        self.min_count = min_count
        least = len(SPECIALS) + (256 if algorithm in _BYTE_LEVEL else 1)
        if vocab_size < least:
            raise user_error("model.tokenizer.vocab_size", f"{vocab_size} is too small: {algorithm} needs at least {least}.")

    def train(self, texts: Iterable[str]) -> PreTrainedTokenizerFast:
        """Train on texts and return the tokenizer; the same texts in the same order give the same tokenizer.

        Raises:
            UserError: if the vocabulary is too small for the characters of the corpus, or the corpus has no words.
        """
        from tokenizers import AddedToken
        from transformers import PreTrainedTokenizerFast

        tokenizer = self._pipeline()
        self._fit(tokenizer, texts)
        tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIALS])
        self._set_template(tokenizer)
        return PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            cls_token=BEGIN,
            sep_token=SEPARATOR,
            mask_token=MASK,
            pad_token=PAD,
            unk_token=UNKNOWN,
            bos_token=BEGIN,
            eos_token=SEPARATOR,
            clean_up_tokenization_spaces=False,
        )

    def _pipeline(self) -> Tokenizer:
        from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

        steps: list[Any] = []
        if self.normalization != "none":
            steps.append(normalizers.NFC() if self.normalization == "nfc" else normalizers.NFKC())
        if self.lowercase:
            steps.append(normalizers.Lowercase())
        if self.algorithm in _BYTE_LEVEL:
            # With a space before the first word too, so that a word has the same pieces wherever it stands.
            steps.append(normalizers.Prepend(" "))
            tokenizer = Tokenizer(models.BPE(vocab={}, merges=[]))
            tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
                [
                    pre_tokenizers.Split(Regex(_SPACED_WORD), "isolated"),
                    pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
                ]
            )
            tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
        elif self.algorithm == "wordpiece":
            tokenizer = Tokenizer(models.WordPiece(vocab={}, unk_token=UNKNOWN, max_input_chars_per_word=100))
            tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
                [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex(_PLAIN_WORD), "isolated")]
            )
            tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=False)
        else:
            # Runs of spaces would become words of their own.
            steps.append(normalizers.Replace(Regex(r"\s+"), " "))
            tokenizer = Tokenizer(models.Unigram() if self.algorithm == "unigram" else models.BPE(vocab={}, merges=[]))
            tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
                [
                    pre_tokenizers.Metaspace(prepend_scheme="always", split=True),
                    pre_tokenizers.Split(Regex(_MARKED_WORD), "isolated"),
                ]
            )
            tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
        tokenizer.normalizer = normalizers.Sequence(steps)
        return tokenizer

    def _fit(self, tokenizer: Tokenizer, texts: Iterable[str]) -> None:
        fit: dict[str, Callable[[Tokenizer, Iterable[str]], None]] = {
            "unigram": self._fit_unigram,
            "wordpiece": self._fit_merges,
            "bpe": self._fit_merges,
            "byte": self._fit_bytes,
            "character": self._fit_characters,
        }
        with _one_thread():
            fit[self.algorithm](tokenizer, texts)

    def _fit_unigram(self, tokenizer: Tokenizer, texts: Iterable[str]) -> None:
        from tokenizers import trainers

        trainer = trainers.UnigramTrainer(
            vocab_size=self.vocab_size, special_tokens=list(SPECIALS), unk_token=UNKNOWN, show_progress=False
        )
        try:
            tokenizer.train_from_iterator(texts, trainer)
        except BaseException as error:
            # The Rust code panics where no piece is left, and raises a plain Exception where characters are too many.
            if isinstance(error, (KeyboardInterrupt, SystemExit)) or "UserError" in type(error).__name__:
                raise
            message = f"a unigram vocabulary of {self.vocab_size} cannot be trained on this corpus: {error}"
            raise user_error("model.tokenizer.vocab_size", message) from error

    def _fit_merges(self, tokenizer: Tokenizer, texts: Iterable[str]) -> None:
        from tokenizers import pre_tokenizers, trainers

        # The trainers keep frequent characters first and drop the rest of the alphabet where the vocabulary has no room.
        settings: dict[str, Any] = {
            "vocab_size": self.vocab_size,
            "min_frequency": self.min_count,
            "special_tokens": list(SPECIALS),
            "show_progress": False,
        }
        if self.algorithm == "bpe":
            trainer: Any = trainers.BpeTrainer(initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), **settings)
        else:
            # Each character may stand alone (``x``) or inside a word (``##x``): half of the vocabulary at most.
            limit = max(1, (self.vocab_size - len(SPECIALS)) // 2)
            trainer = trainers.WordPieceTrainer(continuing_subword_prefix="##", limit_alphabet=limit, **settings)
        tokenizer.train_from_iterator(texts, trainer)

    def _fit_bytes(self, tokenizer: Tokenizer, texts: Iterable[str]) -> None:
        from tokenizers import models, pre_tokenizers

        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        tokenizer.model = models.BPE(vocab={token: i for i, token in enumerate([*SPECIALS, *alphabet])}, merges=[])

    def _fit_characters(self, tokenizer: Tokenizer, texts: Iterable[str]) -> None:
        from collections import Counter

        from tokenizers import models

        counts: Counter[str] = Counter()
        for text in texts:
            counts.update(tokenizer.normalizer.normalize_str(text).replace(" ", "▁"))
            counts["▁"] += 1
        known = [character for character, count in counts.items() if count >= self.min_count]
        # The most frequent ones where there is no room for all; ties by code point.
        known.sort(key=lambda character: (-counts[character], character))
        known = known[: self.vocab_size - len(SPECIALS)]
        vocabulary = {token: i for i, token in enumerate([*SPECIALS, *known])}
        tokenizer.model = models.BPE(vocab=vocabulary, merges=[], unk_token=UNKNOWN, fuse_unk=False)

    def _set_template(self, tokenizer: Tokenizer) -> None:
        from tokenizers import processors

        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{BEGIN} $A {SEPARATOR}",
            pair=f"{BEGIN} $A {SEPARATOR} $B:1 {SEPARATOR}:1",
            special_tokens=[(token, tokenizer.token_to_id(token)) for token in (BEGIN, SEPARATOR)],
        )


@contextmanager
def _one_thread() -> Iterator[None]:
    # Sums over chunks depend on how many threads share them, and with them the last bits of unigram's scores.
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ["TOKENIZERS_PARALLELISM"]
        else:
            os.environ["TOKENIZERS_PARALLELISM"] = before


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write a tokenizer as a folder that ``AutoTokenizer.from_pretrained`` loads."""
    tokenizer.save_pretrained(folder)


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Return the tokenizer that :func:`save_tokenizer` wrote."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)
