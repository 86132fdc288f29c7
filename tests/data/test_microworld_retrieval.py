"""Questions of the microworld: words find the answers of one half, and none of the other."""

from __future__ import annotations

import hashlib
import re

import numpy as np
import pytest

from mlmx.data.microworld import retrieval_collection
from mlmx.tasks.bm25 import BM25

NUM_DOCUMENTS = 300


@pytest.fixture(scope="module")
def collection():
    return retrieval_collection(seed=0, split="test", num_documents=NUM_DOCUMENTS)


def words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.lower()))


def test_the_numbers_of_version_1_never_move(collection):
    # Whoever changes one raises `_version_` of the tasks and says so in the CHANGELOG.
    documents, queries = collection
    assert hashlib.sha256(repr((documents[:50], queries[:100])).encode()).hexdigest()[:16] == "a7dc6532dda8c4b0"


def test_documents_have_several_sentences_and_questions_one(collection):
    documents, queries = collection
    assert len(set(documents)) == NUM_DOCUMENTS
    assert {document.count(".") for document in documents} == {2, 3, 4}
    assert {query.text.count(".") for query in queries} == {1}
    assert [query.document for query in queries] == [i // 2 for i in range(2 * NUM_DOCUMENTS)]


def test_questions_in_the_other_language_share_no_word_with_any_document(collection):
    documents, queries = collection
    told = set().union(*map(words, documents))
    for query in queries:
        assert (not words(query.text) & told) == (not query.shared)


def test_words_find_shared_questions_and_no_others(collection):
    documents, queries = collection
    bm25 = BM25(k1=0.9, b=0.4, stopwords=None, stemmer=None)
    for shared in (True, False):
        chosen = [query for query in queries if query.shared == shared]
        found = bm25.search([query.text for query in chosen], documents, 1)
        hits = (found.indices[:, 0] == [query.document for query in chosen]) & (found.scores[:, 0] > 0)
        assert (np.mean(hits) > 0.85) if shared else not found.scores.any()


def test_a_collection_depends_on_seed_and_split_only(collection):
    documents, queries = collection
    fewer = retrieval_collection(seed=0, split="test", num_documents=50)
    assert fewer == (documents[:50], queries[:100])
    assert retrieval_collection(seed=1, split="test", num_documents=50)[0] != documents[:50]
    assert not set(retrieval_collection(seed=0, split="train", num_documents=50)[0]) & set(documents)
