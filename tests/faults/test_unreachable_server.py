"""W&B cannot be reached: the training goes on, it is said once, and nothing is lost."""

import json
import socket

import pytest

from tests.integration.chains import SECRETS, metrics, mlmx, stage, summaries
from tests.training.test_tracking import TRACK_STAGE, make_stage, only_run, run


@pytest.fixture
def silent():
    """A server that takes a connection and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def refusing():
    """An address where nobody listens."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{found.getsockname()[1]}"


def steps_of(records):
    history = [
        {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
        for record in records
        if record.HasField("history")
    ]
    return [(line["step"], line["loss"]) for line in history]


def test_a_server_that_refuses(tmp_path, refusing):
    one = make_stage(tmp_path, "pretrain", "a" * 64, "online")
    done = run("-c", TRACK_STAGE, str(one.path), WANDB_BASE_URL=refusing, **SECRETS)
    assert done.stderr.count("W&B cannot be reached") == 1
    assert "`wandb sync` sends it" in done.stderr
    assert steps_of(only_run(one.path)) == [(1, 4.0), (2, 2.0)]


@pytest.mark.slow
def test_a_server_that_is_silent(tmp_path, silent):
    one = make_stage(tmp_path, "pretrain", "a" * 64, "online")
    impatient = "from mlmx.training import tracking; tracking._REACH_SECONDS = 1.0\n" + TRACK_STAGE
    done = run("-c", impatient, str(one.path), WANDB_BASE_URL=silent, **SECRETS)
    assert done.stderr.count("W&B cannot be reached") == 1
    assert "timed out" in done.stderr
    assert steps_of(only_run(one.path)) == [(1, 4.0), (2, 2.0)]


@pytest.mark.slow
def test_a_chain_goes_on_without_the_server(prepared, refusing):
    online = ["task=[]", "trainer.max_steps=5", "tracker=wandb", "tracker.mode=online"]
    said = mlmx(*online, outputs=prepared, variables={"WANDB_BASE_URL": refusing, **SECRETS})
    assert said.count("W&B cannot be reached") == 1
    trained = stage(prepared, "pretrain")
    assert steps_of(only_run(trained.path)) == [(line["step"], line["loss"]) for line in metrics(trained)]
    assert summaries(prepared)[-1]["status"] == "finished"
