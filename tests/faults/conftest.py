import pytest

from mlmx.driver import chain, execute
from tests.driver.configs import frozen


@pytest.fixture
def run_fake(tmp_path, monkeypatch):
    """Run a chain whose worker only pretends, in this process; ``changes`` are those of ``frozen``."""
    monkeypatch.setattr(execute, "check", lambda placed, config, fresh=False: None)  # The components are made up.
    names = iter(range(100))

    def run(outputs=tmp_path / "outputs", **changes):
        run_dir = outputs / "runs" / str(next(names))
        return chain.run(frozen(outputs, **changes), run_dir=run_dir, overrides=[], worker="tests.driver.fake_worker")

    return run
