"""The microworld is neither trivial nor unlearnable: pretraining shows in all of its tasks."""

import numpy as np
import pytest
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from mlmx.data.microworld import bitext_pairs, sentiment_examples
from tests.integration.chains import SECONDS, mlmx, summaries

METRICS = {
    "bitext": "margin_ratio_accuracy_forward",
    "sentiment": "accuracy",
    "acceptability": "accuracy",
    "paraphrase": "accuracy",
    "entailment": "accuracy",
    "similarity": "cosine_spearman",
    "graded_similarity": "spearman",
}
STEPS = 2400  # of 1,024 tokens: three times the demo's


def accuracy_of_shared_words():
    """Return the accuracy of taking, for each sentence, the one of the other language that shares most words (numbers)."""
    source, target = zip(*bitext_pairs(seed=0, split="test", num_pairs=1000), strict=True)
    words = TfidfVectorizer(token_pattern=r"[^\s.]+").fit([*source, *target])
    similarities = (words.transform(source) @ words.transform(target).T).toarray()
    return np.mean(similarities.argmax(axis=1) == np.arange(len(source)))


def accuracy_of_bag_of_words():
    """Return the accuracy of a linear classifier of word counts, on the examples the task fine-tunes and tests on."""
    texts, labels = sentiment_examples(seed=0, split="train", num_examples=2000, code_mixed=False)
    test_texts, test_labels = sentiment_examples(seed=0, split="test", num_examples=1000, code_mixed=False)
    words = CountVectorizer(token_pattern=r"[^\s.]+")
    model = LogisticRegression(C=0.3, max_iter=500).fit(words.fit_transform(texts), labels)
    return model.score(words.transform(test_texts), test_labels)


@pytest.mark.slow
@pytest.mark.timeout(30 * SECONDS)
def test_words_alone_and_an_untrained_encoder_stay_well_below_a_pretrained_one(tmp_path):
    settings = ["experiment=demo", f"task=[{','.join(METRICS)}]", "task.sentiment.trainer.max_epochs=10"]
    for steps in (STEPS, 0):
        mlmx(f"trainer.max_steps={steps}", outputs=tmp_path, settings=settings, seconds=15 * SECONDS)
    pretrained, untrained = (
        {
            score["task"]: score["value"]
            for score in run["scores"]
            if score["metric"] == METRICS[score["task"]] and score["split"] == "test"
        }
        for run in summaries(tmp_path)
    )
    assert pretrained["bitext"] > 2 * max(untrained["bitext"], accuracy_of_shared_words())
    assert pretrained["sentiment"] > 0.1 + max(untrained["sentiment"], accuracy_of_bag_of_words())
    # Of these a bag of words tells nothing (tests/data/test_judgements.py): 1/2, 1/2, 1/3, no correlation.
    assert pretrained["acceptability"] > 0.1 + max(untrained["acceptability"], 0.5)
    assert pretrained["paraphrase"] > 0.1 + max(untrained["paraphrase"], 0.5)
    assert pretrained["entailment"] > 0.1 + max(untrained["entailment"], 0.33)
    assert pretrained["similarity"] > 0.1 + max(untrained["similarity"], 0)
    assert pretrained["graded_similarity"] > 0.1 + max(untrained["graded_similarity"], 0)
