from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import sacrebleu
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertModel

from mlmx.build import build, problems_of
from mlmx.data.batch import BatchContext
from mlmx.errors import UserError
from mlmx.tasks.decontamination import decontaminate
from mlmx.tasks.translation import Translation
from mlmx.tasks.translator import TERM, Translator
from mlmx.training.optim import optimizer_for
from tests.integration.chains import ROOT, SECONDS, environment, stage, stages, summaries

# Each word has one of the other language, and their order is turned around.
WORDS = {f"w{i}": f"v{i}" for i in range(12)}
SENTENCES = [
    (" ".join(words), " ".join(WORDS[word] for word in reversed(words)))
    for words in (np.random.default_rng(0).choice(list(WORDS), size=2 + i % 4, replace=False).tolist() for i in range(64))
]


def files(folder, pairs=SENTENCES) -> dict:
    path = folder / f"pairs{len(pairs)}.tsv"
    path.write_text("aa\tbb\n" + "".join(f"{source}\t{target}\n" for source, target in pairs))
    corpus = {"_target_": "mlmx.data.corpora.parallel.ParallelCorpus", "path": str(path), "format": "auto", "columns": None}
    return {**corpus, "header": True, "languages": ["aa", "bb"]}


def settings(folder, **changes) -> dict:
    return {
        "_target_": "mlmx.tasks.translation.Translation",
        "name": "translation",
        "train": files(folder),
        "test": files(folder),
        "num_layers": 1,
        "hidden_size": 32,
        "num_heads": 2,
        "intermediate_size": 64,
        "initializer_range": 0.1,
        "max_length": 12,
        "label_smoothing": 0.0,
        "num_beams": 1,
        "batch_tokens": 64,
        **changes,
    }


def task(folder, **changes) -> Translation:
    return build(settings(folder, **changes), where="task.translation")


@pytest.fixture
def encoder(make_encoder):
    return make_encoder([*WORDS, *WORDS.values()])


def batch_of(built: Translation, objective: Translator, encoder, indices):
    indices = np.array(indices)
    return objective.collator()(built.training_rows(encoder).take(indices), BatchContext(keys=indices))


def trained(built: Translation, encoder, num_steps: int) -> Translator:
    objective = built.objective(encoder).train()
    optimizer = optimizer_for(objective, algorithm="adamw", learning_rate=3e-3, weight_decay=0.0, betas=(0.9, 0.98), eps=1e-8)
    batch = batch_of(built, objective, encoder, range(64))
    for _ in range(num_steps):
        optimizer.zero_grad()
        (objective(batch).terms[TERM] / batch.counts[TERM]).backward()
        optimizer.step()
    return objective.eval()


def test_the_loss_is_that_of_each_pair_by_itself(tmp_path, encoder):
    built = task(tmp_path, label_smoothing=0.1)
    objective = built.objective(encoder).eval()
    batch = batch_of(built, objective, encoder, range(9))
    output = objective(batch)
    tokens = [len(target.split()) + 1 for _, target in SENTENCES[:9]]  # the closing one included
    assert batch.counts == {TERM: sum(tokens)}
    assert int(output.metrics["accuracy"][1]) == sum(tokens)
    plain = BertModel(objective.encoder.base.config, add_pooling_layer=False).eval()
    plain.load_state_dict(objective.encoder.base.state_dict())
    plain.set_attn_implementation("eager")
    alone = 0.0
    for source, target in SENTENCES[:9]:
        ids = [torch.tensor([encoder.tokenizer(text)["input_ids"]]) for text in (source, target)]
        states = plain(input_ids=ids[0]).last_hidden_state
        logits = objective.decoder(input_ids=ids[1][:, :-1], encoder_hidden_states=states).logits
        alone += F.cross_entropy(logits[0], ids[1][0, 1:], reduction="sum", label_smoothing=0.1)
    torch.testing.assert_close(output.terms[TERM], alone, rtol=1e-5, atol=1e-4)


