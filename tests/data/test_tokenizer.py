from __future__ import annotations

import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from sample import SENTENCES, tokenizer
from transformers import AutoTokenizer

from mlmx.data.encoding import PieceEncoder
from mlmx.data.tokenizer import TrainedTokenizer
from mlmx.data.vocabulary import Vocabulary
from mlmx.data.words import split_words
from mlmx.errors import UserError

ALGORITHMS = ["unigram", "wordpiece", "bpe", "byte", "character"]
TEXTS = [text for pair in SENTENCES for text in pair]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_round_trip_keeps_joiners(algorithm, tmp_path: Path) -> None:
    tokenizer(algorithm).save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    for text in TEXTS:
        decoded = loaded.decode(loaded(text)["input_ids"], skip_special_tokens=True)
        if algorithm == "wordpiece":  # which forgets where there were spaces
            text, decoded = text.replace(" ", ""), decoded.replace(" ", "")
        assert decoded == text
        assert loaded.unk_token_id not in loaded(text)["input_ids"]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_words_are_cut_at_spaces_and_punctuation_whatever_the_algorithm(algorithm) -> None:
    encoded = PieceEncoder(tokenizer(algorithm)).encode(TEXTS)
    for text, start, end in zip(TEXTS, *_runs(encoded.word_offsets), strict=True):
        assert list(map(tuple, encoded.word_spans[start:end].tolist())) == split_words(text)
    for start, end in zip(*_runs(encoded.piece_offsets), strict=True):
        assert set(np.diff(encoded.words[start:end]).tolist()) <= {0, 1}
        assert encoded.words[start] == 0


def _runs(offsets):
    return offsets[:-1], offsets[1:]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_vocabulary_and_pair_template(algorithm) -> None:
    trained = tokenizer(algorithm)
    vocabulary = Vocabulary.from_tokenizer(trained)
    begin, end = trained.cls_token_id, trained.sep_token_id
    assert (vocabulary.single.prefix, vocabulary.single.suffix) == ((begin,), (end,))
    assert (vocabulary.pair.prefix, vocabulary.pair.middle, vocabulary.pair.suffix) == ((begin,), (end,), (end,))
    assert vocabulary.pair.middle_split == 1
    assert vocabulary.mask_id == trained.mask_token_id
    assert vocabulary.special_ids == (0, 1, 2, 3, 4)
    ids = trained("a b", "c")["input_ids"]
    assert [i for i in ids if i in vocabulary.special_ids] == [begin, end, end]


def test_special_tokens_in_the_text_are_text() -> None:
    trained = tokenizer("byte")
    encoded = PieceEncoder(trained).encode(["[MASK] [SEP]"])
    assert not np.isin(encoded.pieces, trained.all_special_ids).any()


def test_byte_has_one_piece_per_byte() -> None:
    trained = tokenizer("byte")
    assert len(trained) == 261
    assert len(trained("ශ්‍රී", add_special_tokens=False)["input_ids"]) == len(" ශ්‍රී".encode())


def test_character_leaves_out_what_is_rare() -> None:
    settings = {"algorithm": "character", "lowercase": True, "normalization": "nfc"}
    trained = TrainedTokenizer(**settings, vocab_size=100, min_count=2).train(["AAA bb c"])
    assert set(trained.get_vocab()) - set(trained.all_special_tokens) == {"a", "b", "▁"}
    assert trained.decode(trained("Ac", add_special_tokens=False)["input_ids"]) == "a[UNK]"
    assert len(TrainedTokenizer(**settings, vocab_size=7, min_count=1).train(["AAA bb c"])) == 7


@pytest.mark.parametrize("algorithm", ["unigram", "wordpiece", "bpe"])
def test_more_ids_than_the_corpus_gives_are_not_made_up(algorithm) -> None:
    assert len(SENTENCES) < len(tokenizer(algorithm, 50_000)) < 5000


def test_training_is_the_same_in_every_process() -> None:
    # Hash tables of another process are seeded otherwise.
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from sample import tokenizer;"
        "print(*[tokenizer(name).backend_tokenizer.to_str() for name in sys.argv[2:]])"
    )
    run = [sys.executable, "-c", code, str(Path(__file__).parent), *ALGORITHMS]
    outputs = {subprocess.run(run, capture_output=True, text=True, check=True).stdout.strip() for _ in range(2)}
    assert outputs == {" ".join(tokenizer(name).backend_tokenizer.to_str() for name in ALGORITHMS)}


@pytest.mark.parametrize(("algorithm", "size"), [("byte", 260), ("bpe", 100), ("character", 5)])
def test_vocabularies_that_cannot_be(algorithm, size) -> None:
    with pytest.raises(UserError, match=r"vocab_size: .* is too small"):
        TrainedTokenizer(algorithm=algorithm, vocab_size=size, lowercase=False, normalization="nfc", min_count=1)


def test_unigram_without_room_for_its_characters() -> None:
    small = TrainedTokenizer(algorithm="unigram", vocab_size=10, lowercase=False, normalization="nfc", min_count=1)
    with pytest.raises(UserError, match="cannot be trained"):
        small.train(TEXTS)


def _sentencepiece_like():
    # As XLM-R cuts words: at spaces only, punctuation glued on.
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = ["<unk>", "<pad>", "▁", "▁Colombo", ",", "▁(", "Hello", ").", "▁don", "'", "t"]
    backend = Tokenizer(models.Unigram([(token, -1.0) for token in vocabulary], unk_id=0))
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", pad_token="<pad>")


def test_glued_punctuation_becomes_words_of_its_own() -> None:
    text = "Colombo, (Hello). don't"
    encoded = PieceEncoder(_sentencepiece_like()).encode([text])
    assert [text[a:b] for a, b in encoded.word_spans] == ["Colombo", ",", "(", "Hello", ").", "don", "'", "t"]


def test_words_that_gpt2s_pattern_cuts_at_vowel_signs_are_whole() -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = {token: i for i, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = Tokenizer(models.BPE(vocab=alphabet, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    for text in ("ශ්‍රී ලංකාව දූපතකි.", "don't (stop) 3 කොළඹ!", "naïve cafés"):
        encoded = PieceEncoder(PreTrainedTokenizerFast(tokenizer_object=backend)).encode([text])
        words = [text[a:b] for a, b in encoded.word_spans]
        assert "".join(words) == text.replace(" ", "")
        assert all(word in words for word in ("ශ්‍රී", "ලංකාව", "දූපතකි") if word in text)


def test_words_of_split_sentences_are_those_given() -> None:
    sentences = [["Ms", "Silva's", "U.S."], [], ["x"]]
    encoded = PieceEncoder(tokenizer("wordpiece")).encode_words(sentences)
    assert encoded.word_offsets.tolist() == [0, 3, 3, 4]
    assert [sorted(set(encoded.words[a:b].tolist())) for a, b in pairwise(encoded.piece_offsets)] == [[0, 1, 2], [], [0]]


def test_slow_tokenizers_are_refused() -> None:
    class Slow:
        is_fast = False

    with pytest.raises(UserError, match="slow"):
        PieceEncoder(Slow())  # type: ignore[arg-type]
