"""From a composed config to the stages of its chain. Reads no files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mlmx.build import mappings_in, statistics_of, tasks_read_by
from mlmx.errors import Problem, UserError, nearest
from mlmx.fingerprint import canonical_json
from mlmx.frozen import STAGE_GROUPS
from mlmx.stage import Stage


@dataclass(frozen=True, eq=False)
class _Pretraining:
    """One pretraining of the chain, with its complete nodes."""

    name: str
    where: str
    objective: Mapping[str, Any]
    corpus: Mapping[str, Any]
    annotator: Mapping[str, Any] | None
    trainer: Mapping[str, Any]

    @property
    def needs_annotation(self) -> bool:
        return _within(self.objective, "_needs_annotation_")


def stages_of(config: Mapping[str, Any], *, trained: bool = True) -> list[Stage]:
    """Return the stages of a run, each after its parents; equal preparations appear once.

    Args:
        config: the frozen config; every stage of the chain has its complete nodes under ``stages``.
        trained: whether objectives are to be trained; what is only shown needs neither dropout nor a budget that suits it.

    Raises:
        UserError: if groups contradict each other.
    """
    problems: list[Problem] = []
    pretrainings = [_pretraining(config, name) for name in config["chain"]]
    for pretraining in pretrainings:
        problems += _contradictions(pretraining) + (_untrainable(pretraining) if trained else [])
    if not pretrainings and not config["task"]:
        problems.append(Problem("chain", "there is nothing to do: neither a pretraining nor a task."))
    tasks = [node.get("name", name) for name, node in config["task"].items()]
    if (metric := config.get("sweep_metric")) and (task := metric.partition("/")[0]) not in tasks:
        message = f"{metric!r} begins with no task of this run; selected are: {', '.join(tasks) or 'none'}."
        problems.append(Problem("sweep_metric", message, nearest(task, tasks)))
    problems += _wrong_references(config["task"])
    if pretrainings:
        problems += _unfit_embeddings(config, pretrainings[-1].objective)
    if problems:
        raise UserError(problems)
    return _Builder(config, pretrainings).build()


_FROM_SCRATCH_RATE = 5e-4  # Published rates of continued pretraining are at most a few 1e-4.


def advice(config: Mapping[str, Any]) -> list[str]:
    """Return what is allowed and yet hardly what the user wants: scores that say nothing of the encoder."""
    told = []
    if not config["chain"] and config["model"].get("tokenizer") is not None:
        told.append("model: the encoder has random weights, which nothing trains before it is judged; --from names a trained one.")
    for name in config["chain"]:
        rate = config["stages"][name]["trainer"].get("learning_rate", 0.0)
        if config["model"].get("tokenizer") is None and rate >= _FROM_SCRATCH_RATE:
            told.append(f"trainer.learning_rate: {rate} of {name} may undo what the encoder has learned; see trainer=continued.")
    worlds = {world for name in config["chain"] for world in _worlds(config["stages"][name]["corpus"])}
    for name, node in config["task"].items():
        if config["chain"] and not set(_worlds(node)) <= worlds:
            told.append(
                f"task.{name}: is in the languages of a microworld that no corpus of this chain is in; task=... chooses others."
            )
    return told


def _worlds(node: Any) -> Iterator[tuple[str, int]]:
    """Yield the made-up worlds whose languages a config's nodes are in."""
    if isinstance(node, Mapping):
        if "_world_" in node:
            yield node["_world_"], node["seed"]
        for inner in node.values():
            yield from _worlds(inner)


def _pretraining(config: Mapping[str, Any], name: str) -> _Pretraining:
    is_default = list(config["chain"]) == ["pretrain"]
    groups = {group: config["stages"][name][group] for group in STAGE_GROUPS}
    label = _name_of(groups["objective"], name) if is_default else name
    return _Pretraining(name=label, where="" if is_default else f"stages.{name}.", **groups)


def place_of(stage: Stage, setting: str) -> str:
    """Return where in the user's config a dotted setting of a stage's spec stands, for messages."""
    group, _, rest = setting.partition(".")
    if stage.kind in ("finetune", "eval") and group in ("task", "trainer"):
        group = f"task.{stage.name}" if group == "task" else f"task.{stage.name}.trainer"
    elif group == "corpora":
        group, (_, _, rest) = "corpus", rest.partition(".")
    elif group == "tokenizer":
        group = "model.tokenizer"
    elif group == "statistic":
        group = f"objective.{stage.name}"
    return f"{group}.{rest}" if rest else group


