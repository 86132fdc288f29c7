"""The worker: carries out one stage, given nothing but its directory.

``python -m mlmx.training.worker outputs/stages/<stage>`` can be typed by hand as well. The driver starts it directly for one
process and under torchrun for several. It exits with 0 when the stage is finished, with 2 when the user can mend what went wrong
(the problems then stand in ``status.json``), with anything else when mlmx is to blame.
"""

from __future__ import annotations

import logging
import signal
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

import torch

from mlmx.build import build, placed, settings_of
from mlmx.data.annotate import annotate_store
from mlmx.data.prepare import prepare_corpus, train_tokenizer
from mlmx.data.rows_from_store import StoreRows, open_rows
from mlmx.data.statistic import collect_statistic, open_corpus
from mlmx.data.store import TokenStore
from mlmx.errors import UserError
from mlmx.fingerprint import canonical_json
from mlmx.inputs import told_in_task
from mlmx.models.encoder import Encoder
from mlmx.models.inference import results_saved
from mlmx.models.load import load_encoder, load_tokenizer
from mlmx.objectives.objective import Objective
from mlmx.stage import TRAINING_KINDS, StageDir, error_to_json
from mlmx.target import allow_package
from mlmx.tasks.task import Task
from mlmx.training.checkpoint import load_module, save_module
from mlmx.training.deathwatch import watch
from mlmx.training.lineage import decontaminated, published_origin
from mlmx.training.parallel import ProcessGroup, process_group
from mlmx.training.tracking import Tracker, stage_tracker
from mlmx.training.trainer import Stopped, Trainer

log = logging.getLogger(__name__)

Spec = Mapping[str, Any]
Result = dict[str, Any]

EXIT_USER_ERROR = 2
EXIT_STOPPED = 128 + signal.SIGTERM

# What prepares a corpus has neither curves nor scores to look at.
TRACKED_KINDS = ("pretrain", "finetune", "eval")


def prepare(stage: StageDir, spec: Spec, processes: ProcessGroup, tracker: Tracker) -> Result:
    """Train a tokenizer, or tokenise a corpus into memory-mapped arrays."""
    if "corpora" in spec:
        corpora = [build(node, where=f"corpora[{i}]") for i, node in enumerate(spec["corpora"])]
        return train_tokenizer(build(spec["tokenizer"], where="model.tokenizer"), corpora, stage.tokenizer_dir)
    corpus, tokenizer = build(spec["corpus"], where="corpus"), _tokenizer(stage, spec)
    return prepare_corpus(corpus, tokenizer, stage.data_dir, identity=stage.config()["fingerprint"])


def annotate(stage: StageDir, spec: Spec, processes: ProcessGroup, tracker: Tracker) -> Result:
    """Give every word of a prepared corpus its part of speech and entity class."""
    store = TokenStore.open(_parent(stage, "prepare").data_dir)
    annotator = build(spec["annotator"], where="annotator")
    return annotate_store(store, annotator, stage.data_dir, identity=stage.config()["fingerprint"])


def collect(stage: StageDir, spec: Spec, processes: ProcessGroup, tracker: Tracker) -> Result:
    """Compute what an objective needs to know of a prepared corpus."""
    store = TokenStore.open(_parent(stage, "prepare").data_dir)
    where = f"objective.{stage.config()['name']}"
    statistic = build(spec["statistic"], where=where)
    with placed(where, settings_of(spec["statistic"])):
        return collect_statistic(store, statistic, stage.data_dir, identity=stage.config()["fingerprint"])


def pretrain(stage: StageDir, spec: Spec, processes: ProcessGroup, tracker: Tracker) -> Result:
    """Train an objective on a prepared corpus."""
    objective, rows, trainer = open_pretraining(stage, spec)
    if rows.lost:
        told = ", ".join(f"{part:.1%} of {language}" for language, part in rows.lost.items())
        pairs = ", since the sides of pairs and triplets are never split" if trainer.overlong == "split" else ""
        log.warning("trainer.max_length=%s leaves out %s%s", trainer.max_length, told, pairs)
    result = trainer.fit(objective, rows, stage, seed=spec["seed"], processes=processes, on_log=tracker.log)
    if processes.is_main:
        objective.export(stage.encoder_dir)
    return {**result, "num_truncated_pieces": dict(rows.num_truncated)}


