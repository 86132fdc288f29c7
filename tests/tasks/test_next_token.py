from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mlmx import keyed
from mlmx.build import build
from mlmx.data.batch import BatchContext
from mlmx.data.microworld import MicroworldCorpus
from mlmx.data.rows import CorpusInfo
from mlmx.errors import UserError
from mlmx.models import drawn_embedding
from mlmx.models.drawn_embedding import drawn_embeddings, exported_embeddings, std_of_exported
from mlmx.objectives import lexinvariant
from mlmx.objectives.lexinvariant import LexinvariantLanguageModeling
from mlmx.tasks.next_token import NextToken, substitution
from mlmx.tasks.texts import text_rows

WORLD = {"seed": 0, "num_pairs": 12, "split": "test", "view": "parallel", "languages": ["qla", "qka"]}


def texts() -> list[str]:
    return [segment.text for example in MicroworldCorpus(**WORLD).examples() for segment in example.segments]


def task(**settings) -> NextToken:
    node = {
        "_target_": "mlmx.tasks.next_token.NextToken",
        "name": "next_token",
        "corpus": {"_target_": "mlmx.data.microworld.MicroworldCorpus"} | WORLD,
        "split": "test",
        "max_examples": None,
        "cipher": None,
        "seed": 0,
        "max_length": 48,
        "batch_tokens": 100,
    }
    return build(node | settings, where="task.next_token")


@pytest.fixture
def encoder(make_encoder):
    encoder = make_encoder([word for text in texts() for word in text.split()])
    # Weights as large as those that something was learned with, so that predictions differ.
    for parameter in encoder.parameters():
        parameter.data.mul_(5)
    return encoder


@pytest.fixture
def drawn(make_encoder):
    """An encoder as ``lexinvariant`` leaves it."""
    encoder = make_encoder([word for text in texts() for word in text.split()])
    return LexinvariantLanguageModeling(encoder, CorpusInfo(num_sides=2, languages=("qla", "qka")), embedding_std=0.5).encoder


def values(evaluation, split: str = "test") -> dict[str, float]:
    return {score.metric: score.value for score in evaluation.scores if score.split == split}


def test_losses_of_a_row_one_token_after_the_other(encoder):
    text = max(texts(), key=len)
    index = texts().index(text)
    ids = torch.tensor(encoder.tokenizer(text)["input_ids"])
    losses = []
    for place in range(1, len(ids)):
        # Only what stands before a token goes in, so that nothing else can have a part.
        rows = text_rows(encoder, [text], max_length=48, task="x", what="texts").take(np.array([0]))
        prefix = replace(
            rows,
            input_ids=rows.input_ids[:place],
            cu_seqlens=np.array([0, place], np.int32),
            words=rows.words[:place],
            segments=rows.segments[:place],
            languages=rows.languages[:place],
        )
        batch = lexinvariant.NextTokenCollator()(prefix, BatchContext(keys=np.zeros(1, np.int64)))
        with torch.no_grad():
            logits = encoder.head(encoder(batch, direction="causal")[-1:])
        losses.append(F.cross_entropy(logits, ids[place : place + 1]).item())
    record = task().evaluate(encoder).predictions[index]
    expected = {"loss": losses, "loss_at_1": losses[:1], "loss_at_2_to_3": losses[1:3], "loss_at_4_to_7": losses[3:7]}
    expected |= {"loss_at_8_to_15": losses[7:15]} if len(losses) > 7 else {}
    assert {name: whole for name, (_, whole) in record["ratios"].items()} == {name: len(some) for name, some in expected.items()}
    for name, some in expected.items():
        assert record["ratios"][name][0] == pytest.approx(sum(some), rel=1e-4)


def test_positions_add_up_to_the_total(encoder):
    evaluation = task(cipher=3).evaluate(encoder)
    assert len(evaluation.predictions) == 2 * len(texts())
    for split in ("test", "test_cipher"):
        scores = {score.metric: score for score in evaluation.scores if score.split == split}
        whole = scores.pop("loss")
        assert list(scores)[:3] == ["loss_at_1", "loss_at_2_to_3", "loss_at_4_to_7"]
        assert sum(score.num_examples for score in scores.values()) == whole.num_examples
        assert scores["loss_at_1"].num_examples == len(texts())
        summed = sum(score.value * score.num_examples for score in scores.values())
        assert summed == pytest.approx(whole.value * whole.num_examples, rel=1e-9)
        assert not whole.higher_is_better
        assert whole.trivial == math.log(encoder.vocabulary.size)
        assert whole.settings == {"embeddings": "learned"}
    num_tokens = sum(len(encoder.tokenizer(text)["input_ids"]) - 1 for text in texts())
    assert whole.num_examples == num_tokens


