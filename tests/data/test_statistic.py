"""Statistics of a corpus, as their stage collects them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from sample import pairs, tokenizer
from test_interrupted import Killed, kill_at

from mlmx.data import arrays, statistic
from mlmx.data.arrays import ArrayWriter
from mlmx.data.prepare import prepare_corpus
from mlmx.data.rows import CorpusInfo
from mlmx.data.statistic import Statistic, collect_statistic, open_corpus
from mlmx.data.store import TokenStore
from mlmx.data.token_counts import TokenCounts
from mlmx.errors import UserError
from mlmx.stage import StageDir


@dataclass(frozen=True, kw_only=True)
class Lengths(Statistic):
    """The length of each segment, in two parts."""

    shift: int

    def collect(self, store, *, show_progress):
        lengths = np.diff(store.arrays["piece_offsets"]) + self.shift
        yield {"length": lengths[:2]}
        yield {"length": lengths[2:]}


@pytest.fixture
def store(tmp_path: Path) -> TokenStore:
    prepare_corpus(pairs(), tokenizer(), tmp_path / "p" / "data", show_progress=False)
    return TokenStore.open(tmp_path / "p" / "data")


@pytest.mark.parametrize("block_pieces", [1, 10, 1 << 20])
def test_tokens_are_counted(store, tmp_path, monkeypatch, block_pieces):
    monkeypatch.setattr(statistic, "_BLOCK_PIECES", block_pieces)
    (part,) = TokenCounts().collect(store, show_progress=False)
    expected = Counter(token for example in range(4) for side in (0, 1) for token in store.pieces(example, side).tolist())
    assert {i: count for i, count in enumerate(part["count"].tolist()) if count} == expected
    assert len(part["count"]) == len(tokenizer())


@pytest.mark.parametrize(
    ("owner", "name", "call"), [(ArrayWriter, "append", 2), (arrays, "write_atomically", 1), (arrays, "sync_folder", 1)]
)
def test_killed_while_it_is_collected(store, tmp_path, monkeypatch, owner, name, call):
    with monkeypatch.context() as patch:
        kill_at(patch, owner, name, call)
        with pytest.raises(Killed):
            collect_statistic(store, Lengths(shift=1), tmp_path / "s", identity="a", show_progress=False)
    meta = collect_statistic(store, Lengths(shift=1), tmp_path / "s", identity="a", show_progress=False)
    np.testing.assert_array_equal(arrays.Arrays(tmp_path / "s", meta)["length"], np.diff(store.arrays["piece_offsets"]) + 1)
    assert [path.name for path in tmp_path.glob("s*")] == ["s"]
    # Finished under this name, it is not collected again.
    monkeypatch.setattr(Lengths, "collect", lambda *_, **__: pytest.fail("collected twice"))
    assert collect_statistic(store, Lengths(shift=1), tmp_path / "s", identity="a", show_progress=False) == meta


def test_an_objective_finds_what_was_collected_by_its_settings(store, tmp_path):
    collect_statistic(store, TokenCounts(), tmp_path / "c" / "data", show_progress=False)
    stage = StageDir(tmp_path / "pretrain")
    counts = {"_target_": "mlmx.data.token_counts.TokenCounts", "_version_": 1}
    objective = {"parts": {"mlm": {"_statistics_": ["counts", "others"], "counts": counts, "others": None}}}
    parents = {"prepare": "p", "statistic.parts.mlm.counts": "c"}
    stage.write_config({"kind": "pretrain", "spec": {"objective": objective}, "parents": parents})
    _, corpus = open_corpus(stage)
    assert TokenCounts().of(corpus)["count"].sum() == store.num_pieces
    with pytest.raises(UserError, match=r"objective\._statistics_: does not list the setting that Lengths is given by"):
        Lengths(shift=0).of(corpus)
    assert Lengths(shift=0) == Lengths(shift=0) != Lengths(shift=1)
    assert CorpusInfo(num_sides=1, languages=("en",)).statistics == {}
