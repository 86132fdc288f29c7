"""Two processes under torchrun take the steps that one takes."""

import pytest

from tests.integration.chains import metrics, mlmx, stage
from tests.processes import running


def test_the_first_losses_agree(finished, prepared):
    said = mlmx("parallel.num_processes=2", "trainer.micro_batch_tokens=128", "task=[]", outputs=prepared)
    assert said.count("reused") == 2
    one, two = (metrics(stage(outputs, "pretrain")) for outputs in (finished, prepared))
    assert len(one) == 20
    assert [line["step"] for line in two] == [line["step"] for line in one]
    assert [line["tokens"] for line in two] == [line["tokens"] for line in one]
    assert [line["loss"] for line in two] == pytest.approx([line["loss"] for line in one], rel=1e-6, abs=0)
    assert stage(prepared, "pretrain").result()["num_processes"] == 2
    assert not running(prepared)
