from __future__ import annotations

import subprocess
import sys

import torch
from torch import nn

from mlmx.training.parallel import ProcessGroup, process_group

# Two ranks: rank 1 has no gradient for the second parameter, and nobody has one for the third.
PROGRAM = """
import torch
from torch import nn
from mlmx.training.parallel import process_group
with process_group(device="cpu", num_threads=1, timeout_seconds=60) as group:
    a, b, c = (nn.Parameter(torch.full((2,), float(group.rank))) for _ in range(3))
    a.grad = torch.tensor([1.0, 2.0]) * (group.rank + 1)
    if group.rank == 0:
        b.grad = torch.tensor([5.0, 6.0])
    group.sum_gradients([a, b, c])
    assert a.grad.tolist() == [3.0, 6.0], a.grad
    assert b.grad.tolist() == [5.0, 6.0], b.grad
    assert c.grad is None
    assert group.gather({"rank": group.rank}) == [{"rank": 0}, {"rank": 1}]
    module = nn.Linear(1, 1)
    nn.init.constant_(module.weight, group.rank + 7.0)
    group.broadcast_module(module)
    assert module.weight.item() == 7.0
    assert torch.get_num_threads() == 1
"""


def test_one_process_is_a_group_of_its_own():
    with process_group(device="cpu", num_threads=1, timeout_seconds=1) as group:
        assert group.is_main
        assert group.gather(3) == [3]
        parameter = nn.Parameter(torch.ones(2))
        group.sum_gradients([parameter])
        assert parameter.grad is None
        group.barrier()
    assert ProcessGroup().device.type == "cpu"


def test_two_ranks_agree(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(program)],
        check=True, timeout=120, capture_output=True,
    )  # fmt: skip
