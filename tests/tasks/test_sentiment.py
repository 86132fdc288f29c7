from __future__ import annotations

import gzip
import json
import logging
from dataclasses import replace

import datasets
import numpy as np
import pytest
import torch
from sklearn.metrics import classification_report

from mlmx.build import build
from mlmx.data.batch import BatchContext
from mlmx.errors import UserError
from mlmx.tasks.classification import CLASSIFICATION_TERM as TERM
from mlmx.tasks.classification import SequenceClassification, predict
from mlmx.tasks.classification_data import ClassificationHub
from mlmx.tasks.confusion import write_confusion
from mlmx.tasks.sentiment import Sentiment, classification_scores
from mlmx.tasks.social_text import normalise

WORDS = ["good", "bad", "so", "so-so", "film"]


def write(path, rows: list[dict]) -> str:
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return str(path)


def rows(split: str, labels: str) -> list[dict]:
    text = {"P": "good film", "N": "bad bad film film", "U": "so"}
    return [{"comment": text[label], "polarity": label, "split": split, "id": 7} for label in labels]


def task(data: dict, **settings) -> Sentiment:
    files = dict.fromkeys(["path", "train", "dev", "test", "split_column"]) | {"text_column": "comment", "label_column": "polarity"}
    node = {
        "_target_": "mlmx.tasks.sentiment.Sentiment",
        "name": "sentiment",
        "data": {"_target_": "mlmx.tasks.classification_data.ClassificationFiles", **files, **data},
        "splits": ["test"],
        "normalization": [],
        "shots": None,
        "class_weights": None,
        "pooling": "mean",
        "max_length": 16,
        "batch_tokens": 12,
    }
    return build(node | settings, where="task.sentiment")


@pytest.fixture
def one_file(tmp_path) -> dict:
    path = write(tmp_path / "a.jsonl.gz", rows("train", "PPNNPN") + rows("test", "PNNP") + rows("dev", "P"))
    return {"path": path, "split_column": "split"}


def hub(folder) -> ClassificationHub:
    names = {"name": str(folder), "config": None, "revision": None, "train": "train", "dev": None, "test": "test"}
    return ClassificationHub(**names, text_column="text", label_column="label")


def test_a_data_set_of_the_hub_is_read_with_the_names_of_its_classes(tmp_path, caplog):
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["bad", "good"])})
    for split, texts, labels in (("train", ["a", "b", None], [1, 0, 1]), ("test", ["c", "d"], [0, -1])):
        table = datasets.Dataset.from_dict({"text": texts, "label": labels}, features=features)
        table.to_parquet(str(tmp_path / f"{split}.parquet"))
    with caplog.at_level(logging.WARNING):
        examples = {split: [(one.id, one.text, one.label) for one in hub(tmp_path).load(split)] for split in ("train", "test")}
    assert examples == {"train": [("0", "a", "good"), ("1", "b", "bad")], "test": [("0", "c", "bad")]}
    assert "[train]: 1 lines skipped: no text" in caplog.text
    assert "[test]: 1 lines skipped: no label" in caplog.text


@pytest.mark.parametrize(
    ("record", "told"),
    [
        ({"text": "a", "label": 0.5}, r"\[train\]:1: column 'label' holds a float; a text or an integer is needed"),
        ({"text": "a", "labels": 1}, r"\[train\]:0: no column 'label'"),
        ({"text": 3, "label": 1}, r"\[train\]:1: column 'text' holds a int"),
    ],
)
def test_mistakes_in_a_data_set_of_the_hub_are_told_with_their_place(monkeypatch, tmp_path, record, told):
    first = {"text": "a", "label": "1"} if "label" in record else record
    records = datasets.IterableDataset.from_generator(lambda: iter([first, record]))
    monkeypatch.setattr("datasets.load_dataset", lambda *args, **settings: records)
    with pytest.raises(UserError, match=told):
        hub(tmp_path).load("train")
    with pytest.raises(UserError, match=r"revision: pin the commit of some/reviews"):
        hub("some/reviews")


