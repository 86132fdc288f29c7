from __future__ import annotations

import gzip
import json
import logging
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from scipy.stats import rankdata

from mlmx.build import build
from mlmx.data.batch import BatchContext
from mlmx.errors import UserError
from mlmx.tasks.glue import Glue
from mlmx.tasks.glue_data import GlueData, MnliData
from mlmx.tasks.metrics import CLASS_METRICS, SCORE_METRICS

WORDS = ["good", "bad", "film", "plot", "is", "not"]
REAL = Path(__file__).parents[3] / "shared" / "data" / "glue"

# As they were published: CoLA without a header but in the test file, MRPC with a byte order mark, quotation marks anywhere.
FILES = {
    "CoLA/train.tsv": 'gj04\t1\t\tThe "film is good.\ngj04\t0\t*\tFilm the good is.\n',
    "CoLA/dev.tsv": "ad03\t1\t\tThe plot is good.\nad03\t0\t*\tPlot is the.\n",
    "CoLA/test.tsv": "index\tsentence\n0\tBad film.\n1\tIs plot.\n",
    "SST-2/train.tsv": "sentence\tlabel\ngood film \t1\nbad plot \t0\n",
    "SST-2/dev.tsv": "sentence\tlabel\ngood plot\t1\n",
    "SST-2/test.tsv": "index\tsentence\n0\tbad film\n",
    "MRPC/train.tsv": '\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t7\t8\tgood "film\tfilm good\r\n0\t9\t10\tbad\tplot\n',
    "MRPC/dev.tsv": "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t7\t8\tgood\tfilm\n",
    "MRPC/test.tsv": "\ufeffindex\t#1 ID\t#2 ID\t#1 String\t#2 String\n0\t7\t8\tgood\tfilm\n",
    "STS-B/train.tsv": "index\tgenre\tsentence1\tsentence2\tscore\n0\tx\tgood\tgood\t5.000\n1\tx\tgood\tbad\t0.500\n",
    "STS-B/dev.tsv": "index\tgenre\tsentence1\tsentence2\tscore\n"
    "0\tx\tgood\tgood film\t4\n1\tx\tgood\tplot\t0\n2\tx\tbad\tplot\t1\n",
    "STS-B/test.tsv": "index\tgenre\tsentence1\tsentence2\n0\tx\tgood\tgood\n1\tx\tbad\tplot\n",
    "QQP/train.tsv": "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n"
    "7\t1\t2\tgood?\tgood film?\t1\n8\t3\t4\tbroken\n9\t5\t6\ta\tb\t0\n",
    "QQP/dev.tsv": "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n7\t1\t2\tgood?\tfilm?\t1\n",
    "QQP/test.tsv": "id\tquestion1\tquestion2\n0\tgood?\tbad?\n",
    "MNLI/train.tsv": "index\tgenre\tsentence1\tsentence2\tlabel1\tgold_label\n"
    + "".join(f"{i}\tx\tgood\tbad\t{label}\t{label}\n" for i, label in enumerate(["neutral", "-", "entailment", "contradiction"])),
    "MNLI/dev_matched.tsv": "index\tgenre\tsentence1\tsentence2\tgold_label\n0\tx\tgood\tbad\tcontradiction\n",
    "MNLI/dev_mismatched.tsv": "index\tgenre\tsentence1\tsentence2\tgold_label\n0\tx\tgood\tfilm\tneutral\n",
    "MNLI/test_matched.tsv": "index\tgenre\tsentence1\tsentence2\n0\tx\tgood\tbad\n",
    "MNLI/test_mismatched.tsv": "index\tgenre\tsentence1\tsentence2\n0\tx\tgood\tfilm\n1\tx\tbad\tfilm\n",
    "diagnostic/diagnostic.tsv": "index\tsentence1\tsentence2\n0\tgood\tbad\n1\tbad\tgood\n",
    "QNLI/train.tsv": "index\tquestion\tsentence\tlabel\n0\tgood?\tgood\tentailment\n1\tbad?\tplot\tnot_entailment\n",
    "QNLI/dev.tsv": "index\tquestion\tsentence\tlabel\n0\tgood?\tfilm\tentailment\n",
    "QNLI/test.tsv": "index\tquestion\tsentence\n0\tgood?\tfilm\n",
    "RTE/train.tsv": "index\tsentence1\tsentence2\tlabel\n0\tgood\tgood\tentailment\n1\tbad\tplot\tnot_entailment\n",
    "RTE/dev.tsv": "index\tsentence1\tsentence2\tlabel\n0\tgood\tfilm\tentailment\n",
    "RTE/test.tsv": "index\tsentence1\tsentence2\n0\tgood\tfilm\n",
    "WNLI/train.tsv": "index\tsentence1\tsentence2\tlabel\n0\tgood\tgood\t1\n1\tbad\tplot\t0\n",
    "WNLI/dev.tsv": "index\tsentence1\tsentence2\tlabel\n0\tgood\tfilm\t1\n",
    "WNLI/test.tsv": "index\tsentence1\tsentence2\n0\tgood\tfilm\n",
}
DATASETS = ["CoLA", "SST-2", "MRPC", "STS-B", "QQP", "MNLI", "QNLI", "RTE", "WNLI"]


