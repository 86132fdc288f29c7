"""A tiny bilingual corpus, encoder and training that depend on no other component; as a program, one rank of a training.

Sixty lemmas, each a word of one to four pieces in either language; the second side of a pair is the first one reversed. Lemmas
decide part of speech and entity class.
"""

from __future__ import annotations

import copy
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from numpy.typing import NDArray
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file

from mlmx import keyed
from mlmx.build import build
from mlmx.data.batch import Batch, BatchContext
from mlmx.data.encoding import joined_spans
from mlmx.data.gather import Side, Source, gather
from mlmx.data.rows import CorpusInfo, RowDataset, TokenRows
from mlmx.data.statistic import Statistic
from mlmx.data.vocabulary import Vocabulary
from mlmx.objectives.objective import Objective
from mlmx.stage import StageDir
from mlmx.training.parallel import ProcessGroup, process_group
from mlmx.training.shard import whole
from mlmx.training.trainer import Trainer
from tests.tiny import SPECIALS, TRAINER, numbered_tokenizer, scratch_encoder

CONF = Path(__file__).parents[2] / "conf" / "objective"
NAMES = sorted(path.stem for path in CONF.glob("*.yaml"))

# Of two processes: how many share one copy of the weights, and the steps that are compared; a divided model takes its time.
LAYOUTS = {"replicated": (1, 10), "sharded": (2, 4)}

NUM_LEMMAS, NUM_ENDINGS = 60, 20
VOCABULARY_SIZE = len(SPECIALS) + 2 * NUM_LEMMAS + NUM_ENDINGS


class CollectedHere(dict[Statistic, dict[str, NDArray[Any]]]):
    """Statistics of the corpus, collected when they are asked for."""

    def __missing__(self, statistic: Statistic) -> dict[str, NDArray[Any]]:
        parts = list(statistic.collect(tiny_store(), show_progress=False))
        names = {name for part in parts for name in part}
        self[statistic] = {name: np.concatenate([part[name] for part in parts if name in part]) for name in names}
        return self[statistic]


def tiny_store() -> SimpleNamespace:
    """The corpus as far as statistics read it; a word is spelled by the letters of its pieces."""
    rows = TinyRows(Vocabulary.from_tokenizer(numbered_tokenizer(VOCABULARY_SIZE)), "segment")
    pieces, words = rows.source.pieces, rows.source.words
    piece_offsets = np.append(rows.starts, len(pieces))
    begins = np.append(True, words[1:] != words[:-1])
    begins[rows.starts] = True
    word_pieces = begins.nonzero()[0]
    spelled = ["".join(chr(0x4E00 + piece) for piece in word) for word in np.split(pieces, word_pieces[1:])]
    word_offsets = np.searchsorted(word_pieces, piece_offsets)

    def words_of(example: int, side: int) -> list[str]:
        start, end = word_offsets[2 * example + side : 2 * example + side + 2]
        return spelled[start:end]

    return SimpleNamespace(
        num_segments=len(rows.starts),
        num_sides=2,
        meta={"vocabulary_size": VOCABULARY_SIZE},
        arrays={
            "pieces": pieces.astype(np.int32),
            "piece_offsets": piece_offsets,
            "word_pieces": word_pieces,
            "word_offsets": word_offsets,
        },
        text=lambda example, side: " ".join(words_of(example, side)),
        words=lambda example, side: np.array(joined_spans(words_of(example, side))),
    )


STATISTICS = CollectedHere()
PARALLEL = CorpusInfo(
    num_sides=2,
    languages=("aa", "bb"),
    statistics=STATISTICS,
    tag_names={"pos": ("", "NOUN", "VERB", "ADP"), "entity": ("", "O", "PER", "LOC"), "entity_start": ("", "B")},
)
MONOLINGUAL = replace(PARALLEL, num_sides=1)


@cache
def composed(name: str, *overrides: str) -> dict[str, Any]:
    with initialize_config_dir(str(CONF.parent), version_base=None):
        return OmegaConf.to_container(compose("pretrain", [f"objective={name}", *overrides]).objective)


def node_of(name: str, *overrides: str, **settings: Any) -> dict[str, Any]:
    """The YAML of an objective as commands compose it, with some overrides, and some settings replaced."""
    return {**copy.deepcopy(composed(name, *overrides)), **settings}


def tiny_encoder(seed: int = 0, architecture: str = "bert", hidden_size: int = 32, **settings):
    tokenizer = numbered_tokenizer(VOCABULARY_SIZE)
    return scratch_encoder(tokenizer, max_length=128, seed=seed, architecture=architecture, hidden_size=hidden_size, **settings)