def open_pretraining(stage: StageDir, spec: Spec) -> tuple[Objective, StoreRows, Trainer]:
    """Return what a pretraining stage trains, on what, and by what."""
    store, corpus = open_corpus(stage)
    encoder = _encoder(stage, spec)
    had_head = encoder.head is not None
    objective = build(spec["objective"], encoder, corpus, where="objective")
    if encoder.head is not None and not had_head:
        log.warning("the encoder has no language-model head; the objective begins with one of random weights")
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
    return objective, rows, trainer


def finetune(stage: StageDir, spec: Spec, processes: ProcessGroup, tracker: Tracker) -> Result:
    """Train a task's objective on the task's data."""
    task = _task(stage, spec, processes)
    task.run_seed = spec["seed"]
    # Where it is trained: a task may need it to choose what to train on.
    encoder = _encoder(stage, spec).to(processes.device)
    with placed(f"task.{task.name}", settings_of(spec["task"])):
        objective = task.objective(encoder)
    assert objective is not None, "a task with a trainer has an objective"
    trainer = build(spec["trainer"], where=f"task.{task.name}.trainer")
    rows = task.training_rows(encoder)
    result = trainer.fit(objective, rows, stage, seed=spec["seed"], processes=processes, on_log=tracker.log)
    if processes.is_main:
        objective.export(stage.encoder_dir)
        save_module(objective, stage.model_path)
    return {**result, "num_truncated_pieces": dict(rows.num_truncated)}


def evaluate(stage: StageDir, spec: Spec, processes: ProcessGroup, tracker: Tracker) -> Result:
    """Judge an encoder, or what was fine-tuned from it, by a task."""
    task = _task(stage, spec, processes)
    model = stage.parent("model")
    judged: Encoder | Objective
    if model is not None and model.config()["kind"] == "finetune":
        finetuned = task.objective(load_encoder(model.encoder_dir))
        assert finetuned is not None, "what was fine-tuned has an objective"
        load_module(finetuned, model.model_path)
        judged = finetuned.to(processes.device).eval()
    else:
        judged = _encoder(stage, spec).to(processes.device).eval()
    task.before_pretraining = lambda: _before_pretraining(stage)
    # Whoever is killed in the midst of it goes on with the next batch.
    identity = origin_of_results(stage, processes.device.type)
    with results_saved(stage.path / "results", identity) if processes.is_main else nullcontext():
        evaluation = task.evaluate(judged)
        # All processes do this, each for itself: none waits for another longer than a collective operation may take.
        search = spec.get("decontamination")
        result, contamination = decontaminated(stage, evaluation, search, show_progress=processes.is_main)
    if processes.is_main:
        stage.write_predictions(result.evaluation.predictions)
        if contamination is not None:
            stage.write_contamination(result.found)
        tracker.log_attachments(stage.path)
    return {"scores": [score.to_json() for score in result.evaluation.scores], "contamination": contamination}


def origin_of_results(stage: StageDir, device: str) -> str:
    """Return all that the results of an evaluation come from, as text: what was judged by the content of its files too.

    What is made anew, by other code or another number of processes, may differ and has the same fingerprint.
    """
    judged = {role: parent.sha256() for role, parent in stage.parents().items()}
    return canonical_json([stage.config()["fingerprint"], stage.config()["spec"], judged, device])


WORK: Mapping[str, Callable[[StageDir, Spec, ProcessGroup, Tracker], Result]] = {
    "prepare": prepare,
    "annotate": annotate,
    "collect": collect,
    "pretrain": pretrain,
    "finetune": finetune,
    "eval": evaluate,
}


