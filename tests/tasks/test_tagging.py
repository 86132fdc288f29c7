from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from nervaluate import Evaluator
from sklearn.metrics import precision_recall_fscore_support
from tokenizers import normalizers
from transformers import AutoModelForTokenClassification

from mlmx.build import build
from mlmx.data.batch import BatchContext
from mlmx.data.corpus import Segment
from mlmx.data.rows_from_text import IGNORED
from mlmx.errors import UserError
from mlmx.models.load import load_encoder
from mlmx.tasks.tagging import Tagging, strict_entities, tag_ratios
from mlmx.tasks.task import ratio_scores
from mlmx.tasks.token_classification import TERM, predict_words

TRAIN = "Anna\tB-PER\nB.\tI-PER\nlives\tO\nin\tO\nOslo\tB-LOC\n\nOslo\tB-LOC\nlives\tO\n\n"
TEST = "in\tO\nAnna\tB-PER\nB.\tI-PER\nin\tO\nOslo\tB-LOC\n\n"
REAL = Path(__file__).parents[3] / "shared" / "data"
WORDS = ["Anna", "B", ".", "lives", "in", "Oslo"]


def conll(path, content: str, **settings) -> dict:
    path.write_text(content)
    node = {"_target_": "mlmx.data.corpora.conll.ConllCorpus", "path": str(path), "language": "en", "token_column": 0}
    node |= {"pos_column": None, "entity_column": 1, "entity_scheme": "detect", "language_column": None}
    return node | {"separator": "tab", "comment": None} | settings


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


def annotator(stage):
    node = {"_target_": "mlmx.data.annotators.hf.HuggingFaceAnnotator", "path": str(stage), "revision": None}
    node |= {"layer": "entity", "tag_map": None, "max_length": 16, "batch_tokens": 64, "trust_remote_code": False}
    loaded = build(node, where="annotator")
    loaded.load()
    return loaded


def test_the_stage_is_an_annotator(tmp_path, make_encoder):
    tagging = task(tmp_path)
    objective, _ = fit(tagging, make_encoder(WORDS))
    objective.export(tmp_path / "stage" / "encoder")
    annotation = annotator(tmp_path / "stage").annotate([Segment("Anna lives in Oslo", "en")])[0]
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


def test_a_sentence_of_many_windows_is_predicted_word_by_word_exactly_once(tmp_path, make_encoder):
    words = [WORDS[i % 5] for i in range(100)]
    tagging = task(tmp_path, train=TRAIN + "".join(f"{word}\tO\n" for word in words) + "\n")
    encoder = make_encoder(WORDS)
    rows = tagging.training_rows(encoder)
    everything = np.arange(len(rows))
    assert rows.lengths.max() <= tagging.max_length < 100
    sentences = np.repeat(rows.sentences, rows.lengths)
    positions = rows.word_positions(everything)[sentences == 2]
    assert positions[positions >= 0].tolist() == list(range(100))
    # The same words carry the labels in training.
    assert (rows.take(everything).labels[sentences == 2] != IGNORED).sum() == 100
    assert sorted(predict_words(tagging.objective(encoder), rows, batch_tokens=16)[2]) == list(range(100))


SCHEMES = {
    "iob1": "Anna\tI-PER\nB.\tI-PER\nlives\tO\nin\tO\nOslo\tI-LOC\nOslo\tB-LOC\n\n",
    "iob2": "Anna\tB-PER\nB.\tI-PER\nlives\tO\nin\tO\nOslo\tB-LOC\nOslo\tB-LOC\n\n",
    "iobes": "Anna\tB-PER\nB.\tE-PER\nlives\tO\nin\tO\nOslo\tS-LOC\nOslo\tS-LOC\n\n",
    "bilou": "Anna\tB-PER\nB.\tL-PER\nlives\tO\nin\tO\nOslo\tU-LOC\nOslo\tU-LOC\n\n",
}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_scheme_is_the_same_training_data(tmp_path, make_encoder, scheme):
    encoder = make_encoder(WORDS)
    rows = [task(tmp_path, train=SCHEMES[name]).training_rows(encoder) for name in (scheme, "iob2")]
    labels = [one.take(np.arange(len(one))).labels.tolist() for one in rows]
    assert labels[0] == labels[1]


