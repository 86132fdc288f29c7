"""A small bilingual world: events that nobody has to download, told in two invented languages, with gold labels."""

from __future__ import annotations

from mlmx.data.microworld.corpus import MicroworldCorpus
from mlmx.data.microworld.event import Concept, Event, Participant
from mlmx.data.microworld.grammar import Rendering, Word, align, render, render_mixed
from mlmx.data.microworld.judgements import (
    ACCEPTABILITY,
    ENTAILMENT,
    PARAPHRASE,
    acceptability_examples,
    entailment_examples,
    paraphrase_examples,
    similarity_examples,
)
from mlmx.data.microworld.retrieval import Query, retrieval_collection
from mlmx.data.microworld.tasks import bitext_pairs, sentiment_examples
from mlmx.data.microworld.world import World

__all__ = [
    "ACCEPTABILITY",
    "ENTAILMENT",
    "PARAPHRASE",
    "Concept",
    "Event",
    "MicroworldCorpus",
    "Participant",
    "Query",
    "Rendering",
    "Word",
    "World",
    "acceptability_examples",
    "align",
    "bitext_pairs",
    "entailment_examples",
    "paraphrase_examples",
    "render",
    "render_mixed",
    "retrieval_collection",
    "sentiment_examples",
    "similarity_examples",
]
