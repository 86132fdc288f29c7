"""A chain that is killed outright again and again, and typed again each time, ends as one that nobody disturbed."""

import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import psutil
import pytest

from mlmx.driver.lease import registered_workers
from tests.faults.test_damage import flip
from tests.integration.chains import BOTH_TASKS, ROOT, SECONDS, command, environment, mlmx, results, stages
from tests.processes import running, until

# All kinds of stages: the corpus is annotated, a task is trained, both save checkpoints on the way.
CHAIN = [
    "objective=lem",
    "annotator=gold",
    *BOTH_TASKS,
    "trainer.max_steps=60",
    "trainer.checkpoint_every_steps=3",
    "task.sentiment.trainer.checkpoint_every_steps=1",
]
# How often each kind of stage is struck at random moments, and while it writes what it will go on from.
AT_RANDOM = {"prepare": 5, "annotate": 2, "pretrain": 3, "finetune": 2, "eval": 1}
WHILE_WRITING = {"prepare": 2, "annotate": 1, "pretrain": 3, "finetune": 1}
# What is there only while that is going on.
UNFINISHED = {"prepare": "*.partial", "annotate": "*.partial", "pretrain": "checkpoints/.step-*", "finetune": "checkpoints/.step-*"}
# How long processes may take to end after whoever started them.
PROMPT_SECONDS = SECONDS / 4


@dataclass
class Strike:
    """Who is killed in which stage, and when: after so many seconds of the worker's CPU time, or (None) while it writes."""

    stage: str
    kind: str
    seconds: float | None
    at_worker: bool


def workers(directory):
    """Return the living workers of a stage."""
    found = []
    for pid, start in registered_workers(directory):
        with suppress(psutil.Error):
            process = psutil.Process(pid)
            # A number that was used again is somebody else's.
            if abs(process.create_time() - start) < 1.0 and str(directory.path) in process.cmdline():
                found.append(process)
    return found


def cpu_seconds(directory):
    """Return the CPU time that the living workers of a stage have had, which tells how far they are on a busy machine too."""
    total = 0.0
    for process in workers(directory):
        with suppress(psutil.Error):
            total += sum(process.cpu_times()[:2])
    return total


