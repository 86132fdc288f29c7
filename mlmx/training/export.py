"""Writes an encoder for other programs: ``python -m mlmx.training.export <stage directory> <encoder> <folder> [--pooling mean]``.

The stage is one that mlmx finished and that trained or judged an encoder.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from mlmx.build import build
from mlmx.errors import UserError, user_error
from mlmx.models.encoder import Encoder
from mlmx.models.load import load_encoder
from mlmx.models.pooling import POOLINGS, Pooling
from mlmx.models.sentence import SentenceModel
from mlmx.models.truncate import keep_layers
from mlmx.stage import StageDir
from mlmx.target import allow_package
from mlmx.tasks.embedding import Embedding, ResolvedEmbedding
from mlmx.tasks.task import Task

_DEFAULT = "default"  # what the prompt is called that stands before any text


def sentence_model(stage: StageDir, encoder: Encoder, pooling: Pooling | None, width: int | None = None) -> SentenceModel:
    """Return how a text becomes a vector: as the stage's task makes them, or the folder that the training began with.

    Args:
        stage: the stage.
        encoder: its encoder.
        pooling: in place of what the task or the folder says; None: as they say.
        width: likewise.

    Raises:
        UserError: if nobody says how states are pooled, or Sentence-Transformers cannot do the same.
    """
    config = stage.config()
    for package in config["execution"].get("plugins") or ():
        allow_package(package)
    embedding = None
    name = config["name"]
    if "task" in config["spec"]:
        task: Task = build(config["spec"]["task"], where=f"task.{name}")
        embedding = task.embedding
    if embedding is None:
        if pooling is None and encoder.sentence is None:
            message = f"{config['kind']} {name} makes no vectors of texts, so that it does not say how; give {', '.join(POOLINGS)}."
            raise user_error("--pooling", message)
        embedding = Embedding(layer="last", pooling=None, normalize=True, max_length=None)
    if pooling is not None:
        embedding = replace(embedding, pooling=pooling)
    if width is not None:
        embedding = replace(embedding, width=width)
    if width is not None and not 1 <= width <= encoder.hidden_size:
        raise user_error("--width", f"{width} is not between 1 and the width of the encoder, {encoder.hidden_size}.")
    found = embedding.resolved(encoder, task=name)
    if found.layer != encoder.num_layers:
        message = (
            f"{config['kind']} {name} takes layer {found.layer} of {encoder.num_layers}; Sentence-Transformers pools the last. "
            f"--layers {found.layer} leaves out those above it."
        )
        raise user_error(f"task.{name}.layer", message)
    return _said(found)


def _said(embedding: ResolvedEmbedding) -> SentenceModel:
    prompts = {purpose or _DEFAULT: prompt for purpose, prompt in embedding.prompts.items() if prompt}
    return SentenceModel(
        pooling=embedding.pooling,
        normalize=embedding.normalize,
        max_length=embedding.max_length,
        prompts=prompts,
        default_prompt=_DEFAULT if _DEFAULT in prompts else None,
        width=embedding.width,
    )


def _told(encoder: Encoder, form: str) -> str:
    layers = f"{encoder.num_layers} layers"
    said = encoder.sentence
    if form == "transformers" or said is None:
        return layers
    cut = f", {said.width} of {encoder.hidden_size} coordinates" if said.width is not None else ""
    normalised = ", scaled to length 1" if said.normalize else ""
    prompts = dict(said.prompts) or "none"
    return f"{layers}, pooling {said.pooling}{cut}{normalised}, at most {said.max_length} tokens, prompts {prompts}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the folder; return 2 for mistakes of the user."""
    parser = argparse.ArgumentParser(prog="python -m mlmx.training.export", description="Write an encoder for other programs.")
    parser.add_argument("stage", type=Path, help="directory of the stage that says how vectors are made")
    parser.add_argument("encoder", type=Path, help="folder of the encoder")
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--format", choices=("sentence-transformers", "transformers"), default="sentence-transformers")
    parser.add_argument("--layers", type=int, help="how many are kept, the first ones")
    parser.add_argument("--width", type=int, help="coordinates of a vector that are kept, in place of those the stage's task keeps")
    parser.add_argument("--pooling", choices=POOLINGS, help="in place of the one that the stage's task uses")
    given = parser.parse_args(arguments)
    try:
        encoder = load_encoder(given.encoder)
        if given.layers is not None:
            encoder = keep_layers(encoder, given.layers, where="--layers")
        if given.format == "sentence-transformers":
            encoder.sentence = sentence_model(StageDir(given.stage), encoder, given.pooling, given.width)
            encoder.drop_head()  # of which Sentence-Transformers would say that it was not expected
        encoder.save(given.out)
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    print(_told(encoder, given.format))  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
