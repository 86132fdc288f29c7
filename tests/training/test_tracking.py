from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mlmx.stage import StageDir
from mlmx.training import tracking

TRACK_STAGE = """
import sys
from mlmx.stage import StageDir
from mlmx.training.tracking import stage_tracker
stage = StageDir(sys.argv[1])
with stage_tracker(stage, enabled=True) as tracker:
    for step in (1, 2):
        tracker.log({"step": step, "loss": 4.0 / step, "loss/mlm": 4.0 / step, "tokens": 100 * step})
    tracker.log_attachments(stage.path)
    tracker.summarise({"final_loss": 2.0})
"""

# One black pixel.
PICTURE = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR42mNgAAAAAgABSK+kcQAAAABJRU5ErkJggg==")


def records_of(path: Path) -> Iterator[Any]:
    """Read a .wandb file: records of protobuf in the log format of LevelDB, after a header of 7 bytes."""
    from wandb.proto import wandb_internal_pb2

    content = path.read_bytes()
    position, parts = 7, b""
    while position + 7 <= len(content):
        left = 32768 - position % 32768
        if left < 7:
            position += left
            continue
        length, kind = int.from_bytes(content[position + 4 : position + 6], "little"), content[position + 6]
        parts += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # full, or last
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            parts = b""
            yield record


def only_run(folder: Path) -> list[Any]:
    (path,) = folder.glob("wandb/offline-run-*/*.wandb")
    return list(records_of(path))


def environment(**variables: str) -> dict[str, str]:
    hidden = ("WANDB_API_KEY", "WANDB_MODE", "NETRC", "WANDB_BASE_URL")
    return {**{key: value for key, value in os.environ.items() if key not in hidden}, "NETRC": "/nonexistent", **variables}


def make_stage(folder: Path, kind: str, fingerprint: str, mode: str, parents: dict[str, str] | None = None) -> StageDir:
    stage = StageDir(folder / f"{kind}-mlm-{fingerprint[:8]}")
    stage.write_config(
        {
            "kind": kind,
            "name": "mlm",
            "fingerprint": fingerprint,
            "spec": {"seed": 3, "model": {"_target_": "x", "_name_": "tiny", "num_layers": 2}},
            "parents": parents or {},
            "execution": {"tracker": {"mode": mode, "project": "mlmx", "entity": None}},
        }
    )
    stage.encoder_dir.mkdir()
    return stage


def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], env=environment(**variables), capture_output=True, text=True, timeout=120, check=True
    )


def test_stage_run_can_be_read_back(tmp_path):
    first = make_stage(tmp_path, "pretrain", "a" * 64, "auto")
    second = make_stage(tmp_path, "finetune", "b" * 64, "auto", {"encoder": first.path.name})
    for kind, name, content in (("tables", "confusion.tsv", b"label\tas a\na\t3\n"), ("pictures", "confusion.png", PICTURE)):
        (second.path / kind).mkdir()
        (second.path / kind / name).write_bytes(content)
    run("-c", TRACK_STAGE, str(second.path))
    records = only_run(second.path)
    (start,) = [record.run for record in records if record.HasField("run")]
    assert start.run_id == "b" * 16
    assert start.run_group == first.path.name
    assert start.job_type == "finetune"
    config = {item.key: json.loads(item.value_json) for item in start.config.update}
    assert config["seed"] == 3
    assert config["model"] == "tiny"
    assert config["model.num_layers"] == 2
    history = [
        {(item.key or ".".join(item.nested_key)): json.loads(item.value_json) for item in record.history.item}
        for record in records
        if record.HasField("history")
    ]
    assert [(line["step"], line["loss"], line["by_tokens/loss/mlm"]) for line in history[:2]] == [(1, 4.0, 4.0), (2, 2.0, 2.0)]
    assert history[2]["confusion._type"] == "table-file"
    assert history[3]["confusion_picture._type"] == "image-file"
    axes = {(r.metric.name or r.metric.glob_name): r.metric.step_metric for r in records if r.HasField("metric")}
    assert axes["by_tokens/*"] == "tokens"
    assert axes["*"] == "step"
    artifacts = {
        request.artifact.name: request.artifact.use_after_commit
        for request in (r.request.log_artifact for r in records if r.HasField("request") and r.request.HasField("log_artifact"))
    } | {r.artifact.name: r.artifact.use_after_commit for r in records if r.HasField("artifact")}
    assert artifacts.items() >= {"encoder-aaaaaaaa": True, "encoder-bbbbbbbb": False}.items()


