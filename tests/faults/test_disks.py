"""Disks that take no more: told in words, and gone on from when there is room again."""

import errno

import pytest

from mlmx.driver.storage import storage_error, told_if_full
from mlmx.errors import UserError
from mlmx.stage import StageDir
from tests.faults.disks import fill, make_larger, make_read_only, small_disk
from tests.integration.chains import BITEXT, SECONDS, mlmx, results, stage, stages
from tests.processes import running


def stages_of(outputs):
    return {path.name.partition("-")[0]: StageDir(path) for path in (outputs / "stages").iterdir() if path.is_dir()}


def test_a_worker_that_fills_the_disk(run_fake, tmp_path):
    with small_disk(tmp_path / "disk") as disk:
        with pytest.raises(UserError, match=r"outputs: No space left on device \(.*MiB free\).*type the command again"):
            run_fake(disk, stages__pretrain__objective__behaviour="fill")
        found = stages_of(disk)
        assert not found["pretrain"].finished
        assert not running(disk)
        (disk / "stages" / "mended").touch()
        (found["pretrain"].path / "half_written").unlink()
        assert run_fake(disk, stages__pretrain__objective__behaviour="fill", sweep_metric="bitext/test/f1") == 0.5


def test_a_disk_that_is_full_from_the_start(run_fake, tmp_path):
    with small_disk(tmp_path / "disk") as disk:
        fill(disk)
        with pytest.raises(UserError, match="outputs: No space left on device"):
            run_fake(disk)
        (disk / "ballast").unlink()
        run_fake(disk)
        assert stages_of(disk)["eval"].finished


def test_a_disk_that_becomes_read_only(run_fake, tmp_path):
    with small_disk(tmp_path / "disk") as disk:
        run_fake(disk)
        make_read_only(disk)
        with pytest.raises(UserError, match="outputs: Read-only file system"):
            run_fake(disk, seed=1)


def test_the_words_of_libraries_are_understood(tmp_path):
    said = "SafetensorError: Error while serializing: I/O error: No space left on device (os error 28)"
    assert "No space left on device" in str(storage_error(said, tmp_path))
    assert storage_error("ValueError: something else", tmp_path) is None
    with pytest.raises(FileNotFoundError), told_if_full(tmp_path):
        raise FileNotFoundError(errno.ENOENT, "no such file")


def test_a_read_only_folder_is_refused_before_anything_starts(tmp_path):
    with small_disk(tmp_path / "disk") as disk:
        make_read_only(disk)
        said = mlmx(*BITEXT, outputs=disk / "outputs", code=2)
        assert f"error: outputs: {disk / 'outputs'} cannot be written to: Read-only file system." in said


@pytest.mark.slow
@pytest.mark.timeout(4 * SECONDS)
def test_a_real_chain_on_a_disk_that_is_too_small(finished, tmp_path):
    settings = [*BITEXT, "trainer.checkpoint_every_steps=2"]
    with small_disk(tmp_path / "disk", "1200k") as disk:
        said = mlmx(*settings, outputs=disk / "outputs", code=2)
        assert "error: outputs: " in said
        assert "No space left on device" in said
        assert "Traceback" not in said
        assert not [one for one in stages(disk / "outputs", "pretrain") if one.finished]
        assert not running(disk)
        make_larger(disk, "100m")
        mlmx(*settings, outputs=disk / "outputs")
        again, before = (results(outputs) for outputs in (disk / "outputs", finished))
        weights = f"{stage(finished, 'pretrain').path.name}/encoder/model.safetensors"
        assert again[weights] == before[weights]
