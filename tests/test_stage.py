import subprocess
import sys

import pytest

from mlmx.errors import Problem, UserError
from mlmx.fingerprint import canonical_json, canonical_spec, fingerprint_of
from mlmx.locks import try_lock
from mlmx.stage import StageDir, error_to_json, user_error_from_json, write_atomically


def config(**parents):
    return {
        "format": 1,
        "kind": "eval",
        "name": "x",
        "fingerprint": "f" * 64,
        "spec": {"rate": 1e-5, "flag": "no"},
        "parents": parents,
    }


def test_files_of_a_stage_come_back_as_they_were_written(tmp_path):
    stage = StageDir(tmp_path / "eval-x-ffffffff")
    stage.write_config(config(model="pretrain-y-00000000"))
    assert StageDir(stage.path).config() == config(model="pretrain-y-00000000")
    assert stage.parent("model").path == tmp_path / "pretrain-y-00000000"
    assert stage.parent("tokenizer") is None
    assert not stage.finished
    stage.write_result({"scores": []})
    assert stage.finished
    assert stage.result() == {"scores": []}
    assert sorted(path.name for path in stage.path.iterdir()) == ["config.yaml", "manifest.json", "result.json"]


def test_status_keeps_who_and_since_when(tmp_path):
    stage = StageDir(tmp_path)
    assert stage.status() == {}
    stage.write_status("running", launch="a")
    stage.write_status("failed", error={"message": "x"})
    status = stage.status()
    assert status["state"] == "failed"
    assert status["launch"] == "a"
    assert status["started"] <= status["ended"]
    stage.write_status("running", launch="b")
    assert stage.status()["error"] is None
    assert stage.status()["ended"] is None


def test_a_write_that_fails_leaves_the_old_content(tmp_path):
    path = tmp_path / "result.json"
    write_atomically(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "\ud800")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_canonical_spec_leaves_out_what_has_no_effect():
    spec = {
        "seed": 1,
        "corpus": {
            "_target_": "a.B",
            "_version_": 2,
            "_name_": "text",
            "_inputs_": ["path"],
            "_no_effect_": ["shown"],
            "path": "/x",
            "revision": "main",
            "shown": 3,
            "parts": [{"_target_": "a.C", "_inputs_": ["file"], "file": "y", "weight": 1.5}],
        },
    }
    inputs = {"corpus.path": "abc", "corpus.parts.0.file": "def"}
    assert canonical_spec(spec, inputs) == {
        "seed": 1,
        "corpus": {
            "_target_": "a.B",
            "_version_": 2,
            "path": {"content": "abc"},
            "parts": [{"_target_": "a.C", "file": {"content": "def"}, "weight": 1.5}],
        },
    }


def test_equal_documents_have_equal_names():
    assert fingerprint_of({"a": 1, "b": [1.0, "é"]}) == fingerprint_of({"b": [1.0, "é"], "a": 1})
    assert fingerprint_of({"a": 1}) != fingerprint_of({"a": 2})
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json(float("nan"))


def test_errors_survive_the_status_file():
    error = UserError([Problem("a.b", "is wrong.", "a.c"), Problem("d", "too.")])
    assert user_error_from_json(error_to_json(error)).problems == error.problems
    assert user_error_from_json(error_to_json(ValueError("x"))) is None
    assert user_error_from_json(None) is None


def test_locks_exclude(tmp_path):
    with (tmp_path / "lock").open("a") as first, (tmp_path / "lock").open("a") as second:
        assert try_lock(first)
        assert not try_lock(second)
        assert not try_lock(second, shared=True)
    with (tmp_path / "lock").open("a") as first, (tmp_path / "lock").open("a") as second:
        assert try_lock(first, shared=True)
        assert try_lock(second, shared=True)


def test_imports_nothing_heavy():
    program = "import sys, mlmx.stage; sys.exit(any(name in sys.modules for name in ('torch', 'numpy', 'transformers', 'hydra')))"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=30)
