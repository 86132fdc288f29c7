from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AutoModelForMaskedLM

from mlmx.errors import UserError
from mlmx.tasks import search
from mlmx.tasks.embedding import Embedding
from mlmx.tasks.lexical import Lexical, LexicalQueries, parts
from mlmx.tasks.search import nearest
from tests.tasks.test_retrieval import WORDS, task

TEXTS = ["w1 w2 w3", "w3", "w4 w4 w9 w1 w30", "w7 w8"]


@pytest.fixture
def encoder(make_encoder):
    encoder = make_encoder(WORDS)
    torch.manual_seed(0)
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.3)  # so that logits are far apart
    return encoder.eval()


def representations(encoder, texts=TEXTS, *, normalize=False, weight=1.0):
    embedding = Embedding(
        layer="last", pooling="cls", normalize=normalize, max_length=None, lexical=Lexical(num_entries=5, weight=weight)
    )
    found = embedding.resolved(encoder, task="x").vectors(encoder, texts, task="x", what="texts", batch_tokens=8)
    return parts(found, 5)


def random_rows(number: int, seed: int) -> np.ndarray:
    """Vectors of four numbers, six weights, and six different entries out of thirty."""
    random = np.random.default_rng(seed)
    entries = np.stack([random.choice(30, 6, replace=False) for _ in range(number)])
    return np.concatenate([random.normal(size=(number, 10)), entries], axis=1).astype(np.float32)


def score(query: np.ndarray, document: np.ndarray) -> float:
    words_of_query, words_of_document = (dict(zip(row[10:].tolist(), row[4:10].tolist(), strict=True)) for row in (query, document))
    shared = words_of_query.keys() & words_of_document.keys()
    return float(query[:4] @ document[:4]) + sum(words_of_query[entry] * words_of_document[entry] for entry in shared)


def test_the_lexical_part_is_that_of_the_exported_model(encoder, tmp_path):
    encoder.save(tmp_path)
    model = AutoModelForMaskedLM.from_pretrained(tmp_path).eval()
    vectors, weights, entries = representations(encoder)
    for row, text in enumerate(TEXTS):
        with torch.no_grad():
            output = model(**encoder.tokenizer(text, return_tensors="pt"), output_hidden_states=True)
        largest = output.logits[0, 1:-1].max(dim=0).values.topk(5)
        np.testing.assert_allclose(weights[row], largest.values.numpy(), rtol=1e-4)
        np.testing.assert_array_equal(entries[row], largest.indices.numpy())
        np.testing.assert_allclose(vectors[row], output.hidden_states[-1][0, 0].numpy(), rtol=1e-4, atol=1e-5)


def test_vectors_and_weights_have_length_one_each_and_the_weight_is_that_of_products(encoder):
    plain, scaled = representations(encoder), representations(encoder, normalize=True, weight=0.25)
    np.testing.assert_allclose(np.linalg.norm(scaled[0], axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(scaled[1], axis=1) ** 2, 0.25, rtol=1e-5)
    np.testing.assert_allclose(scaled[1] / plain[1], (0.5 / np.linalg.norm(plain[1], axis=1))[:, None].repeat(5, 1), rtol=1e-5)
    np.testing.assert_array_equal(scaled[2], plain[2])


def test_a_text_without_words_weighs_nothing(encoder):
    _, weights, _ = representations(encoder, ["w1 w2", ""])
    assert weights[0].any()
    assert not weights[1].any()


def test_what_a_text_has_least_to_do_with_weighs_nothing(encoder, monkeypatch):
    logits = encoder.head.forward
    monkeypatch.setattr(encoder.head, "forward", lambda hidden: logits(hidden) - 1000.0)
    _, weights, _ = representations(encoder)
    assert not weights.any()


def test_scores_are_sums_over_shared_entries_whatever_the_blocks(monkeypatch):
    queries, documents = random_rows(9, 0), random_rows(23, 1)
    expected = np.array([[score(query, document) for document in documents] for query in queries])
    assert len({tuple(sorted(row)) for row in documents[:, 10:].tolist()}) > 1
    for block in ((1024, 16384), (4, 7)):
        monkeypatch.setattr(search, "_CPU_BLOCK", block)
        found = nearest(queries, documents, 23, num_entries=6)
        np.testing.assert_allclose(found.scores, -np.sort(-expected, axis=1), rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(found.indices, np.argsort(-expected, axis=1))
        np.testing.assert_array_equal(nearest(queries, documents, 1, num_entries=6).indices[:, 0], expected.argmax(1))


def test_nothing_shared_is_zero():
    queries = LexicalQueries(torch.ones(2, 3), torch.tensor([[1.0, 2, 3], [1, 2, 4]]))
    assert not queries.scores(torch.ones(2, 2), torch.tensor([[0.0, 5], [6, 7]])).any()


def test_retrieval_adds_what_words_are_shared(encoder, tmp_path):
    lexical = {"num_entries": 5, "weight": 1.0}
    both = task(lexical=lexical, pooling="cls", similarity="dot", controls=["untrained"])
    both.folder = tmp_path
    evaluation = both.evaluate(encoder)
    told = {score.metric: score.settings for score in evaluation.scores}
    assert told["ndcg_at_10"]["lexical_entries"] == 5
    collection = both.data.load("test")
    queries, documents = (
        np.concatenate(representations(encoder, texts), axis=1) for texts in (collection.queries, collection.documents)
    )
    found = [line.split() for line in (tmp_path / "run.test.trec").read_text().splitlines()]
    vectors = slice(0, -10)
    for query, _, document, _, value, _ in found[:40]:
        one, other = queries[int(query[1:])], documents[int(document[1:])]
        shared = dict(zip(other[-5:].tolist(), other[-10:-5].tolist(), strict=True))
        expected = one[vectors] @ other[vectors]
        expected += sum(
            weight * shared.get(entry, 0) for entry, weight in zip(one[-5:].tolist(), one[-10:-5].tolist(), strict=True)
        )
        assert float(value) == pytest.approx(float(expected), rel=1e-4)
    # One index of each encoder; the head belongs to what it depends on.
    assert len(list((tmp_path / "index").iterdir())) == 2
    torch.nn.init.normal_(encoder.head.model.cls.predictions.bias)
    both.evaluate(encoder)
    assert len(list((tmp_path / "index").iterdir())) == 3


def test_a_control_without_words_to_tell_is_left_out(encoder, make_encoder, caplog):
    judged = task(lexical={"num_entries": 5, "weight": 1.0}, controls=["before_pretraining", "untrained"])
    without = make_encoder(WORDS)
    without.drop_head()
    judged.before_pretraining = lambda: without
    told = {score.metric for score in judged.evaluate(encoder).scores}
    assert "untrained_ndcg_at_10" in told
    assert "before_pretraining_ndcg_at_10" not in told
    assert "before_pretraining is not judged" in caplog.text


def test_what_has_no_words_to_tell_is_refused(encoder, make_encoder):
    lexical = {"num_entries": 5, "weight": 1.0}
    with pytest.raises(UserError, match="lexical: is told from the last layer"):
        task(lexical=lexical, layer=1)
    with pytest.raises(UserError, match=r"lexical.num_entries: 1000 is more than the 45 of the vocabulary"):
        task(lexical={**lexical, "num_entries": 1000}).evaluate(encoder)
    without = make_encoder(WORDS)
    without.drop_head()
    with pytest.raises(UserError, match="lexical: the encoder has no language-model head"):
        task(lexical=lexical).evaluate(without)