def test_a_tagger_trained_on_another_scheme_annotates_in_iob2(tmp_path, make_encoder):
    tagging = task(tmp_path, train=SCHEMES["iobes"], test=SCHEMES["bilou"])
    assert tagging.labels == ("B-LOC", "B-PER", "I-PER", "O")
    objective, _ = fit(tagging, make_encoder(WORDS))
    assert [score.value for score in tagging.evaluate(objective).scores] == [1.0] * 4
    objective.export(tmp_path / "stage" / "encoder")
    annotation = annotator(tmp_path / "stage").annotate([Segment("Anna B lives in Oslo Oslo", "en")])[0]
    assert annotation.tags["entity"] == ["B-PER", "I-PER", "O", "O", "B-LOC", "B-LOC"]


def test_a_published_tagger_of_another_scheme_annotates_in_iob2(tmp_path, make_encoder):
    objective, _ = fit(task(tmp_path), make_encoder(WORDS))
    objective.head.model.config.id2label = {0: "S-LOC", 1: "B-PER", 2: "E-PER", 3: "O"}
    objective.export(tmp_path / "stage" / "encoder")
    annotation = annotator(tmp_path / "stage").annotate([Segment("Anna B lives in Oslo", "en")])[0]
    assert annotation.tags["entity"] == ["B-PER", "I-PER", "O", "O", "B-LOC"]


def test_languages_of_words_beside_the_most_frequent_one(tmp_path, make_encoder):
    def code_mixed(path, content):
        return conll(path, content, entity_column=None, language_column=1)

    train = "in\tEN\nOslo\tEN\nin\tEN\nin\tHI\n\nAnna\tHI\n\n"
    files = {"train": train, "test": "in\tEN\nAnna\tHI\nlives\tHI\n\n"}
    corpora = {split: code_mixed(tmp_path / f"mixed.{split}", content) for split, content in files.items()}
    tagging = task(tmp_path, layer="language", corpora=corpora)
    evaluation = tagging.evaluate(tagging.objective(make_encoder(WORDS)))
    assert tagging.labels == ("EN", "HI")
    score, *of_languages = evaluation.scores
    assert {score.metric for score in of_languages} == {
        f"{tag}_{metric}" for tag in ("EN", "HI") for metric in ("precision", "recall", "f1")
    }
    # Word by word: in is mostly EN, Anna HI; lives is new, and most words of the training are EN.
    assert (score.metric, score.num_examples, score.trivial) == ("token_accuracy", 3, pytest.approx(2 / 3))


def test_f1_of_each_language_is_that_of_scikit_learn():
    tags = ("EN", "HI", "other")
    gold, predicted = (np.random.default_rng(seed).choice(tags, 60).tolist() for seed in (0, 1))
    predicted[7] = ""  # a word without pieces
    records = [
        {"split": "test", "ratios": tag_ratios(gold[i : i + 20], predicted[i : i + 20], tags)} for i in range(0, 60, 20)
    ]  # of three sentences
    expected = precision_recall_fscore_support(gold, predicted, labels=tags, zero_division=0)
    scores = {score.metric: score for score in ratio_scores(records, task="t")}
    for values, metric in zip(expected, ("precision", "recall", "f1"), strict=False):
        assert [scores[f"{tag}_{metric}"].value for tag in tags] == pytest.approx(values.tolist(), abs=1e-6)
    assert [scores[f"{tag}_f1"].num_examples for tag in tags] == expected[3].tolist()


def test_tags_of_treebanks(tmp_path, make_encoder):
    rows = ["1\tghar\t_\tNOUN\t_\t_\t0\t_\t_\tLang=hi|NER=I-LOC", "2\thome\t_\tNOUN\t_\t_\t0\t_\t_\t_"]
    (tmp_path / "a.conllu").write_text("\n".join(rows) + "\n\n")
    node = {"_target_": "mlmx.data.corpora.conllu.ConllUCorpus", "path": str(tmp_path / "a.conllu"), "language": "en"}
    node |= {"entity_key": "NER", "entity_scheme": "detect", "language_key": "Lang"}
    for layer, tags in {"pos": ["NOUN"], "language": ["en", "hi"], "entity": ["B-LOC", "O"]}.items():
        assert task(tmp_path, layer=layer, corpora={"train": node, "test": node}).labels == tuple(tags)


def test_a_treebank_without_parts_of_speech_is_no_data_for_them(tmp_path):
    (tmp_path / "a.conllu").write_text("1\tghar" + "\t_" * 8 + "\n\n")
    node = {"_target_": "mlmx.data.corpora.conllu.ConllUCorpus", "path": str(tmp_path / "a.conllu"), "language": "en"}
    node |= {"entity_key": None, "entity_scheme": "detect", "language_key": None}
    with pytest.raises(UserError, match=r"corpora\.test: .*a\.conllu:1 has words without a part of speech \('_'\)"):
        task(tmp_path, more={"test": node, "train": conll(tmp_path / "t.conll", TRAIN, pos_column=1)}, layer="pos").check_data()


