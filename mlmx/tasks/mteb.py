"""Tasks of MTEB, judged by the package ``mteb`` itself."""

# N texts, M other texts, D width

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mlmx.build import Positive
from mlmx.errors import nearest, user_error
from mlmx.models.encoder import Encoder
from mlmx.models.pooling import Pooling
from mlmx.objectives.contrast import Similarity
from mlmx.objectives.objective import Objective
from mlmx.tasks.embedding import Embedding, ResolvedEmbedding
from mlmx.tasks.task import Evaluation, Score, Task


class Mteb(Task):
    """Tasks of MTEB (arXiv 2210.07316): the main score of each, as ``mteb.evaluate`` computes it on the embeddings of the encoder.

    The data, at the revision that mteb pins, come from the hub or its cache on disk. A split of the scores is a task with its
    split, and its language where it has several: ``STSBenchmark.test``, ``Tatoeba.test.sqi-eng``. There are no predictions of
    single examples: reports compare over seeds only, and nothing is looked for in pretraining corpora. Needs
    ``pip install 'mlmx[mteb]'``.

    Args:
        name: the task's name.
        tasks: the names of tasks of mteb, such as ``STSBenchmark``; those of texts only.
        languages: codes such as ``deu`` or ``eng-Latn``: of a task in several languages only these are judged; null for all.
        layer: the layer whose states are pooled: 0 the embeddings, ``last`` or a number up to the number of layers, negative from
            the end.
        width: coordinates of an embedding that are kept, the first ones; None: as the encoder's folder says, otherwise all.
        pooling: how states become a text's embedding; None: as the encoder's folder says, see ``mlmx.tasks.embedding``.
        similarity: ``cosine`` or ``dot``, the inner product.
        prefix: is put before texts that are neither queries nor documents; None: what the encoder's folder says.
        query_prefix: is put before queries; None: what the encoder's folder says.
        document_prefix: is put before documents; None: what the encoder's folder says.
        max_length: tokens of a text, special ones included; longer ones are cut, and the cut pieces reported. None: as many as the
            encoder's folder says.
        batch_tokens: tokens per forward.
    """

    def __init__(
        self,
        *,
        name: str,
        tasks: tuple[str, ...],
        languages: tuple[str, ...] | None,
        layer: int | Literal["last"],
        width: Positive | None,
        pooling: Pooling | None,
        similarity: Similarity,
        prefix: str | None,
        query_prefix: str | None,
        document_prefix: str | None,
        max_length: Positive | None,
        batch_tokens: Positive,
    ) -> None:
        self.name = name
        self.tasks = [self._task(one, languages) for one in tasks]
        self.embedding: Embedding = Embedding(
            layer=layer,
            width=width,
            pooling=pooling,
            normalize=similarity == "cosine",
            max_length=max_length,
            prompts={None: prefix, "query": query_prefix, "document": document_prefix},
        )
        self.batch_tokens = batch_tokens

    def check_data(self) -> None:
        for task in self.tasks:
            self._load(task)
            task.unload_data()

    def evaluate(self, model: Encoder | Objective) -> Evaluation:
        mteb = _mteb()
        encoder = model.encoder if isinstance(model, Objective) else model
        embedding = self.embedding.resolved(encoder, task=self.name)
        judged = MtebEncoder(encoder, embedding, task=self.name, batch_tokens=self.batch_tokens)
        scores: list[Score] = []
        for task in self.tasks:
            self._load(task)
            # Nothing is read from or written to mteb's own cache of results: it knows models by names only.
            result = mteb.evaluate(judged, task, cache=None, co2_tracker=False, show_progress_bar=False).task_results[0]
            scores += self._scores(task, result.scores, embedding.told() | {"mteb": mteb.__version__, "revision": _revision(task)})
            task.unload_data()
        return Evaluation(scores=scores)

    def _scores(
        self, task: Any, found: Mapping[str, Sequence[Mapping[str, Any]]], settings: Mapping[str, str | float]
    ) -> list[Score]:
        scores = []
        for split, of_split in found.items():
            for values in of_split:
                subset = values["hf_subset"]
                place = [task.metadata.name, split, *([subset] if subset != "default" else [])]
                scores.append(
                    Score(
                        task=self.name,
                        split=".".join(place),
                        metric=task.metadata.main_score,
                        value=float(values["main_score"]),
                        num_examples=_num_examples(task, split, subset),
                        higher_is_better=True,
                        settings=settings,
                    )
                )
        return scores

    def _task(self, name: str, languages: Sequence[str] | None) -> Any:
        mteb, where = _mteb(), f"task.{self.name}.tasks"
        try:
            task = mteb.get_task(name, languages=list(languages) if languages is not None else None)
        except KeyError:
            known = [task.metadata.name for task in mteb.get_tasks(exclude_superseded=False, exclude_private=False)]
            raise user_error(where, f"mteb has no task {name!r}.", nearest(name, known)) from None
        except ValueError as error:
            raise user_error(f"task.{self.name}.languages", f"{name}: {error}") from error
        if list(task.metadata.modalities) != ["text"] or hasattr(task.metadata, "tasks"):
            raise user_error(where, f"{name} is no single task of texts.")
        return task

    def _load(self, task: Any) -> None:
        try:
            task.load_data()
        except OSError as error:  # that of a hub that cannot be reached, and of a file that is not there
            place = f"{task.metadata.dataset['path']} at revision {_revision(task)}"
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise user_error(
                f"task.{self.name}.tasks", f"the data of {task.metadata.name} ({place}) cannot be read: {reason}"
            ) from error


