"""Corpora to memory-mapped arrays, and tokenizers out of corpora: what the preparation stages do.

Memory stays flat however large the corpus is: examples are read, tokenised and written batch by batch. A preparation that was
interrupted reads the corpus again, which takes a few percent of the time, and goes on where it was saved.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlmx.data.arrays import ArrayWriter, finished, partial_folder
from mlmx.data.corpus import Corpus, Example
from mlmx.data.example_writer import ExampleWriter
from mlmx.data.progress import progress_bar
from mlmx.data.store import META
from mlmx.data.tokenizer import TrainedTokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Enough for the tokenizer's threads to have work, little enough for memory: documents may be long.
_BATCH_EXAMPLES = 1000
_BATCH_CHARACTERS = 2_000_000


def train_tokenizer(
    node: TrainedTokenizer, corpora: Sequence[Corpus], folder: Path, *, show_progress: bool = True
) -> dict[str, Any]:
    """Train a tokenizer on corpora and save it.

    Args:
        node: what to train.
        corpora: what to train on, each seen once.
        folder: where ``AutoTokenizer`` shall find it.
        show_progress: whether to say how far it is.

    Returns:
        What the stage reports: ``vocabulary_size``, ``vocabulary_size_asked``, ``num_texts``.
    """
    num_texts = 0

    def texts() -> Iterator[str]:
        nonlocal num_texts
        for corpus in corpora:
            for example in progress_bar(corpus.examples(), "tokenizer", total=len(corpus), show=show_progress):
                for segment in example.segments:
                    num_texts += 1
                    yield segment.text

    tokenizer = node.train(texts())
    partial = partial_folder(folder)
    tokenizer.save_pretrained(partial)
    if folder.exists():
        shutil.rmtree(folder)
    partial.replace(folder)
    return {"vocabulary_size": len(tokenizer), "vocabulary_size_asked": node.vocab_size, "num_texts": num_texts}


def prepare_corpus(
    corpus: Corpus,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    *,
    identity: str | None = None,
    show_progress: bool = True,
) -> dict[str, Any]:
    """Tokenise a corpus into a folder that :class:`mlmx.data.store.TokenStore` opens.

    Args:
        corpus: what to tokenise.
        tokenizer: a fast one.
        folder: where the arrays lie in the end.
        identity: names corpus and tokenizer; a preparation that was interrupted under this name is gone on with, one that was
            finished is left as it is. None always begins anew.
        show_progress: whether to say how far it is.

    Returns:
        What ``meta.json`` holds.

    Raises:
        UserError: if the corpus is malformed or is another one than before the interruption, or if no example has tokens on all its
            sides.
    """
    if (meta := finished(folder, META, identity)) is not None:
        return meta
    with ArrayWriter(folder, identity) as writer:
        examples = ExampleWriter(corpus, tokenizer, writer)
        batches = batched(corpus.examples())
        for batch in progress_bar(batches, "tokenise", total=len(corpus), size=len, show=show_progress):
            if examples.is_new(batch):
                examples.add(batch)
                writer.save_now_and_then(examples.state)
        return writer.finish(META, examples.meta(), examples.state())


def batched(examples: Iterable[Example]) -> Iterator[list[Example]]:
    """Yield the examples in batches, limited in number and in characters."""
    iterator = iter(examples)
    batch: list[Example] = []
    num_characters = 0
    for example in iterator:
        batch.append(example)
        num_characters += sum(len(segment.text) for segment in example.segments)
        if len(batch) == _BATCH_EXAMPLES or num_characters >= _BATCH_CHARACTERS:
            yield batch
            batch, num_characters = [], 0
    if batch:
        yield batch