def test_it_learns_to_translate_and_a_beam_finds_no_less(tmp_path, encoder):
    torch.manual_seed(0)
    built = task(tmp_path)
    objective = trained(built, encoder, 40)
    evaluation = built.evaluate(objective)
    found = {score.metric: score for score in evaluation.scores}
    assert found["chrf"].value > 95
    assert found["chrf"].trivial < 50  # the source itself
    assert [record["translation"] for record in evaluation.predictions[:3]] == [target for _, target in SENTENCES[:3]]
    objective.generation.num_beams = 3
    assert {score.metric: score.value for score in built.evaluate(objective).scores}["chrf"] > 95


def test_scores_are_those_of_sacrebleu_on_what_is_stored(tmp_path, encoder):
    torch.manual_seed(0)
    built = task(tmp_path)
    evaluation = built.evaluate(trained(built, encoder, 8))
    stored = [json.loads(json.dumps(record)) for record in evaluation.predictions]
    texts = {key: [record[key] for record in stored] for key in ("source", "reference", "translation")}
    assert list(zip(texts["source"], texts["reference"], strict=True)) == SENTENCES
    found = {score.metric: score for score in evaluation.scores}
    assert found["chrf"].value == pytest.approx(sacrebleu.corpus_chrf(texts["translation"], [texts["reference"]]).score, abs=1e-6)
    assert found["bleu"].value == pytest.approx(sacrebleu.corpus_bleu(texts["translation"], [texts["reference"]]).score, abs=1e-6)
    assert found["chrf"].trivial == pytest.approx(sacrebleu.corpus_chrf(texts["source"], [texts["reference"]]).score, abs=1e-6)
    assert 5 < found["chrf"].value < 95
    assert {score.num_examples for score in evaluation.scores} == {64}
    assert "version:" in found["chrf"].settings["signature"]


def test_examples_that_occur_in_a_pretraining_corpus_are_counted_and_left_out(tmp_path, encoder):
    torch.manual_seed(0)
    built = task(tmp_path)
    evaluation = built.evaluate(trained(built, encoder, 8))
    lines = [[SENTENCES[0][0]], [SENTENCES[5][1]]]  # a source, and a reference
    distinct = [pair for pair in SENTENCES if pair[0] != SENTENCES[0][0] and pair[1] != SENTENCES[5][1]]
    result = decontaminate(evaluation, lines, ngram_words=13, min_words=8, leave_out=True)
    left_out = {record["id"] for record in result.found}
    assert len(left_out) == 64 - len(distinct) >= 2
    assert {score.contaminated for score in evaluation.scores} == {None}
    found = {(score.split, score.metric): score for score in result.evaluation.scores}
    assert {found["test", metric].contaminated for metric in ("chrf", "bleu")} == {(len(left_out), 64)}
    records = [record for record in evaluation.predictions if record["id"] not in left_out]
    again = sacrebleu.corpus_chrf([record["translation"] for record in records], [[record["reference"] for record in records]])
    clean = found["test_decontaminated", "chrf"]
    assert (clean.value, clean.num_examples) == (pytest.approx(again.score, abs=1e-6), 64 - len(left_out))
    assert not any("texts" in record for record in result.evaluation.predictions)


def test_translations_do_not_depend_on_who_is_in_the_batch(tmp_path, encoder):
    torch.manual_seed(0)
    built = task(tmp_path, test=files(tmp_path, SENTENCES[:12]))
    objective = trained(built, encoder, 8)
    together = [record["translation"] for record in built.evaluate(objective).predictions]
    built.batch_tokens = 1
    assert [record["translation"] for record in built.evaluate(objective).predictions] == together


def test_flops_are_those_of_the_matrix_products(tmp_path, encoder):
    pairs = [("w1 w2 w3", "v3 v2 v1"), ("w4 w5 w6", "v6 v5 v4")]  # of one length, so that nothing is padded
    built = task(tmp_path, train=files(tmp_path, pairs))
    objective = built.objective(encoder).train()
    batch = batch_of(built, objective, encoder, range(2))
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        objective(batch).terms[TERM].backward()
    # The kernel computes what a token does not see, too: of four tokens six pairs.
    unseen = 12 * 32 * 2 * 6
    assert objective.flops(batch) == counter.get_total_flops() - unseen