@pytest.fixture
def folder(tmp_path) -> Path:
    for name, text in FILES.items():
        path = tmp_path / "glue" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", newline="")
    return tmp_path / "glue"


def data(folder: Path, dataset: str) -> GlueData:
    if dataset == "MNLI":
        return MnliData(source=str(folder / "MNLI"), diagnostics=str(folder / "diagnostic"), revision=None)
    return GlueData(dataset=dataset, source=str(folder / dataset), revision=None)  # type: ignore[arg-type]


def task(data: GlueData, **settings) -> Glue:
    splits = ("dev_matched", "dev_mismatched") if data.dataset == "MNLI" else ("dev",)
    given = {"name": "it", "splits": splits, "submission": False, "pooling": "mean", "max_length": 32, "batch_tokens": 64}
    return Glue(data=data, **{**given, **settings})


def test_the_published_files_are_read_as_they_are(folder):
    cola = data(folder, "CoLA")
    assert [(one.id, one.texts, one.gold) for one in cola.load("train")] == [
        ("0", ('The "film is good.',), "1"),
        ("1", ("Film the good is.",), "0"),
    ]
    assert [(one.id, one.texts, one.gold) for one in cola.load("test")] == [("0", ("Bad film.",), None), ("1", ("Is plot.",), None)]
    assert [(one.texts, one.gold) for one in data(folder, "MRPC").load("train")] == [
        (('good "film', "film good"), "1"),
        (("bad", "plot"), "0"),
    ]
    assert [one.gold for one in data(folder, "STS-B").load("dev")] == [4.0, 0.0, 1.0]


def test_what_is_broken_in_the_published_files_is_left_out_and_counted(folder, caplog):
    with caplog.at_level(logging.WARNING):
        assert [one.texts for one in data(folder, "QQP").load("train")] == [("good?", "good film?"), ("a", "b")]
        assert [one.gold for one in data(folder, "MNLI").load("train")] == ["neutral", "entailment", "contradiction"]
    assert "1 lines are left out: broken, such as" in caplog.text
    assert "QQP/train.tsv:3" in caplog.text
    assert "1 lines are left out: without a gold label" in caplog.text


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("RTE/dev.tsv", "index\tsentence1\tsentence2\tlabel\n0\ta\tentailment\n", "dev.tsv:2: 3 fields, but there are 4 columns"),
        ("RTE/dev.tsv", "index\tsentence1\tsentence2\tlabel\n0\ta\tb\tentailed\n", "dev.tsv:2: 'entailed' is no label"),
        ("STS-B/dev.tsv", "sentence1\tsentence2\tscore\na\tb\thigh\n", "dev.tsv:2: the score 'high' is no number from 0 to 5"),
        ("STS-B/dev.tsv", "sentence1\tsentence2\tscore\na\tb\tnan\n", "the score 'nan' is no number"),
        ("STS-B/dev.tsv", "sentence1\tsentence2\tscore\na\tb\t5.1\n", "the score '5.1' is no number from 0 to 5"),
        ("SST-2/dev.tsv", "text\tlabel\na\t1\n", "dev.tsv:1: no column 'sentence'; there are 'text', 'label'"),
        ("SST-2/dev.tsv", "sentence\tlabel\tlabel\na\t1\t0\n", "dev.tsv:1: several columns are called 'label'"),
        ("SST-2/dev.tsv", "sentence\tlabel\na\t1\n\t\n", "dev.tsv:3: '' is no label of this dataset"),
        ("SST-2/dev.tsv", "sentence\tlabel\n", "dev.tsv: holds no example"),
        ("QQP/dev.tsv", "id\tquestion1\tquestion2\tis_duplicate\n1\tbroken\n", "dev.tsv: holds no example"),
        ("CoLA/dev.tsv", "index\tlabel\tx\tsentence\n", "dev.tsv:1: 'label' is no label of this dataset; there are 0, 1"),
    ],
)
def test_bad_lines_are_named(folder, file, text, message):
    (folder / file).write_text(text)
    with pytest.raises(UserError, match=message):
        data(folder, file.partition("/")[0]).load("dev")


