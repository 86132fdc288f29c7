"""Tokenizers trained on the corpus, as ``tokenizers`` pipelines.

All of them cut a text into words first: at spaces, and around every punctuation mark or symbol (with the combining marks that
follow it). Combining marks and zero-width joiners stay inside their word, which Indic scripts need. So the word ids of all
algorithms agree, and masking a word never masks the comma behind it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
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
            "wordpiece": self._fit_wordpiece,
            "bpe": self._fit_bpe,
            "byte": self._fit_bytes,
            "character": self._fit_characters,
        }
        fit[self.algorithm](tokenizer, texts)

    def _fit_unigram(self, tokenizer: Tokenizer, texts: Iterable[str]) -> None:
        # With SentencePiece's trainer: that of `tokenizers` walks over its words in the order of a hash table that is seeded anew
        # in each process, and gives another vocabulary each time.
        from tokenizers import models

        counts = self._word_counts(tokenizer, texts)
        pieces = _train_sentencepiece(counts, self.vocab_size - len(SPECIALS))
        tokenizer.model = models.Unigram([(token, 0.0) for token in SPECIALS] + pieces, unk_id=SPECIALS.index(UNKNOWN))

    def _fit_wordpiece(self, tokenizer: Tokenizer, texts: Iterable[str]) -> None:
        # Merges are learned with a mark before each word and then renamed: `tokenizers` numbers ``##`` pieces in the order of a
        # hash table, on which ties, and so the vocabulary, depend.
        from tokenizers import Tokenizer, models, pre_tokenizers

        counts: Counter[str] = Counter()
        learner = Tokenizer(models.BPE())
        learner.normalizer = tokenizer.normalizer
        marking = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
        learner.pre_tokenizer = pre_tokenizers.Sequence([tokenizer.pre_tokenizer, marking])

        def counted() -> Iterator[str]:
            for text in texts:
                counts.update(tokenizer.normalizer.normalize_str(text))
                yield text

        self._learn_merges(learner, counted())
        # Each character may stand alone (``x``) or inside a word (``##x``).
        characters = self._most_frequent(counts, (self.vocab_size - len(SPECIALS)) // 2)
        known = set(characters)
        tokens = [*SPECIALS, *characters, *(f"##{character}" for character in characters)]
        by_id = sorted(learner.get_vocab().items(), key=lambda item: item[1])
        merged = [token for token, _ in by_id if token not in SPECIALS and known.issuperset(token.removeprefix("▁"))]
        tokens += [token[1:] if token.startswith("▁") else f"##{token}" for token in merged if len(token) > 1]
        vocabulary = {token: i for i, token in enumerate(list(dict.fromkeys(tokens))[: self.vocab_size])}
        tokenizer.model = models.WordPiece(vocab=vocabulary, unk_token=UNKNOWN, max_input_chars_per_word=100)

    def _fit_bpe(self, tokenizer: Tokenizer, texts: Iterable[str]) -> None:
        from tokenizers import pre_tokenizers

        self._learn_merges(tokenizer, texts, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()))

    def _learn_merges(self, tokenizer: Tokenizer, texts: Iterable[str], **settings: Any) -> None:
        from tokenizers import trainers

        trainer = trainers.BpeTrainer(
            vocab_size=self.vocab_size,
            min_frequency=self.min_count,
            special_tokens=list(SPECIALS),
            show_progress=False,
            **settings,
        )
        tokenizer.train_from_iterator(texts, trainer)

    def _fit_bytes(self, tokenizer: Tokenizer, texts: Iterable[str]) -> None:
        from tokenizers import models, pre_tokenizers

        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        tokenizer.model = models.BPE(vocab={token: i for i, token in enumerate([*SPECIALS, *alphabet])}, merges=[])

    def _fit_characters(self, tokenizer: Tokenizer, texts: Iterable[str]) -> None:
        from tokenizers import models

        counts: Counter[str] = Counter()
        for text in texts:
            counts.update(tokenizer.normalizer.normalize_str(text).replace(" ", "▁"))
            counts["▁"] += 1
        known = self._most_frequent(counts, self.vocab_size - len(SPECIALS))
        vocabulary = {token: i for i, token in enumerate([*SPECIALS, *known])}
        tokenizer.model = models.BPE(vocab=vocabulary, merges=[], unk_token=UNKNOWN, fuse_unk=False)

    def _most_frequent(self, counts: Counter[str], limit: int) -> list[str]:
        # Characters that occur often enough, the most frequent ones where there is no room for all; ties by code point.
        known = [character for character, count in counts.items() if count >= self.min_count and not character.isspace()]
        return sorted(known, key=lambda character: (-counts[character], character))[:limit]

    def _word_counts(self, tokenizer: Tokenizer, texts: Iterable[str]) -> Counter[str]:
        counts: Counter[str] = Counter()
        for text in texts:
            words = tokenizer.pre_tokenizer.pre_tokenize_str(tokenizer.normalizer.normalize_str(text))
            counts.update(word for word, _ in words)
        del counts["▁"]
        return counts

    def _set_template(self, tokenizer: Tokenizer) -> None:
        from tokenizers import processors

        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{BEGIN} $A {SEPARATOR}",
            pair=f"{BEGIN} $A {SEPARATOR} $B:1 {SEPARATOR}:1",
            special_tokens=[(token, tokenizer.token_to_id(token)) for token in (BEGIN, SEPARATOR)],
        )


def _train_sentencepiece(counts: Counter[str], vocab_size: int) -> list[tuple[str, float]]:
    """Return the pieces of a unigram model and their log probabilities."""
    import io

    import sentencepiece

    if not counts:
        raise user_error("corpus", "has no words to train a tokenizer on.")
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            # Sorted, so that nothing depends on the order of the corpus either.
            sentence_iterator=(f"{word}\t{count}" for word, count in sorted(counts.items())),
            input_format="tsv",
            model_writer=model,
            model_type="unigram",
            vocab_size=vocab_size + 1,  # with SentencePiece's own unknown token
            hard_vocab_limit=False,
            character_coverage=1.0,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            split_by_unicode_script=False,
            split_by_number=False,
            bos_id=-1,
            eos_id=-1,
            pad_id=-1,
            unk_id=0,
            # Sums depend on into how many parts they are cut, so the number is fixed whatever the machine has.
            num_threads=4,
            minloglevel=2,
        )
    except RuntimeError as error:
        message = f"a unigram vocabulary of {vocab_size + len(SPECIALS)} cannot be trained on this corpus: {error}"
        raise user_error("model.tokenizer.vocab_size", message) from error
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    return [(processor.id_to_piece(i), processor.get_score(i)) for i in range(1, processor.get_piece_size())]
