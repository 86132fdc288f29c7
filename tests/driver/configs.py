"""Frozen configs of made-up components, for tests of the driver."""

import copy
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def frozen(outputs: Path, **changes: Any) -> dict[str, Any]:
    """Return a chain of one pretraining and a task; dotted keys (with __ for .) change settings."""
    objective = {
        "_target_": "mlmx.x.Objective",
        "_version_": 1,
        "_name_": "mlm",
        "_no_effect_": ["log_every"],
        "rate": 0.15,
        "log_every": 5,
    }
    config: dict[str, Any] = {
        "name": "test",
        "seed": 0,
        "chain": ["pretrain"],
        "stages": {
            "pretrain": {
                "objective": {**objective, "behaviour": "finish"},
                "corpus": corpus("microworld"),
                "annotator": None,
                "trainer": {"_target_": "mlmx.x.Trainer", "_version_": 1, "_name_": "pretrain", "max_steps": 10},
            }
        },
        "model": {"_target_": "mlmx.x.Scratch", "_version_": 1, "_name_": "tiny", "width": 8, "tokenizer": tokenizer()},
        "corpus": corpus("microworld"),
        "task": {
            "bitext": {"_target_": "mlmx.x.Bitext", "_version_": 1, "_name_": "bitext", "name": "bitext", "behaviour": "finish"}
        },
        "parallel": {
            "num_processes": 1,
            "num_nodes": 1,
            "rendezvous": None,
            "num_shards": 1,
            "device": "cpu",
            "num_threads": 1,
            "max_restarts": 0,
            "timeout_seconds": 60,
            "time_limit_minutes": None,
            "peak_flops": None,
        },
        "tracker": {"mode": "disabled", "project": "mlmx", "entity": None},
        "outputs": str(outputs),
        "plugins": [],
        "places": {f"stages.pretrain.{group}": group for group in ("objective", "corpus", "annotator", "trainer")},
        "sweep_metric": None,
    }
    config = copy.deepcopy(config)
    for key, value in changes.items():
        *path, last = key.split("__")
        node = config
        for part in path:
            node = node[part]
        node[last] = value
    return config


def corpus(name: str) -> dict[str, Any]:
    return {"_target_": "mlmx.x.Corpus", "_version_": 1, "_name_": name, "_parallel_": True, "seed": 0, "behaviour": "finish"}


def tokenizer() -> dict[str, Any]:
    return {"_target_": "mlmx.x.Tokenizer", "_version_": 1, "vocab_size": 10, "behaviour": "finish"}


def driver_command(config: dict[str, Any], run_dir: Path) -> list[str]:
    """Return a command that runs a chain with the fake worker in a process of its own."""
    program = f"""
import json, sys
from pathlib import Path
from mlmx.driver import chain, execute
from mlmx.errors import UserError
execute.check = lambda placed, config, fresh: None  # The components are made up.
config = json.loads({json.dumps(config)!r})
try:
    chain.run(config, run_dir=Path({str(run_dir)!r}), overrides=[], worker="tests.driver.fake_worker")
finally:
    print("HEAVY", [name for name in ("torch", "transformers", "datasets", "wandb") if name in sys.modules], flush=True)
"""
    return [sys.executable, "-c", program]