def test_empty_classes_and_empty_texts_are_told(folder, caplog):
    (folder / "CoLA/dev.tsv").write_text("a\t1\t\tfilm\na\t1\t\t \n")
    with caplog.at_level(logging.WARNING):
        task(data(folder, "CoLA")).check_data()
    assert "it: no example of split dev has the label '0'" in caplog.text
    assert "dev.tsv: 1 examples have an empty text, the first is 1" in caplog.text
    (folder / "CoLA/train.tsv").write_text("a\t1\t\tfilm\na\t1\t\tplot\n")
    with pytest.raises(UserError, match=r"task\.it\.data: the training split holds only the label '1'; two at least are needed"):
        task(data(folder, "CoLA")).check_data()


@pytest.mark.parametrize(
    ("splits", "message"), [((), "names no split to judge"), (("dev", "dev"), "names 'dev' twice"), (("ax",), "no split 'ax'")]
)
def test_splits_to_judge_are_there_once(folder, splits, message):
    with pytest.raises(UserError, match=rf"task\.it\.splits: {message}"):
        task(data(folder, "CoLA"), splits=splits)


def test_bad_tests_and_missing_files_are_named(folder):
    (folder / "RTE/test.tsv").write_text("index\tsentence1\tsentence2\n0\ta\tb\n0\tc\td\n")
    with pytest.raises(UserError, match=r"test\.tsv:3: a second example '0'"):
        data(folder, "RTE").load("test")
    (folder / "RTE/dev.tsv").unlink()
    with pytest.raises(UserError, match=r"RTE holds no dev\.tsv .*; there is test\.tsv, train\.tsv\."):
        data(folder, "RTE").load("dev")
    with pytest.raises(UserError, match="pin the commit of nyu-mll/glue"):
        GlueData(dataset="RTE", source="nyu-mll/glue", revision=None)
    with pytest.raises(UserError, match=r"task\.it\.splits: no split 'dve'; there are train, dev, test\. Did you mean 'dev'"):
        task(data(folder, "RTE"), splits=("dve",))


@pytest.mark.parametrize("dataset", ["RTE", "STS-B", "MRPC"])
def test_the_hubs_copy_gives_what_the_files_give(folder, tmp_path, dataset):
    source = data(folder, dataset)
    config = {"RTE": "rte", "STS-B": "stsb", "MRPC": "mrpc"}[dataset]
    splits = {"train": "train", "dev": "validation", "test": "test"}
    for split, hub_split in splits.items():
        examples = source.load(split)
        columns = {f"sentence{i + 1}": [one.texts[i] for one in examples] for i in (0, 1)}
        secret = -1.0 if source.labels is None else -1
        numbers = [
            secret if one.gold is None else one.gold if source.labels is None else source.labels.index(one.gold) for one in examples
        ]
        table = pa.table({**columns, "label": numbers, "idx": list(range(len(examples)))})
        (tmp_path / "hub" / config).mkdir(parents=True, exist_ok=True)
        pq.write_table(table, tmp_path / "hub" / config / f"{hub_split}-00000-of-00001.parquet")
    files = "".join(f"  - {{split: {split}, path: {config}/{split}-*}}\n" for split in splits.values())
    (tmp_path / "hub" / "README.md").write_text(f"---\nconfigs:\n- config_name: {config}\n  data_files:\n{files}---\n")
    hub = GlueData(dataset=dataset, source=str(tmp_path / "hub"), revision=None)
    for split in splits:
        assert hub.load(split) == source.load(split)


