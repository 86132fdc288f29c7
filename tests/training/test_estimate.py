from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from toy_training import toy_encoder, toy_tokenizer

from mlmx.models.load import Scratch
from mlmx.training.estimate import estimate

CONF = Path(__file__).parents[2] / "conf"


def stage(kind: str, fingerprint: str, parents: dict[str, str], **spec) -> dict:
    return {"kind": kind, "fingerprint": fingerprint, "parents": parents, "spec": spec}


def group(name: str) -> dict:
    return yaml.safe_load((CONF / f"{name}.yaml").read_text())


@pytest.fixture(scope="module")
def chain() -> list[dict]:
    tokenizer = group("model/tiny")["tokenizer"] | {"vocab_size": 64}
    model = group("model/tiny") | {"tokenizer": tokenizer}
    return [
        stage(
            "pretrain", "a" * 64, {"tokenizer": "/none/prepare-tokenizer-cccccccc"}, model=model, trainer=group("trainer/pretrain")
        ),
        stage("finetune", "b" * 64, {"encoder": "/none/pretrain-mlm-aaaaaaaa"}, trainer=group("trainer/finetune")),
    ]


def test_numbers_of_a_chain_that_has_not_run(chain):
    pretrain, finetune = estimate(chain)
    settings = {key: value for key, value in chain[0]["spec"]["model"].items() if not key.startswith("_")}
    real = Scratch(toy_tokenizer(), **settings).build()
    assert pretrain["num_parameters"] == sum(parameter.numel() for parameter in real.parameters())
    assert pretrain["steps"] == chain[0]["spec"]["trainer"]["max_steps"]
    assert pretrain["tokens"] == pretrain["steps"] * chain[0]["spec"]["trainer"]["batch_tokens"]
    assert pretrain["memory_bytes"] > 16 * pretrain["num_parameters"]
    # The encoder of a stage that has yet to run is known from that stage's model.
    assert finetune["num_parameters"] == pretrain["num_parameters"]
    assert finetune["tokens"] is None


@pytest.mark.parametrize("axis", ["tokens", "flops"])
def test_what_full_batches_would_make_of_a_budget(chain, axis):
    (steps,) = estimate(chain[:1])
    trainer = chain[0]["spec"]["trainer"] | {"max_steps": None, f"max_{axis}": steps[axis]}
    record = {**chain[0], "spec": {**chain[0]["spec"], "trainer": trainer}}
    (costs,) = estimate([record])
    assert costs["budget"] == f"max_{axis}={steps[axis]:,}"
    assert {name: costs[name] for name in ("steps", "tokens", "flops")} == {
        name: steps[name] for name in ("steps", "tokens", "flops")
    }


def test_time_says_nothing_of_tokens(chain):
    trainer = chain[0]["spec"]["trainer"] | {"max_steps": None, "max_seconds": 3600}
    (costs,) = estimate([{**chain[0], "spec": {**chain[0]["spec"], "trainer": trainer}}])
    assert costs["budget"] == "max_seconds=3,600"
    assert costs["tokens"] is costs["steps"] is costs["flops"] is None


def test_a_finished_parent_is_read_from_its_folder(chain, tmp_path):
    torch.set_num_threads(1)
    encoder = toy_encoder()
    encoder.save(tmp_path / "pretrain-mlm-dddddddd" / "encoder")
    record = {**chain[1], "parents": {"encoder": str(tmp_path / "pretrain-mlm-dddddddd")}}
    (costs,) = estimate([record])
    assert costs["num_parameters"] == sum(parameter.numel() for parameter in encoder.parameters())


def test_as_a_program(chain):
    answer = subprocess.run(
        [sys.executable, "-m", "mlmx.training.estimate"],
        input=json.dumps(chain), capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    assert json.loads(answer.stdout) == estimate(chain)
