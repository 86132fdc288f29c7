"""What a stage trained, for other programs to load."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForMaskedLM

from mlmx.driver.export import export
from mlmx.errors import UserError
from mlmx.models.load import load_encoder
from mlmx.models.sentence import SentenceModel
from mlmx.stage import StageDir
from mlmx.tasks.embedding import Embedding
from mlmx.training import export as worker
from tests.tiny import numbered_tokenizer, scratch_encoder

TEXTS = ["w1 w2 w3", "w4", " ".join(f"w{i}" for i in range(20)), "w5 w6"]
SIMILARITY = {
    "_target_": "mlmx.tasks.similarity.Similarity",
    "name": "sts",
    "data": {
        "_target_": "mlmx.tasks.similarity_data.SentEvalFiles",
        "_inputs_": ["folder"],
        "folder": "nowhere",
        "sets": ["STS12"],
    },
    "layer": "last",
    "pooling": "max",
    "width": None,
    "prefix": "w7 ",
    "max_length": 9,
    "batch_tokens": 512,
}
NOTHING = Embedding(layer="last", pooling=None, normalize=True, max_length=None)


def stage(path, kind="pretrain", *, spec=None, parents=None, finished=True) -> StageDir:
    directory = StageDir(path)
    directory.write_config(
        {"kind": kind, "name": "sts" if spec else "x", "spec": spec or {}, "parents": parents or {}, "execution": {}}
    )
    if finished:
        directory.write_result({"scores": []})
    return directory


def save_encoder(directory: StageDir, architecture="bert") -> None:
    scratch_encoder(numbered_tokenizer(32), max_length=16, architecture=architecture).save(directory.encoder_dir)


def vectors(folder):
    encoder = load_encoder(folder).eval()
    embedding = NOTHING.resolved(encoder, task="x")
    return embedding.vectors(encoder, TEXTS, task="x", what="texts", batch_tokens=64)


def exported(tmp_path, directory: StageDir, *arguments: str):
    out = tmp_path / "out"
    encoder = directory.parent("encoder") or directory
    return worker.main([str(directory.path), str(encoder.encoder_dir), str(out), *arguments]), out


def test_a_stage_becomes_a_folder_of_sentence_transformers(tmp_path):
    directory = stage(tmp_path / "pretrain-x-0")
    save_encoder(directory)
    out = tmp_path / "some" / "where"
    export(directory.path, out, form="sentence-transformers", pooling="cls")
    assert load_encoder(out).sentence == SentenceModel(pooling="cls", normalize=True, max_length=16)
    assert json.loads((out / "modules.json").read_text())[1]["type"] == "sentence_transformers.models.Pooling"
    written, ours = load_encoder(out), load_encoder(directory.path)
    assert written.head is None
    for name, tensor in ours.base.state_dict().items():
        assert torch.equal(tensor, written.base.state_dict()[name])
    assert [path.name for path in out.parent.iterdir()] == ["where"]
    with pytest.raises(UserError, match=r"--out: .*where is there already"):
        export(directory.path, out, form="sentence-transformers", pooling=None)


def test_an_evaluation_says_how_vectors_are_made(tmp_path):
    save_encoder(stage(tmp_path / "pretrain-x-0"))
    judged = stage(tmp_path / "eval-sts-0", "eval", spec={"task": SIMILARITY}, parents={"encoder": "pretrain-x-0"})
    code, out = exported(tmp_path, judged)
    assert code == 0
    said = {"pooling": "max", "normalize": True, "max_length": 9, "default_prompt": "default"}
    assert load_encoder(out).sentence == SentenceModel(**said, prompts={"default": "w7 "})
    own = Embedding(layer="last", pooling="max", normalize=True, max_length=9, prompts={None: "w7 "})
    encoder = load_encoder(tmp_path / "pretrain-x-0").eval()
    as_judged = own.resolved(encoder, task="x").vectors(encoder, TEXTS, task="x", what="texts", batch_tokens=64)
    np.testing.assert_array_equal(vectors(out), as_judged)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("architecture", ["bert", "roberta", "modernbert"])
@pytest.mark.parametrize("pooling", ["mean", "cls", "max"])
def test_sentence_transformers_makes_the_same_vectors(tmp_path, architecture, pooling):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    save_encoder(stage(tmp_path / "pretrain-x-0"), architecture)
    judged = stage(tmp_path / "eval-sts-0", "eval", spec={"task": SIMILARITY}, parents={"encoder": "pretrain-x-0"})
    _, out = exported(tmp_path, judged, "--pooling", pooling)
    theirs = sentence_transformers.SentenceTransformer(str(out), device="cpu")
    np.testing.assert_allclose(theirs.encode(TEXTS), vectors(out), atol=1e-5)
    assert theirs.similarity_fn_name == "cosine"


def test_nobody_says_how_vectors_are_made(tmp_path, capsys):
    directory = stage(tmp_path / "pretrain-x-0")
    save_encoder(directory)
    code, out = exported(tmp_path, directory)
    assert code == 2
    assert "--pooling: pretrain x makes no vectors of texts, so that it does not say how; give mean, cls, max." in (
        capsys.readouterr().err
    )
    assert not out.exists()


def test_a_lower_layer_is_refused(tmp_path, capsys):
    save_encoder(stage(tmp_path / "pretrain-x-0"))
    judged = stage(tmp_path / "eval-sts-0", "eval", spec={"task": SIMILARITY | {"layer": 1}}, parents={"encoder": "pretrain-x-0"})
    code, _ = exported(tmp_path, judged)
    assert code == 2
    message = "task.sts.layer: eval sts takes layer 1 of 2; Sentence-Transformers pools the last. --layers 1 leaves out those above"
    assert message in capsys.readouterr().err
    code, out = exported(tmp_path, judged, "--layers", "1")
    assert code == 0
    assert load_encoder(out).num_layers == 1


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("architecture", ["bert", "roberta"])
def test_fewer_layers_and_coordinates(tmp_path, architecture):
    directory = stage(tmp_path / "pretrain-x-0")
    save_encoder(directory, architecture)
    out = tmp_path / "small"
    export(directory.path, out, form="sentence-transformers", pooling="mean", layers=1, width=8)
    whole = load_encoder(directory.path).eval()
    part = Embedding(layer=1, pooling="mean", normalize=True, max_length=None, width=8).resolved(whole, task="x")
    expected = part.vectors(whole, TEXTS, task="x", what="texts", batch_tokens=64)
    assert expected.shape == (len(TEXTS), 8)
    np.testing.assert_array_equal(vectors(out), expected)
    # A folder stays what it is when somebody goes on training it.
    load_encoder(out).save(tmp_path / "trained")
    np.testing.assert_array_equal(vectors(tmp_path / "trained"), expected)
    try:
        import sentence_transformers
    except ImportError:
        return
    theirs = sentence_transformers.SentenceTransformer(str(out), device="cpu")
    np.testing.assert_allclose(theirs.encode(TEXTS), expected, atol=1e-5)


def test_fewer_layers_for_transformers(tmp_path):
    directory = stage(tmp_path / "pretrain-x-0")
    save_encoder(directory)
    export(directory.path, tmp_path / "small", form="transformers", pooling=None, layers=1)
    small, info = AutoModelForMaskedLM.from_pretrained(tmp_path / "small", output_loading_info=True)
    assert small.config.num_hidden_layers == len(small.bert.encoder.layer) == 1
    assert not any(info.values())
    with pytest.raises(UserError, match="--width: has no place in a folder of Transformers"):
        export(directory.path, tmp_path / "other", form="transformers", pooling=None, width=8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--layers", "3"], "--layers: 3 is not among the layers 1 to 2 of the encoder."),
        (["--layers", "0"], "--layers: 0 is not among the layers 1 to 2 of the encoder."),
        (["--width", "33"], "--width: 33 is not between 1 and the width of the encoder, 32."),
        (["--width", "0"], "--width: 0 is not between 1 and the width of the encoder, 32."),
    ],
)
def test_parts_that_there_are_not(tmp_path, capsys, arguments, message):
    directory = stage(tmp_path / "pretrain-x-0")
    save_encoder(directory)
    code, out = exported(tmp_path, directory, "--pooling", "mean", *arguments)
    assert code == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_transformers_gets_a_copy(tmp_path):
    directory = stage(tmp_path / "pretrain-x-0")
    save_encoder(directory)
    export(directory.path, tmp_path / "out", form="transformers", pooling=None)
    names = {path.name for path in directory.encoder_dir.iterdir()}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names
    assert all((tmp_path / "out" / name).read_bytes() == (directory.encoder_dir / name).read_bytes() for name in names)
    with pytest.raises(UserError, match="--pooling: has no place in a folder of Transformers"):
        export(directory.path, tmp_path / "other", form="transformers", pooling="cls")


def test_a_folder_that_was_judged_is_the_encoder(tmp_path):
    given = StageDir(tmp_path / "given")
    save_encoder(given)
    for name, source in (("a", given.path), ("b", given.encoder_dir)):
        judged = stage(tmp_path / name, "eval", spec={"task": SIMILARITY, "model": {"source": str(source)}})
        export(judged.path, tmp_path / f"out-{name}", form="transformers", pooling=None)
        assert (tmp_path / f"out-{name}" / "model.safetensors").is_file()


def test_stages_that_have_nothing_to_export(tmp_path):
    def refused(path):
        with pytest.raises(UserError) as caught:
            export(path, tmp_path / "out", form="transformers", pooling=None)
        assert not (tmp_path / "out").exists()
        return str(caught.value)

    assert "nowhere is no directory of a stage: there is none." in refused(tmp_path / "nowhere")
    assert refused(tmp_path).endswith("is no directory of a stage.")
    begun = stage(tmp_path / "pretrain-x-0", finished=False)
    assert "is not finished (not begun)" in refused(begun.path)
    begun.write_status("running", launch="a")
    assert "is not finished (running)" in refused(begun.path)
    assert "prepare-x-0 has no encoder" in refused(stage(tmp_path / "prepare-x-0", "prepare").path)
    spec = {"task": SIMILARITY, "model": {"source": "a/b"}}
    assert "judges a/b, which is no folder of this machine" in refused(stage(tmp_path / "eval-sts-0", "eval", spec=spec).path)
