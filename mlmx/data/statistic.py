"""What an objective needs to know of its corpus as a whole: collected once, by a stage of its own.

An objective takes a statistic as a setting, and its YAML lists that setting under ``_statistics_``. The driver puts a ``collect``
stage between the preparation and the training, which all objectives with the same setting share.
"""

# G segments

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlmx.build import build, statistics_of
from mlmx.data.arrays import Arrays, ArrayWriter, finished
from mlmx.data.progress import progress_bar
from mlmx.data.rows import CorpusInfo
from mlmx.data.store import TokenStore
from mlmx.errors import user_error
from mlmx.stage import StageDir

STATISTIC_META = "statistic.json"
_BLOCK_PIECES = 1 << 18


class Statistic(ABC):
    """Something computed from a tokenised corpus before anything is trained on it; a pure function of settings and corpus.

    Subclasses are frozen dataclasses whose keyword-only fields are their settings: those of equal settings are the same.
    """

    @abstractmethod
    def collect(self, store: TokenStore, *, show_progress: bool) -> Iterator[Mapping[str, NDArray[Any]]]:
        """Yield the arrays in parts, each of which goes on where the one before ended.

        Args:
            store: the corpus.
            show_progress: whether to say how far it is.
        """

    def of(self, corpus: CorpusInfo) -> Arrays:
        """Return what was collected of a corpus, one-dimensional arrays by name.

        Raises:
            UserError: if nothing was.
        """
        try:
            return corpus.statistics[self]
        except KeyError:
            message = f"does not list the setting that {type(self).__name__} is given by, so that nothing was collected for it."
            raise user_error("objective._statistics_", message) from None


def collect_statistic(
    store: TokenStore, statistic: Statistic, folder: Path, *, identity: str | None = None, show_progress: bool = True
) -> dict[str, Any]:
    """Collect a statistic of a corpus into a folder of arrays.

    Args:
        store: the corpus.
        statistic: what to collect.
        folder: where the arrays lie in the end.
        identity: names corpus and statistic; what was finished under this name is left as it is, what was interrupted begins anew.
        show_progress: whether to say how far it is.

    Returns:
        What ``statistic.json`` holds.
    """
    if (meta := finished(folder, STATISTIC_META, identity)) is not None:
        return meta
    with ArrayWriter(folder, identity) as writer:
        if writer.state is None:  # Otherwise all is there but for the name of the folder.
            for part in statistic.collect(store, show_progress=show_progress):
                for name, values in part.items():
                    writer.append(name, values)
        return writer.finish(STATISTIC_META, {}, {})


def open_corpus(stage: StageDir) -> tuple[TokenStore, CorpusInfo]:
    """Return the corpus of a pretraining and what is known of it, by all the stages before."""
    parents = stage.parents()
    store = TokenStore.open(parents["prepare"].data_dir)
    if "annotate" in parents:
        store = store.with_annotations(parents["annotate"].data_dir)
    statistics: dict[Hashable, Arrays] = {}
    for setting, node in statistics_of(stage.config()["spec"]["objective"]).items():
        folder = parents[f"statistic.{setting}"].data_dir
        meta = json.loads((folder / STATISTIC_META).read_text("utf-8"))
        # By the stage's own node: files that it names may have been elsewhere when their content was read.
        statistics[build(node, where=f"objective.{setting}")] = Arrays(folder, meta)
    return store, replace(store.info, statistics=statistics)


def segment_blocks(store: TokenStore, description: str, *, show_progress: bool) -> Iterator[slice]:
    """Yield slices of the (G,) segments of a corpus, in order, of about 260,000 pieces each, and show how far it is."""
    offsets = store.arrays["piece_offsets"]
    edges = np.searchsorted(offsets, np.arange(_BLOCK_PIECES, offsets[-1], _BLOCK_PIECES)).tolist()
    edges = sorted({0, *edges, store.num_segments})
    blocks = [slice(start, end) for start, end in pairwise(edges)]
    return progress_bar(blocks, description, total=store.num_segments, size=_num_segments, show=show_progress)


def _num_segments(block: slice) -> int:
    return int(block.stop - block.start)
