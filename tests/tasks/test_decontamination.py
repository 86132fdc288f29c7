from __future__ import annotations

import logging

import pytest
from sklearn.metrics import f1_score

from mlmx.tasks.decontamination import decontaminate
from mlmx.tasks.task import Evaluation, Score, ratio_scores

SETTINGS = {"ngram_words": 13, "min_words": 8, "leave_out": True}


def score(metric: str, value: float, split: str = "test") -> Score:
    return Score(task="t", split=split, metric=metric, value=value, num_examples=4, higher_is_better=True, trivial=0.1)


def labelled(pairs: list[tuple[str, str]], split: str = "test") -> list[dict]:
    texts = ["one", "two", "three", "four"]
    return [
        {"id": str(i), "split": split, "label": gold, "prediction": answer, "texts": [texts[i]]}
        for i, (gold, answer) in enumerate(pairs)
    ]


def test_found_counted_listed_and_left_out(caplog):
    pairs = [("a", "a"), ("a", "b"), ("b", "b"), ("b", "b")]
    gold, predicted = zip(*pairs, strict=True)
    scores = [score("accuracy", 0.75), score("macro_f1", float(f1_score(gold, predicted, average="macro")))]
    scores.append(score("accuracy", 0.75, "dev"))
    records = labelled(pairs) + [{**record, "texts": ["nowhere"]} for record in labelled(pairs, "dev")]
    with caplog.at_level(logging.WARNING):
        result = decontaminate(Evaluation(scores=scores, predictions=records), [["Two!", "five"]], **SETTINGS)
    assert "t: 1 of 4 examples of split test also occur in a pretraining corpus" in caplog.text
    assert "dev" not in caplog.text
    (found,) = result.found
    assert found == {"id": "1", "split": "test", "texts": ["two"], "whole_line": True, "ngrams": 0, "ngrams_found": 0}
    by_name = {(one.split, one.metric): one for one in result.evaluation.scores}
    assert [by_name[split, "accuracy"].contaminated for split in ("test", "dev")] == [(1, 4), (0, 4)]
    assert by_name["test", "accuracy"].value == 0.75
    # Without the one that was wrong, all is right; and its trivial score is not that of all.
    for metric in ("accuracy", "macro_f1"):
        clean = by_name["test_decontaminated", metric]
        assert (clean.value, clean.num_examples, clean.trivial, clean.contaminated) == (1.0, 3, None, None)
    assert ("dev_decontaminated", "accuracy") not in by_name
    predictions = result.evaluation.predictions
    assert [record["id"] for record in predictions if record["split"] == "test_decontaminated"] == ["0", "2", "3"]
    assert not any("texts" in record for record in predictions)


def test_scores_of_sums_means_and_correlations_without_what_was_found():
    long = " ".join(f"w{i}" for i in range(14))
    records = []
    for i, (part, mean, gold, answer) in enumerate(
        [(1, 1.0, 1.0, 2.0), (0, 0.0, 2.0, 1.0), (2, 0.5, 3.0, 3.0), (1, 0.0, 4.0, 5.0)]
    ):
        record = {"id": str(i), "split": "test", "ratios": {"x_recall": [part, 2], "x_f1": [2 * part, 4]}, "metrics": {"mrr": mean}}
        records.append({**record, "label": gold, "prediction": answer, "texts": ["short", f"{long} v{i}" if i else "other"]})
    scores = [*ratio_scores(records, task="t"), score("mrr", 0.375), score("spearman", 0.8)]
    result = decontaminate(Evaluation(scores=scores, predictions=records), [[f"before {long} v1 after"]], **SETTINGS)
    assert [(found["id"], found["ngrams_found"], found["ngrams"]) for found in result.found] == [
        ("1", 3, 3),
        ("2", 2, 3),
        ("3", 2, 3),
    ]
    clean = {one.metric: (one.value, one.num_examples) for one in result.evaluation.scores if one.split == "test_decontaminated"}
    assert clean == {"x_recall": (0.5, 2), "x_f1": (0.5, 2), "mrr": (1.0, 1), "spearman": (0.0, 1)}


def test_a_score_that_its_predictions_do_not_give_is_not_given_without_them(caplog):
    scores = [score("accuracy", 0.9), score("only_in_sum", 0.5)]
    with caplog.at_level(logging.WARNING):
        result = decontaminate(Evaluation(scores=scores, predictions=labelled([("a", "a")] * 4)), [["two"]], **SETTINGS)
    assert "accuracy of split test does not come out of its predictions (1, not 0.9)" in caplog.text
    assert [one.split for one in result.evaluation.scores] == ["test", "test"]
    assert [one.contaminated for one in result.evaluation.scores] == [(1, 4), None]


@pytest.mark.parametrize(("leave_out", "corpus"), [(False, ["two"]), (True, ["five"])])
def test_nothing_is_added_unless_asked_for_and_found(leave_out, corpus):
    evaluation = Evaluation(scores=[score("accuracy", 1.0)], predictions=labelled([("a", "a")] * 4))
    result = decontaminate(evaluation, [corpus], **{**SETTINGS, "leave_out": leave_out})
    assert len(result.evaluation.scores) == 1
    assert len(result.evaluation.predictions) == 4


def test_nothing_left(caplog):
    evaluation = Evaluation(scores=[score("accuracy", 1.0)], predictions=labelled([("a", "a")] * 4))
    with caplog.at_level(logging.WARNING):
        result = decontaminate(evaluation, [["one", "two", "three", "four"]], **SETTINGS)
    assert result.evaluation.scores[0].contaminated == (4, 4)
    assert len(result.evaluation.scores) == 1