def test_a_cipher_is_another_text_to_learned_embeddings(encoder):
    both = task(cipher=3).evaluate(encoder)
    assert values(both) == values(task().evaluate(encoder))
    assert values(both, "test_cipher")["loss"] != pytest.approx(values(both)["loss"], rel=1e-3)
    assert values(both, "test_cipher") != values(task(cipher=4).evaluate(encoder), "test_cipher")
    # What reads the cipher by the embeddings of what it stands for, and predicts so, is the encoder that read the text.
    replaced_by = torch.from_numpy(substitution(encoder.vocabulary, seed=3))
    for weights in (encoder.base.get_input_embeddings().weight, encoder.head.model.get_output_embeddings().bias):
        weights.data[replaced_by] = weights.data.clone()
    assert values(task(cipher=3).evaluate(encoder), "test_cipher") == pytest.approx(values(both), rel=1e-5)


def test_a_cipher_of_ordinary_pieces_alone(encoder):
    vocabulary = encoder.vocabulary
    replaced_by = substitution(vocabulary, seed=0)
    assert sorted(replaced_by) == list(range(vocabulary.size))
    special = np.array(vocabulary.special_ids)
    np.testing.assert_array_equal(replaced_by[special], special)
    assert (replaced_by != np.arange(vocabulary.size)).mean() > 0.8


def test_drawn_vectors_are_those_of_the_objective(drawn):
    evaluation = task().evaluate(drawn)
    assert evaluation.scores[0].settings == {"embeddings": "drawn"}
    objective = LexinvariantLanguageModeling(drawn, CorpusInfo(num_sides=2, languages=("qla", "qka")), embedding_std=0.5)
    indices = np.arange(len(texts()))
    rows = text_rows(drawn, texts(), max_length=48, task="x", what="texts").take(indices)
    context = BatchContext(keys=keyed.row_keys(seed=0, epoch=0, row_ids=indices))
    batch = objective.collator()(rows, context)
    with torch.no_grad():
        loss = objective.eval()(batch).terms["clm"].item() / batch.counts["clm"]
    assert values(evaluation)["loss"] == pytest.approx(loss, rel=1e-5)
    assert values(task(seed=1).evaluate(drawn)) != values(evaluation)


def test_a_cipher_costs_what_the_text_costs_where_vectors_are_drawn_along(drawn, monkeypatch):
    text = values(task().evaluate(drawn))
    cipher = values(task(cipher=3).evaluate(drawn), "test_cipher")
    assert cipher != pytest.approx(text, rel=1e-5)
    back = torch.from_numpy(substitution(drawn.vocabulary, seed=3)).argsort()
    for module in (lexinvariant, drawn_embedding):
        monkeypatch.setattr(module, "drawn_embeddings", lambda keys, ids, *others: drawn_embeddings(keys, back[ids], *others))
    monkeypatch.setattr("mlmx.tasks.next_token.std_of_exported", lambda words: 0.5)
    assert values(task(cipher=3).evaluate(drawn), "test_cipher") == pytest.approx(text, rel=1e-5)


def test_what_was_left_by_a_draw_is_told_from_what_was_trained(drawn, encoder):
    words = drawn.base.get_input_embeddings().weight.detach()
    assert std_of_exported(words) == pytest.approx(0.5, rel=1e-6)
    assert std_of_exported(words.bfloat16()) == pytest.approx(0.5, rel=1e-2)
    assert std_of_exported(exported_embeddings(torch.zeros(300, 7), 2.0)) == pytest.approx(2.0, rel=1e-6)
    assert std_of_exported(encoder.base.get_input_embeddings().weight) is None
    assert std_of_exported(torch.zeros(5, 8)) is None
    moved = words + 1e-3 * torch.randn(words.shape, generator=torch.Generator().manual_seed(0))
    assert std_of_exported(moved) is None


def test_no_head_no_loss(encoder):
    encoder.drop_head()
    with pytest.raises(UserError, match=r"task.next_token: judges by a language-model head, and this encoder has none"):
        task().evaluate(encoder)