def lives(outputs):
    """Run the chain undisturbed; return (name, kind) of its stages in order -> how long each worked, in CPU time."""
    outputs.mkdir(parents=True)
    log_path = outputs.parent / "undisturbed.log"
    most = {}
    with log_path.open("w") as log:
        driver = subprocess.Popen(command(*CHAIN, outputs=outputs), cwd=ROOT, env=environment(), stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 4 * SECONDS
        while driver.poll() is None:
            assert time.monotonic() < deadline, log_path.read_text()
            for one in stages(outputs):
                most[one.path.name] = max(most.get(one.path.name, 0.0), cpu_seconds(one))
            time.sleep(0.05)
    finally:
        driver.kill()
        driver.wait()
    assert driver.returncode == 0, log_path.read_text()
    in_order = sorted(stages(outputs), key=lambda one: one.status()["started"])
    return {(one.path.name, one.config()["kind"]): most[one.path.name] for one in in_order}


def strikes(generator, undisturbed):
    """Draw strikes, in the order in which the stages run."""
    order = [name for name, _ in undisturbed]
    drawn = []
    for kind in AT_RANDOM:
        of_kind = [name for name, own in undisturbed if own == kind]
        for _ in range(AT_RANDOM[kind]):
            name = generator.choice(of_kind)
            seconds = generator.uniform(0.0, undisturbed[name, kind])
            drawn.append(Strike(name, kind, seconds, generator.random() < 0.5))
        # Only the last preparation of a chain makes arrays.
        writing = [of_kind[-1]] * WHILE_WRITING.get(kind, 0)
        drawn += [Strike(name, kind, None, generator.random() < 0.5) for name in writing]
    return sorted(drawn, key=lambda strike: (order.index(strike.stage), strike.seconds or 0.0))


def wait_for(condition: Callable[[], object], driver, what):
    """Wait for a condition as closely as possible, or for the end of the driver."""
    deadline = time.monotonic() + SECONDS
    while not condition() and driver.poll() is None:
        assert time.monotonic() < deadline, f"not within {SECONDS} s: {what}"
        time.sleep(0.001)


def disturbed(outputs, strike):
    """Type the command and strike; return whether it was stopped by that."""
    directory = next((one for one in stages(outputs) if one.path.name == strike.stage), None)
    if directory is not None and directory.finished:
        return False  # An earlier strike came too late.
    log_path = outputs.parent / "disturbed.log"
    with log_path.open("a") as log:
        driver = subprocess.Popen(command(*CHAIN, outputs=outputs), cwd=ROOT, env=environment(), stdout=log, stderr=log)
    try:
        found = []

        def begun():
            found[:] = [one for one in stages(outputs) if one.path.name == strike.stage and one.status().get("pid") == driver.pid]
            return found or driver.poll() is not None

        until(begun, SECONDS, f"{strike.stage} begins")
        assert found, log_path.read_text()
        (directory,) = found
        if strike.seconds is None:
            pattern = UNFINISHED[strike.kind]
            # What an earlier strike left is there before a worker is.
            wait_for(lambda: workers(directory), driver, "a worker begins")
            left = {path: path.stat().st_ctime_ns for path in directory.path.glob(pattern)}

            def writes():
                with suppress(FileNotFoundError):
                    return any(left.get(path) != path.stat().st_ctime_ns for path in directory.path.glob(pattern))

            wait_for(writes, driver, f"{strike.stage} writes")
        else:
            wait_for(lambda: cpu_seconds(directory) >= strike.seconds, driver, f"{strike.stage} is so far")
        if strike.at_worker:
            wait_for(lambda: workers(directory), driver, "a worker begins")
            for process in workers(directory):
                process.kill()
            code = driver.wait(SECONDS)
            assert code in (0, 1), log_path.read_text()
        else:
            driver.send_signal(signal.SIGKILL)
            code = driver.wait(PROMPT_SECONDS)
            assert code in (0, -signal.SIGKILL), log_path.read_text()
    finally:
        if driver.poll() is None:
            driver.kill()
            driver.wait()
    until(lambda: not running(outputs), PROMPT_SECONDS, f"nothing is left running after {strike}")
    return code != 0


@pytest.mark.slow
@pytest.mark.timeout(30 * SECONDS)
def test_killed_at_twenty_random_moments_and_typed_again(tmp_path):
    seed = int(os.environ.get("MLMX_TEST_SEED") or random.randrange(1000))
    print(f"MLMX_TEST_SEED={seed}")
    undisturbed = lives(tmp_path / "undisturbed" / "outputs")
    expected = results(tmp_path / "undisturbed" / "outputs")
    assert any(key.endswith("encoder/model.safetensors") for key in expected)
    outputs = tmp_path / "disturbed" / "outputs"
    outputs.mkdir(parents=True)
    drawn = strikes(random.Random(seed), undisturbed)
    assert len(drawn) == 20
    num_stopped = 0
    for strike in drawn:
        stopped = disturbed(outputs, strike)
        print("stopped" if stopped else "too late", strike)
        num_stopped += stopped
    mlmx(*CHAIN, outputs=outputs)
    found = results(outputs)
    assert found.keys() == expected.keys()
    assert [key for key in expected if found[key] != expected[key]] == []
    assert num_stopped >= 10, "most strikes came too late; draw again with another seed"
    assert not running(tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(6 * SECONDS)
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(tmp_path, prepared):
    settings = ["task=[]", "trainer.max_steps=60", "trainer.checkpoint_every_steps=3", "trainer.keep_checkpoints=3"]
    undisturbed = tmp_path / "undisturbed"
    shutil.copytree(prepared, undisturbed)
    mlmx(*settings, outputs=undisturbed)
    with (tmp_path / "log.txt").open("w") as log:
        driver = subprocess.Popen(command(*settings, outputs=prepared), cwd=ROOT, env=environment(), stdout=log, stderr=log)
    try:
        until(lambda: any((one.checkpoints_dir / "step-00000006").exists() for one in stages(prepared)), SECONDS, "two checkpoints")
    finally:
        driver.kill()
        driver.wait()
    until(lambda: not running(prepared), PROMPT_SECONDS, "nothing is left running")
    (trained,) = stages(prepared, "pretrain")
    newest = sorted(trained.checkpoints_dir.glob("step-*"))[-1]
    flip(newest / "optimizer.safetensors", at=1000)
    said = mlmx(*settings, outputs=prepared)
    assert f"checkpoint {newest} is passed over: optimizer.safetensors is damaged" in said
    assert results(prepared) == results(undisturbed)


@pytest.mark.slow
@pytest.mark.timeout(6 * SECONDS)
@pytest.mark.parametrize("signals", [[signal.SIGTERM], [signal.SIGINT, signal.SIGINT]])
def test_asked_to_end_in_the_midst_of_the_training(tmp_path, prepared, signals):
    settings = ["task=[]", "trainer.max_steps=100000"]
    log_path = tmp_path / "log.txt"
    with log_path.open("w") as log:
        driver = subprocess.Popen(command(*settings, outputs=prepared), cwd=ROOT, env=environment(), stdout=log, stderr=log)
    try:
        until(lambda: any(one.metrics_path.exists() for one in stages(prepared, "pretrain")), SECONDS, "the training steps")
        for number in signals:
            driver.send_signal(number)
            time.sleep(0.3)
        code = driver.wait(PROMPT_SECONDS)
    finally:
        driver.kill()
        driver.wait()
    assert code in ({-signal.SIGINT, 130} if signal.SIGINT in signals else {143}), log_path.read_text()
    until(lambda: not running(prepared), PROMPT_SECONDS, "nothing is left running")
    (trained,) = stages(prepared, "pretrain")
    assert trained.status()["error"] == {"message": "interrupted"}
    assert not trained.finished
    if len(signals) == 1:
        assert list(trained.checkpoints_dir.glob("step-*/manifest.json"))
