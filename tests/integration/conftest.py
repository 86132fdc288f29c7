import shutil

import pytest

from tests.integration.chains import BITEXT, mlmx


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A finished chain, tracked offline; to be read only. Its folder has the output of the command in ``said.txt``."""
    outputs = tmp_path_factory.mktemp("finished") / "outputs"
    said = mlmx(*BITEXT, "tracker=wandb", "tracker.mode=offline", outputs=outputs)
    (outputs / "said.txt").write_text(said)
    return outputs


@pytest.fixture
def prepared(finished, tmp_path):
    """A folder of outputs with nothing but the preparations of the finished chain."""
    outputs = tmp_path / "outputs"
    for path in (finished / "stages").glob("prepare-*"):
        shutil.copytree(path, outputs / "stages" / path.name)
    return outputs
