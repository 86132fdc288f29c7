from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_pairs import STATISTICS, batch_of, make_objective, rows_of, tiny_encoder

from mlmx.data.token_clusters import TokenClusters
from mlmx.errors import UserError

NUM_CLUSTERS = 4
CLUSTERS = {
    "_target_": "mlmx.data.token_clusters.TokenClusters",
    "_version_": 1,
    "num_clusters": NUM_CLUSTERS,
    "window": 2,
    "num_contexts": 50,
    "dimensions": 8,
    "seed": 0,
}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def objective_with(**settings):
    return make_objective("crts", clusters=CLUSTERS, **settings)


def judged_by(objective, logit):
    """Let the detector say the same of every token."""
    with torch.no_grad():
        objective.head.logit.weight.zero_()
        objective.head.logit.bias.fill_(logit)
    return objective


def clusters_of(objective, batch):
    """The clusters of the selected tokens, and of those that stand there instead."""
    selected = batch.tensors["selected"]
    return tuple(objective.cluster[one.tensors["input_ids"][selected]] for one in (batch, objective.shown(batch)))


def test_a_replacement_is_an_ordinary_token_and_nothing_else_changes():
    objective = objective_with(replace_ratio=0.5)
    rows = rows_of(objective).take(np.arange(48))
    batch = batch_of(objective, range(48))
    shown = objective.shown(batch).tensors["input_ids"].numpy()
    np.testing.assert_array_equal(batch.tensors["input_ids"], rows.input_ids)
    changed = (shown != rows.input_ids).nonzero()[0]
    assert set(changed) <= set(batch.tensors["selected"].numpy())
    assert len(changed) > 0.9 * len(batch.tensors["selected"])
    assert not rows.special[changed].any()
    assert set(shown[changed]) <= set(objective.encoder.vocabulary.ordinary_ids)


def test_without_beta_all_clusters_are_equally_likely_and_so_are_their_tokens():
    objective = objective_with(replace_ratio=1.0, beta=0.0)
    objective.confusions[:, 0] = 1000
    _, drawn = clusters_of(objective, batch_of(objective, range(96)))
    share = np.bincount(drawn, minlength=NUM_CLUSTERS) / len(drawn)
    np.testing.assert_allclose(share, 1 / NUM_CLUSTERS, atol=4 * (0.25 * 0.75 / len(drawn)) ** 0.5)
    tokens = objective.shown(batch_of(objective, range(96))).tensors["input_ids"]
    members = objective.members[objective.offsets[1] : objective.offsets[2]]
    counts = np.bincount(tokens[torch.isin(tokens, members)], minlength=200)[members]
    assert counts.min() > 0
    expected = counts.mean()
    assert abs(counts - expected).max() < 5 * expected**0.5


def test_probabilities_by_hand():
    objective = objective_with(beta=2.0)
    objective.confusions[0] = torch.tensor([1, 3, 5, 1])
    weights = np.exp(2.0 * np.array([0.0, 0.5, 1.0, 0.0]))
    np.testing.assert_allclose(objective.probabilities()[0], weights / weights.sum(), rtol=1e-12)
    np.testing.assert_allclose(objective.probabilities()[1], 1 / NUM_CLUSTERS, rtol=1e-12)
    objective.confusions[0] = torch.tensor([-7, 3, 13, -7])  # Judged rightly more often than wrongly, of the same shape.
    np.testing.assert_allclose(objective.probabilities()[0], weights / weights.sum(), rtol=1e-12)


def test_what_is_drawn_follows_the_probabilities():
    objective = objective_with(replace_ratio=1.0, beta=3.0)
    objective.confusions[:] = torch.tensor([1, 2, 3, 4])
    _, drawn = clusters_of(objective, batch_of(objective, range(96)))
    share = np.bincount(drawn, minlength=NUM_CLUSTERS) / len(drawn)
    np.testing.assert_allclose(share, objective.probabilities()[0], atol=4 * (0.25 / len(drawn)) ** 0.5)


