import multiprocessing
import time

import pytest

from mlmx.driver import lease as lease_module
from mlmx.driver.lease import gpu_lease, visible_gpus
from mlmx.errors import UserError

GPUS = ["0", "1", "2"]


def lease(num_gpus, folder, device="auto", gpus=GPUS, say=lambda line: None):
    return gpu_lease(num_gpus, device, say, gpus=gpus, folder=folder)


def test_leases_do_not_overlap(tmp_path):
    with lease(1, tmp_path) as first, lease(2, tmp_path) as second:
        assert first["CUDA_VISIBLE_DEVICES"] == "0"
        assert second["CUDA_VISIBLE_DEVICES"] == "1,2"
    with lease(3, tmp_path) as third:
        assert third["CUDA_VISIBLE_DEVICES"] == "0,1,2"


def _hold(folder, seconds, began):
    with lease(2, folder):
        began.set()
        time.sleep(seconds)


def test_a_stage_waits_for_gpus_and_holds_none_meanwhile(tmp_path):
    context = multiprocessing.get_context("spawn")
    began = context.Event()
    other = context.Process(target=_hold, args=(tmp_path, 1.0, began))
    other.start()
    assert began.wait(30)
    told = []
    with lease(1, tmp_path) as one:
        assert one["CUDA_VISIBLE_DEVICES"] == "2"
    with lease(2, tmp_path, say=told.append) as two:
        assert two["CUDA_VISIBLE_DEVICES"] == "0,1"
    other.join()
    assert told == ["waits for 2 free of 3 GPUs"]


def test_gpus_of_different_jobs_on_one_node_are_told_apart(tmp_path, monkeypatch):
    # Both jobs of a cluster call theirs number 0.
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(lease_module, "_installed", lambda: ["GPU-a"])
    with gpu_lease(1, "auto", pytest.fail, folder=tmp_path) as first:
        monkeypatch.setattr(lease_module, "_installed", lambda: ["GPU-b"])
        with gpu_lease(1, "auto", pytest.fail, folder=tmp_path) as second:
            assert first["CUDA_VISIBLE_DEVICES"] == second["CUDA_VISIBLE_DEVICES"] == "0"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["GPU-a.lock", "GPU-b.lock"]


def test_without_gpus(tmp_path):
    with lease(4, tmp_path, gpus=[]) as environment:
        assert environment == {}
    with lease(4, tmp_path, device="cpu") as environment:
        assert environment == {"CUDA_VISIBLE_DEVICES": ""}
    with pytest.raises(UserError, match=r"parallel\.device: 'cuda' was asked for"), lease(1, tmp_path, device="cuda", gpus=[]):
        pass
    with (
        pytest.raises(UserError, match=r"parallel\.num_processes: 4 processes need a GPU each, and there are 3"),
        lease(4, tmp_path),
    ):
        pass


@pytest.mark.parametrize(
    ("allowed", "expected"),
    [(None, ["0", "1", "2"]), ("", []), ("2,0", ["2", "0"]), ("1,7,0", ["1"]), ("-1", []), ("GPU-ab,MIG-c", ["GPU-ab", "MIG-c"])],
)
def test_visible_gpus_respects_the_environment(allowed, expected):
    environment = {} if allowed is None else {"CUDA_VISIBLE_DEVICES": allowed}
    assert visible_gpus(environment, num_installed=3) == expected
