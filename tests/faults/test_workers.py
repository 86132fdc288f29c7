"""Workers that die: who died of what is told, and the rest goes on."""

import json

import pytest

from mlmx.driver.command import StageFailedError
from mlmx.errors import UserError
from mlmx.stage import StageDir
from tests.processes import running


def pretraining(outputs):
    (path,) = (outputs / "stages").glob("pretrain-*")
    return StageDir(path)


def starts(outputs):
    return [json.loads(line) for line in (pretraining(outputs).path / "starts").read_text().splitlines()]


def test_a_worker_that_is_killed(run_fake, tmp_path):
    with pytest.raises(StageFailedError, match="the worker was killed by SIGKILL, as the system does when memory runs out"):
        run_fake(stages__pretrain__objective__behaviour="die")
    assert not running(tmp_path / "outputs")
    (tmp_path / "outputs" / "stages" / "mended").touch()
    run_fake(stages__pretrain__objective__behaviour="die")
    assert len(starts(tmp_path / "outputs")) == 2


def test_a_single_process_is_started_again(run_fake, tmp_path, capfd):
    run_fake(stages__pretrain__objective__behaviour="die_once", parallel__max_restarts=1)
    status = pretraining(tmp_path / "outputs").status()
    assert (status["state"], status["num_restarts"], status["error"]) == ("finished", 1, None)
    assert [start["size"] for start in starts(tmp_path / "outputs")] == [1, 1]
    assert "restart 1 of at most 1 (parallel.max_restarts)" in capfd.readouterr().out


@pytest.mark.slow
def test_restarts_come_to_an_end(run_fake, tmp_path):
    with pytest.raises(StageFailedError, match=r"worker 0 \(pid \d+\) was killed by SIGKILL"):
        run_fake(stages__pretrain__objective__behaviour="die", parallel__max_restarts=2)
    assert len(starts(tmp_path / "outputs")) == 3


@pytest.mark.slow
def test_a_mistake_of_the_user_is_not_tried_again(run_fake, tmp_path):
    with pytest.raises(UserError, match=r"objective\.mask_ratio: is nonsense"):
        run_fake(stages__pretrain__objective__behaviour="user_error", parallel__max_restarts=3)
    assert len(starts(tmp_path / "outputs")) == 1