class TinyRows(RowDataset):
    """The corpus as segments or as pairs, or its segments by threes."""

    def __init__(
        self, vocabulary: Vocabulary, view: str, separator: str = "template", num_pairs: int = 48, num_sides: int = 2
    ) -> None:
        self.num_sides = 1 if view == "segment" else num_sides
        self.view = view
        self.layout = vocabulary.single if view == "segment" else vocabulary.pair_layout(separator)
        self.num_truncated = {}
        roots = keyed.row_keys(seed=7, epoch=0, row_ids=np.arange(num_pairs))
        num_words = 4 + keyed.integers(roots, 9)
        pieces, words, lemmas, starts = [], [], [], [0]
        self.first_words = []
        for pair in range(num_pairs):
            drawn = keyed.integers(keyed.fold(roots[pair : pair + 1], np.arange(num_words[pair])), NUM_LEMMAS)
            for language, side in enumerate((drawn, drawn[::-1])):
                self.first_words.append(len(lemmas))
                for word, lemma in enumerate(side.tolist()):
                    spelled = _spell(lemma, language)
                    pieces += spelled
                    words += [word] * len(spelled)
                    lemmas.append(lemma)
                starts.append(len(pieces))
        lemma = np.array(lemmas)
        entity = np.select([lemma < 6, lemma < 12], [2, 3], 1).astype(np.uint8)
        self.source = Source(
            pieces=np.array(pieces),
            words=np.array(words, np.int32),
            tags={"pos": (1 + lemma % 3).astype(np.uint8), "entity": entity, "entity_start": (entity > 1).astype(np.uint8)},
        )
        self.starts = np.array(starts[:-1])
        self.sizes = np.diff(starts)
        per_row = self.sizes.reshape(-1, self.num_sides).sum(axis=1)
        self.lengths = (per_row + self.layout.num_special_of(self.num_sides)).astype(np.int32)

    def take(self, indices: NDArray[np.int64]) -> TokenRows:
        numbers = [self.num_sides * indices + side for side in range(self.num_sides)]
        sides = [
            Side(
                starts=self.starts[number],
                lengths=self.sizes[number],
                languages=(number % 2).astype(np.int8),
                first_words=np.array(self.first_words)[number],
            )
            for number in numbers
        ]
        return replace(gather(self.layout, self.source, sides, indices), sources=numbers[0])


def _spell(lemma: int, language: int) -> list[int]:
    # The first piece tells the lemma; endings are shared.
    first = len(SPECIALS) + language * NUM_LEMMAS + lemma
    endings = [len(SPECIALS) + 2 * NUM_LEMMAS + (lemma * 7 + i) % NUM_ENDINGS for i in range(lemma % 4)]
    return [first, *endings]


def make_objective(name: str, encoder=None, corpus: CorpusInfo = PARALLEL, **settings: Any) -> Objective:
    if "equal_views" in node_of(name):
        # Dropout is not the same on other processes, so what has to be is compared without it.
        settings = {"equal_views": "accept", **settings}
    if word_sets := node_of(name).get("word_sets"):
        # No word is frequent in so small a corpus.
        settings = {"word_sets": {**word_sets, "min_count": 1, "max_text_ratio": 1.0}, **settings}
    return build(node_of(name, **settings), encoder or tiny_encoder(), corpus, where="objective")


def precise_objective(name: str) -> Objective:
    """An objective to compare between layouts: in float64 where rounding is magnified.

    Similarities over a small temperature do that, and drawing one of many entries, of which another one comes out.
    """
    objective = make_objective(name)
    return objective.double() if objective.batch_coupled or "made_up_ratio" in node_of(name) else objective


def rows_of(objective: Objective, num_pairs: int = 48) -> TinyRows:
    collator = objective.collator()
    return TinyRows(objective.encoder.vocabulary, collator.view, collator.separator, num_pairs)


def batch_of(
    objective: Objective,
    indices,
    seed: int = 0,
    epoch: int = 0,
    rows: RowDataset | None = None,
    step: int = 0,
    progress: float = 0.0,
) -> Batch:
    """The batch of these rows, as the loader makes it."""
    indices = np.asarray(indices, np.int64)
    keys = keyed.row_keys(seed=seed, epoch=epoch, row_ids=indices)
    context = BatchContext(keys=keys, seed=seed, step=step, progress=progress)
    return replace(objective.collator()((rows or rows_of(objective)).take(indices), context), progress=progress)


def train(
    folder: Path, name: str, *, processes: ProcessGroup | None = None, objective: Objective | None = None, **settings: Any
) -> tuple[Objective, dict[str, Any]]:
    """Train an objective of this name in a stage directory, and keep its first gradient there."""
    stage, processes = StageDir(folder), processes or ProcessGroup()
    folder.mkdir(parents=True, exist_ok=True)
    objective = objective or make_objective(name)
    after_step = objective.after_step

    def keep_gradient(step: int) -> None:
        if step == 0:
            parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in objective.parameters() if p.requires_grad]
            gradient = torch.cat([whole(part).flatten() for part in parts])
            if processes.is_main:
                save_file({"gradient": gradient}, folder / "gradient.safetensors")
        after_step(step)

    objective.after_step = keep_gradient
    trainer = Trainer(**{**TRAINER, **settings})
    return objective, trainer.fit(objective, rows_of(objective), stage, seed=0, processes=processes)


def first_gradient(folder: Path) -> torch.Tensor:
    """The whole gradient of the first step of a training."""
    return load_file(folder / "gradient.safetensors")["gradient"]


if __name__ == "__main__":
    target = Path(sys.argv[1])
    num_shards, num_steps = LAYOUTS[target.name]
    with process_group(device="cpu", num_threads=1, timeout_seconds=60, num_shards=num_shards) as group:
        for each in NAMES:
            train(target / each, each, objective=precise_objective(each), processes=group, max_steps=num_steps)
