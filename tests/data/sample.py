"""A corpus in memory, and tokenizers trained on it, for the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache

from transformers import PreTrainedTokenizerFast

from mlmx.data.corpus import Corpus, Example, Segment
from mlmx.data.tokenizer import Algorithm, TrainedTokenizer

SENTENCES = [
    ("Ms Silva went to Colombo, did she?", "සිල්වා මහත්මිය කොළඹ ගියාය."),
    ("The committee (in Kandy) met on 3 May.", "ක්‍රියාකාරී කමිටුව මැයි 3 දා රැස් විය."),
    ("Sri Lanka is an island.", "ශ්‍රී ලංකාව දූපතකි."),
    ('"Hello", said the man; he didn\'t stay.', "ප්‍රියන්ත ගෙදර ගියේය!"),
]


class ListCorpus(Corpus):
    """A corpus of examples that are given."""

    def __init__(self, examples: Sequence[Example], languages: tuple[str, ...], num_sides: int) -> None:
        self.given = examples
        self.languages = languages
        self.num_sides = num_sides
        self.skipped = {}

    def examples(self) -> Iterator[Example]:
        yield from self.given


def pairs() -> ListCorpus:
    examples = [Example(f"memory:{i}", (Segment(en, "en"), Segment(si, "si"))) for i, (en, si) in enumerate(SENTENCES)]
    return ListCorpus(examples, ("en", "si"), num_sides=2)


def triplets() -> ListCorpus:
    (one, _), (two, _), (three, _), _ = SENTENCES
    examples = [Example(f"memory:{i}", tuple(Segment(text, "en") for text in texts)) for i, texts in enumerate([
        (one, two, three), (three, one, two),
    ])]  # fmt: skip
    return ListCorpus(examples, ("en",), num_sides=3)


def monolingual(texts: Sequence[str]) -> ListCorpus:
    return ListCorpus([Example(f"memory:{i}", (Segment(text, "en"),)) for i, text in enumerate(texts)], ("en",), num_sides=1)


@cache
def tokenizer(algorithm: Algorithm = "unigram", vocab_size: int = 400) -> PreTrainedTokenizerFast:
    trained = TrainedTokenizer(algorithm=algorithm, vocab_size=vocab_size, lowercase=False, normalization="nfc", min_count=1)
    return trained.train([text for pair in SENTENCES for text in pair] * 3)
