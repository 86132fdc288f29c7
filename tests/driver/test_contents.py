"""A stage is named by its content: what changes the name and what does not."""

import os
import shutil

import pytest

from mlmx.driver import contents
from mlmx.driver.contents import Contents, pinned
from mlmx.driver.directories import place
from mlmx.driver.stages import stages_of
from mlmx.errors import UserError
from tests.driver.configs import corpus, frozen


def fingerprints(tmp_path, **changes):
    """Return kind-name -> fingerprint of the stages of a config."""
    placed = place(stages_of(frozen(tmp_path / "outputs", **changes)), tmp_path / "outputs")
    return {f"{one.stage.kind}-{one.stage.name}": one.fingerprint for one in placed}


def changed(tmp_path, **changes):
    before, after = fingerprints(tmp_path), fingerprints(tmp_path, **changes)
    assert before.keys() == after.keys()
    return {name for name in before if before[name] != after[name]}


def test_settings_without_effect_change_nothing(tmp_path):
    assert changed(tmp_path, stages__pretrain__objective__log_every=99) == set()
    assert changed(tmp_path, parallel__num_processes=2, tracker__mode="offline", name="other", plugins=["x"]) == set()
    assert changed(tmp_path, stages__pretrain__objective___name_="mlm") == set()


def test_settings_with_effect_change_what_follows(tmp_path):
    assert changed(tmp_path, stages__pretrain__objective__rate=0.3) == {"pretrain-mlm", "eval-bitext"}
    assert changed(tmp_path, stages__pretrain__objective___version_=2) == {"pretrain-mlm", "eval-bitext"}
    assert changed(tmp_path, task__bitext___version_=2) == {"eval-bitext"}
    assert changed(tmp_path, model__width=9) == {"pretrain-mlm", "eval-bitext"}
    everything = {"prepare-tokenizer", "prepare-microworld", "pretrain-mlm", "eval-bitext"}
    assert changed(tmp_path, model__tokenizer__vocab_size=11) == everything


def test_the_seed_counts_only_where_it_is_used(tmp_path):
    assert changed(tmp_path, seed=1) == {"pretrain-mlm", "eval-bitext"}


def test_inputs_count_by_content(tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "a.txt").write_text("one\n")
    (folder / "b.txt").write_text("two\n")
    moved = tmp_path / "moved"
    shutil.copytree(folder, moved)

    def of(path):
        spec = {"corpus": {**corpus("text"), "_inputs_": ["path"], "path": path}}
        return Contents(tmp_path / "cache.json").inputs_of(spec)["corpus.path"]

    for name in ("", "/a.txt", "/*.txt"):
        assert of(f"{folder}{name}") == of(f"{moved}{name}")
    assert of([f"{folder}/a.txt", f"{folder}/b.txt"]) == of(f"{folder}/*.txt")
    assert of([f"{folder}/b.txt", f"{folder}/a.txt"]) != of(f"{folder}/*.txt")
    assert of(None) is None
    (moved / "b.txt").write_text("three\n")
    assert of(str(folder)) != of(str(moved))
    assert of(f"{folder}/*.txt") != of(f"{moved}/*.txt")


def test_moving_a_corpus_keeps_every_name(tmp_path):
    names = []
    for folder in ("here", "there"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "news.txt").write_text("the same\n")
        node = {**corpus("text"), "_inputs_": ["path"], "path": str(tmp_path / folder / "news.txt")}
        names.append(fingerprints(tmp_path, stages__pretrain__corpus=node))
    assert names[0] == names[1]


