"""Which stages a config has."""

import re

import pytest

from mlmx.driver.stages import place_of, stages_of
from mlmx.errors import UserError
from mlmx.fingerprint import canonical_document, fingerprint_of
from tests.driver.configs import corpus, frozen

GOLD = {"_target_": "mlmx.x.Gold", "_version_": 1, "_name_": "gold"}


def described(config):
    """Return (kind, name, parents) of each stage."""
    return [
        (stage.kind, stage.name, {role: f"{parent.kind} {parent.name}" for role, parent in stage.parents.items()})
        for stage in stages_of(config)
    ]


def test_pretrain_and_judge(tmp_path):
    assert described(frozen(tmp_path)) == [
        ("prepare", "tokenizer", {}),
        ("prepare", "microworld", {"tokenizer": "prepare tokenizer"}),
        ("pretrain", "mlm", {"tokenizer": "prepare tokenizer", "prepare": "prepare microworld"}),
        ("eval", "bitext", {"encoder": "pretrain mlm"}),
    ]


def test_two_pretrainings_in_a_row_with_annotation(tmp_path):
    config = frozen(tmp_path, chain=["mono", "para"])
    base = config["stages"].pop("pretrain")
    annotated = {**base, "objective": {**base["objective"], "_needs_annotation_": True}, "annotator": GOLD}
    config["stages"] = {"mono": {**annotated, "corpus": corpus("news")}, "para": annotated}
    shape = described(config)
    assert [(kind, name) for kind, name, _ in shape] == [
        ("prepare", "tokenizer"),
        ("prepare", "news"),
        ("annotate", "gold"),
        ("pretrain", "mono"),
        ("prepare", "microworld"),
        ("annotate", "gold"),
        ("pretrain", "para"),
        ("eval", "bitext"),
    ]
    stages = stages_of(config)
    second = next(stage for stage in stages if stage.name == "para")
    assert second.parents["encoder"].name == "mono"
    assert "model" not in second.spec
    assert second.parents["annotate"].parents["prepare"] is second.parents["prepare"]
    assert stages[0].spec["corpora"] == [corpus("news"), corpus("microworld")]
    assert place_of(second, "objective.rate") == "objective.rate"


def test_what_a_part_of_an_objective_needs_the_whole_needs(tmp_path):
    config = frozen(tmp_path, task={})
    stage = config["stages"]["pretrain"]
    parts = {"lem": {"objective": {"_target_": "mlmx.x.Part", "_needs_annotation_": True, "_needs_parallel_": True}}}
    stage["objective"] = {"_target_": "mlmx.x.Sum", "_name_": "sum", "parts": parts}
    stage["annotator"] = GOLD
    assert [(kind, name) for kind, name, _ in described(config)][2:] == [("annotate", "gold"), ("pretrain", "sum")]
    # Parts may stand in a list as well.
    stage["objective"] = {"_target_": "mlmx.x.Sum", "_name_": "sum", "parts": [parts["lem"]]}
    assert [(kind, name) for kind, name, _ in described(config)][2:] == [("annotate", "gold"), ("pretrain", "sum")]
    stage["annotator"] = None
    stage["corpus"]["_parallel_"] = False
    with pytest.raises(UserError) as error:
        stages_of(config)
    assert [problem.where for problem in error.value.problems] == ["annotator", "corpus"]


def test_statistics_are_collected_once_for_all_that_need_them(tmp_path):
    config = frozen(tmp_path, chain=["one", "sum"], task={})
    base = config["stages"].pop("pretrain")
    counts = {"_target_": "mlmx.x.Counts", "_version_": 1}
    needs = {**base["objective"], "_statistics_": ["counts", "clusters"], "counts": counts, "clusters": None}
    both = {"_target_": "mlmx.x.Sum", "parts": {"a": needs, "b": {**needs, "clusters": {**counts, "number": 3}}}}
    config["stages"] = {"one": {**base, "objective": needs}, "sum": {**base, "objective": both}}
    collected = ("collect", "counts", {"prepare": "prepare microworld"})
    shape = described(config)
    assert shape[2:4] == [
        collected,
        (
            "pretrain",
            "one",
            {"tokenizer": "prepare tokenizer", "prepare": "prepare microworld", "statistic.counts": "collect counts"},
        ),
    ]
    assert shape[4][:2] == ("collect", "parts.b.clusters")
    assert shape[5][2] == {
        "tokenizer": "prepare tokenizer",
        "prepare": "prepare microworld",
        "statistic.parts.a.counts": "collect counts",
        "statistic.parts.b.counts": "collect counts",
        "statistic.parts.b.clusters": "collect parts.b.clusters",
        "encoder": "pretrain one",
    }
    assert len(shape) == 6
    assert place_of(stages_of(config)[4], "statistic.number") == "objective.parts.b.clusters.number"


