from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from nervaluate import Evaluator
from tokenizers import normalizers
from transformers import AutoModelForTokenClassification

from mlmx.build import build
from mlmx.data.batch import BatchContext
from mlmx.data.corpus import Segment
from mlmx.errors import UserError
from mlmx.models.load import load_encoder
from mlmx.tasks.tagging import Tagging, strict_entities
from mlmx.tasks.task import ratio_scores
from mlmx.tasks.token_classification import TERM, predict_words

TRAIN = "Anna\tB-PER\nB.\tI-PER\nlives\tO\nin\tO\nOslo\tB-LOC\n\nOslo\tB-LOC\nlives\tO\n\n"
TEST = "in\tO\nAnna\tB-PER\nB.\tI-PER\nin\tO\nOslo\tB-LOC\n\n"
WORDS = ["Anna", "B", ".", "lives", "in", "Oslo"]


def conll(path, content: str, **settings) -> dict:
    path.write_text(content)
    node = {"_target_": "mlmx.data.corpora.conll.ConllCorpus", "path": str(path), "language": "en", "token_column": 0}
    return node | {"pos_column": None, "entity_column": 1, "separator": "tab", "comment": None} | settings


def task(tmp_path, *, train: str = TRAIN, test: str = TEST, more: dict | None = None, **settings) -> Tagging:
    node = {
        "_target_": "mlmx.tasks.tagging.Tagging",
        "name": "tagging",
        "layer": "entity",
        "corpora": {"train": conll(tmp_path / "train.conll", train), "test": conll(tmp_path / "test.conll", test)} | (more or {}),
        "max_length": 8,
        "batch_tokens": 16,
    }
    return build(node | settings, where="task.tagging")


def fit(tagging: Tagging, encoder, steps: int = 60):
    objective = tagging.objective(encoder)
    rows = tagging.training_rows(encoder)
    everything = np.arange(len(rows))
    batch = objective.collator()(rows.take(everything), BatchContext(keys=everything))
    optimiser = torch.optim.AdamW(objective.parameters(), lr=1e-2)
    for _ in range(steps):
        optimiser.zero_grad()
        (objective(batch).terms[TERM] / batch.counts[TERM]).backward()
        optimiser.step()
    return objective, batch