def test_hashes_are_cached_until_the_file_changes(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    path.write_text("one\n")
    monkeypatch.setattr(contents, "_SETTLED_SECONDS", -1.0)
    cache = tmp_path / "cache.json"
    first = Contents(cache)
    digest = first.file_hash(path)
    first.save()
    with monkeypatch.context() as patch:
        patch.setattr(contents.hashlib, "file_digest", lambda *_: pytest.fail("read again"))
        assert Contents(cache).file_hash(path) == digest
    status = path.stat()
    path.write_text("two\n")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert Contents(cache).file_hash(path) != digest


def test_caches_of_parallel_jobs_are_merged(tmp_path, monkeypatch):
    monkeypatch.setattr(contents, "_SETTLED_SECONDS", -1.0)
    jobs = [Contents(tmp_path / "cache.json") for _ in range(2)]
    for i, job in enumerate(jobs):
        (tmp_path / f"{i}.txt").write_text(str(i))
        job.file_hash(tmp_path / f"{i}.txt")
    for job in jobs:
        job.save()
    assert len(Contents(tmp_path / "cache.json")._known) == 2


def test_missing_inputs_are_told_all_at_once(tmp_path):
    node = {**corpus("text"), "_inputs_": ["path"], "path": "/nowhere/a.txt"}
    task = {**frozen(tmp_path)["task"]["bitext"], "_inputs_": ["gold"], "gold": "/nowhere/*.tsv"}
    with pytest.raises(UserError) as caught:
        fingerprints(tmp_path, stages__pretrain__corpus=node, task__bitext=task)
    assert [problem.where for problem in caught.value.problems] == ["corpus.path", "task.bitext.gold"]


@pytest.mark.parametrize("inside", ["", "encoder"])
def test_what_an_unfinished_stage_left_is_refused(tmp_path, inside):
    stage = tmp_path / "pretrain-mlm-0123abcd"
    (stage / "encoder").mkdir(parents=True)
    for name in ("config.yaml", "lock", "encoder/config.json"):
        (stage / name).write_text("{}")
    spec = {"model": {"_inputs_": ["source"], "source": str(stage / inside)}}
    with pytest.raises(UserError, match="is not finished"):
        Contents(tmp_path / "cache.json").inputs_of(spec)
    (stage / "result.json").write_text("{}")
    assert Contents(tmp_path / "cache.json").inputs_of(spec)


COMMIT = "0123456789" * 4


def _hub_spec(revision="main", source="someone/model"):
    return {"model": {"_target_": "mlmx.x.Pretrained", "_inputs_": ["source"], "source": source, "revision": revision}}


def test_a_hub_revision_is_its_commit(tmp_path, monkeypatch):
    spec = _hub_spec(COMMIT)
    inputs = Contents(tmp_path / "cache.json").inputs_of(spec)
    assert inputs == {"model.source": COMMIT}
    monkeypatch.setattr(contents, "_resolve", lambda *_: COMMIT)
    inputs = Contents(tmp_path / "cache.json").inputs_of(_hub_spec())
    assert inputs == {"model.source": COMMIT}
    assert pinned(_hub_spec(), inputs)["model"] == {**spec["model"], "revision": COMMIT}


class ConnectError(Exception):
    """As the hub's HTTP client raises it: no ``OSError``."""


@pytest.mark.parametrize("kind", [ConnectionError, ConnectError])
def test_a_hub_revision_offline_comes_from_the_cache(tmp_path, monkeypatch, kind):
    from huggingface_hub import HfApi, constants

    def unreachable(*_, **__):
        raise kind

    monkeypatch.setattr(HfApi, "repo_info", unreachable)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=r"model\.source: 'someone/model' is no existing path.*cannot be reached"):
        Contents(tmp_path / "cache.json").inputs_of(_hub_spec())
    reference = tmp_path / "models--someone--model" / "refs" / "main"
    reference.parent.mkdir(parents=True)
    reference.write_text(COMMIT)
    assert Contents(tmp_path / "cache.json").inputs_of(_hub_spec()) == {"model.source": COMMIT}
    with pytest.raises(UserError, match="neither an existing path nor the name"):
        Contents(tmp_path / "cache.json").inputs_of(_hub_spec(source="/no/such/folder"))
