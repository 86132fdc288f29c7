"""Two processes that train together: one dies, one hangs."""

import os
import signal
import subprocess
from pathlib import Path

import pytest

from mlmx.driver.lease import registered_workers
from tests.integration.chains import ROOT, SECONDS, command, environment, mlmx, results, stage, stages
from tests.processes import running, until

TWO = ["parallel.num_processes=2", "task=[]", "trainer.micro_batch_tokens=256"]
TWO += ["trainer.max_steps=60", "trainer.checkpoint_every_steps=4"]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(5 * SECONDS)]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    outputs = tmp_path_factory.mktemp("undisturbed") / "outputs"
    mlmx(*TWO, outputs=outputs)
    return results(outputs)


@pytest.fixture
def struck(prepared):
    """Type a command and strike at a worker in the midst of the training; return the exit code and what was said."""

    def strike(number, *settings, rank=1):
        with (prepared.parent / "said.txt").open("w+") as said:
            driver = subprocess.Popen(
                command(*TWO, *settings, outputs=prepared), cwd=ROOT, env=environment(), stdout=said, stderr=said
            )
            try:
                until(lambda: in_the_midst(prepared) or driver.poll() is not None, SECONDS, "the training is in its midst")
                os.kill(worker_of(prepared, rank), number)
                code = driver.wait(SECONDS)
            finally:
                driver.kill()
                driver.wait()
            said.seek(0)
            return code, said.read()

    return strike


def in_the_midst(outputs):
    return any((one.checkpoints_dir / "step-00000008").exists() for one in stages(outputs, "pretrain"))


def worker_of(outputs, rank):
    """Return the pid of the worker of that rank."""
    for pid, _ in registered_workers(stage(outputs, "pretrain")):
        if f"RANK={rank}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
            return pid
    raise AssertionError(f"no worker of rank {rank}")


def same(found, expected):
    return found.keys() == expected.keys() and [key for key in expected if found[key] != expected[key]] == []


def test_one_that_is_killed_restarts_the_group_from_the_last_checkpoint(struck, prepared, undisturbed):
    code, said = struck(signal.SIGKILL, "parallel.max_restarts=1")
    assert code == 0, said
    assert "restart 1 of at most 1 (parallel.max_restarts), after: " in said
    assert "goes on after" in said
    status = stage(prepared, "pretrain").status()
    assert (status["state"], status["num_restarts"]) == ("finished", 1)
    assert same(results(prepared), undisturbed)
    assert not running(prepared)


def test_without_restarts_it_is_told_which_one_and_the_next_call_goes_on(struck, prepared, undisturbed):
    code, said = struck(signal.SIGKILL)
    assert code == 1, said
    assert "worker 1 (pid" in said
    assert "was killed by SIGKILL, as the system does when memory runs out" in said
    assert not running(prepared)
    again = mlmx(*TWO, outputs=prepared)
    assert "goes on after" in again
    assert same(results(prepared), undisturbed)


def test_one_that_hangs_is_ended_by_the_time_limit(struck, prepared, undisturbed):
    code, said = struck(signal.SIGSTOP, "parallel.timeout_seconds=5")
    assert code == 1, said
    assert "a worker did not answer the others within parallel.timeout_seconds=5" in said
    assert not running(prepared)
    mlmx(*TWO, outputs=prepared)
    assert same(results(prepared), undisturbed)
