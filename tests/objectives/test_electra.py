from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_pairs import batch_of, make_objective, rows_of, tiny_encoder
from transformers import AutoModel, AutoModelForMaskedLM

from mlmx.errors import UserError
from mlmx.models import cross_entropy
from mlmx.models.cross_entropy import cross_entropy_and_samples


def discriminator_input(objective, batch, monkeypatch):
    """What the encoder reads."""
    seen = []
    forward = type(objective.encoder).forward

    def recorded(encoder, given):
        if encoder is objective.encoder:
            seen.append(given.tensors["input_ids"])
        return forward(encoder, given)

    monkeypatch.setattr(type(objective.encoder), "forward", recorded)
    output = objective(batch)
    return seen[0], output


def test_the_discriminator_reads_what_was_made_up_and_no_mask(monkeypatch):
    objective = make_objective("electra", mask_ratio=0.5)
    rows = rows_of(objective).take(np.arange(48))
    batch = batch_of(objective, range(48))
    read, output = discriminator_input(objective, batch, monkeypatch)
    assert not np.isin(read.numpy()[~rows.special], objective.encoder.vocabulary.special_ids).any()
    changed = (read.numpy() != rows.input_ids).nonzero()[0]
    selected = batch.tensors["selected"].numpy()
    assert set(changed) <= set(selected)
    assert len(changed) > 0.8 * len(selected)  # a fresh generator guesses hardly any of a hundred words
    assert float(output.metrics["replaced_ratio"][0]) == len(changed)
    assert float(output.metrics["replaced_ratio"][1]) == len(rows.input_ids) == batch.counts["detection"]


@pytest.mark.parametrize(("parity", "part"), [("released_code", 0.85), ("paper", 1.0)])
def test_what_the_generator_sees(parity, part):
    objective = make_objective("electra", mask_ratio=0.9, parity=parity)
    batch = batch_of(objective, range(48))
    given, targets = batch.tensors["input_ids"][batch.tensors["selected"]], batch.tensors["targets"]
    masked = given == objective.encoder.vocabulary.mask_id
    assert (given[~masked] == targets[~masked]).all()
    assert masked.float().mean().item() == pytest.approx(part, abs=4 * (part * (1 - part) / len(targets)) ** 0.5)


def test_a_right_guess_is_an_original(monkeypatch):
    objective = make_objective("electra", mask_ratio=0.5)
    batch = batch_of(objective, range(16))

    class Knows(torch.nn.Module):
        def forward(self, hidden):
            return 100.0 * torch.nn.functional.one_hot(batch.tensors["targets"], objective.encoder.vocabulary.size).float()

    objective.generator.head = Knows()
    output = objective(batch)
    assert float(output.metrics["replaced_ratio"][0]) == 0
    assert float(output.metrics["generator_accuracy"][0]) == len(batch.tensors["targets"])


def test_detection_reaches_the_generator_through_the_word_embeddings_only():
    objective = make_objective("electra")
    objective(batch_of(objective, range(16))).terms["detection"].backward()
    shared = objective.encoder.base.get_input_embeddings().weight
    assert objective.generator.base.get_input_embeddings().weight.data_ptr() == shared.data_ptr()
    with_gradient = {p for p in objective.generator.parameters() if p.grad is not None and p.grad.any()}
    assert with_gradient == {shared}
    # One parameter: the optimiser moves it once.
    assert sum(p is shared for p in objective.parameters()) == 1


def test_samples_follow_the_probabilities_and_are_never_forbidden(monkeypatch):
    torch.manual_seed(0)
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, 3.0])
    number = 40_000

    class Head(torch.nn.Module):
        def forward(self, hidden):
            return logits.expand(len(hidden), -1)

    forbidden = torch.tensor([False, False, True, False, True])
    draws = (torch.arange(number, dtype=torch.float64) + 0.5) / number
    draws[-1] = np.nextafter(1.0, 0.0)
    arguments = (Head(), torch.zeros(number, 1), torch.zeros(number, dtype=torch.int64))
    _, _, samples = cross_entropy_and_samples(*arguments, draws_P=draws, forbidden_V=forbidden)
    weights = torch.where(forbidden, 0.0, logits.exp())
    np.testing.assert_allclose(np.bincount(samples, minlength=5) / number, weights / weights.sum(), atol=1e-3)
    monkeypatch.setattr(cross_entropy, "MAX_LOGITS", 5 * 999)
    loss, hits, again = cross_entropy_and_samples(*arguments, draws_P=draws, forbidden_V=forbidden)
    assert torch.equal(again, samples)
    assert loss.item() == pytest.approx(-number * torch.log_softmax(logits, 0)[0].item(), rel=1e-5)
    assert hits == 0


def test_the_generators_size():
    objective = make_objective("electra", tiny_encoder(hidden_size=64), generator_ratio=0.5)
    config = objective.generator.base.config
    assert (config.hidden_size, config.embedding_size, config.intermediate_size) == (32, 64, 128)
    assert config.num_hidden_layers == objective.encoder.num_layers
    with pytest.raises(UserError, match=r"generator_ratio: 0.001 of a width of 32 leaves nothing"):
        make_objective("electra", generator_ratio=0.001)


@pytest.mark.parametrize("export", ["discriminator", "generator"])
def test_what_is_exported_loads_with_nothing_missing(tmp_path, export):
    objective = make_objective("electra", export=export)
    objective.export(tmp_path)
    loader = AutoModel if export == "discriminator" else AutoModelForMaskedLM
    model, told = loader.from_pretrained(tmp_path, output_loading_info=True)
    # BERT's pooler is no part of a masked language model.
    assert not [key for key in told["missing_keys"] if "pooler" not in key]
    assert not told["unexpected_keys"]
    exported = objective.encoder if export == "discriminator" else objective.generator
    assert torch.equal(model.get_input_embeddings().weight, exported.base.get_input_embeddings().weight)
