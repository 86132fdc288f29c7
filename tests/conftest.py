"""What holds for every test."""

import logging
import shutil
import signal

import pytest

# A shell without job control starts background programs with Ctrl-C ignored, and the programs of a test would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _root_logger_as_it_was():
    # A program that is run inside a test may add a handler, whose stream pytest closes when the test ends.
    before = list(logging.root.handlers), logging.root.level
    yield
    logging.root.handlers[:], logging.root.level = before


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A finished chain, tracked offline; to be read only. Its folder has the output of the command in ``said.txt``."""
    from tests.integration.chains import BITEXT, SECRETS, mlmx

    outputs = tmp_path_factory.mktemp("finished") / "outputs"
    said = mlmx(*BITEXT, "tracker=wandb", "tracker.mode=offline", outputs=outputs, variables=SECRETS)
    (outputs / "said.txt").write_text(said)
    return outputs


@pytest.fixture
def prepared(finished, tmp_path):
    """A folder of outputs with nothing but the preparations of the finished chain."""
    outputs = tmp_path / "outputs"
    for path in (finished / "stages").glob("prepare-*"):
        shutil.copytree(path, outputs / "stages" / path.name)
    return outputs
