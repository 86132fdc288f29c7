"""What the tasks are made of: sentence pairs to mine, and judged sentences."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np

from mlmx.data.microworld.grammar import render, render_mixed
from mlmx.data.microworld.lexicon import GEORGIAN, LANGUAGES, LATIN
from mlmx.data.microworld.world import World
from mlmx.keyed import fold, stream, uniform

_SENTIMENTS = {1: "positive", -1: "negative"}
_BORROWED_RATIO = 0.4


def bitext_pairs(*, seed: int, split: str, num_pairs: int) -> list[tuple[str, str]]:
    """Return events told in both languages, ``qla`` first; no sentence occurs twice on its side.

    Args:
        seed: of the world.
        split: ``train``, ``dev`` or ``test``.
        num_pairs: how many.
    """
    world = World(seed)
    pairs: list[tuple[str, str]] = []
    seen: tuple[set[str], set[str]] = (set(), set())
    for event in world.events(split):
        pair = (render(event, LATIN, world.lexicon).text, render(event, GEORGIAN, world.lexicon).text)
        if len(pairs) == num_pairs:
            break
        if pair[0] not in seen[0] and pair[1] not in seen[1]:
            pairs.append(pair)
            for side, text in zip(seen, pair, strict=True):
                side.add(text)
    return pairs


def sentiment_examples(*, seed: int, split: str, num_examples: int, code_mixed: bool) -> tuple[list[str], list[str]]:
    """Return judged sentences of both languages in turn, and their labels, ``positive`` or ``negative``.

    Judging words are turned around by negation and by a contrast that follows, so that counting them helps little. The comments
    that give the sentiment away in the corpus ("sadly") are left out here.

    Args:
        seed: of the world.
        split: ``train``, ``dev`` or ``test``.
        num_examples: how many.
        code_mixed: whether two words in five are borrowed from the other language.
    """
    world = World(seed)
    texts: list[str] = []
    labels: list[str] = []
    for event in world.events(split):
        if len(texts) == num_examples:
            break
        if event.polarity != 0:
            silent = replace(event, comment=None)
            borrows = partial(borrows_word, seed, event.index) if code_mixed else _never
            texts.append(render_mixed(silent, LANGUAGES[len(texts) % 2], world.lexicon, borrows).text)
            labels.append(_SENTIMENTS[event.polarity])
    return texts, labels


def borrows_word(seed: int, index: int, role: str) -> bool:
    """Tell whether a code-mixed sentence borrows the word of a role, as it does two words in five.

    Args:
        seed: of the world.
        index: of the event.
        role: the word's.
    """
    keys = fold(fold(np.array([seed], np.int64), stream("microworld borrowed")), index)
    return bool(uniform(fold(keys, stream(role)))[0] < _BORROWED_RATIO)


def _never(role: str) -> bool:
    return False