@pytest.mark.parametrize(("says", "vote"), [("replaced", -1), ("original", 1)])
def test_pairs_count_as_often_as_they_occur(says, vote):
    objective = judged_by(objective_with(replace_ratio=0.5), 5.0 if says == "replaced" else -5.0).train()
    batches = [batch_of(objective, range(24)), batch_of(objective, range(24, 48))]
    expected = np.ones((NUM_CLUSTERS, NUM_CLUSTERS), np.int64)
    for batch in batches:
        given = objective.shown(batch).tensors["input_ids"]
        for before, after in zip(batch.tensors["input_ids"].tolist(), given.tolist(), strict=True):
            if before != after:
                expected[objective.cluster[before], objective.cluster[after]] += vote
        objective(batch).terms["detection"].backward()
    assert abs(expected - 1).max() > 10
    assert (objective.confusions == 1).all()
    objective.after_step(0)
    np.testing.assert_array_equal(objective.confusions, expected)
    objective.before_step()
    objective.after_step(1)
    np.testing.assert_array_equal(objective.confusions, expected)


def test_an_empty_cluster_is_no_measure_of_the_others():
    objective = objective_with(beta=2.0)
    # Cluster 2 loses its tokens to cluster 3.
    objective.offsets[3] = objective.offsets[2]
    objective.confusions[0] = torch.tensor([-1000, -800, 1, -900])
    probabilities = objective.probabilities()[0]
    assert probabilities[2] == 0
    assert (probabilities[1] / probabilities[0]).item() == pytest.approx(np.exp(2.0))
    assert (probabilities[3] / probabilities[0]).item() == pytest.approx(np.exp(1.0))


def test_a_pass_that_is_done_again_counts_once_and_validation_not_at_all():
    objective = objective_with().train()
    batch = batch_of(objective, range(24))
    objective(batch)  # The memory was too small for its backward pass.
    objective.before_step()
    objective(batch).terms["detection"].backward()
    once = objective._new.clone()
    objective(replace(batch, counted=False))
    objective.eval()(batch)
    assert once.any()
    assert torch.equal(objective._new, once)
    assert set(objective.state_dict()) > {"confusions"}
    assert "_new" not in objective.state_dict()


def test_all_tokens_count_where_that_is_asked_for():
    objective = judged_by(objective_with(replace_ratio=0.0, update="all"), -5.0).train()
    batch = batch_of(objective, range(24))
    objective(batch)
    objective.after_step(0)
    tokens = objective.cluster[batch.tensors["input_ids"]]
    right = np.bincount(tokens[tokens >= 0], minlength=NUM_CLUSTERS)
    np.testing.assert_array_equal(objective.confusions, 1 - np.diag(right))


def test_a_pair_that_is_confused_gains_mass():
    objective = objective_with(replace_ratio=0.3, beta=2.0).train()
    hard = (1, 2)
    torch.manual_seed(0)

    class Fooled(torch.nn.Module):
        """Is right nine times in ten, but for tokens of one cluster that became one of another: there it is wrong nine times."""

        def __init__(self):
            super().__init__()
            self.logit = torch.nn.Linear(1, 1)

        def forward(self, hidden):
            before, after = self.pairs
            wrong = torch.rand(len(before)) < torch.where((before == hard[0]) & (after == hard[1]), 0.9, 0.1)
            return torch.where(wrong ^ self.replaced, 1.0, -1.0) + 0 * self.logit.weight.sum()

    objective.head = Fooled()
    for step in range(30):
        batch = batch_of(objective, range(48), epoch=step)
        given = objective.shown(batch).tensors["input_ids"]
        objective.head.replaced = given != batch.tensors["input_ids"]
        objective.head.pairs = objective.cluster[batch.tensors["input_ids"]], objective.cluster[given]
        objective(batch)
        objective.after_step(step)
    probabilities = objective.probabilities()
    assert probabilities[hard[0]].argmax() == hard[1]
    assert probabilities[hard] > 1.5 / NUM_CLUSTERS