def fit(objective: SequenceClassification, training_rows, steps: int = 60) -> None:
    optimiser = torch.optim.AdamW(objective.parameters(), lr=1e-2)
    everything = np.arange(len(training_rows))
    batch = objective.collator()(training_rows.take(everything), BatchContext(keys=everything))
    for _ in range(steps):
        optimiser.zero_grad()
        (objective(batch).terms[TERM] / batch.counts[TERM]).backward()
        optimiser.step()


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_fine_tuning_learns_and_is_judged(one_file, make_encoder, pooling):
    sentiment = task(one_file, splits=["dev", "test"], pooling=pooling)
    encoder = make_encoder(WORDS)
    objective = sentiment.objective(encoder)
    fit(objective, sentiment.training_rows(encoder))
    evaluation = sentiment.evaluate(objective)
    assert {(score.split, score.metric): (score.value, score.num_examples) for score in evaluation.scores} == {
        (split, metric): (1.0, num)
        for split, num in [("dev", 1), ("test", 4)]
        for metric in ("macro_f1", "weighted_f1", "accuracy")
    }
    assert evaluation.predictions[1] == {"id": "7", "split": "test", "label": "P", "prediction": "P", "texts": ["good film"]}


def test_one_batch_contract(one_file, make_encoder):
    sentiment = task(one_file)
    encoder = make_encoder(WORDS)
    objective = sentiment.objective(encoder)
    training_rows = sentiment.training_rows(encoder)
    batch = objective.collator()(training_rows.take(np.arange(6)), BatchContext(keys=np.arange(6)))
    output = objective(batch)
    assert output.terms.keys() == objective.weights.keys() == batch.counts.keys() == {TERM}
    assert batch.counts[TERM] == 6
    output.terms[TERM].backward()
    assert [name for name, parameter in objective.named_parameters() if parameter.grad is None] == []
    # A sum, not a mean: the same rows one by one give the same total.
    alone = [objective.collator()(training_rows.take(np.array([i])), BatchContext(keys=np.array([i]))) for i in range(6)]
    assert sum(objective(one).terms[TERM].item() for one in alone) == pytest.approx(output.terms[TERM].item(), rel=1e-5)


def test_predictions_do_not_depend_on_the_batching(one_file, make_encoder):
    sentiment = task(one_file)
    encoder = make_encoder(WORDS)
    objective = sentiment.objective(encoder)
    training_rows = sentiment.training_rows(encoder)
    predictions = [predict(objective, training_rows, batch_tokens=tokens).argmax(axis=1).tolist() for tokens in (1, 12, 1000)]
    assert predictions[0] == predictions[1] == predictions[2]


def test_scores_are_those_of_sklearn():
    rng = np.random.default_rng(0)
    gold = rng.choice(["a", "b", "c"], 200, p=[0.6, 0.3, 0.1]).tolist()
    predicted = [label if rng.random() < 0.6 else rng.choice(["a", "b", "c"]) for label in gold]
    report = classification_report(gold, predicted, output_dict=True)
    scores = {score.metric: score.value for score in classification_scores(gold, predicted, gold, task="t", split="test")}
    assert scores == pytest.approx(
        {
            "macro_f1": report["macro avg"]["f1-score"],
            "weighted_f1": report["weighted avg"]["f1-score"],
            "accuracy": report["accuracy"],
        }
    )


def test_macro_f1_by_hand_goes_over_the_labels_of_the_gold():
    # a: precision 1/2, recall 1, F1 2/3; b: never predicted, 0; c is predicted but not in the gold, so it is no class here.
    scores = classification_scores(["a", "b", "b"], ["a", "a", "c"], ["b"] * 3, task="t", split="s")
    assert {score.metric: score.value for score in scores} == pytest.approx(
        {"macro_f1": 1 / 3, "weighted_f1": 2 / 9, "accuracy": 1 / 3}
    )
    # Always b: precision 2/3, recall 1, F1 4/5.
    trivial = {score.metric: score.trivial for score in scores}
    assert trivial == pytest.approx({"macro_f1": 2 / 5, "weighted_f1": 8 / 15, "accuracy": 2 / 3})