def chunks(tags: list[str]) -> set[tuple[str, int, int]]:
    # As conlleval does: a chunk ends where the class changes, at O and at B.
    found, start = set(), None
    for i, tag in enumerate([*tags, "O"]):
        name = tag[2:]
        if start is not None and (tag == "O" or tag.startswith("B-") or name != tags[start][2:]):
            found.add((tags[start][2:], start, i))
            start = None
        if start is None and tag != "O":
            start = i
    return found


def test_strict_f1_is_that_of_conlleval_on_random_predictions():
    rng = np.random.default_rng(1)
    tags = np.array(["O", "B-PER", "I-PER", "B-LOC", "I-LOC"])
    for _ in range(200):
        gold, predicted = rng.choice(tags, 9).tolist(), rng.choice(tags, 9).tolist()
        expected = (len(chunks(gold) & chunks(predicted)), len(chunks(predicted)), len(chunks(gold)))
        assert strict_entities(gold, predicted) == expected


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
    assert "tags of split test that never occur in training, so that they count as wrong: {'B-MISC': 1}; first" in caplog.text
    assert "test.conll:1" in caplog.text
    assert "1 words of split test have no pieces in this tokenizer" in caplog.text
    assert "tags of training that do not occur in split test: B-LOC, B-PER, I-PER" in caplog.text
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
        ({"train": "Anna\tO\nB.\tPER\n\n"}, r"train.conll:2: 'PER' is no entity tag of IOB2, which has O, B-X, I-X"),
        (
            {"train": "Anna\tS-PER\nB.\tL-PER\n\n"},
            r"train.conll:2: 'L-PER' is no entity tag of IOBES, which has O, B-X, I-X, E-X, S-X",
        ),
        ({"train": "Anna\n\n"}, r"train.conll:1: has 1 columns, so that column 1 \(entity_column\) is missing"),
        ({"train": "Anna\tO\nB.\tO\n\n"}, r"task\.tagging\.corpora\.train: the training sentences hold only the tag 'O'"),
        ({"train": "\n\n"}, r"train\.conll: no sentence has words"),
        ({"layer": "pos"}, r"task.tagging.corpora.train: .*train.conll:1 has no gold tags of layer 'pos'"),
        ({"max_length": 65}, "task.tagging.max_length: 65 is more than the 64 positions"),
    ],
)
def test_bad_input(tmp_path, make_encoder, settings, message):
    with pytest.raises(UserError, match=message):
        task(tmp_path, **settings).training_rows(make_encoder(WORDS))


@pytest.mark.parametrize(
    ("layer", "file", "settings", "num_sentences", "num_labels"),
    [
        ("pos", "sinhala_pos_ner/partition_01.conll.gz", {"pos_column": 1, "entity_column": None}, 281, 30),
        ("entity", "sinhala_pos_ner/partition_01.conll.gz", {"entity_column": 2}, 281, 7),
        ("entity", "wnut17/test.conll.gz", {}, 1287, 13),
        ("language", "codemixed_lid_hi_en/test.conll.gz", {"entity_column": None, "language_column": 1}, 6420, 2),
        ("pos", "ud_english_ewt/en_ewt-ud-dev.conllu.gz", {}, 2001, 17),
        ("pos", "ud_sinhala_stb/si_stb-ud-test.conllu.gz", {}, 100, 13),
    ],
)
def test_published_files_are_read_by_naming_columns(
    tmp_path, make_encoder, caplog, layer, file, settings, num_sentences, num_labels
):
    if not (REAL / file).exists():
        pytest.skip(f"{REAL / file} is not here")
    node = conll(tmp_path / "unused", "")
    if ".conllu" in file:
        node = {"_target_": "mlmx.data.corpora.conllu.ConllUCorpus", "language": "en", "entity_key": None}
        node |= {"entity_scheme": "detect", "language_key": None}
    node |= {"path": str(REAL / file), **settings}
    tagging = task(tmp_path, layer=layer, corpora={"train": node, "test": node})
    rows = tagging.training_rows(make_encoder(WORDS))
    assert (rows.num_sentences, len(tagging.labels)) == (num_sentences, num_labels)
    assert caplog.text == ""  # no contradicting tags, and no word without pieces
