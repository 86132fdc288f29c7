"""Every objective takes a decoder that is turned around, whose tokenizer puts no special tokens, or says what it lacks."""

from __future__ import annotations

import pytest
import torch
from tiny_pairs import NAMES, VOCABULARY_SIZE, batch_of, make_objective, node_of
from transformers import AutoModelForCausalLM

from mlmx.errors import UserError
from mlmx.models.encoder import Encoder
from tests.models.test_encoder import config
from tests.tiny import numbered_tokenizer

# They need the vector of a special token, or see nothing where all is hidden; word embeddings of a width of their own.
REFUSED = {
    "dupmae": "puts no special token before a text",
    "matryoshka2d": "norm after its last layer",
    "position_prediction": "tells positions by other means|puts no special tokens around a text",
    "prop": "special token",
    "retromae": "puts no special token before a text",
    "simcse": "puts no special token before a text",
    "simcse_supervised": "puts no special token before a text",
    "starbucks_smae": "norm after its last layer|puts no special token before a text",
    "starbucks_srl": "norm after its last layer|puts no special token before a text",
}


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
    encoder = decoder(family)
    if name in REFUSED:
        with pytest.raises(UserError, match=REFUSED[name]):
            make_objective(name, encoder)
        return
    objective = make_objective(name, encoder)
    batch = batch_of(objective, range(16))
    terms = objective(batch).terms
    assert sum(batch.counts.values()) > 0
    assert all(torch.isfinite(term) for term in terms.values())
    sum(terms.values()).backward()
    assert node_of(name)["_target_"].startswith("mlmx.objectives.")
