from __future__ import annotations

from itertools import pairwise

import pytest
from torch import nn

from mlmx.training.optim import adamw, learning_rate_factor


def factors(schedule: str, num_steps: int = 20, warmup_steps: int = 4, decay_ratio: float | None = None) -> list[float]:
    return [
        learning_rate_factor(step, schedule=schedule, num_steps=num_steps, warmup_steps=warmup_steps, decay_ratio=decay_ratio)
        for step in range(num_steps)
    ]


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant", "inverse_sqrt", "wsd"])
def test_warmup_rises_to_one_and_no_step_is_wasted(schedule):
    values = factors(schedule, decay_ratio=0.2 if schedule == "wsd" else None)
    assert values[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert all(0 < value <= 1 for value in values)
    assert all(after <= before for before, after in pairwise(values[4:]))


def test_values_by_hand():
    assert factors("linear")[12] == pytest.approx(0.5)
    assert factors("linear")[19] == pytest.approx(1 / 16)
    assert factors("cosine")[12] == pytest.approx(0.5)
    assert factors("inverse_sqrt")[19] == pytest.approx(0.5)
    assert factors("constant")[19] == 1
    assert factors("wsd", decay_ratio=0.2)[15:] == pytest.approx([1, 1, 0.75, 0.5, 0.25])


def test_biases_and_norms_do_not_decay():
    module = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 4), nn.LayerNorm(4))
    module[1].bias.requires_grad_(False)
    optimizer = adamw(module, learning_rate=1e-3, weight_decay=0.1, betas=(0.9, 0.999), eps=1e-8)
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decay[id(module[0].weight)] == 0.1
    assert decay[id(module[1].weight)] == 0.1
    assert decay[id(module[2].weight)] == 0.0
    assert id(module[1].bias) not in decay
