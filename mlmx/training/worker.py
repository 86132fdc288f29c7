"""The worker: carries out one stage, given nothing but its directory.

``python -m mlmx.training.worker outputs/stages/<stage>`` can be typed by hand as well. The driver starts it directly for one process
and under torchrun for several. It exits with 0 when the stage is finished, with 2 when the user can mend what went wrong (the
problems then stand in ``status.json``), with anything else when mlmx is to blame.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from mlmx.build import allow_package, build
from mlmx.data.annotate import annotate_store
from mlmx.data.prepare import prepare_corpus, train_tokenizer
from mlmx.data.store import TokenStore, open_rows
from mlmx.data.tokenizer import load_tokenizer
from mlmx.errors import UserError
from mlmx.models.encoder import Encoder
from mlmx.models.load import load_encoder
from mlmx.stage import StageDir
from mlmx.tasks.task import Task
from mlmx.training.parallel import ProcessGroup

EXIT_USER_ERROR = 2


def prepare(stage: StageDir, spec: Mapping[str, Any], processes: ProcessGroup) -> dict[str, Any]:
    """Train a tokenizer, or tokenise a corpus into memory-mapped shards."""
    if "corpora" in spec:
        corpora = [build(node, where=f"corpora[{i}]") for i, node in enumerate(spec["corpora"])]
        return train_tokenizer(build(spec["tokenizer"], where="model.tokenizer"), corpora, stage.tokenizer_dir)
    return prepare_corpus(build(spec["corpus"], where="corpus"), _tokenizer(stage, spec), stage.data_dir)


def annotate(stage: StageDir, spec: Mapping[str, Any], processes: ProcessGroup) -> dict[str, Any]:
    """Give every word of a prepared corpus its part of speech and entity class."""
    store = TokenStore.open(_parent(stage, "prepare").data_dir)
    return annotate_store(store, build(spec["annotator"], where="annotator"), stage.data_dir)


def pretrain(stage: StageDir, spec: Mapping[str, Any], processes: ProcessGroup) -> dict[str, Any]:
    """Train an objective on a prepared corpus."""
    store = TokenStore.open(_parent(stage, "prepare").data_dir)
    if (annotations := stage.parent("annotate")) is not None:
        store = store.with_annotations(annotations.data_dir)
    encoder = _encoder(stage, spec)
    objective = build(spec["objective"], encoder, store.info, where="objective")
    trainer = build(spec["trainer"], where="trainer")
    collator = objective.collator()
    rows = open_rows(
        store,
        encoder.vocabulary,
        view=collator.view,
        separator=collator.separator,
        max_length=trainer.max_length,
        overlong=trainer.overlong,
    )
    result = trainer.fit(objective, rows, stage, seed=spec["seed"], processes=processes)
    if processes.is_main:
        objective.export(stage.encoder_dir)
    return {**result, "num_truncated_pieces": dict(rows.num_truncated)}


def finetune(stage: StageDir, spec: Mapping[str, Any], processes: ProcessGroup) -> dict[str, Any]:
    """Train a task's objective on the task's data."""
    task: Task = build(spec["task"], where=f"task.{spec['task']['name']}")
    encoder = _encoder(stage, spec)
    objective = task.objective(encoder)
    assert objective is not None, "a task with a trainer has an objective"
    trainer = build(spec["trainer"], where=f"task.{task.name}.trainer")
    rows = task.training_rows(encoder)
    result = trainer.fit(objective, rows, stage, seed=spec["seed"], processes=processes)
    if processes.is_main:
        task.export(objective, stage.encoder_dir)
        save_file({name: tensor.contiguous() for name, tensor in objective.state_dict().items()}, stage.path / "model.safetensors")
    return {**result, "num_truncated_pieces": dict(rows.num_truncated)}


def evaluate(stage: StageDir, spec: Mapping[str, Any], processes: ProcessGroup) -> dict[str, Any]:
    """Judge an encoder, or what was fine-tuned from it, by a task."""
    task: Task = build(spec["task"], where=f"task.{spec['task']['name']}")
    model = stage.parent("model")
    if model is not None and model.config()["kind"] == "finetune":
        judged = task.objective(load_encoder(model.encoder_dir))
        assert judged is not None, "what was fine-tuned has an objective"
        judged.load_state_dict(load_file(model.path / "model.safetensors"))
        judged.to(processes.device).eval()
        evaluation = task.evaluate(judged)
    else:
        evaluation = task.evaluate(_encoder(stage, spec).to(processes.device).eval())
    stage.write_predictions(evaluation.predictions)
    return {"scores": [score.to_json() for score in evaluation.scores]}


WORK: Mapping[str, Callable[[StageDir, Mapping[str, Any], ProcessGroup], dict[str, Any]]] = {
    "prepare": prepare,
    "annotate": annotate,
    "pretrain": pretrain,
    "finetune": finetune,
    "eval": evaluate,
}


def _parent(stage: StageDir, role: str) -> StageDir:
    parent = stage.parent(role)
    assert parent is not None, f"a {stage.config()['kind']} stage has a parent {role!r}"
    return parent


def _tokenizer(stage: StageDir, spec: Mapping[str, Any]) -> Any:
    if (parent := stage.parent("tokenizer")) is not None:
        return load_tokenizer(parent.tokenizer_dir)
    return build(spec["model"], None, where="model").load_tokenizer()


def _encoder(stage: StageDir, spec: Mapping[str, Any]) -> Encoder:
    """Return the encoder a stage starts from: a parent's, or a new one drawn from the seed."""
    parent = stage.parent("encoder") or stage.parent("model")
    if parent is not None:
        return load_encoder(parent.encoder_dir)
    torch.manual_seed(spec["seed"])
    tokenizer = stage.parent("tokenizer")
    return build(spec["model"], load_tokenizer(tokenizer.tokenizer_dir) if tokenizer else None, where="model").build()
