from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from transformers import AutoModelForMaskedLM

from mlmx.build import build
from mlmx.data.microworld import MicroworldCorpus
from mlmx.errors import UserError
from mlmx.tasks.eval_mask import EvalMask


def words_of(corpus) -> list[str]:
    return [word for example in corpus.examples() for segment in example.segments for word in segment.text.split()]


def corpus(**settings) -> dict:
    node = {"_target_": "mlmx.data.microworld.MicroworldCorpus", "seed": 0, "num_pairs": 40, "split": "test", "view": "parallel"}
    return node | {"languages": ["qla", "qka"]} | settings


def task(**settings) -> EvalMask:
    node = {
        "_target_": "mlmx.tasks.eval_mask.EvalMask",
        "name": "eval_mask",
        "corpus": corpus(),
        "split": "test",
        "view": "segment",
        "max_examples": None,
        "seed": 0,
        "mask_ratio": 0.15,
        "corruption": {"mask": 1.0, "random": 0.0, "keep": 0.0},
        "max_length": 48,
        "batch_tokens": 512,
    }
    return build(node | settings, where="task.eval_mask")


@pytest.fixture
def encoder(make_encoder):
    return make_encoder(words_of(MicroworldCorpus(seed=0, num_pairs=40, split="test", view="parallel", languages=["qla", "qka"])))


def values(evaluation) -> dict[str, float]:
    return {score.metric: score.value for score in evaluation.scores}


def test_loss_is_that_of_transformers_on_the_masked_text(encoder, tmp_path):
    evaluation = task(max_examples=3).evaluate(encoder)
    # The same, one padded row at a time through the whole model, with the masked positions that the task chose.
    judged = task(max_examples=3)
    seen = []
    original = encoder.forward
    encoder.forward = lambda batch: (seen.append(batch), original(batch))[1]
    judged.evaluate(encoder)
    encoder.forward = original
    encoder.save(tmp_path)
    reference = AutoModelForMaskedLM.from_pretrained(tmp_path).eval()
    seen = [batch.tensors for batch in seen]
    total, count = 0.0, 0
    texts = [segment.text for example in itertools.islice(judged.corpus.examples(), 3) for segment in example.segments]
    by_ids = {}
    for text in texts:
        ids = encoder.tokenizer(text)["input_ids"]
        by_ids[len(ids)] = [*by_ids.get(len(ids), []), ids]
    for batch in seen:
        bounds = batch["cu_seqlens"].tolist()
        for start, end in itertools.pairwise(bounds):
            masked = batch["input_ids"][start:end].clone()
            hidden = masked == encoder.vocabulary.mask_id
            matching = [ids for ids in by_ids[end - start] if (torch.tensor(ids)[~hidden] == masked[~hidden]).all()]
            with torch.no_grad():
                logits = reference(input_ids=masked[None]).logits[0]
            loss = torch.nn.functional.cross_entropy(logits[hidden], torch.tensor(matching[0])[hidden], reduction="sum")
            total += loss.item()
            count += int(hidden.sum())
    assert values(evaluation)["loss"] == pytest.approx(total / count, rel=1e-5)
    assert {score.metric: score.num_examples for score in evaluation.scores}["loss"] == count


def test_an_untrained_encoder_is_at_chance_and_languages_add_up(encoder):
    evaluation = task().evaluate(encoder)
    got = values(evaluation)
    assert got["loss"] == pytest.approx(math.log(encoder.vocabulary.size), abs=0.3)
    assert got.keys() == {"loss", "loss_qla", "loss_qka", "accuracy", "accuracy_qla", "accuracy_qka"}
    sums = {metric: np.sum([r["ratios"].get(metric, [0, 0]) for r in evaluation.predictions], axis=0) for metric in got}
    np.testing.assert_allclose(sums["loss"], sums["loss_qla"] + sums["loss_qka"])
    assert {score.metric: score.higher_is_better for score in evaluation.scores}["loss_qla"] is False
    trivial = {score.metric: score.trivial for score in evaluation.scores}
    assert trivial["loss_qla"] == pytest.approx(math.log(encoder.vocabulary.size)) == -math.log(trivial["accuracy"])


def test_the_realised_rate(encoder):
    many = task(corpus=corpus(num_pairs=400))
    lengths = sum(len(encoder.tokenizer(segment.text)["input_ids"]) - 2 for e in many.corpus.examples() for segment in e.segments)
    num_selected = many.evaluate(encoder).scores[0].num_examples
    assert lengths > 5000
    assert num_selected / lengths == pytest.approx(0.15, abs=3.5 * (0.15 * 0.85 / lengths) ** 0.5)


def test_the_mask_depends_on_its_seed_alone(encoder):
    def counts(**settings) -> list[int]:
        return [record["ratios"]["loss"][1] for record in task(**settings).evaluate(encoder).predictions]

    reference = counts()
    torch.manual_seed(123)
    assert counts() == counts(batch_tokens=60) == reference
    assert counts(seed=1) != reference
    assert values(task(batch_tokens=60).evaluate(encoder)) == pytest.approx(values(task().evaluate(encoder)), rel=1e-5)


def test_pairs_are_one_row(encoder):
    evaluation = task(view="pair", max_examples=5, mask_ratio=1.0).evaluate(encoder)
    assert len(evaluation.predictions) == 5
    assert values(evaluation).keys() == {"loss", "accuracy"}
    with pytest.raises(UserError, match=r"task.eval_mask.view: pairs need a parallel corpus"):
        task(view="pair", corpus=corpus(view="monolingual"))


def test_no_head_no_loss(encoder):
    encoder.drop_head()
    with pytest.raises(UserError, match=r"task.eval_mask: judges by a language-model head, and this encoder has none"):
        task().evaluate(encoder)


def test_nothing_selected(encoder):
    with pytest.raises(UserError, match="selects no token at all"):
        task(mask_ratio=0.0).evaluate(encoder)
