"""The microworld as a corpus."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice

from mlmx.data.corpus import Corpus, Example, Segment
from mlmx.data.microworld.grammar import Rendering, other_language, render, render_mixed
from mlmx.data.microworld.lexicon import LANGUAGES
from mlmx.data.microworld.tasks import borrows_word
from mlmx.data.microworld.world import SPLITS, World
from mlmx.errors import Problem, UserError, nearest

VIEWS = ("parallel", "monolingual", "code_mixed")

NO_LANGUAGE = "other"
"""The language of numbers and punctuation in code-mixed sentences."""


class MicroworldCorpus(Corpus):
    """Sentences of the microworld, with gold words, parts of speech and entities.

    Args:
        seed: of the world and its languages, not of the run: corpora and tasks with the same seed speak the same languages.
        num_pairs: how many events are told, each in both languages (code-mixed: once); at least 1.
        split: ``train``, ``dev`` or ``test``. No sentence of one is in another.
        view: ``parallel``: an example is an event in both languages; ``monolingual``: each sentence is an example of its own, so
            that the data is the same but for the pairing; ``code_mixed``: the events in the languages in turn, two words in five
            borrowed from the other one, with the language of each word's stem as a further layer of tags.
        languages: their codes, first side first: ``qla`` and ``qka``, or one of them if monolingual.

    Raises:
        UserError: for a setting that is none of these.
    """

    def __init__(self, *, seed: int, num_pairs: int, split: str, view: str, languages: Sequence[str]) -> None:
        problems = [
            Problem(f"corpus.{name}", f"{value!r} is none of {', '.join(valid)}.", nearest(str(value), valid))
            for name, value, valid in [
                ("split", split, SPLITS),
                ("view", view, VIEWS),
                *(("languages", x, LANGUAGES) for x in languages),
            ]
            if value not in valid
        ]
        if num_pairs < 1:
            problems.append(Problem("corpus.num_pairs", f"must be at least 1, not {num_pairs}."))
        if len(set(languages)) != len(languages) or not languages or (view == "parallel" and len(languages) != 2):
            problems.append(
                Problem("corpus.languages", f"must be {' and '.join(LANGUAGES)}, or one of them where view=monolingual.")
            )
        if problems:
            raise UserError(problems)
        self.languages = tuple(languages)
        self.num_sides = 2 if view == "parallel" else 1
        self.skipped = {}
        self._mixed = view == "code_mixed"
        self._seed, self._num_pairs, self._split = seed, num_pairs, split

    def examples(self) -> Iterator[Example]:
        world = World(self._seed)
        for number, event in enumerate(islice(world.events(self._split), self._num_pairs)):
            where = f"microworld seed {self._seed} event {event.index}"
            if self._mixed:
                language = self.languages[number % len(self.languages)]
                borrows = partial(borrows_word, self._seed, event.index)
                yield Example(where, (_mixed_segment(render_mixed(event, language, world.lexicon, borrows)),))
                continue
            segments = tuple(_segment(render(event, language, world.lexicon)) for language in self.languages)
            if self.parallel:
                yield Example(where, segments)
            else:
                for segment in segments:
                    yield Example(where, (segment,))

    def __len__(self) -> int:
        return self._num_pairs * (1 if self.parallel or self._mixed else len(self.languages))


def _segment(rendering: Rendering) -> Segment:
    words = rendering.words
    tags = {"pos": [word.pos for word in words], "entity": [word.entity for word in words]}
    return Segment(rendering.text, rendering.language, rendering.spans, tags)


def _mixed_segment(rendering: Rendering) -> Segment:
    segment = _segment(rendering)
    own, other = rendering.language, other_language(rendering.language)
    languages = [NO_LANGUAGE if word.pos in ("NUM", "PUNCT") else other if word.borrowed else own for word in rendering.words]
    return replace(segment, tags={**segment.tags, "language": languages})
