"""A small bilingual world: events that nobody has to download, told in two invented languages, with gold labels."""

from __future__ import annotations

from mlmx.data.microworld.corpus import MicroworldCorpus
from mlmx.data.microworld.event import Concept, Event, Participant
from mlmx.data.microworld.grammar import Rendering, Word, align, render, render_mixed
from mlmx.data.microworld.tasks import bitext_pairs, sentiment_examples
from mlmx.data.microworld.world import World

__all__ = [
    "Concept",
    "Event",
    "MicroworldCorpus",
    "Participant",
    "Rendering",
    "Word",
    "World",
    "align",
    "bitext_pairs",
    "render",
    "render_mixed",
    "sentiment_examples",
]