def _task(stage: StageDir, spec: Spec, processes: ProcessGroup) -> Task:
    task: Task = build(spec["task"], where=f"task.{spec['task']['name']}")
    task.folder = stage.path if processes.is_main else None
    read = {setting: stage.parent(setting) for setting in spec["task"].get("_tasks_", ())}
    task.data_of = {setting: parent.data_dir for setting, parent in read.items() if parent is not None}
    return task


def _parent(stage: StageDir, role: str) -> StageDir:
    parent = stage.parent(role)
    assert parent is not None, f"a {stage.config()['kind']} stage has a parent {role!r}"
    return parent


def _tokenizer(stage: StageDir, spec: Spec) -> Any:
    if (parent := stage.parent("tokenizer")) is not None:
        return load_tokenizer(parent.tokenizer_dir)
    return build(spec["model"], None, where="model").load_tokenizer()


def _encoder(stage: StageDir, spec: Spec) -> Encoder:
    """Return the encoder a stage starts from: a parent's or the config's."""
    parent = stage.parent("encoder") or stage.parent("model")
    if parent is not None:
        return load_encoder(parent.encoder_dir)
    tokenizer = stage.parent("tokenizer")
    model = build(spec["model"], load_tokenizer(tokenizer.tokenizer_dir) if tokenizer else None, where="model")
    return cast(Encoder, model.build())


def _before_pretraining(stage: StageDir) -> Encoder | None:
    origin = published_origin(stage)
    return None if origin is None else _encoder(origin, origin.config()["spec"])


def run(stage: StageDir) -> None:
    """Carry out a stage in this process and write its result."""
    config = stage.config()
    execution = config["execution"]
    for package in execution.get("plugins") or ():
        allow_package(package)
    parallel = execution["parallel"]
    began = time.monotonic()
    with process_group(
        device=parallel["device"],
        num_threads=parallel["num_threads"],
        timeout_seconds=parallel["timeout_seconds"],
        num_shards=parallel["num_shards"] if config["kind"] in TRAINING_KINDS else 1,
        peak_flops=parallel["peak_flops"],
    ) as processes:
        if not processes.is_main:
            logging.disable(logging.WARNING)  # The main process says the same.
        # Whatever a constructor draws (an encoder from scratch, a fresh head) is drawn from here.
        torch.manual_seed(config["spec"].get("seed", 0))
        if config["kind"] in TRAINING_KINDS:
            # Only a training has something to save; the others end at once.
            signal.signal(signal.SIGTERM, lambda *_: processes.request_stop())
        tracked = processes.is_main and config["kind"] in TRACKED_KINDS
        with stage_tracker(stage, enabled=tracked) as tracker:
            with told_in_task(config["spec"].get("task")):
                result = WORK[config["kind"]](stage, config["spec"], processes, tracker)
            tracker.summarise(_flat_numbers(result))
        if processes.is_main:
            stage.write_result({**result, "stage_seconds": round(time.monotonic() - began, 3)})


def _flat_numbers(result: Result) -> dict[str, float]:
    scores = {f"{score['task']}/{score['split']}/{score['metric']}": score["value"] for score in result.get("scores", ())}
    return {name: value for name, value in result.items() if isinstance(value, int | float)} | scores


def main() -> None:
    """Carry out the stage whose directory is named on the command line."""
    if len(sys.argv) != 2:
        sys.exit("usage: python -m mlmx.training.worker <stage directory>")
    stage = StageDir(Path(sys.argv[1]))
    watch(stage)
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    try:
        run(stage)
    except UserError as error:
        stage.write_status("failed", error=error_to_json(error))
        sys.exit(EXIT_USER_ERROR)
    except Stopped as reason:
        stage.write_status("failed", error=error_to_json(reason))
        sys.exit(EXIT_STOPPED)
    except Exception as error:
        stage.write_status("failed", error=error_to_json(error))
        raise


if __name__ == "__main__":
    main()
