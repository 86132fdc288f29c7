"""Whatever ends a stage, no process is left running."""

import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from mlmx.driver.log import tail_of
from tests.driver.configs import ROOT, driver_command, frozen
from tests.processes import running, until

WORKER = "tests.driver.fake_worker"
# Workers end within this; the machine that runs the tests may be busy.
PROMPT_SECONDS = 15.0


def workers(outputs):
    """Return the living processes that work on a stage below a folder, agents included."""
    return running(WORKER, outputs, without=["chain.run"])


@pytest.fixture
def start(tmp_path):
    """Start a driver whose pretraining sleeps; wait until its workers are at work."""
    drivers = []

    def begin(num_processes=1, **settings):
        outputs = tmp_path / "outputs"
        settings |= {"parallel__num_processes": num_processes}
        config = frozen(outputs, stages__pretrain__objective__behaviour="sleep", **settings)
        log = (tmp_path / "driver.log").open("w")
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        command = driver_command(config, tmp_path / f"run{len(drivers)}")
        drivers.append(subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, env=environment))
        log.close()
        until(lambda: num_started(outputs) >= num_processes, 60, (tmp_path / "driver.log").read_text())
        return drivers[-1], config

    yield begin
    for driver in drivers:
        if driver.poll() is None:
            driver.kill()
            driver.wait()
    until(lambda: not workers(tmp_path / "outputs"), PROMPT_SECONDS, "workers of the test end")


def num_started(outputs):
    files = list((outputs / "stages").glob("pretrain-*/starts"))
    return len(files[0].read_text().splitlines()) if files else 0


def finish(config, tmp_path):
    """Type the command again; nothing is to be waited for now."""
    (tmp_path / "outputs" / "stages" / "quick").touch()
    command = driver_command(config, tmp_path / "again")
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True).stdout


def test_driver_killed_outright(start, tmp_path):
    driver, config = start()
    assert len(workers(tmp_path / "outputs")) == 1
    driver.kill()
    driver.wait()
    until(lambda: not workers(tmp_path / "outputs"), PROMPT_SECONDS, "the worker ends with its driver")
    assert "running in" in finish(config, tmp_path)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, -signal.SIGINT), (signal.SIGTERM, 143)])
def test_signals_reach_the_worker(start, tmp_path, number, code):
    driver, _ = start()
    driver.send_signal(number)
    assert driver.wait(PROMPT_SECONDS) in (code, 130 if number == signal.SIGINT else code)
    assert not workers(tmp_path / "outputs")
    assert json.loads((tmp_path / "run0" / "summary.json").read_text())["status"] == "failed"
    status = json.loads(next((tmp_path / "outputs" / "stages").glob("pretrain-*/status.json")).read_text())
    assert status["state"] == "failed"
    assert status["error"] == {"message": "interrupted"}


def test_a_time_limit_ends_it_like_a_signal(start, tmp_path):
    driver, _ = start(parallel__time_limit_minutes=0.1)
    assert driver.wait(60) == 143
    assert "the 0.1 minutes of parallel.time_limit_minutes are over" in (tmp_path / "driver.log").read_text()
    assert not workers(tmp_path / "outputs")
    finish(frozen(tmp_path / "outputs", stages__pretrain__objective__behaviour="sleep"), tmp_path)


def test_a_second_caller_waits_and_reuses(start, tmp_path):
    driver, config = start()
    log = tmp_path / "second.log"
    with log.open("w") as output:
        second = subprocess.Popen(driver_command(config, tmp_path / "second"), cwd=ROOT, stdout=output, stderr=output)
    try:
        until(lambda: f"waits for pid {driver.pid} on " in log.read_text(), 60, "the second caller waits")
        assert num_started(tmp_path / "outputs") == 1
        driver.kill()
        driver.wait()
        (tmp_path / "outputs" / "stages" / "quick").touch()
        assert second.wait(60) == 0
    finally:
        second.kill()
        second.wait()
    assert "prepare microworld" in log.read_text()
    assert num_started(tmp_path / "outputs") == 2


