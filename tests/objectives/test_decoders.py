"""Every objective takes a decoder that is turned around, whose tokenizer puts no special tokens, or says what it lacks."""

from __future__ import annotations

import re

import pytest
import torch
from tiny_pairs import NAMES, VOCABULARY_SIZE, batch_of, make_objective
from transformers import AutoModelForCausalLM

from mlmx.errors import UserError
from mlmx.models.encoder import Encoder
from tests.models.test_encoder import config
from tests.tiny import numbered_tokenizer

# What a decoder may lack: a special token whose vector stands for a text, layers without a norm after the last one, positions that
# could be taken away.
LACKS = "special token|norm after its last layer|tells positions by other means"


def decoder(family: str) -> Encoder:
    tokenizer = numbered_tokenizer(VOCABULARY_SIZE)
    tokenizer._tokenizer.post_processor = None
    torch.manual_seed(0)
    encoder = Encoder(AutoModelForCausalLM.from_config(config(family, vocab_size=VOCABULARY_SIZE)), tokenizer)
    encoder.direct("bidirectional")
    return encoder


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("name", NAMES)
def test_an_objective_takes_a_turned_decoder_or_says_why_not(name, family):
    torch.set_num_threads(1)
    try:
        objective = make_objective(name, decoder(family))
    except UserError as error:
        if not all(re.search(LACKS, str(problem)) for problem in error.problems):
            raise
        return
    batch = batch_of(objective, range(16))
    terms = objective(batch).terms
    assert sum(batch.counts.values()) > 0
    assert all(torch.isfinite(term) for term in terms.values())
    sum(terms.values()).backward()