def test_chain_run_can_be_read_back(tmp_path):
    stage = make_stage(tmp_path / "outputs" / "stages", "pretrain", "a" * 64, "auto")
    run_dir = tmp_path / "outputs" / "runs" / "now-demo"
    run_dir.mkdir(parents=True)
    config = {
        "name": "demo", "seed": 1, "outputs": str(tmp_path / "outputs"), "objective": {"_name_": "mlm", "mask_ratio": 0.15},
        "tracker": {"mode": "offline", "project": "mlmx", "entity": None},
    }  # fmt: skip
    score = {"task": "bitext", "split": "test", "metric": "accuracy", "value": 0.5, "num_examples": 9, "higher_is_better": True}
    summary = {"name": "demo", "status": "finished", "config": config, "stages": [{"dir": stage.path.name}], "scores": [score]}
    (run_dir / "summary.json").write_text(json.dumps(summary))
    run("-m", "mlmx.training.tracking", str(run_dir))
    records = only_run(run_dir)
    (start,) = [record.run for record in records if record.HasField("run")]
    assert start.job_type == "chain"
    assert {item.key: json.loads(item.value_json) for item in start.config.update}["objective.mask_ratio"] == 0.15
    final = {
        (item.key or item.nested_key[0]): json.loads(item.value_json)
        for record in records
        if record.HasField("summary")
        for item in record.summary.update
    }
    assert final["bitext/test/accuracy"] == 0.5


def test_disabled_leaves_nothing(tmp_path):
    stage = make_stage(tmp_path, "pretrain", "a" * 64, "disabled")
    run("-c", TRACK_STAGE + "assert 'wandb' not in sys.modules", str(stage.path))
    assert not (stage.path / "wandb").exists()


def test_failing_tracker_is_a_warning(tmp_path, caplog):
    class Broken:
        def log(self, record):
            raise OSError("no space left")

    tracker = tracking.Tracker(Broken())
    tracker.log({"step": 1, "loss": 1.0})
    assert "no space left" in caplog.text
    caplog.clear()
    tracker.log({"step": 2, "loss": 1.0})
    assert caplog.text == ""


def test_no_server_does_not_stop_the_run(tmp_path, monkeypatch, caplog):
    def refuse(*_: object, **__: object) -> None:
        raise ConnectionError("nobody there")

    monkeypatch.setattr(tracking, "_init", refuse)
    stage = make_stage(tmp_path, "pretrain", "a" * 64, "online")
    with tracking.stage_tracker(stage, enabled=True) as tracker:
        tracker.log({"step": 1, "loss": 1.0})
    assert "goes on without it" in caplog.text


def test_exceptions_pass_through(tmp_path):
    stage = make_stage(tmp_path, "pretrain", "a" * 64, "disabled")
    with pytest.raises(KeyError), tracking.stage_tracker(stage, enabled=True):
        raise KeyError("x")


@pytest.mark.parametrize(
    ("variables", "mode"),
    [({}, "offline"), ({"WANDB_API_KEY": "k"}, "online"), ({"WANDB_MODE": "disabled", "WANDB_API_KEY": "k"}, "disabled")],
)
def test_auto_mode(monkeypatch, variables, mode):
    for name, value in {"WANDB_API_KEY": "", "WANDB_MODE": "", "NETRC": "/nonexistent", **variables}.items():
        monkeypatch.setenv(name, value)
    assert tracking._mode("auto") == mode