@pytest.mark.parametrize(("parity", "label"), [("paper", 0.0), ("released_code", 1.0)])
def test_a_token_for_which_itself_was_drawn(parity, label):
    objective = judged_by(objective_with(replace_ratio=0.9, parity=parity), 2.0).eval()
    batch = batch_of(objective, range(96))
    selected = torch.zeros(batch.num_tokens, dtype=torch.bool).index_fill(0, batch.tensors["selected"], True)
    changed = objective.shown(batch).tensors["input_ids"] != batch.tensors["input_ids"]
    assert (selected & ~changed).any()
    labels = selected if label else changed
    expected = torch.nn.functional.softplus(torch.where(labels, -2.0, 2.0)).sum().item()
    assert objective(batch).terms["detection"].item() == pytest.approx(expected, rel=1e-5)


def test_tokens_of_the_same_neighbours_are_in_one_cluster():
    """Two kinds of tokens, each of which stands among its own kind only."""
    rng = np.random.default_rng(0)
    kinds = np.repeat([rng.permutation(2) for _ in range(40)], 10).tolist()
    pieces = np.array([10 * kind + rng.integers(8) for kind in kinds], np.int32)
    store = type("Store", (), {})()
    store.arrays = {"pieces": pieces, "piece_offsets": np.arange(0, len(pieces) + 1, 10)}
    store.meta, store.num_segments = {"vocabulary_size": 20}, 80
    settings = {**CLUSTERS, "num_clusters": 2, "dimensions": 4}
    statistic = TokenClusters(**{name: value for name, value in settings.items() if not name.startswith("_")})
    (part,) = statistic.collect(store, show_progress=False)
    first, second = part["cluster"][:8], part["cluster"][10:18]
    assert set(first) != set(second)
    assert len(set(first)) == len(set(second)) == 1
    assert (part["cluster"][[8, 9, 18, 19]] == -1).all()


def test_neighbours_by_hand():
    store = type("Store", (), {})()
    store.arrays = {"pieces": np.array([1, 2, 1, 3, 2, 2], np.int32), "piece_offsets": np.array([0, 3, 6])}
    store.meta, store.num_segments = {"vocabulary_size": 5}, 2
    statistic = TokenClusters(num_clusters=1, window=1, num_contexts=2, dimensions=1, seed=0)
    # Contexts: 2 (three times), 1 (twice). Segments: 1 2 1 | 3 2 2.
    near = statistic._near(store, np.array([2, 1]), 5, False).toarray()
    assert near.tolist() == [[0, 0], [2, 0], [2, 2], [1, 0], [0, 0]]


def test_more_clusters_than_tokens():
    with pytest.raises(UserError, match=r"num_clusters: 1000 are more than the 1\d\d different tokens of the corpus"):
        make_objective("crts", clusters={**CLUSTERS, "num_clusters": 1000})


def test_texts_of_one_token_have_no_neighbours():
    store = type("Store", (), {})()
    store.arrays = {"pieces": np.array([1, 2, 1, 3], np.int32), "piece_offsets": np.arange(5)}
    store.meta, store.num_segments = {"vocabulary_size": 5}, 4
    statistic = TokenClusters(num_clusters=2, window=3, num_contexts=2, dimensions=1, seed=0)
    with pytest.raises(UserError, match=r"token_clusters\.window: 3: no token has one of the 2 most frequent ones so near to it"):
        list(statistic.collect(store, show_progress=False))


def test_equal_settings_share_their_clusters():
    before = len(STATISTICS)
    objective_with()
    objective_with(beta=1.0)
    assert len(STATISTICS) <= before + 1
    assert tiny_encoder().vocabulary.size == len(objective_with().cluster)
