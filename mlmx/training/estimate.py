"""What training stages will cost, without running or downloading anything but a config.

``python -m mlmx.training.estimate`` reads a JSON list of stage configs on stdin, in the order in which they would run, their
``parents`` being absolute paths, and prints a JSON list of mappings with ``num_parameters``, ``tokens``, ``steps``, ``flops``,
``memory_bytes`` and ``budget``, the setting that ends the training; null where a number cannot be known. The number that is the
budget is exact; the others are what full batches would make of it. Parameters and FLOPs are those of the objective, on a sample of
its rows, where all the stages before are finished (``counted``); otherwise those of the encoder and its language-model head on
half-long rows. ``problem`` says why the objective cannot be trained, if so.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from mlmx.build import build, settings_of
from mlmx.errors import UserError
from mlmx.models.encoder import language_model_class
from mlmx.models.flops import attention_flops, linear_flops, num_linear_weights
from mlmx.models.load import Pretrained, Scratch, load_config, load_tokenizer
from mlmx.stage import StageDir
from mlmx.training.preview import Preview

# Weights, gradients and AdamW's two moments, all float32.
_BYTES_PER_PARAMETER = 16
# Vectors of width `hidden_size` that a layer keeps for the backward pass: inputs of projections and norms, queries, keys, values,
# residuals. Counted for BERT; good to a factor of two.
_KEPT_PER_LAYER = 12
# How much of a batch meets the vocabulary head; more than the usual mask ratios.
_PREDICTED_RATIO = 0.2
_SAMPLE_ROWS = 500

# A task cuts its own rows; this is the default of all of them.
_TASK_ROW_TOKENS = 128

_BUDGETS = ("max_steps", "max_epochs", "max_tokens", "max_supervised_tokens", "max_seconds", "max_flops")


def estimate(stages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the costs of each stage.

    Args:
        stages: configs as in ``config.yaml``; parents are absolute paths.
    """
    return [_costs(stage, {stage["fingerprint"][:8]: stage for stage in stages}) for stage in stages]


