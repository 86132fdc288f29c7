"""The smaller models inside an encoder are what a run of the whole one shows halfway."""

import pytest
import torch
from transformers import AutoModel

from mlmx.errors import UserError
from mlmx.models.truncate import keep_layers
from tests.objectives.tiny_pairs import batch_of, make_objective, tiny_encoder


@pytest.mark.parametrize("architecture", ["bert", "roberta"])
def test_a_shorter_model_hands_on_what_the_longer_one_does(architecture, tmp_path):
    whole = tiny_encoder(architecture=architecture).eval()
    batch = batch_of(make_objective("simcse"), range(6))
    with torch.no_grad():
        expected = whole.hidden_states(batch)[1]
        small = keep_layers(tiny_encoder(architecture=architecture).eval(), 1, where="--layers")
        assert torch.equal(small(batch), expected)
        small.save(tmp_path)
        loaded = AutoModel.from_pretrained(tmp_path).eval()
        row = batch.tensors["input_ids"][: batch.tensors["cu_seqlens"][1]]
        states = loaded(input_ids=row[None]).last_hidden_state[0]
    assert torch.allclose(states[:, :8], expected[: len(row), :8], atol=1e-6)


def test_a_model_with_a_norm_at_its_end_is_refused():
    with pytest.raises(UserError, match=r"--layers: 'modernbert' has a norm after its last layer"):
        keep_layers(tiny_encoder(architecture="modernbert"), 1, where="--layers")