def _contradictions(pretraining: _Pretraining) -> list[Problem]:
    """Find groups that do not fit each other, by what their YAML says of them."""
    problems = []
    objective = _name_of(pretraining.objective, "this objective")
    if pretraining.needs_annotation:
        needs = f"{objective} needs words with parts of speech or entities"
        if pretraining.annotator is None:
            message = f"{needs}; choose an annotator (a corpus with gold tags: gold)."
            problems.append(Problem(f"{pretraining.where}annotator", message))
        elif pretraining.annotator.get("_needs_gold_") and pretraining.corpus.get("_gold_") is False:
            message = f"{needs}, and the corpus {_name_of(pretraining.corpus, '')} has no gold tags; choose another annotator."
            problems.append(Problem(f"{pretraining.where}annotator", message))
    if _within(pretraining.objective, "_needs_parallel_") and _has_no_pairs(pretraining.corpus):
        message = f"{objective} needs pairs of sentences, and the corpus {_name_of(pretraining.corpus, '')} has none."
        problems.append(Problem(f"{pretraining.where}corpus", message))
    return problems


def _untrainable(pretraining: _Pretraining) -> list[Problem]:
    """Find what a trainer does not give that the objective needs to be trained."""
    problems = []
    objective = _name_of(pretraining.objective, "this objective")
    if _within(pretraining.objective, "_needs_dropout_") and pretraining.trainer.get("dropout") == 0:
        message = f"is 0, and {objective} tells the two views of a row apart by dropout; set it to 0.1."
        problems.append(Problem(f"{pretraining.where}trainer.dropout", message))
    if not any(pretraining.trainer.get(budget) is not None for budget in ("max_steps", "max_epochs", "max_tokens")):
        message = (
            "follows the progress of the training, which is not known beforehand for a budget in seconds, FLOPs or supervised "
            "tokens; set trainer.max_steps, max_epochs or max_tokens instead."
        )
        places = _following_progress(pretraining.objective, f"{pretraining.where}objective")
        problems += [Problem(place, message) for place in places]
    return problems


def _wrong_references(tasks: Mapping[str, Mapping[str, Any]]) -> list[Problem]:
    problems = []
    for name, task in tasks.items():
        for setting, other in tasks_read_by(task).items():
            where, others = f"task.{name}.{setting}", [one for one in tasks if one != name]
            if other not in others:
                message = f"{other!r} is no other task of this run; selected are: {', '.join(others) or 'none'}."
                problems.append(Problem(where, message, nearest(other, others)))
            elif tasks_read_by(tasks[other]):
                problems.append(Problem(where, f"{other!r} reads another task itself; only one may follow upon another."))
    return problems


def _unfit_embeddings(config: Mapping[str, Any], objective: Mapping[str, Any]) -> list[Problem]:
    """Find tasks that ask more of a text's vector than the encoder will have after the last pretraining."""
    problems = []
    width = config["model"].get("hidden_size")
    for name, task in config["task"].items():
        if task.get("lexical") is not None and drops_head(objective):
            message = f"{_name_of(objective, 'the objective')} leaves no language-model head, which tells the words of a text."
            problems.append(Problem(f"task.{name}.lexical", message))
        if isinstance(given := task.get("width"), int) and isinstance(width, int) and given > width:
            problems.append(Problem(f"task.{name}.width", f"{given} is more than the width of the encoder, {width}."))
    return problems


