"""A sweep through Hydra's submitit launcher, as on a Slurm cluster; here each job is a process of this machine."""

import pytest

from tests.integration.chains import SECONDS, mlmx, stages, summaries
from tests.processes import running

SWEEP = ["-m", "hydra/launcher=submitit_local", "hydra.launcher.timeout_min=60", "task=[]", "trainer.max_steps=2"]


@pytest.mark.slow
@pytest.mark.timeout(4 * SECONDS)
def test_jobs_of_a_sweep_run_by_themselves_and_a_failure_is_told(prepared):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    # A learning rate that blows up at its second step is nothing that a check can see.
    blown = ["trainer.learning_rate=1e-3,1e30", "trainer.max_grad_norm=null", "trainer.max_steps=4"]
    said = mlmx(*SWEEP, *blown, outputs=prepared, code=1)
    assert "1 job(s) failed: 1" in said
    assert sorted(summary["status"] for summary in summaries(prepared)) == ["failed", "finished"]
    assert [one.finished for one in stages(prepared, "pretrain")].count(True) == 1
    assert not running(prepared)
