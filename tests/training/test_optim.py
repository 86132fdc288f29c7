from __future__ import annotations

from torch import nn

from mlmx.training.optim import adamw


def test_biases_and_norms_do_not_decay():
    module = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 4), nn.LayerNorm(4))
    module[1].bias.requires_grad_(False)
    optimizer = adamw(module, learning_rate=1e-3, weight_decay=0.1, betas=(0.9, 0.999), eps=1e-8)
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decay[id(module[0].weight)] == 0.1
    assert decay[id(module[1].weight)] == 0.1
    assert decay[id(module[2].weight)] == 0.0
    assert id(module[1].bias) not in decay
