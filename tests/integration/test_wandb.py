"""W&B beside a real chain: what it shows can be read back, and its failures are not the run's."""

import json

from tests.integration.chains import metrics, mlmx, stage, summaries
from tests.training.test_tracking import only_run

BROKEN = "raise RuntimeError('wandb is broken')\n"


def config_of(records):
    (start,) = [record.run for record in records if record.HasField("run")]
    return start, {item.key: json.loads(item.value_json) for item in start.config.update}


def summary_of(records):
    items = [item for record in records if record.HasField("summary") for item in record.summary.update]
    return {item.key or item.nested_key[0]: json.loads(item.value_json) for item in items}


def test_stage_runs_and_the_chain_run_can_be_read_back(finished):
    pretrained, judged = stage(finished, "pretrain"), stage(finished, "eval")
    records = only_run(pretrained.path)
    start, config = config_of(records)
    assert (start.job_type, start.run_id) == ("pretrain", pretrained.config()["fingerprint"][:16])
    assert config["objective"] == "tlm"
    history = [
        {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
        for record in records
        if record.HasField("history")
    ]
    assert [(line["step"], line["loss"]) for line in history] == [(line["step"], line["loss"]) for line in metrics(pretrained)]

    records = only_run(judged.path)
    start, _ = config_of(records)
    assert (start.job_type, start.run_group) == ("eval", pretrained.path.name)
    scores = {f"{score['task']}/{score['split']}/{score['metric']}": score["value"] for score in judged.result()["scores"]}
    assert scores
    assert scores.items() <= summary_of(records).items()

    first = summaries(finished)[0]
    (run_dir,) = [path.parents[1] for path in (finished / "runs").glob("*/wandb/offline-run-*")]
    records = only_run(run_dir)
    start, config = config_of(records)
    assert (start.job_type, start.display_name) == ("chain", run_dir.name)
    assert config["seed"] == first["seed"]
    assert scores.items() <= summary_of(records).items()


def test_a_broken_wandb_does_not_fail_the_run(prepared, tmp_path):
    (tmp_path / "wandb").mkdir()
    (tmp_path / "wandb" / "__init__.py").write_text(BROKEN)
    arguments = ["task=[]", "trainer.max_steps=1", "tracker=wandb", "tracker.mode=online"]
    said = mlmx(*arguments, outputs=prepared, variables={"PYTHONPATH": str(tmp_path)})
    assert "W&B could not be started (RuntimeError: wandb is broken); the run goes on without it" in said
    assert stage(prepared, "pretrain").finished
    assert summaries(prepared)[-1]["status"] == "finished"
