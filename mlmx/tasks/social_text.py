"""Normalising what people write on social media, as the field's encoders and baselines do."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

Step = Literal["mentions", "links", "repeats", "lowercase"]

_MENTION = re.compile(r"(?<!\S)@\S+")
_LINK = re.compile(r"(?<!\S)(?:https?://|www\.)\S+", re.IGNORECASE)
_REPEAT = re.compile(r"(.)\1{3,}", re.DOTALL)


def normalise(text: str, steps: Sequence[Step]) -> str:
    """Return a text after some steps, in this order whatever the order given.

    ``mentions``: words that begin with @ become ``@user``, and ``links`` become ``http``, as in TweetEval (arXiv 2010.12421).
    ``repeats``: a character that stands more than three times in a row stands three times, as in NLTK's tweet tokenizer.
    ``lowercase``.
    """
    if "mentions" in steps:
        text = _MENTION.sub("@user", text)
    if "links" in steps:
        text = _LINK.sub("http", text)
    if "repeats" in steps:
        text = _REPEAT.sub(r"\1\1\1", text)
    return text.lower() if "lowercase" in steps else text