class _Builder:
    """Builds the stages in order; equal preparations, annotations and statistics are one stage."""

    def __init__(self, config: Mapping[str, Any], pretrainings: list[_Pretraining]) -> None:
        self._config = config
        self._pretrainings = pretrainings
        self._stages: dict[str, Stage] = {}
        self._execution = {key: config[key] for key in ("parallel", "tracker", "plugins")}
        self._tokenizer = self._tokenizer_stage()

    def build(self) -> list[Stage]:
        encoder: Stage | None = None
        for pretraining in self._pretrainings:
            encoder = self._pretrain(pretraining, encoder)
        evaluations: dict[str, Stage] = {}
        for name, node in sorted(self._config["task"].items(), key=lambda task: bool(tasks_read_by(task[1]))):
            read = {setting: evaluations[other] for setting, other in tasks_read_by(node).items()}
            evaluations[name] = self._judge(name, node, encoder, read)
        return list(self._stages.values())

    def _add(self, kind: str, name: str, spec: Mapping[str, Any], parents: Mapping[str, Stage | None]) -> Stage:
        present = {role: parent for role, parent in parents.items() if parent is not None}
        key = canonical_json([kind, spec, {role: id(parent) for role, parent in present.items()}])
        if key not in self._stages:
            self._stages[key] = Stage(kind=kind, name=name, spec=spec, parents=present, execution=self._execution)
        return self._stages[key]

    def _tokenizer_stage(self) -> Stage | None:
        """Return the stage that trains the tokenizer of a model from scratch, on the corpora of the whole chain."""
        node = self._config["model"].get("tokenizer")
        if node is None:
            return None
        corpora = [pretraining.corpus for pretraining in self._pretrainings] or [self._config["corpus"]]
        distinct = list({canonical_json(corpus): corpus for corpus in corpora}.values())
        return self._add("prepare", "tokenizer", {"tokenizer": node, "corpora": distinct}, {})

    def _start(self) -> dict[str, Any]:
        """Return the part of a spec that says what encoder to start from, where no stage gives one."""
        return {"model": self._config["model"]}

    def _tokenizer_of_start(self) -> dict[str, Any]:
        """Return the same for who needs the tokenizer alone."""
        model = self._config["model"]
        return {"model": {**model, "_no_effect_": [*model.get("_no_effect_", ()), "attention"]}}

    def _pretrain(self, pretraining: _Pretraining, encoder: Stage | None) -> Stage:
        prepare = self._add(
            "prepare",
            _name_of(pretraining.corpus, "corpus"),
            {"corpus": pretraining.corpus, **(self._tokenizer_of_start() if self._tokenizer is None else {})},
            {"tokenizer": self._tokenizer},
        )
        annotate = None
        if pretraining.needs_annotation and pretraining.annotator is not None:
            name = _name_of(pretraining.annotator, "annotator")
            annotate = self._add("annotate", name, {"annotator": pretraining.annotator}, {"prepare": prepare})
        statistics = {
            f"statistic.{setting}": self._add("collect", setting, {"statistic": node}, {"prepare": prepare})
            for setting, node in statistics_of(pretraining.objective).items()
        }
        spec = {"seed": self._config["seed"], "objective": pretraining.objective, "trainer": pretraining.trainer}
        return self._add(
            "pretrain",
            pretraining.name,
            spec if encoder is not None else {**spec, **self._start()},
            {"tokenizer": self._tokenizer, "prepare": prepare, "annotate": annotate, **statistics, "encoder": encoder},
        )

    def _judge(self, name: str, node: Mapping[str, Any], encoder: Stage | None, read: Mapping[str, Stage]) -> Stage:
        task = {key: value for key, value in node.items() if key != "trainer"}
        trainer = node.get("trainer")
        start = {} if encoder is not None else {"seed": self._config["seed"], **self._start()}
        origin = {**({"encoder": encoder} if encoder is not None else {"tokenizer": self._tokenizer}), **read}
        search = self._config.get("decontamination")
        judged = {"task": task, **({"decontamination": search} if search else {})}
        if trainer is None:
            return self._add("eval", name, {**judged, **start}, origin)
        trained_on = task
        if "_no_effect_on_training_" in task:
            trained_on = {**task, "_no_effect_": [*task.get("_no_effect_", ()), *task["_no_effect_on_training_"]]}
        spec = {"seed": self._config["seed"], "task": trained_on, "trainer": trainer, **start}
        finetuned = self._add("finetune", name, spec, origin)
        return self._add("eval", name, judged, {"model": finetuned})


def _within(objective: Mapping[str, Any], key: str) -> bool:
    """Tell whether what a key says holds of an objective, or of one inside it."""
    return any(_holds(node, key) for _, node in mappings_in(objective))


def _has_no_pairs(corpus: Mapping[str, Any]) -> bool:
    """Tell whether a corpus is known to have no pairs; the parts of a mixture are alike."""
    if parts := _parts(corpus, "corpus"):
        return any(_has_no_pairs(part) for part in parts)
    return corpus.get("_parallel_") is not None and not _holds(corpus, "_parallel_")


def drops_head(objective: Mapping[str, Any]) -> bool:
    """Tell whether an objective leaves no language-model head: itself, what it is around, or all its parts."""
    if parts := _parts(objective, "objective"):
        return all(drops_head(part) for part in parts)
    inner = objective.get("objective")
    return drops_head(inner) if isinstance(inner, Mapping) else _holds(objective, "_drops_head_")


def _parts(node: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    """Return the components of which a node is made, as far as its parts are well-formed; of a node without parts, none."""
    parts = node.get("parts")
    given = [part.get(key) for part in parts.values() if isinstance(part, Mapping)] if isinstance(parts, Mapping) else []
    return [part for part in given if isinstance(part, Mapping)]


def _holds(node: Mapping[str, Any], key: str) -> bool:
    """Tell whether what a key of a node's YAML says holds: always (true), or with the settings that it gives."""
    when = node.get(key, False)
    return all(node.get(name) == value for name, value in when.items()) if isinstance(when, Mapping) else bool(when)


def _following_progress(objective: Mapping[str, Any], where: str) -> Iterator[str]:
    """Yield the settings that decide by the progress of the training how a batch is made."""
    for setting, node in mappings_in(objective, where):
        if node.get("_follows_progress_") and not setting.endswith(".schedule"):  # A sum weighs what its batches gave.
            yield setting


def _name_of(node: Mapping[str, Any], otherwise: str) -> str:
    return str(node.get("_name_") or otherwise)