def test_labels_that_never_occur_in_training_are_named_and_those_that_do_not_occur_in_a_split_told(tmp_path, caplog):
    files = {
        "train": write(tmp_path / "train.jsonl.gz", rows("", "PNPN")),
        "test": write(tmp_path / "test.jsonl.gz", rows("", "PUU")),
    }
    with pytest.raises(UserError, match=r"test\.jsonl\.gz:2: the label 'U' never occurs in the training split; there are 'N', 'P'"):
        task(files).check_data()
    files["test"] = write(tmp_path / "other.jsonl.gz", rows("", "PP"))
    with caplog.at_level(logging.WARNING):
        task(files).check_data()
    assert "no example of split test has the label 'N'" in caplog.text


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"text_column": "coment"}, "no column 'coment'; there are 'comment', 'polarity', 'split', 'id'. Did you mean 'comment'"),
        ({"split_column": None}, "task.sentiment.data.split_column: names the column"),
        ({"test": "x"}, "task.sentiment.data.path: is one file with a split column"),
        ({"path": None, "split_column": None}, "task.sentiment.data.path: a file must be given"),
    ],
)
def test_bad_data_settings(one_file, make_encoder, data, message):
    with pytest.raises(UserError, match=message):
        task({**one_file, **data}).objective(make_encoder(WORDS))


def test_missing_splits_and_lonely_labels(one_file, tmp_path, make_encoder):
    with pytest.raises(UserError, match=r"no labelled line of split 'valid'; its splits are \{'train': 6, 'test': 4, 'dev': 1\}"):
        task(one_file).data.load("valid")
    files = {"train": write(tmp_path / "one.jsonl.gz", rows("", "PP"))}
    with pytest.raises(UserError, match=r"task\.sentiment\.splits: no split 'test'; there are train\."):
        task(files)
    files["test"] = files["train"]
    with pytest.raises(UserError, match="holds only the label 'P'; two are needed"):
        task(files).objective(make_encoder(WORDS))


def test_lines_without_text_or_label_are_skipped_and_counted(tmp_path, caplog):
    extra = [{"comment": " ", "polarity": "P"}, {"comment": "so", "polarity": None}]
    path = write(tmp_path / "a.jsonl.gz", rows("", "PN") + extra)
    with caplog.at_level(logging.WARNING):
        examples = task({"train": path, "test": path}).data.load("train")
    assert [example.id for example in examples] == ["1", "2"]
    assert "1 lines skipped: no text" in caplog.text
    assert "1 lines skipped: no label" in caplog.text


def test_microworld_splits():
    data = {"_target_": "mlmx.tasks.classification_data.MicroworldSentiment", "seed": 0, "code_mixed": True}
    built = build({**data, "num_train": 40, "num_dev": 10, "num_test": 20}, where="data")
    loaded = {split: built.load(split) for split in ("train", "dev", "test")}
    assert [len(examples) for examples in loaded.values()] == [40, 10, 20]
    assert {example.label for example in loaded["train"]} == {"positive", "negative"}
    assert not {example.text for example in loaded["train"]} & {example.text for example in loaded["test"]}
    with pytest.raises(UserError, match="Did you mean 'test'"):
        built.load("tst")


def test_few_shots_are_chosen_by_the_seed(tmp_path, make_encoder):
    texts = [{"comment": f"good w{i}", "polarity": "PN"[i % 3 == 0]} for i in range(60)]
    path = write(tmp_path / "a.jsonl.gz", texts)
    encoder = make_encoder([*WORDS, *(f"w{i}" for i in range(60))])

    def chosen(seed: int, shots: int = 5) -> tuple[list[int], list[int]]:
        sentiment = task({"train": path, "test": path}, shots=shots)
        sentiment.run_seed = seed
        rows = sentiment.training_rows(encoder).take(np.arange(2 * shots))
        return rows.labels.tolist(), rows.input_ids.tolist()

    assert sorted(chosen(0)[0]) == [0] * 5 + [1] * 5
    assert chosen(0) == chosen(0) != chosen(1)
    with pytest.raises(UserError, match=r"task\.sentiment\.shots: 21 are asked for, and 'N' has 20 training examples"):
        chosen(0, shots=21)


