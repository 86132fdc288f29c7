"""A chain that is killed at random moments and typed again ends as one that nobody disturbed."""

import os
import random
import signal
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime

import psutil
import pytest

from mlmx.driver.lease import registered_workers
from tests.integration.chains import BOTH_TASKS, ROOT, SECONDS, command, environment, mlmx, results, stages
from tests.processes import running, until

# All kinds of stages: the corpus is annotated, a task is trained, both save checkpoints on the way.
CHAIN = [
    "objective=lem",
    "annotator=gold",
    *BOTH_TASKS,
    "trainer.checkpoint_every_steps=3",
    "task.sentiment.trainer.checkpoint_every_steps=1",
]
# How long processes may take to end after whoever started them.
PROMPT_SECONDS = SECONDS / 4


@dataclass
class Moment:
    """When to strike: this part of the time that a stage took undisturbed after it began; and how."""

    stage: str
    seconds: float
    strike: str


def durations(outputs):
    """Return stage -> how long it took, in the order in which stages ran."""
    found = {}
    for one in sorted(stages(outputs), key=lambda one: one.status()["started"]):
        began, ended = (datetime.fromisoformat(one.status()[key]) for key in ("started", "ended"))
        found[one.path.name] = (ended - began).total_seconds()
    return found


def strike(driver, directory, how):
    """Kill the driver, or the worker of a stage, unless it has ended."""
    if how != "worker SIGKILL":
        driver.send_signal(getattr(signal, how.split()[1]))
        return
    until(lambda: registered_workers(directory) or driver.poll() is not None, SECONDS, "a worker begins")
    for pid, start in registered_workers(directory):
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            # A number that was used again is somebody else's.
            if abs(process.create_time() - start) < 1.0 and str(directory.path) in process.cmdline():
                process.kill()


def disturbed(outputs, moment):
    """Type the command and strike at the moment; return whether it was stopped by that."""
    if any(one.path.name == moment.stage and one.finished for one in stages(outputs)):
        return False  # An earlier strike came too late.
    log_path = outputs.parent / "disturbed.log"
    with log_path.open("a") as log:
        driver = subprocess.Popen(command(*CHAIN, outputs=outputs), cwd=ROOT, env=environment(), stdout=log, stderr=log)
    try:
        found = []

        def begun():
            found[:] = [one for one in stages(outputs) if one.path.name == moment.stage and one.status().get("pid") == driver.pid]
            return found or driver.poll() is not None

        until(begun, SECONDS, f"{moment.stage} begins")
        assert driver.poll() is None, log_path.read_text()
        time.sleep(moment.seconds)
        strike(driver, found[0], moment.strike)
        if moment.strike == "worker SIGKILL":
            code = driver.wait(SECONDS)
            assert code in (0, 1), log_path.read_text()
        else:
            code = driver.wait(PROMPT_SECONDS)
            expected = {"SIGKILL": (-9,), "SIGTERM": (-15, 143), "SIGINT": (-2, 1, 130)}[moment.strike.split()[1]]
            assert code in (0, *expected), log_path.read_text()
    finally:
        if driver.poll() is None:
            driver.kill()
            driver.wait()
    until(lambda: not running(outputs), PROMPT_SECONDS, f"nothing is left running after {moment}")
    return code != 0


def moments(generator, undisturbed, strikes):
    """Draw moments in different stages, in the order in which the stages run."""
    names = list(undisturbed)
    chosen = sorted(generator.sample(range(len(names)), len(strikes)))
    generator.shuffle(strikes)
    return [
        Moment(names[number], generator.uniform(0.0, undisturbed[names[number]]), how)
        for number, how in zip(chosen, strikes, strict=True)
    ]


@pytest.mark.slow
@pytest.mark.timeout(8 * SECONDS)
def test_killed_at_random_moments_and_typed_again(tmp_path):
    seed = int(os.environ.get("MLMX_TEST_SEED") or random.randrange(1000))
    print(f"MLMX_TEST_SEED={seed}")
    mlmx(*CHAIN, outputs=tmp_path / "undisturbed" / "outputs")
    expected = results(tmp_path / "undisturbed" / "outputs")
    assert any(key.endswith("encoder/model.safetensors") for key in expected)
    outputs = tmp_path / "disturbed" / "outputs"
    outputs.mkdir(parents=True)
    strikes = ["driver SIGKILL", "driver SIGTERM", "driver SIGINT", "worker SIGKILL"]
    drawn = moments(random.Random(seed), durations(tmp_path / "undisturbed" / "outputs"), strikes)
    print(*drawn, sep="\n")
    num_stopped = sum(disturbed(outputs, moment) for moment in drawn)
    print(f"{num_stopped} of {len(drawn)} strikes stopped it")
    mlmx(*CHAIN, outputs=outputs)
    found = results(outputs)
    assert found.keys() == expected.keys()
    assert [key for key in expected if found[key] != expected[key]] == []
    assert num_stopped, "no strike came in time; draw again with another seed"
    assert not running(tmp_path)
