import pytest

from mlmx.stage import StageDir
from mlmx.training.lineage import published_origin


def make_stage(folder, name, *, source=None, **parents):
    stage = StageDir(folder / name)
    model = {} if source is None else {"model": {"source": str(source), "revision": None}}
    stage.write_config({"kind": name.partition("-")[0], "name": name, "spec": model, "parents": parents})
    return stage


@pytest.fixture
def pretrained(tmp_path):
    """A chain of two pretrainings, of published weights."""
    make_stage(tmp_path, "pretrain-a", source="hub/encoder")
    return make_stage(tmp_path, "pretrain-b", encoder="pretrain-a")


def test_the_origin_is_where_published_weights_were_first_trained(tmp_path, pretrained):
    make_stage(tmp_path, "finetune-x", encoder="pretrain-b")
    for judged in (
        make_stage(tmp_path, "eval-x", model="finetune-x"),
        make_stage(tmp_path, "eval-y", encoder="pretrain-b"),
        make_stage(tmp_path, "eval-from-a-stage", source=pretrained.path),
        make_stage(tmp_path, "eval-from-its-encoder", source=pretrained.encoder_dir),
    ):
        origin = published_origin(judged)
        assert origin is not None
        assert origin.path.name == "pretrain-a"


def test_without_pretraining_or_without_published_weights_there_is_none(tmp_path, pretrained, caplog):
    make_stage(tmp_path, "pretrain-scratch", tokenizer="prepare-t")
    assert published_origin(make_stage(tmp_path, "eval-random", encoder="pretrain-scratch")) is None
    assert published_origin(make_stage(tmp_path, "eval-as-it-is", source="hub/encoder")) is None
    make_stage(tmp_path, "finetune-only", source="hub/encoder")
    assert published_origin(make_stage(tmp_path, "eval-tuned-only", model="finetune-only")) is None
    assert caplog.text == ""
    judged = make_stage(tmp_path, "eval-x", encoder="pretrain-b")
    (tmp_path / "pretrain-a" / "config.yaml").unlink()
    assert published_origin(judged) is None
    assert "the stage pretrain-a is gone" in caplog.text