def test_main_process_of_a_parallel_sweep_killed_outright(tmp_path):
    pytest.importorskip("joblib")
    outputs = tmp_path / "outputs"
    configs = [frozen(outputs, seed=seed, stages__pretrain__objective__behaviour="sleep") for seed in range(2)]
    programs = [driver_command(config, tmp_path / f"run{i}")[-1] for i, config in enumerate(configs)]
    sweep = tmp_path / "sweep.py"
    sweep.write_text(
        f"from joblib import Parallel, delayed\nParallel(n_jobs=2)(delayed(exec)(program, {{}}) for program in {programs!r})\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with (tmp_path / "sweep.log").open("w") as log:
        main = subprocess.Popen([sys.executable, str(sweep)], cwd=ROOT, env=environment, stdout=log, stderr=log)
    try:
        until(lambda: len(list((outputs / "stages").glob("pretrain-*/starts"))) == 2, 60, "both jobs train")
        jobs = [child for child in psutil.Process(main.pid).children() if "LokyProcess" in " ".join(child.cmdline())]
        assert len(jobs) == 2
    finally:
        main.kill()
        main.wait()
    until(lambda: not workers(outputs), PROMPT_SECONDS, "the workers end with the sweep")
    _, alive = psutil.wait_procs(jobs, timeout=PROMPT_SECONDS)
    assert not [job for job in alive if job.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.slow
def test_torchrun_agent_killed_outright(start, tmp_path):
    driver, _ = start(num_processes=2)
    processes = workers(tmp_path / "outputs")
    agent = next(process for process in processes if "mlmx.training.torchrun" in process.cmdline())
    assert len(processes) == 3
    agent.kill()
    assert driver.wait(2 * PROMPT_SECONDS) == 1
    assert not workers(tmp_path / "outputs")
    assert "was killed by SIGKILL" in (tmp_path / "driver.log").read_text()


@pytest.mark.slow
def test_a_mistake_of_the_user_is_told_without_the_traceback_of_torchrun(tmp_path):
    config = frozen(tmp_path / "outputs", stages__pretrain__objective__behaviour="user_error", parallel__num_processes=2)
    done = subprocess.run(driver_command(config, tmp_path / "run"), cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert "objective.mask_ratio: is nonsense." in done.stderr
    (log,) = (tmp_path / "outputs").glob("stages/pretrain-*/log.txt")
    assert "fake worker 0 at work" in log.read_text()
    assert "Traceback" not in log.read_text()


@pytest.mark.slow
def test_driver_of_torchrun_killed_outright(start, tmp_path):
    driver, config = start(num_processes=2)
    assert len(workers(tmp_path / "outputs")) == 3
    driver.kill()
    driver.wait()
    until(lambda: not workers(tmp_path / "outputs"), 2 * PROMPT_SECONDS, "agent and workers end with the driver")
    assert "running in" in finish(config, tmp_path)
    lines = next((tmp_path / "outputs").glob("stages/pretrain-*/starts")).read_text().splitlines()
    assert [json.loads(line)["threads"] for line in lines] == ["1"] * 4


@pytest.mark.slow
def test_ctrl_c_twice_ends_torchrun_at_once(start, tmp_path):
    driver, _ = start(num_processes=2)
    driver.send_signal(signal.SIGINT)
    time.sleep(0.3)
    if driver.poll() is None:
        driver.send_signal(signal.SIGINT)
    driver.wait(PROMPT_SECONDS)
    assert not workers(tmp_path / "outputs")


def test_the_tail_of_a_log(tmp_path):
    path = tmp_path / "log.txt"
    assert tail_of(path, 3) == []
    path.write_text("".join(f"line {i}\n" for i in range(100)))
    assert tail_of(path, 2) == ["line 98", "line 99"]
