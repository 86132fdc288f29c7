"""The same command typed again: everything is reused, and nothing heavy is imported."""

import json

from tests.integration.chains import BITEXT, mlmx, stages, summaries

HEAVY = ("torch", "transformers", "datasets", "wandb", "sklearn", "scipy", "tokenizers", "pyarrow")

# Runs in every Python process that sees it on its path.
WITNESS = """
import atexit, json, os, sys
def tell():
    with open(os.environ["WITNESS"], "a") as file:
        file.write(json.dumps({"argv": sys.argv, "modules": sorted(name for name in sys.modules if "." not in name)}) + "\\n")
atexit.register(tell)
"""


def test_the_same_command_again(finished, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(WITNESS)
    variables = {"PYTHONPATH": str(tmp_path), "WITNESS": str(tmp_path / "witness.jsonl")}
    before = {one.path: one.result_path.stat().st_mtime_ns for one in stages(finished)}
    said = mlmx(*BITEXT, "tracker=wandb", "tracker.mode=offline", outputs=finished, variables=variables)
    assert said.count("reused") == len(before) == 4
    assert "running in" not in said
    processes = [json.loads(line) for line in (tmp_path / "witness.jsonl").read_text().splitlines()]
    assert len(processes) == 1
    assert not set(HEAVY) & set(processes[0]["modules"])
    assert {one.path: one.result_path.stat().st_mtime_ns for one in stages(finished)} == before
    first, again = (summary for summary in summaries(finished))
    assert again["scores"] == first["scores"]
    assert [one["reused"] for one in again["stages"]] == [True] * 4


def test_what_has_no_effect_on_results_is_reused_too(finished):
    settings = ["trainer.checkpoint_every_steps=7", "parallel.num_processes=2", "trainer.micro_batch_tokens=128"]
    assert mlmx(*BITEXT, *settings, outputs=finished).count("reused") == 4
