"""Retrieval in the microworld is neither trivial nor unlearnable: pretraining shows where no words are shared."""

import pytest

from tests.integration.chains import SECONDS, mlmx, summaries

STEPS = 1600  # of 1,024 tokens


@pytest.mark.slow
@pytest.mark.timeout(16 * SECONDS)
def test_words_and_an_untrained_encoder_stay_well_below_a_pretrained_one(tmp_path):
    for steps in (STEPS, 0):
        mlmx(
            f"trainer.max_steps={steps}",
            outputs=tmp_path,
            settings=["experiment=demo", "task=[retrieval,retrieval_tuned]"],
            seconds=8 * SECONDS,
        )
    pretrained, untrained = (
        {(score["task"], score["split"], score["metric"]): score["value"] for score in run["scores"]} for run in summaries(tmp_path)
    )
    # Fine-tuning teaches an untrained encoder some of the translations as well.
    for task, factor in (("retrieval", 2), ("retrieval_tuned", 1.3)):
        key = (task, "test_unshared", "ndcg_at_10")
        assert pretrained[key] > factor * untrained[key]
        assert pretrained[task, "test_unshared", "bm25_ndcg_at_10"] == 0
