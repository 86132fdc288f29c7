from __future__ import annotations

import pytest

from mlmx.errors import UserError
from mlmx.report.runs import Run, RunScore, ScoreKey
from mlmx.report.selection import select

RATE = "trainer.learning_rate"


def score(task: str, split: str, value: float, metric: str = "matthews", *, higher_is_better: bool = True) -> RunScore:
    return RunScore(
        key=ScoreKey(task, split, metric), value=value, num_examples=10, higher_is_better=higher_is_better, stage=f"{task}{value}"
    )


def run(rate: float, seed: int, scores: list[RunScore], *, objective: str = "mlm", task: str = "cola", **more) -> Run:
    node = {"_target_": "mlmx.tasks.glue.Glue", "pooling": "cls", "trainer": {"_target_": "T", "learning_rate": rate}}
    return Run(
        folder=f"{objective}-{task}-{rate}-{seed}",
        started="",
        status="finished",
        error="",
        seed=seed,
        settings={"objective": objective},
        tasks={task: node, **more},
        scores=scores,
    )


def dev(rate: float, values: list[float], **settings) -> list[Run]:
    task = settings.get("task", "cola")
    return [
        run(rate, seed, [score(task, "dev", value), score(task, "test", value / 2)], **settings)
        for seed, value in enumerate(values)
    ]


def test_the_median_over_seeds_on_dev_decides():
    # The means, and the best single seed, would take the other one.
    runs = dev(1e-5, [0.5, 0.5, 0.5]) + dev(2e-5, [0.4, 0.4, 0.9])
    kept, notes = select(runs, RATE)
    assert [one.key.split for run in kept for one in run.scores] == ["dev", "test"] * 3
    assert [run.folder for run in kept if run.tasks] == [f"mlm-cola-1e-05-{seed}" for seed in range(3)]
    assert all(
        node == {"_target_": "mlmx.tasks.glue.Glue", "pooling": "cls", "trainer": {"_target_": "T"}}
        for run in kept
        for node in run.tasks.values()
    )
    (note,) = notes
    assert "cola: trainer.learning_rate=1e-05 has the best median of cola/dev/matthews over seeds 0, 1, 2" in note
    assert "(1e-05: 0.5000, 2e-05: 0.4000), so its dev scores are the best of 2." in note


def test_each_configuration_and_task_chooses_its_own():
    other = {"bitext": {"_target_": "mlmx.tasks.bitext.Bitext"}}
    runs = dev(1e-5, [0.5]) + dev(2e-5, [0.6]) + dev(1e-5, [0.8], objective="tlm") + dev(2e-5, [0.7], objective="tlm")
    runs += dev(1e-5, [0.1], task="rte", **other) + dev(3e-5, [0.2], task="rte")
    kept, notes = select(runs, RATE)
    assert [run.folder for run in kept if run.tasks.keys() & {"cola", "rte"}] == [
        "mlm-cola-2e-05-0",
        "tlm-cola-1e-05-0",
        "mlm-rte-3e-05-0",
    ]
    assert len(notes) == 3
    assert "cola (objective=tlm): trainer.learning_rate=1e-05" in notes[1]
    # A task without the setting is left as it is.
    assert [run.folder for run in kept if "bitext" in run.tasks] == ["mlm-rte-1e-05-0"]


def test_a_loss_is_best_when_low_and_only_seeds_that_all_values_have_count():
    def loss(rate, values):
        return [run(rate, seed, [score("cola", "dev", value, "loss", higher_is_better=False)]) for seed, value in values.items()]

    kept, _ = select(loss(1e-5, {0: 0.5, 1: 0.1, 2: 0.1}) + loss(2e-5, {0: 0.4, 3: 9.0}), RATE)
    assert {run.folder for run in kept if run.tasks} == {"mlm-cola-2e-05-0", "mlm-cola-2e-05-3"}
    with pytest.raises(UserError, match=r"cola: the values of trainer\.learning_rate were run with different seeds"):
        select(loss(1e-5, {0: 0.5}) + loss(2e-5, {1: 0.4}), RATE)


def test_what_cannot_be_chosen_is_told():
    runs = [run(rate, 0, [score("cola", "test", 0.5)]) for rate in (1e-5, 2e-5)]
    with pytest.raises(
        UserError, match=r"task\.cola\.splits: trainer\.learning_rate is chosen on the dev split, by which cola was not"
    ):
        select(runs, RATE)
    with pytest.raises(UserError, match=r"no task has a setting 'trainer\.learnin_rate'\. Did you mean 'trainer\.learning_rate'"):
        select(runs, "trainer.learnin_rate")


def test_a_run_that_came_to_no_score_decides_nothing():
    failed = run(9e-5, 0, [])
    kept, notes = select([*dev(1e-5, [0.5]), failed], RATE)
    assert notes == []
    assert [run.folder for run in kept if run.scores] == ["mlm-cola-1e-05-0"]
