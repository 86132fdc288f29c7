from __future__ import annotations

import optimi
import pytest
import torch
from torch import nn
from toy_training import SETTINGS as TOY
from toy_training import ToyObjective, toy_encoder, train
from transformers import AlbertConfig, AlbertForMaskedLM

from mlmx.errors import UserError
from mlmx.models.encoder import Encoder
from mlmx.training.optim import StableAdamW, optimizer_for, set_learning_rate, step_unless
from mlmx.training.trainer import Stopped, Trainer
from tests.tiny import numbered_tokenizer
from tests.training.test_trainer import StopAfter, losses, same_state

SETTINGS = {"algorithm": "adamw", "learning_rate": 1e-3, "weight_decay": 0.1, "betas": (0.9, 0.999), "eps": 1e-8}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize("algorithm", ["adamw", "stable_adamw"])
def test_biases_and_norms_do_not_decay(algorithm):
    module = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 4), nn.LayerNorm(4))
    module[1].bias.requires_grad_(False)
    optimizer = optimizer_for(module, **{**SETTINGS, "algorithm": algorithm})
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decay[id(module[0].weight)] == 0.1
    assert decay[id(module[1].weight)] == 0.1
    assert decay[id(module[2].weight)] == 0.0
    assert id(module[1].bias) not in decay


def test_stable_adamw_is_what_another_implementation_is():
    torch.manual_seed(0)
    shapes = [(7, 5), (11,), ()]
    ours = [nn.Parameter(torch.randn(shape, dtype=torch.float64)) for shape in shapes]
    theirs = [nn.Parameter(parameter.detach().clone()) for parameter in ours]
    settings = {"lr": 0.01, "betas": (0.9, 0.99), "eps": 1e-6, "weight_decay": 0.1}
    optimizers = StableAdamW(ours, **settings), optimi.StableAdamW(theirs, **settings, foreach=False)
    for step in range(12):
        # A gradient that suddenly grows is what the method is for.
        factor = 30.0 if step in (5, 9) else 1.0
        for one, other in zip(ours, theirs, strict=True):
            one.grad = factor * torch.randn_like(one)
            other.grad = one.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("algorithm", ["adamw", "stable_adamw"])
@pytest.mark.parametrize("max_norm", [0.5, 100.0, None])
def test_shortening_within_the_step_is_clipping_before_it(algorithm, max_norm):
    torch.manual_seed(0)
    modules = nn.Linear(5, 3), nn.Linear(5, 3)
    modules[1].load_state_dict(modules[0].state_dict())
    within, before = (optimizer_for(module, **{**SETTINGS, "algorithm": algorithm}) for module in modules)
    for _ in range(4):
        for module in modules:
            module.zero_grad()
        inputs = torch.randn(7, 5)
        for module in modules:
            module(inputs).square().sum().backward()
        norm = nn.utils.clip_grad_norm_(modules[1].parameters(), max_norm or float("inf"))
        assert norm > 0.5
        step_unless(torch.zeros(()), within, norm=norm, max_norm=max_norm)
        before.step()
    for one, other in zip(*(module.parameters() for module in modules), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)


def test_stable_adamw_by_hand():
    parameter = nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
    optimizer = StableAdamW([parameter], lr=0.1, betas=(0.9, 0.99), eps=0.0, weight_decay=0.0)
    for gradient in ([1.0, 1.0], [3.0, 3.0]):
        parameter.grad = torch.tensor(gradient, dtype=torch.float64)
        optimizer.step()
    # First step: g^2 = u, so 0.1 * sign. Second: u = (0.99 * 0.01 + 0.01 * 9) / (1 - 0.99^2), the mean (0.09 + 0.3) / 0.19.
    u, mean = 0.0999 / 0.0199, 0.39 / 0.19
    step = 0.1 / (9 / u) ** 0.5 * mean / u**0.5
    assert parameter.tolist() == pytest.approx([1.0 - 0.1 - step, -2.0 - 0.1 - step])


def test_stable_adamw_trains_and_resumes_bitwise(tmp_path):
    whole, _ = train(tmp_path / "whole", optimizer="stable_adamw")
    train(tmp_path / "adamw")
    assert losses(tmp_path / "whole") != losses(tmp_path / "adamw")
    with pytest.raises(Stopped):
        train(tmp_path / "halves", optimizer="stable_adamw", processes=StopAfter(6))
    halves, _ = train(tmp_path / "halves", optimizer="stable_adamw")
    assert losses(tmp_path / "halves") == losses(tmp_path / "whole")
    assert same_state(whole, halves)


@pytest.mark.parametrize("architecture", ["bert", "modernbert"])
def test_layers_learn_the_slower_the_lower_they_are(architecture):
    objective = ToyObjective(toy_encoder(architecture))
    scales = Trainer(**{**TOY, "layer_decay": 0.5})._scales(objective.encoder)
    optimizer = optimizer_for(objective, **SETTINGS, scales=scales)
    set_learning_rate(optimizer, 0.8)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    first, second = objective.encoder.layers
    assert {rates[id(p)] for p in objective.parity.parameters()} == {0.8}
    assert {rates[id(p)] for p in second.parameters()} == {0.4}
    assert {rates[id(p)] for p in first.parameters()} == {0.2}
    embeddings = objective.encoder.base.get_input_embeddings().weight
    assert rates[id(embeddings)] == 0.1
    # The vocabulary matrix of the head is that of the embeddings.
    tied = {id(p) for p in objective.encoder.base.parameters()}
    assert {rates[id(p)] for p in objective.encoder.head.parameters() if id(p) not in tied} == {0.8}


def test_layer_decay_has_an_effect_and_none_is_one(tmp_path):
    train(tmp_path / "none")
    train(tmp_path / "one", layer_decay=1.0)
    train(tmp_path / "half", layer_decay=0.5)
    assert losses(tmp_path / "one") == losses(tmp_path / "none")
    assert losses(tmp_path / "half") != losses(tmp_path / "none")


def test_a_structure_without_a_list_of_layers_is_refused(tmp_path):
    config = AlbertConfig(
        vocab_size=64, embedding_size=16, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64
    )
    objective = ToyObjective(Encoder(AlbertForMaskedLM(config), numbered_tokenizer(64)))
    with pytest.raises(UserError, match="layers of 'albert' cannot be told"):
        train(tmp_path, objective=objective, layer_decay=0.5)
    with pytest.raises(UserError, match=r"trainer\.max_flops"):
        train(tmp_path, objective=objective, max_steps=None, max_flops=1e9)
    _, result = train(tmp_path, objective=objective, max_steps=1)
    assert result["flops"] is None