def test_weights_are_shared_and_of_the_chains_encoder_only_the_tokenizer(tmp_path, encoder):
    objective = task(tmp_path).objective(encoder)
    assert objective.encoder is not encoder
    embeddings = objective.encoder.base.get_input_embeddings().weight
    assert objective.decoder.get_input_embeddings().weight is embeddings
    assert objective.decoder.get_output_embeddings().weight is embeddings
    assert not {id(parameter) for parameter in objective.parameters()} & {id(parameter) for parameter in encoder.parameters()}


@pytest.mark.parametrize(
    ("changes", "where", "message"),
    [
        ({"num_heads": 3}, "hidden_size", "32 is not a multiple of num_heads=3"),
        ({"label_smoothing": 1.5}, "label_smoothing", "less than or equal to 1"),
        ({"train": {"languages": ["bb", "aa"]}}, "test", "is from aa to bb, and train from bb to aa"),
        ({"test": {"_target_": "mlmx.data.microworld.MicroworldCorpus"}}, "test", "missing"),
    ],
)
def test_bad_settings_are_told_at_their_place(tmp_path, changes, where, message):
    changes = {key: {**files(tmp_path), **value} if isinstance(value, dict) else value for key, value in changes.items()}
    problems = problems_of(settings(tmp_path, **changes), "task.translation", "task")
    assert any(problem.where.startswith(f"task.translation.{where}") and message in problem.message for problem in problems)


def test_a_task_that_keeps_no_pairs(tmp_path, encoder):
    built = task(tmp_path, train="bitext")
    built.data_of = {"train": tmp_path}
    with pytest.raises(UserError, match=r"task.translation.train: 'bitext' is no curation: it keeps no pairs"):
        built.training_rows(encoder)


def test_the_pairs_that_a_curation_keeps(tmp_path, encoder, caplog):
    built = task(tmp_path, train="curation", max_length=5)
    built.data_of = {"train": tmp_path}
    (tmp_path / "kept.tsv").write_text("aa\tbb\tscore\nw1 w2\tv2 v1\t1.5\nw1 w2 w3 w4\tv4\t1\n")
    rows = built.training_rows(encoder)
    assert rows.lengths.tolist() == [8, 8]
    assert "1 of 4 training sentences are longer than max_length=5; 1 pieces are cut off" in caplog.text


@pytest.mark.slow
def test_a_chain_curates_and_translates(tmp_path):
    sizes = ["num_layers=1", "hidden_size=32", "num_heads=2", "intermediate_size=64"]
    small = ["model.tokenizer.vocab_size=500", "corpus.num_pairs=200", *(f"model.{one}" for one in sizes)]
    small += ["task.curation.corpus.num_pairs=100", "task.curation.num_kept=40", "task.curation.precision_at=[10]"]
    small += [f"task.translation.{one}" for one in (*sizes, "test.num_pairs=20", "trainer.max_steps=5")]
    chain = ["task=[translation,curation]", "task.translation.train=curation", f"outputs={tmp_path}", "tracker=none"]
    command = [sys.executable, "-m", "mlmx", "finetune", *chain, *small, "parallel.device=cpu", "parallel.num_threads=1"]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (curation,), (judged,) = (stages(tmp_path, f"eval-{name}") for name in ("curation", "translation"))
    finetuned = stage(tmp_path, "finetune")
    assert finetuned.parent("train").path == curation.path
    assert finetuned.result()["num_rows"] == 40
    assert len((curation.data_dir / "kept.tsv").read_text().splitlines()) == 41
    (run,) = summaries(tmp_path)
    assert {(score["task"], score["metric"]) for score in run["scores"]} >= {("curation", "auc"), ("translation", "chrf")}
    records = [json.loads(line) for line in judged.predictions_path.read_text().splitlines()]
    (chrf,) = [score["value"] for score in run["scores"] if score["metric"] == "chrf"]
    again = sacrebleu.corpus_chrf([record["translation"] for record in records], [[record["reference"] for record in records]])
    assert chrf == pytest.approx(again.score, abs=1e-6)