def fitted(glue: Glue, encoder, steps: int = 40):
    objective = glue.objective(encoder)
    rows = glue.training_rows(encoder)
    everything = np.arange(len(rows))
    batch = objective.collator()(rows.take(everything), BatchContext(keys=everything))
    (term,) = objective.weights
    assert batch.counts == {term: len(rows)}
    optimiser = torch.optim.AdamW(objective.parameters(), lr=1e-2)
    for _ in range(steps):
        optimiser.zero_grad()
        (objective(batch).terms[term] / batch.counts[term]).backward()
        optimiser.step()
    return objective


METRICS = {"CoLA": {"matthews"}, "STS-B": {"pearson", "spearman"}, "MRPC": {"f1", "accuracy"}, "QQP": {"f1", "accuracy"}}


@pytest.mark.parametrize("dataset", DATASETS)
def test_every_dataset_is_fine_tuned_judged_and_submitted(folder, tmp_path, make_encoder, dataset):
    glue = task(data(folder, dataset), submission=True)
    glue.folder = tmp_path
    objective = fitted(glue, make_encoder(WORDS), steps=2)
    evaluation = glue.evaluate(objective)
    assert {score.metric for score in evaluation.scores} == METRICS.get(dataset, {"accuracy"})
    assert {score.split for score in evaluation.scores} == set(glue.splits)
    assert all(score.trivial is not None for score in evaluation.scores)
    submitted = {path.name: path.read_text() for path in (tmp_path / "submission").iterdir()}
    expected = {"MNLI-m.tsv": 1, "MNLI-mm.tsv": 2, "AX.tsv": 2} if dataset == "MNLI" else {f"{dataset}.tsv": None}
    assert submitted.keys() == expected.keys()
    for name, text in submitted.items():
        header, *lines = text.splitlines()
        split = {file: split for split, file in glue.data.submissions.items()}[name]
        assert header == "index\tprediction"
        assert [line.split("\t")[0] for line in lines] == [one.id for one in glue.data.load(split)]
        for line in lines:
            answer = line.split("\t")[1]
            assert answer in glue.data.labels if glue.data.labels else (0 <= float(answer) <= 5 and len(answer) == 5)
    keys = [(record["split"], record["id"]) for record in evaluation.predictions]
    assert len(set(keys)) == len(keys) == sum(len(glue.data.load(split)) for split in (*glue.splits, *glue.data.submissions))
    assert json.dumps(evaluation.predictions)


@pytest.mark.parametrize("dataset", ["RTE", "STS-B"])
def test_fine_tuning_learns(folder, make_encoder, dataset):
    glue = task(data(folder, dataset), splits=("train",))
    evaluation = glue.evaluate(fitted(glue, make_encoder(WORDS)))
    assert [score.value for score in evaluation.scores] == pytest.approx([1.0] * len(evaluation.scores), abs=0.01)


def test_a_submitted_score_is_cut_to_the_scale(folder, tmp_path):
    glue = task(data(folder, "STS-B"))
    glue._submit(tmp_path / "submission" / "STS-B.tsv", glue.data.load("test"), np.array([-0.25, 5.5]))
    assert (tmp_path / "submission" / "STS-B.tsv").read_text() == "index\tprediction\n0\t0.000\n1\t5.000\n"


def test_labelled_diagnostics_are_judged_by_matthews(folder, make_encoder):
    rows = [("bad", "neutral"), ("good", "entailment")]
    text = "Logic\tDomain\tPremise\tHypothesis\tLabel\n" + "".join(f"\t\tgood\t{text}\t{gold}\n" for text, gold in rows)
    (folder / "diagnostic/diagnostic-full.tsv").write_text(text)
    glue = task(data(folder, "MNLI"), splits=("ax",))
    (score,) = glue.evaluate(glue.objective(make_encoder(WORDS))).scores
    assert (score.split, score.metric, score.num_examples, score.trivial) == ("ax", "matthews", 2, 0.0)
    (folder / "diagnostic/diagnostic-full.tsv").unlink()
    with pytest.raises(UserError, match="ax has no labels; submission=true writes its predictions"):
        glue.evaluate(glue.objective(make_encoder(WORDS)))


