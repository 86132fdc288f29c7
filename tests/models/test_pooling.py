"""Which token may stand for a text, and what a training says of it."""

from __future__ import annotations

import pytest

from mlmx.errors import UserError
from mlmx.models.load import load_encoder
from mlmx.models.pooling import require_pooling, train_pooling
from mlmx.models.sentence import SentenceModel
from tests.tiny import scratch_encoder, word_tokenizer

WORDS = ("w0", "w1", "w2")


def test_a_first_token_that_knows_nothing_of_the_text_is_refused():
    causal = scratch_encoder(word_tokenizer(WORDS), max_length=16, attention="causal")
    with pytest.raises(UserError, match=r"task.x.pooling: the first token of a causal encoder sees nothing"):
        require_pooling(causal, "cls", where="task.x.pooling")
    require_pooling(causal, "mean", where="task.x.pooling")
    words = word_tokenizer(WORDS)
    words._tokenizer.post_processor = None
    with pytest.raises(UserError, match=r"model: its tokenizer puts no special token before a text"):
        require_pooling(scratch_encoder(words, max_length=16), "cls", where="model")


def test_tasks_and_the_exported_folder_pool_as_was_trained(tmp_path):
    encoder = scratch_encoder(word_tokenizer(WORDS), max_length=16)
    train_pooling(encoder, "cls", normalize=True, where="objective.pooling")
    encoder.save(tmp_path)
    loaded = load_encoder(tmp_path).sentence
    assert loaded is not None
    assert (loaded.pooling, loaded.normalize) == ("cls", True)


def test_what_the_folder_said_of_texts_stays():
    encoder = scratch_encoder(word_tokenizer(WORDS), max_length=16)
    encoder.sentence = SentenceModel(
        pooling="mean", normalize=True, max_length=12, prompts={"query": "q: "}, default_prompt="query", width=8,
        other_modules=("Dense",),
    )  # fmt: skip
    train_pooling(encoder, "max", normalize=False, where="objective.pooling")
    assert encoder.sentence == SentenceModel(
        pooling="max", normalize=False, max_length=12, prompts={"query": "q: "}, default_prompt="query"
    )