class MtebEncoder:
    """An encoder as mteb knows them (``mteb.models.EncoderProtocol``).

    Args:
        encoder: the encoder.
        embedding: how texts become vectors.
        task: the name of mlmx's task, for messages.
        batch_tokens: tokens per forward.
    """

    def __init__(self, encoder: Encoder, embedding: ResolvedEmbedding, *, task: str, batch_tokens: int) -> None:
        from mteb.models.model_meta import ModelMeta

        self.encoder = encoder
        self.embedding = embedding
        self.task = task
        self.batch_tokens = batch_tokens
        self.mteb_model_meta = ModelMeta.create_empty({"name": "mlmx/encoder", "revision": "none"})

    def encode(
        self,
        inputs: Iterable[Mapping[str, Sequence[str]]],
        *,
        task_metadata: Any,
        hf_split: str,
        hf_subset: str,
        prompt_type: Any = None,
        **_: Any,
    ) -> NDArray[np.float32]:
        """Return the (N, D) vectors of texts that come in batches."""
        texts = [text for batch in inputs for text in batch["text"]]
        return self.embedding.vectors(
            self.encoder,
            texts,
            task=self.task,
            what=f"texts of {task_metadata.name}",
            batch_tokens=self.batch_tokens,
            purpose=None if prompt_type is None else prompt_type.value,
        )

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Tensor:
        """Return the (N, M) inner products: cosines, where vectors have length 1."""
        return _rows(embeddings1) @ _rows(embeddings2).T

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Tensor:
        """Return the (N,) inner products of vectors and their counterparts."""
        return (_rows(embeddings1) * _rows(embeddings2)).sum(dim=-1)


def _mteb() -> Any:
    try:
        return importlib.import_module("mteb")
    except ImportError as error:
        raise user_error("task", "mteb is not installed; install it with: pip install 'mlmx[mteb]'.") from error


def _rows(embeddings: Any) -> Tensor:
    rows = torch.as_tensor(embeddings)
    return rows[None] if rows.ndim == 1 else rows


def _revision(task: Any) -> str:
    return str(task.metadata.dataset["revision"])


def _num_examples(task: Any, split: str, subset: str) -> int:
    """Return how many queries, pairs or texts a score is over; of tasks in several languages, those of this one."""
    data = task.dataset
    for key in (subset, split):
        if isinstance(data, Mapping) and key in data:
            data = data[key]
    if isinstance(data, Mapping) and "queries" in data:
        return len(data["queries"])
    return len(data)