def test_the_most_frequent_answer_is_the_trivial_one(folder, make_encoder):
    (folder / "MRPC/train.tsv").write_text("Quality\t#1 String\t#2 String\n" + "1\tgood\tfilm\n" * 3 + "0\tbad\tplot\n" * 2)
    (folder / "MRPC/dev.tsv").write_text("Quality\t#1 String\t#2 String\n" + "1\tgood\tfilm\n" * 2 + "0\tbad\tplot\n" * 3)
    glue = task(data(folder, "MRPC"))
    scores = glue.evaluate(glue.objective(make_encoder(WORDS))).scores
    # Always 1: two of five are right; precision 2/5, recall 1.
    assert {score.metric: score.trivial for score in scores} == pytest.approx({"f1": 4 / 7, "accuracy": 2 / 5})


def test_class_metrics_are_those_of_their_formulas():
    rng = np.random.default_rng(0)
    gold, noise = rng.integers(0, 2, 300), rng.integers(0, 2, 300)
    predicted = np.where(rng.random(300) < 0.6, gold, noise)
    tp, tn, fp, fn = (int(((gold == g) & (predicted == p)).sum()) for g, p in ((1, 1), (0, 0), (0, 1), (1, 0)))
    expected = {
        "matthews": (tp * tn - fp * fn) / np.sqrt(float(tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)),
        "accuracy": (tp + tn) / 300,
        "f1": (f1 := 2 * tp / (2 * tp + fp + fn)),
        "macro_f1": (f1 + (other_f1 := 2 * tn / (2 * tn + fp + fn))) / 2,
        "weighted_f1": (f1 * (tp + fn) + other_f1 * (tn + fp)) / 300,
    }
    assert {name: metric(gold, predicted) for name, metric in CLASS_METRICS.items()} == pytest.approx(expected, abs=1e-6)


def test_correlations_are_those_of_numpy():
    rng = np.random.default_rng(1)
    gold = rng.integers(0, 11, 200) / 2  # with ties
    predicted = (gold + rng.normal(size=200)).astype(np.float32)
    expected = {
        "pearson": np.corrcoef(gold, predicted)[0, 1],
        "spearman": np.corrcoef(rankdata(gold), rankdata(predicted))[0, 1],
    }
    assert {name: metric(gold, predicted) for name, metric in SCORE_METRICS.items()} == pytest.approx(expected, abs=1e-6)
    assert [metric(gold, np.ones(200)) for metric in SCORE_METRICS.values()] == [0.0, 0.0]


@pytest.mark.skipif(not REAL.is_dir(), reason="the real data are not here")
def test_the_real_files_are_read_whole():
    expected = {
        ("CoLA", "train"): 8551,
        ("CoLA", "test"): 1063,
        ("SST-2", "dev"): 872,
        ("STS-B", "train"): 5749,
        ("QNLI", "dev"): 5463,
        ("RTE", "test"): 3000,
        ("WNLI", "train"): 635,
    }
    assert {key: len(data(REAL, key[0]).load(key[1])) for key in expected} == expected
    diagnostics = MnliData(source=str(REAL), diagnostics=str(REAL / "diagnostic"), revision=None).load("ax")
    assert len(diagnostics) == 1104


def test_glue_is_built_from_its_yaml(folder):
    node = {"_target_": "mlmx.tasks.glue_data.GlueData", "dataset": "GLUE", "source": str(folder / "RTE"), "revision": None}
    with pytest.raises(UserError, match=r"data\.dataset: 'GLUE' is not valid"):
        build(node, where="data")


def test_compressed_files_are_found(folder):
    path = folder / "RTE" / "dev.tsv"
    with gzip.open(f"{path}.gz", "wb") as file:
        file.write(path.read_bytes())
    path.unlink()
    assert len(data(folder, "RTE").load("dev")) == 1
