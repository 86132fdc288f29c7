"""What the docs show is run: each command of a ```bash block; and the generated pages are those that would be made now."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline", "OMP_NUM_THREADS": "1"}
# The commands are as in the docs; only their size is not: a sweep of 2 x 3 jobs is one of 2 x 1.
SMALL = [
    *["trainer.max_steps=4", "trainer.batch_tokens=512", "model.tokenizer.vocab_size=400", "model.hidden_size=32"],
    *["model.intermediate_size=64", "tracker=none"],
]
SMALL_MICROWORLD = ["corpus.num_pairs=200"]
SMALL_TASKS = ["task.sentiment.data.num_train=64", "task.sentiment.trainer.max_epochs=1", "task.bitext.data.num_pairs=50"]


def commands_of(document: str) -> list[str]:
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / document).read_text(encoding="utf-8"), flags=re.DOTALL)
    lines = [line.split("#")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line and not line.startswith("make ")]


def small(arguments: list[str]) -> list[str]:
    if arguments[0] not in ("run", "plan", "preview", "pretrain"):
        return arguments
    given = [argument.replace("seed=0,1,2", "seed=0") for argument in arguments]
    sizes = SMALL + ([] if any(argument.startswith("corpus=") for argument in given) else SMALL_MICROWORLD)
    return given + sizes + (SMALL_TASKS if given[0] in ("run", "plan") else [])


@pytest.mark.timeout(900)
@pytest.mark.parametrize("document", ["README.md", "docs/guide.md"])
def test_every_command_of_the_docs_runs(document, tmp_path):
    commands = commands_of(document)
    assert any(command.startswith("mlmx ") for command in commands)
    for command in commands:
        if command.startswith("mlmx "):
            arguments = [sys.executable, "-m", "mlmx", *small(shlex.split(command)[1:])]
        else:
            arguments = ["sh", "-c", command]
        done = subprocess.run(arguments, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, timeout=280, check=False)
        assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        assert done.stdout.strip() or not command.startswith("mlmx "), command


def test_the_generated_pages_are_up_to_date():
    command = [sys.executable, str(ROOT / "scripts" / "generate_docs.py"), "--check"]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md", "docs/guide.md", "docs/wandb.md", "docs/results.md"])
def test_links_lead_somewhere(document):
    path = ROOT / document
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", path.read_text(encoding="utf-8")):
        assert target.startswith("https://") or (path.parent / target).exists(), f"{document}: {target}"
