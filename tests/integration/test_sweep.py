"""Sweeps of real chains: what is shared, what fails, what is resumed."""

import pytest

from tests.integration.chains import BITEXT, SECONDS, mlmx, stages, summaries

SHORT = [*BITEXT, "trainer.max_steps=2"]


def kinds(outputs):
    names = [one.config()["kind"] for one in stages(outputs) if one.finished]
    return {kind: names.count(kind) for kind in sorted(set(names))}


@pytest.mark.slow
@pytest.mark.timeout(4 * SECONDS)
def test_a_sweep_shares_stages_and_goes_on_after_a_failure(prepared):
    # A learning rate that blows up at its second step is nothing that a check can see.
    sweep = ["-m", "objective=mlm,tlm", "trainer.learning_rate=1e-3,1e30"]
    said = mlmx(*sweep, *SHORT, "trainer.max_steps=4", "trainer.max_grad_norm=null", outputs=prepared, code=1)
    assert "2 job(s) failed: 1, 3" in said
    assert "is not finite" in said
    assert said.index("job 1 failed") < said.index("job 2: ")
    assert kinds(prepared) == {"eval": 2, "prepare": 2, "pretrain": 2}
    assert sorted(summary["status"] for summary in summaries(prepared)) == ["failed", "failed", "finished", "finished"]
    again = mlmx(*sweep, *SHORT, "trainer.max_steps=4", "trainer.max_grad_norm=null", outputs=prepared, code=1)
    assert again.count("running in") == 2
    assert kinds(prepared) == {"eval": 2, "prepare": 2, "pretrain": 2}


@pytest.mark.slow
@pytest.mark.timeout(4 * SECONDS)
def test_jobs_side_by_side_do_no_stage_twice(tmp_path):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    outputs = tmp_path / "outputs"
    sweep = ["-m", "objective=mlm,tlm", "seed=0,1", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    mlmx(*sweep, *SHORT, outputs=outputs)
    # The preparations are shared by all jobs, and each was run by exactly one of them.
    assert kinds(outputs) == {"eval": 4, "prepare": 2, "pretrain": 4}
    runs = summaries(outputs)
    assert len(runs) == 4
    made = [one["dir"] for run in runs for one in run["stages"] if not one["reused"]]
    assert sorted(made) == sorted({one["dir"] for run in runs for one in run["stages"]})
    assert "running in" not in mlmx(*sweep, *SHORT, outputs=outputs)


@pytest.mark.slow
@pytest.mark.timeout(4 * SECONDS)
def test_optuna_gets_the_score(prepared):
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    sweep = ["-m", "hydra/sweeper=optuna", "hydra.sweeper.n_trials=2", "hydra.sweeper.n_jobs=1", "hydra.sweeper.direction=maximize"]
    space = ["trainer.learning_rate=interval(1e-4,1e-2)", "sweep_metric=bitext/test/margin_ratio_accuracy_forward"]
    mlmx(*sweep, *space, *SHORT, outputs=prepared)
    values = [
        score["value"]
        for run in summaries(prepared)
        for score in run["scores"]
        if score["metric"] == "margin_ratio_accuracy_forward"
    ]
    assert len(values) == 2
    (found,) = (prepared / "runs").glob("*/optimization_results.yaml")
    assert str(max(values)) in found.read_text()