def test_fine_tuning_learns_and_the_export_is_a_tagger(tmp_path, make_encoder):
    tagging = task(tmp_path)
    objective, batch = fit(tagging, make_encoder(WORDS))
    assert batch.counts[TERM] == 7
    assert [name for name, parameter in objective.named_parameters() if parameter.grad is None] == []
    evaluation = tagging.evaluate(objective)
    assert {score.metric: (score.value, score.num_examples) for score in evaluation.scores} == {
        "token_accuracy": (1.0, 5),
        "entity_precision": (1.0, 2),
        "entity_recall": (1.0, 2),
        "entity_f1": (1.0, 2),
    }
    assert evaluation.predictions[0]["predicted"] == ["O", "B-PER", "I-PER", "O", "B-LOC"]
    objective.export(tmp_path / "tagger")
    model = AutoModelForTokenClassification.from_pretrained(tmp_path / "tagger").eval()
    assert model.config.id2label == {0: "B-LOC", 1: "B-PER", 2: "I-PER", 3: "O"}
    # What is exported predicts as what was trained.
    input_ids = objective.encoder.tokenizer("in Anna B . in Oslo", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        labels = [model.config.id2label[i] for i in model(input_ids=input_ids).logits[0].argmax(-1).tolist()]
    assert [labels[i] for i in (1, 2, 3, 5, 6)] == evaluation.predictions[0]["predicted"]
    # The encoder of the export starts another stage.
    assert load_encoder(tmp_path / "tagger").head is None


def test_the_stage_is_an_annotator(tmp_path, make_encoder):
    tagging = task(tmp_path)
    objective, _ = fit(tagging, make_encoder(WORDS))
    objective.export(tmp_path / "stage" / "encoder")
    node = {"_target_": "mlmx.data.annotators.hf.HuggingFaceAnnotator", "path": str(tmp_path / "stage"), "revision": None}
    node |= {"layer": "entity", "tag_map": None, "max_length": 16, "batch_tokens": 64, "trust_remote_code": False}
    annotator = build(node, where="annotator")
    annotator.load()
    annotation = annotator.annotate([Segment("Anna lives in Oslo", "en")])[0]
    assert annotation.tags["entity"] == ["B-PER", "O", "O", "B-LOC"]


def test_saved_weights_load_into_a_fresh_objective(tmp_path, make_encoder):
    tagging = task(tmp_path)
    objective, _ = fit(tagging, make_encoder(WORDS), steps=5)
    objective.export(tmp_path / "tagger")
    again = tagging.objective(load_encoder(tmp_path / "tagger"))
    again.load_state_dict(objective.state_dict())
    rows = tagging.training_rows(objective.encoder)
    assert predict_words(again, rows, batch_tokens=16) == predict_words(objective, rows, batch_tokens=16)


def test_windows_lose_no_word(tmp_path, make_encoder):
    # Six words with the specials need eight tokens; four leave room for two words a window.
    tagging = task(tmp_path, max_length=4)
    encoder = make_encoder(WORDS)
    objective = tagging.objective(encoder)
    rows = tagging.training_rows(encoder)
    assert [sorted(found) for found in predict_words(objective, rows, batch_tokens=4)] == [[0, 1, 2, 3, 4], [0, 1]]


def test_strict_f1_is_that_of_nervaluate_on_random_tags():
    rng = np.random.default_rng(0)
    tags = np.array(["O", "B-PER", "I-PER", "B-LOC", "I-LOC"])
    gold = [rng.choice(tags, 12).tolist() for _ in range(50)]
    predicted = [[tag if rng.random() < 0.7 else str(rng.choice(tags)) for tag in sentence] for sentence in gold]
    records = []
    for sentence, found in zip(gold, predicted, strict=True):
        hits, num_found, num_gold = strict_entities(sentence, found)
        ratios = {"_precision": [hits, num_found], "_recall": [hits, num_gold], "_f1": [2 * hits, num_found + num_gold]}
        records.append({"split": "test", "ratios": ratios})
    expected = Evaluator(gold, predicted, tags=["PER", "LOC"], loader="list").evaluate()["overall"]["strict"]
    scores = ratio_scores(records, task="t")
    got = [score.value for score in scores]
    assert got == pytest.approx([expected.precision, expected.recall, expected.f1])
    assert 0.2 < got[2] < 0.9
    assert scores[2].num_examples == scores[1].num_examples == sum(record["ratios"]["_recall"][1] for record in records)


def test_strict_entities_by_hand():
    gold = ["B-PER", "I-PER", "O", "B-LOC", "B-LOC"]
    # The name ends too early; the first place has the wrong class; the second is right.
    assert strict_entities(gold, ["B-PER", "O", "O", "B-PER", "B-LOC"]) == (1, 3, 3)
    # An I- tag that continues nothing begins an entity.
    assert strict_entities(["O", "B-PER"], ["O", "I-PER"]) == (1, 1, 1)


def test_unseen_tags_and_words_without_pieces_are_reported(tmp_path, make_encoder, caplog):
    tagging = task(tmp_path, test="Anna\tB-MISC\nzz\tO\n\n", more={"dev": conll(tmp_path / "dev.conll", TEST)})
    encoder = make_encoder(WORDS)
    # Sinhala or Tamil words of joiners alone are like this to some tokenizers.
    encoder.tokenizer.backend_tokenizer.normalizer = normalizers.Replace("zz", "")
    with caplog.at_level(logging.WARNING):
        evaluation = tagging.evaluate(tagging.objective(encoder))
    assert "tags of split test that never occur in training: {'B-MISC': 1}" in caplog.text
    assert "1 words of split test have no pieces in this tokenizer" in caplog.text
    assert evaluation.predictions[0]["predicted"][1] == "O"
    assert {score.split for score in evaluation.scores} == {"dev", "test"}


def test_microworld_parts_of_speech(make_encoder, tmp_path):
    corpus = {"_target_": "mlmx.data.microworld.MicroworldCorpus", "seed": 0, "num_pairs": 5, "view": "parallel"}
    corpus["languages"] = ["qla", "qka"]
    tagging = task(tmp_path, layer="pos", more={split: corpus | {"split": split} for split in ("train", "test")}, max_length=40)
    objective = tagging.objective(make_encoder(WORDS))
    assert "NOUN" in tagging.labels
    assert [score.metric for score in tagging.evaluate(objective).scores] == ["token_accuracy"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train": "Anna\tPER\n\n"}, r"task.tagging.corpora.train: .*train.conll:1: 'PER' is no entity tag; O, B-X and I-X are"),
        ({"layer": "pos"}, r"task.tagging.corpora.train: .*train.conll:1 has no gold tags of layer 'pos'"),
        ({"max_length": 65}, "task.tagging.max_length: 65 is more than the 64 positions"),
    ],
)
def test_bad_input(tmp_path, make_encoder, settings, message):
    with pytest.raises(UserError, match=message):
        task(tmp_path, **settings).training_rows(make_encoder(WORDS))
