"""Numbers of an objective cannot move unnoticed: a recording fails until somebody records anew.

``python tests/objectives/test_recorded.py`` records anew: after raising ``_version_``, with a line under Numerics in the CHANGELOG.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_pairs import NAMES, PARALLEL, STATISTICS, VOCABULARY_SIZE, CollectedHere, batch_of, make_objective, node_of, train

from mlmx.data.token_clusters import TokenClusters
from tests.tiny import SPECIALS

RECORDED = Path(__file__).with_name("recorded")


class SameEverywhere(CollectedHere):
    """Clusters that no processor makes otherwise: k-means turns the rounding of one into other clusters."""

    def __missing__(self, statistic):
        if not isinstance(statistic, TokenClusters):
            return STATISTICS[statistic]
        ids = np.arange(VOCABULARY_SIZE)
        return {"cluster": np.where(ids < len(SPECIALS), -1, ids % statistic.num_clusters).astype(np.int32)}


def trajectory(name: str, folder: Path) -> dict[str, Any]:
    torch.set_num_threads(1)
    objective = make_objective(name, corpus=replace(PARALLEL, statistics=SameEverywhere()))
    batch = batch_of(objective, range(16))
    digest = hashlib.sha256()
    for key in sorted(batch.tensors):
        digest.update(key.encode())
        digest.update(batch.tensors[key].numpy().astype(np.int64).tobytes())
    train(folder, name, objective=objective, max_steps=5)
    losses = [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {
        "version": node_of(name)["_version_"],
        "counts": dict(batch.counts),
        "selected": batch.tensors["selected"][:20].tolist() if "selected" in batch.tensors else None,
        "batch_sha256": digest.hexdigest(),
        "losses": losses,
    }


@pytest.mark.parametrize("name", NAMES)
def test_numbers_are_those_of_the_recorded_version(name, tmp_path):
    path = RECORDED / f"{name}.json"
    assert path.exists(), f"nothing is recorded for {name}; run {Path(__file__).name} as a program"
    recorded = json.loads(path.read_text())
    now = trajectory(name, tmp_path)
    assert now["version"] == recorded["version"], "_version_ was raised: record anew"
    # Batches are integers and must be equal; losses may differ by rounding between machines and versions of torch.
    losses = now.pop("losses"), recorded.pop("losses")
    assert now == recorded
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_nothing_is_recorded_for_objectives_that_are_gone():
    assert sorted(path.stem for path in RECORDED.glob("*.json")) == NAMES


if __name__ == "__main__":
    for name in NAMES:
        with tempfile.TemporaryDirectory() as folder:
            (RECORDED / f"{name}.json").write_text(json.dumps(trajectory(name, Path(folder)), indent=1) + "\n")