def test_finetune_without_pretraining(tmp_path):
    config = frozen(tmp_path, chain=[], stages={})
    config["model"] = {"_target_": "mlmx.x.Pretrained", "source": "x", "revision": "main"}
    config["task"] = {"sentiment": {"_target_": "mlmx.x.Sentiment", "name": "sentiment", "trainer": {"_target_": "mlmx.x.Trainer"}}}
    assert described(config) == [("finetune", "sentiment", {}), ("eval", "sentiment", {"model": "finetune sentiment"})]
    finetune, evaluation = stages_of(config)
    assert finetune.spec == {
        "seed": 0,
        "task": {"_target_": "mlmx.x.Sentiment", "name": "sentiment"},
        "trainer": {"_target_": "mlmx.x.Trainer"},
        "model": config["model"],
    }
    assert evaluation.spec == {"task": finetune.spec["task"]}
    assert place_of(finetune, "trainer.max_steps") == "task.sentiment.trainer.max_steps"


def test_which_tokens_a_token_sees_does_not_name_what_is_tokenised(tmp_path):
    def fingerprints(attention):
        config = frozen(tmp_path)
        config["model"] = {"_target_": "mlmx.x.Pretrained", "source": "x", "revision": "main", "attention": attention}
        return {stage.kind: fingerprint_of(canonical_document(stage.kind, stage.spec, {}, {})) for stage in stages_of(config)}

    causal, bidirectional = fingerprints("causal"), fingerprints("bidirectional")
    assert causal["prepare"] == bidirectional["prepare"]
    assert causal["pretrain"] != bidirectional["pretrain"]


def test_how_a_task_judges_does_not_name_what_is_fine_tuned(tmp_path):
    def fingerprints(**settings):
        config = frozen(tmp_path, chain=[], stages={})
        config["model"] = {"_target_": "mlmx.x.Pretrained", "source": "x", "revision": "main"}
        task = {"_target_": "mlmx.x.Glue", "name": "rte", "splits": ["dev"], "_no_effect_on_training_": ["splits"], "lower": True}
        config["task"] = {"rte": {**task, **settings, "trainer": {"_target_": "mlmx.x.Trainer"}}}
        return [fingerprint_of(canonical_document(stage.kind, stage.spec, {}, {})) for stage in stages_of(config)]

    (finetune, evaluation), (other_finetune, other_evaluation) = fingerprints(), fingerprints(splits=["test"])
    assert finetune == other_finetune
    assert evaluation != other_evaluation
    assert fingerprints(lower=False)[0] != finetune


def test_a_task_goes_on_from_what_another_leaves(tmp_path):
    def tasks(**settings):
        config = frozen(tmp_path)
        trainer = {"_target_": "mlmx.x.Trainer"}
        curation = {"_target_": "mlmx.x.Curation", "name": "curation"}
        translation = {"_target_": "mlmx.x.Translation", "name": "translation", "_tasks_": ["train"], "trainer": trainer}
        config["task"] = {"translation": {**translation, "train": "curation", **settings}, "curation": curation}
        return config

    assert described(tasks())[-3:] == [
        ("eval", "curation", {"encoder": "pretrain mlm"}),
        ("finetune", "translation", {"encoder": "pretrain mlm", "train": "eval curation"}),
        ("eval", "translation", {"model": "finetune translation"}),
    ]
    # A corpus names no task.
    assert [name for _, name, _ in described(tasks(train={"_target_": "mlmx.x.Corpus"}))[-3:]] == [
        "translation",
        "translation",
        "curation",
    ]
    for other, told in (
        (
            "curaton",
            "task.translation.train: 'curaton' is no other task of this run; selected are: curation. Did you mean 'curation'",
        ),
        ("translation", "task.translation.train: 'translation' is no other task of this run"),
    ):
        with pytest.raises(UserError, match=re.escape(told)):
            stages_of(tasks(train=other))


def test_judging_a_model_from_scratch_untrained(tmp_path):
    shape = described(frozen(tmp_path, chain=[], stages={}))
    assert shape == [("prepare", "tokenizer", {}), ("eval", "bitext", {"tokenizer": "prepare tokenizer"})]
