from __future__ import annotations

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from mlmx.data.vocabulary import RowLayout, Vocabulary
from mlmx.errors import UserError

WORDS = ["<s>", "<pad>", "</s>", "<unk>", "a", "b", "<mask>"]


def tokenizer(single: str, pair: str, **special: str) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    used = [("<s>", 0), ("</s>", 2)]
    backend.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=used)
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>", **special)


def vocabulary(single: str, pair: str) -> Vocabulary:
    return Vocabulary.from_tokenizer(tokenizer(single, pair, pad_token="<pad>", mask_token="<mask>"))


def test_numbers_are_those_of_the_tokenizer():
    found = vocabulary("<s> $A </s>", "<s> $A </s> $B </s>")
    assert (found.size, found.mask_id, found.pad_id, found.special_ids) == (7, 6, 1, (0, 1, 2, 3, 6))
    assert found.ordinary_ids.tolist() == [4, 5]


@pytest.mark.parametrize(
    ("single", "pair", "layout"),
    [
        # BERT closes the first side; XLM-R also opens the second one.
        ("<s> $A </s>", "<s> $A </s> $B </s>", RowLayout((0,), (2,), (2,), 1)),
        ("<s> $A </s>", "<s> $A </s> </s> $B </s>", RowLayout((0,), (2,), (2, 2), 1)),
        ("$A </s>", "$A </s> $B </s>", RowLayout((), (2,), (2,), 1)),
        ("$A", "$A $B", RowLayout((), ())),
        # What stands between the sides need not be what ends a row.
        ("<s> $A", "<s> $A </s> $B", RowLayout((0,), (), (2,), 0)),
        ("$A </s>", "$A <s> $B </s>", RowLayout((), (2,), (0,), 1)),
    ],
)
def test_templates_are_read_off_the_tokenizer(single, pair, layout):
    assert vocabulary(single, pair).pair == layout
    assert layout.num_special == len(layout.prefix) + len(layout.middle) + len(layout.suffix)


def test_sides_with_specials_of_their_own():
    found = vocabulary("<s> $A </s>", "<s> $A </s> </s> $B </s>")
    assert found.pair_layout("template") == found.pair
    assert found.pair_layout("own") == RowLayout((0,), (2,), (2, 0), 1)


def test_a_tokenizer_without_padding_is_refused_and_one_without_mask_is_not():
    found = tokenizer("$A", "$A $B")
    assert Vocabulary.from_tokenizer(found).pad_id == found.eos_token_id  # stands for it, since nobody sees padding
    found.eos_token = None
    with pytest.raises(UserError, match="no padding token"):
        Vocabulary.from_tokenizer(found)
    assert Vocabulary.from_tokenizer(tokenizer("$A", "$A $B", pad_token="<pad>")).mask_id is None
