"""What a run leaves behind holds no secret of the environment it ran in."""

from tests.integration.chains import SECRETS


def test_no_secret_is_written_anywhere(finished):
    files = [path for path in finished.rglob("*") if path.is_file()]
    assert any(path.suffix == ".wandb" for path in files)
    assert any(path.name == "log.txt" for path in files)
    found = [(str(path), name) for path in files for name, value in SECRETS.items() if value.encode() in path.read_bytes()]
    assert found == []