def _costs(stage: Mapping[str, Any], others: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    trainer = settings_of(stage["spec"]["trainer"])
    costs: dict[str, Any] = {"num_parameters": None, "steps": None, "tokens": None, "flops": None, "memory_bytes": None}
    budget = {name: value for name, value in trainer.items() if name in _BUDGETS and value is not None}
    costs["budget"] = ", ".join(
        f"{name}={value:,}" if isinstance(value, int) else f"{name}={value:g}" for name, value in budget.items()
    )
    costs |= {axis: budget[f"max_{axis}"] for axis in ("steps", "tokens", "flops") if f"max_{axis}" in budget}
    batch_tokens = trainer.get("batch_tokens")
    config = _config(stage, others)
    model = None if config is None else _model(config)
    if config is None or model is None:
        _fill(costs, batch_tokens, None)
        return costs
    try:
        counted = _counted(stage)
    except UserError as error:
        counted, costs["problem"] = None, str(error)
    costs["counted"] = counted is not None
    costs["num_parameters"], flops_per_token = counted or (
        num_parameters(model),
        _flops_per_token(model, trainer, predicts=stage["kind"] == "pretrain"),
    )
    _fill(costs, batch_tokens, flops_per_token)
    tokens = min((size for size in (batch_tokens, trainer.get("micro_batch_tokens")) if size), default=None)
    if trainer.get("batch_examples"):
        tokens = min(tokens or sys.maxsize, trainer["batch_examples"] * (trainer["max_length"] or _TASK_ROW_TOKENS))
    if tokens is not None:
        size = 2 if trainer.get("precision") == "bfloat16" else 4
        inner = 2 * getattr(config, "intermediate_size", 4 * config.hidden_size)
        per_token = size * config.num_hidden_layers * (_KEPT_PER_LAYER * config.hidden_size + inner)
        # Logits, their softmax and its gradient are float32 whatever the precision.
        head = 3 * 4 * _PREDICTED_RATIO * config.vocab_size if stage["kind"] == "pretrain" else 0
        costs["memory_bytes"] = int(costs["num_parameters"] * _BYTES_PER_PARAMETER + tokens * (per_token + head))
    return costs


def _fill(costs: dict[str, Any], batch_tokens: int | None, flops_per_token: float | None) -> None:
    # From the number that is given to the others; full batches are assumed.
    if costs["tokens"] is None and costs["steps"] is not None and batch_tokens:
        costs["tokens"] = costs["steps"] * batch_tokens
    if costs["tokens"] is None and costs["flops"] is not None and flops_per_token:
        costs["tokens"] = round(costs["flops"] / flops_per_token)
    if costs["steps"] is None and costs["tokens"] is not None and batch_tokens:
        costs["steps"] = -(-costs["tokens"] // batch_tokens)
    if costs["flops"] is None and costs["tokens"] is not None and flops_per_token:
        costs["flops"] = round(costs["tokens"] * flops_per_token)


def _flops_per_token(model: PreTrainedModel, trainer: Mapping[str, Any], *, predicts: bool) -> float:
    base, config = model.base_model, model.config
    length = np.array([(trainer["max_length"] or _TASK_ROW_TOKENS) // 2 or 1])
    attention = attention_flops(config.hidden_size, length, [None] * config.num_hidden_layers) / int(length[0])
    head = num_linear_weights(model) - num_linear_weights(base) if predicts else 0
    return linear_flops(num_linear_weights(base, without="pooler"), 1) + attention + _PREDICTED_RATIO * linear_flops(head, 1)


def _counted(stage: Mapping[str, Any]) -> tuple[int, float] | None:
    # Parameters of a pretraining's objective and FLOPs per token; None where the stages before are not finished.
    if stage["kind"] != "pretrain" or not all(StageDir(path).finished for path in stage["parents"].values()):
        return None
    with tempfile.TemporaryDirectory(prefix="mlmx-estimate-") as folder:
        StageDir(folder).write_config(stage)
        preview = Preview.of(StageDir(folder))
    batch = preview.batch(preview.sample(_SAMPLE_ROWS))
    flops = preview.objective.flops(batch)
    return num_parameters(preview.objective), flops / batch.num_tokens


def num_parameters(module: nn.Module) -> int:
    """Return how many numbers are trained or kept in a module, shared ones once."""
    return sum(parameter.numel() for parameter in module.parameters())


def _model(config: PreTrainedConfig) -> PreTrainedModel | None:
    with torch.device("meta"):
        try:
            return language_model_class(config).from_config(config)
        except ValueError:
            return None


def _config(stage: Mapping[str, Any], others: Mapping[str, Mapping[str, Any]]) -> PreTrainedConfig | None:
    # The model is the stage's own, that of a finished parent, or that of a parent among the stages still to run.
    parents = {role: Path(path) for role, path in stage["parents"].items()}
    for role in ("encoder", "model"):
        if role in parents:
            if (parents[role] / "encoder" / "config.json").exists():
                return load_config(parents[role])
            parent = others.get(parents[role].name.rpartition("-")[2])
            return _config(parent, others) if parent is not None else None
    node = stage["spec"].get("model")
    if node is None:
        return None
    model = build({**node, "tokenizer": None} if "tokenizer" in node else node, None, where="model")
    if isinstance(model, Pretrained):
        return model.config()
    assert isinstance(model, Scratch)
    tokenizer = parents.get("tokenizer", Path()) / "tokenizer"
    trained = (tokenizer / "tokenizer_config.json").exists()
    return model.config(len(load_tokenizer(tokenizer)) if trained else node["tokenizer"]["vocab_size"])


if __name__ == "__main__":
    sys.stdout.write(json.dumps(estimate(json.load(sys.stdin))))
