"""Real chains of real workers, as small as they can be, started as a user starts them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from mlmx.stage import StageDir
from tests.training.test_tracking import environment as without_keys

ROOT = Path(__file__).parents[2]

# What decides results.
SETTINGS = [
    "experiment=demo",
    "corpus.num_pairs=200",
    "model.tokenizer.vocab_size=500",
    "model.num_layers=1",
    "model.hidden_size=32",
    "model.intermediate_size=64",
    "trainer.max_steps=20",
    "trainer.batch_tokens=512",
]
BITEXT = ["task=[bitext]", "task.bitext.data.num_pairs=50"]
BOTH_TASKS = ["task=[bitext,sentiment]", "task.bitext.data.num_pairs=50"]
BOTH_TASKS += [f"task.sentiment.data.num_{split}={number}" for split, number in (("train", 64), ("dev", 16), ("test", 32))]
# What does not.
EXECUTION = ["tracker=none", "parallel.device=cpu", "parallel.num_threads=1", "trainer.log_every_steps=1"]
# What must not be found in anything that is written.
SECRETS = {"WANDB_API_KEY": "0123456789abcdef" * 2 + "01234567", "HF_TOKEN": "hf_AbCdEfGhIjKlMnOpQrStUvWxYz"}
SECONDS = float(os.environ.get("MLMX_TEST_SECONDS", "240"))  # A busy machine needs longer.


def command(*arguments, outputs, settings=SETTINGS, name="run"):
    return [sys.executable, "-m", "mlmx", name, *settings, *EXECUTION, f"outputs={outputs}", *arguments]


def environment(**variables):
    return {**without_keys(), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **variables}


def mlmx(*arguments, outputs, code=0, variables=None, seconds=SECONDS, **options):
    """Type a command; return what it printed."""
    done = subprocess.run(
        command(*arguments, outputs=outputs, **options),
        cwd=ROOT,
        env=environment(**(variables or {})),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=seconds,
        check=False,
    )
    assert done.returncode == code, f"exit code {done.returncode}\n{done.stdout}"
    return done.stdout


def stages(outputs, kind="*"):
    return [StageDir(path) for path in sorted((Path(outputs) / "stages").glob(f"{kind}-*"))]


def stage(outputs, kind):
    (found,) = stages(outputs, kind)
    return found


def summaries(outputs):
    """Return the summaries of all runs, the oldest first."""
    paths = sorted((Path(outputs) / "runs").glob("*/summary.json"), key=lambda path: path.stat().st_mtime_ns)
    return [json.loads(path.read_text()) for path in paths]


def metrics(directory):
    return [json.loads(line) for line in directory.metrics_path.read_text().splitlines()]


def results(outputs):
    """Return everything that must not depend on how a chain came to its end."""
    found = {}
    for one in stages(outputs):
        assert one.finished, one
        files = [path for folder in (one.encoder_dir, one.data_dir, one.tokenizer_dir) for path in sorted(folder.glob("*"))]
        for path in [*files, one.model_path, one.predictions_path]:
            if path.is_file():
                found[f"{one.path.name}/{path.relative_to(one.path)}"] = path.read_bytes()
        found[f"{one.path.name}/scores"] = one.result().get("scores")
        if one.metrics_path.exists():
            found[f"{one.path.name}/losses"] = [(line["step"], line["loss"]) for line in metrics(one)]
    return found
