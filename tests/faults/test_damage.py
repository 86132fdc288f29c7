"""What a finished stage made is damaged afterwards: seen, named, and made again before anybody uses it."""

import os

import pytest

from mlmx.errors import UserError
from mlmx.manifest import damage, manifest_of
from mlmx.stage import StageDir


def flip(path, at=7):
    """Change one bit in the middle of a file, as if nobody had written to it."""
    times = path.stat()
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def truncate(path):
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 3)


def stage(outputs, kind):
    found = [StageDir(path) for path in (outputs / "stages").glob(f"{kind}-*") if (path / "starts").exists()]
    return next(one for one in found if one.config()["name"] != "tokenizer")


def num_starts(outputs, kind):
    return len((stage(outputs, kind).path / "starts").read_text().splitlines())


@pytest.mark.parametrize(("kind", "product", "harm"), [("prepare", "data", truncate), ("pretrain", "encoder", flip)])
def test_the_same_command_makes_it_again(run_fake, tmp_path, capsys, kind, product, harm):
    outputs = tmp_path / "outputs"
    run_fake()
    damaged = stage(outputs, kind).path / product / "numbers.bin"
    whole = damaged.read_bytes()
    harm(damaged)
    capsys.readouterr()
    run_fake()
    assert f"damaged: {product}/numbers.bin" in capsys.readouterr().out
    assert damaged.read_bytes() == whole
    assert num_starts(outputs, kind) == 2
    (kept,) = (outputs / "replaced").iterdir()
    assert (kept / "result.json").exists()


def test_decay_that_left_no_trace_is_seen_before_the_next_stage_reads_it(run_fake, tmp_path, capsys, monkeypatch):
    outputs = tmp_path / "outputs"
    run_fake()
    flip(stage(outputs, "prepare").data_dir / "numbers.bin")
    # As if the disk had lost the bit: the file system knows of no change.
    monkeypatch.setattr("mlmx.manifest._stamp", lambda path: {"bytes": path.stat().st_size, "changed_ns": 0})
    manifest = stage(outputs, "prepare").manifest_path
    manifest.write_text(manifest.read_text().replace('"changed_ns": ', '"changed_ns": 0, "was": '))
    run_fake()
    assert num_starts(outputs, "prepare") == 1
    run_fake(seed=1)
    assert "damaged: data/numbers.bin is not what was written" in capsys.readouterr().out
    assert num_starts(outputs, "prepare") == 2


def test_a_result_that_cannot_be_read_is_no_result(run_fake, tmp_path, capsys):
    run_fake()
    truncate(stage(tmp_path / "outputs", "pretrain").result_path)
    run_fake()
    assert "damaged: its record cannot be read" in capsys.readouterr().out


def test_a_damaged_stage_is_no_encoder_to_start_from(run_fake, tmp_path):
    run_fake()
    trained = stage(tmp_path / "outputs", "pretrain")
    model = {"_target_": "mlmx.x.Pretrained", "_version_": 1, "_inputs_": ["source"], "tokenizer": None, "seed": 0}
    run_fake(chain=[], stages={}, model={**model, "source": str(trained.encoder_dir)})
    flip(trained.encoder_dir / "numbers.bin")
    with pytest.raises(UserError, match=r"model\.source: .* is damaged: encoder/numbers\.bin is not what was written"):
        run_fake(chain=[], stages={}, model={**model, "source": str(trained.encoder_dir)})


def test_what_a_manifest_sees(tmp_path):
    (tmp_path / "data" / "inner").mkdir(parents=True)
    for name in ("data/a", "data/inner/b", "c"):
        (tmp_path / name).write_bytes(bytes(100))
    manifest = manifest_of(tmp_path, ["data", "c", "absent"])
    (tmp_path / "c").rename(tmp_path / "away")
    assert damage(tmp_path, manifest, thorough=False) == "c is missing"
    (tmp_path / "away").rename(tmp_path / "c")
    assert sorted(manifest["files"]) == ["c", "data/a", "data/inner/b"]
    assert damage(tmp_path, manifest, thorough=True) is None
    (tmp_path / "data" / "new").touch()  # of no concern
    assert damage(tmp_path, manifest, thorough=True) is None
    flip(tmp_path / "data" / "inner" / "b")
    assert damage(tmp_path, manifest, thorough=False) == "data/inner/b is not what was written (its checksum differs)"
