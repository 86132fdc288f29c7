"""Texts of a task as rows of an encoder, with what does not fit reported."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from mlmx.data.corpus import Corpus, Example
from mlmx.data.rows_from_text import TextRows
from mlmx.errors import user_error
from mlmx.models.encoder import Encoder

log = logging.getLogger(__name__)


def held_out_examples(corpus: Corpus, max_examples: int | None, *, task: str) -> Iterator[Example]:
    """Yield the examples of a task's corpus, and report the lines that were skipped.

    Args:
        corpus: where they come from.
        max_examples: how many of them, from the first on; all if None.
        task: the task's name, for messages.

    Raises:
        UserError: if there are none.
    """
    num_examples = 0
    for example in corpus.examples():
        if num_examples == max_examples:
            break
        num_examples += 1
        yield example
    for reason, number in corpus.skipped.items():
        log.warning("%s: %d lines skipped: %s", task, number, reason)
    if not num_examples:
        raise user_error(f"task.{task}.corpus", "holds no examples.")


def check_max_length(encoder: Encoder, max_length: int, *, task: str) -> None:
    """Refuse rows that the encoder has no positions for.

    Raises:
        UserError: if ``max_length`` is larger than the encoder's.
    """
    if max_length > encoder.max_length:
        raise user_error(f"task.{task}.max_length", f"{max_length} is more than the {encoder.max_length} positions of the encoder.")


def text_rows(
    encoder: Encoder,
    texts: Sequence[str],
    *,
    max_length: int,
    task: str,
    what: str,
    pairs: Sequence[str] | None = None,
    labels: NDArray[np.int64] | None = None,
) -> TextRows:
    """Tokenise texts, one row each, and report how many pieces lie beyond ``max_length``.

    Args:
        encoder: whose tokenizer and length limit hold.
        texts: the texts.
        max_length: tokens of a row, special ones included.
        task: the task's name, for messages.
        what: what the texts are, for messages.
        pairs: the second text of each row, for rows of two.
        labels: (N,) a class per text.
    """
    check_max_length(encoder, max_length, task=task)
    rows = TextRows(texts, encoder.tokenizer, encoder.vocabulary, max_length, pairs=pairs, labels=labels)
    if rows.num_truncated_rows:
        lost = sum(rows.num_truncated.values())
        message = "%s: %d of %d %s are longer than max_length=%d; %d pieces are cut off"
        log.warning(message, task, rows.num_truncated_rows, len(rows), what, max_length, lost)
    return rows