def test_class_weights_scale_the_loss_of_their_classes(one_file, make_encoder):
    def loss_of(weights) -> list[float]:
        torch.manual_seed(0)
        sentiment = task(one_file, class_weights=weights)
        encoder = make_encoder(WORDS)
        objective = sentiment.objective(encoder).eval()
        training_rows = sentiment.training_rows(encoder)
        batches = [objective.collator()(training_rows.take(np.array([i])), BatchContext(keys=np.array([i]))) for i in range(6)]
        return [objective(batch).terms[TERM].item() for batch in batches]

    # PPNNPN: as many of each.
    assert loss_of("balanced") == pytest.approx(loss_of(None))
    plain, weighted = loss_of(None), loss_of({"P": 1.0, "N": 3.0})
    assert np.array(weighted) / plain == pytest.approx([0.5, 0.5, 1.5, 1.5, 0.5, 1.5])
    with pytest.raises(UserError, match=r"task\.sentiment\.class_weights: names P; the labels are N, P\."):
        loss_of({"P": 1.0})


def test_balanced_weights_by_hand(tmp_path):
    path = write(tmp_path / "a.jsonl.gz", rows("", "PPPN"))
    # n / (C n_label): 4 / (2 x 1) and 4 / (2 x 3).
    assert task({"train": path, "test": path}, class_weights="balanced")._weights() == pytest.approx([2.0, 2 / 3])


def test_the_labels_names_go_into_the_exported_model(one_file, tmp_path, make_encoder):
    objective = task(one_file).objective(make_encoder(WORDS))
    objective.export(tmp_path / "encoder")
    config = json.loads((tmp_path / "encoder" / "config.json").read_text())
    assert config["id2label"] == {"0": "N", "1": "P"}
    assert config["label2id"] == {"N": 0, "P": 1}


def test_confusions_are_written_and_drawn(one_file, tmp_path, make_encoder):
    sentiment = task(one_file)
    sentiment.folder = tmp_path
    evaluation = sentiment.evaluate(sentiment.objective(make_encoder(WORDS)))
    header, *lines = (line.split("\t") for line in (tmp_path / "tables" / "confusion_test.tsv").read_text().splitlines())
    assert header == ["label", "as N", "as P"]
    pairs = [(record["label"], record["prediction"]) for record in evaluation.predictions]
    assert lines == [[gold, *(str(pairs.count((gold, predicted))) for predicted in "NP")] for gold in "NP"]
    assert (tmp_path / "pictures" / "confusion_test.png").read_bytes().startswith(b"\x89PNG")


def test_the_table_of_classes_is_sklearns(tmp_path):
    gold, predicted = list("aaabbc"), list("aabbcc")
    write_confusion(tmp_path, "dev", gold, predicted, sorted({*gold, *predicted}))
    header, *lines = (line.split("\t") for line in (tmp_path / "tables" / "per_class_dev.tsv").read_text().splitlines())
    expected = classification_report(gold, predicted, output_dict=True)
    assert header == ["label", "precision", "recall", "f1", "examples"]
    for label, *numbers in lines:
        assert [float(number) for number in numbers] == pytest.approx(list(expected[label].values()), abs=1e-6)


@pytest.mark.parametrize(
    ("steps", "text"),
    [
        ((), "@Anna soooooo GOOD!!!! mail me@x.org https://t.co/a?b=1 www.x.de"),
        (("mentions",), "@user soooooo GOOD!!!! mail me@x.org https://t.co/a?b=1 www.x.de"),
        (("links",), "@Anna soooooo GOOD!!!! mail me@x.org http http"),
        (("lowercase", "repeats", "links", "mentions"), "@user sooo good!!! mail me@x.org http http"),
    ],
)
def test_texts_of_social_media_are_normalised(steps, text):
    assert normalise("@Anna soooooo GOOD!!!! mail me@x.org https://t.co/a?b=1 www.x.de", steps) == text


def test_the_normalised_text_is_what_is_encoded(one_file, make_encoder):
    sentiment = task(one_file, normalization=["lowercase"])
    shouted = [replace(example, text=example.text.upper()) for example in sentiment.data.load("train")]
    encoder = make_encoder(WORDS)
    said = sentiment.training_rows(encoder).take(np.arange(6)).input_ids
    sentiment.__dict__["_training_examples"] = shouted
    assert sentiment.training_rows(encoder).take(np.arange(6)).input_ids.tolist() == said.tolist()
