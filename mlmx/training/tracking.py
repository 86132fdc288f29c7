"""Weights & Biases beside a run: every stage and every chain is one of its runs.

``metrics.jsonl`` and ``summary.json`` are the truth; what stands here is a copy to look at. Whatever goes wrong with it is a
warning, and the training goes on. ``python -m mlmx.training.tracking <run directory>`` publishes a finished chain.
"""

from __future__ import annotations

import hashlib
import json
import logging
import netrc
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import urlopen

from mlmx.build import is_description
from mlmx.stage import StageDir

log = logging.getLogger(__name__)

# How long a server that does not answer holds up a stage: before it begins, and at its end.
_REACH_SECONDS = 10.0
_INIT_SECONDS = 30.0
_FINISH_SECONDS = 120.0


class Tracker:
    """A W&B run that cannot make anything fail; without one, all calls do nothing."""

    def __init__(self, run: Any = None) -> None:
        self._run = run
        self._failed: set[str] = set()

    def log(self, record: Mapping[str, Any]) -> None:
        """Show a line of ``metrics.jsonl``, over steps and over tokens."""
        by_tokens = {f"by_tokens/{key}": value for key, value in record.items() if key.split("/")[0] == "loss"}
        self._try("log", lambda run: run.log({**record, **by_tokens}))

    def summarise(self, numbers: Mapping[str, Any]) -> None:
        """Set final numbers."""
        self._try("summary", lambda run: run.summary.update(dict(numbers)))

    def log_attachments(self, folder: Path) -> None:
        """Show what a task left beside its scores: ``tables/*.tsv``, whose first line names the columns, and ``pictures/*.png``."""

        def record(run: Any) -> None:
            import wandb

            for path in sorted(folder.glob("tables/*.tsv")):
                header, *rows = (line.split("\t") for line in path.read_text(encoding="utf-8").splitlines())
                run.log({path.stem: wandb.Table(columns=header, data=rows)})
            for path in sorted(folder.glob("pictures/*.png")):
                run.log({f"{path.stem}_picture": wandb.Image(str(path))})

        self._try("attachments", record)

    def log_encoder(self, stage: StageDir, *, made_here: bool) -> None:
        """Record an encoder as an output or an input: a line of the lineage, by reference, without its weights."""

        def record(run: Any) -> None:
            import wandb

            fingerprint = stage.config()["fingerprint"]
            artifact = wandb.Artifact(f"encoder-{fingerprint[:8]}", "encoder", metadata={"path": str(stage.path)})
            with artifact.new_file("stage.json") as file:
                json.dump({"stage": stage.path.name, "fingerprint": fingerprint}, file)
            if made_here:
                run.log_artifact(artifact)
            elif run.settings._offline:
                # The public use_artifact refuses to work offline; what it calls online writes the record that a sync needs.
                run._log_artifact(artifact, is_user_created=True, use_after_commit=True)
            else:
                run.use_artifact(artifact)

        self._try("artifact", record)

    def finish(self, *, failed: bool) -> None:
        """End the run and W&B's own process."""

        def end(run: Any) -> None:
            import wandb

            run.finish(exit_code=1 if failed else 0)
            wandb.teardown()

        self._try("finish", end)

    def _try(self, what: str, action: Any) -> None:
        if self._run is None:
            return
        try:
            action(self._run)
        except Exception as error:
            if what not in self._failed:
                log.warning("W&B failed (%s: %s: %s); the run goes on without it", what, type(error).__name__, error)
            self._failed.add(what)


@contextmanager
def stage_tracker(stage: StageDir, *, enabled: bool) -> Iterator[Tracker]:
    """Track a stage for the duration, as its config's ``execution.tracker`` says.

    Args:
        stage: the stage; its run's id comes from its fingerprint, so that a stage that is resumed goes on in the same run.
        enabled: False on all ranks but the main one.
    """
    config = stage.config()
    tracker = Tracker()
    if enabled:
        tracker = _start(
            config["execution"].get("tracker") or {},
            run_id=config["fingerprint"][:16],
            name=stage.path.name,
            group=_lineage(stage).path.name,
            job_type=config["kind"],
            folder=stage.path,
            config={
                "kind": config["kind"],
                "name": config["name"],
                "fingerprint": config["fingerprint"],
                "parents": dict(config["parents"]),
                **_flat(config["spec"]),
            },
        )
        for role in ("encoder", "model"):
            if (parent := stage.parent(role)) is not None:
                tracker.log_encoder(parent, made_here=False)
    try:
        yield tracker
    except BaseException:
        tracker.finish(failed=True)
        raise
    if stage.encoder_dir.exists():
        tracker.log_encoder(stage, made_here=True)
    tracker.finish(failed=False)


def publish_chain(run_dir: Path) -> None:
    """Publish a chain: its flat config, its final scores, and its stages' encoders as inputs; a row of the dashboard."""
    summary = json.loads((run_dir / "summary.json").read_text(encoding="utf-8"))
    config = summary["config"]
    stages = [StageDir(Path(config["outputs"]) / "stages" / record["dir"]) for record in summary["stages"]]
    tracker = _start(
        config.get("tracker") or {},
        run_id=hashlib.sha256(str(run_dir.resolve()).encode()).hexdigest()[:16],
        name=run_dir.name,
        group=config["name"],
        job_type="chain",
        folder=run_dir,
        config=_flat({key: value for key, value in config.items() if key not in ("tracker", "parallel", "hydra")}),
    )
    for stage in stages:
        if stage.encoder_dir.exists():
            tracker.log_encoder(stage, made_here=False)
    tracker.summarise({f"{score['task']}/{score['split']}/{score['metric']}": score["value"] for score in summary["scores"]})
    tracker.finish(failed=summary["status"] != "finished")


def _start(settings: Mapping[str, Any], *, run_id: str, folder: Path, **run: Any) -> Tracker:
    mode = _mode(settings.get("mode", "disabled"))
    if mode == "disabled":
        return Tracker()
    try:
        if mode == "online" and (reason := _unreachable()) is not None:
            log.warning(
                "W&B cannot be reached (%s); what is for it is kept in %s, and `wandb sync` sends it", reason, folder / "wandb"
            )
            mode = "offline"
        return Tracker(_init(mode, settings, run_id, folder, run))
    except Exception as error:
        log.warning("W&B could not be started (%s: %s); the run goes on without it", type(error).__name__, error)
        return Tracker()


def _unreachable() -> str | None:
    """Return why the server cannot be reached, or None if it answers, whatever it answers."""
    server = _server()
    try:
        urlopen(server, timeout=_REACH_SECONDS).close()  # noqa: S310 - the server is the user's own choice
    except HTTPError:
        return None
    except OSError as error:
        return f"{server}: {error}"
    return None


def _init(mode: Any, settings: Mapping[str, Any], run_id: str, folder: Path, arguments: Mapping[str, Any]) -> Any:
    import wandb

    run = wandb.init(
        project=settings.get("project"),
        entity=settings.get("entity"),
        id=run_id,
        # Without a connection there is nothing to resume; W&B joins offline parts of one id when they are synced.
        resume="allow" if mode == "online" else None,
        dir=folder,
        mode=mode,
        settings=wandb.Settings(
            silent=True,
            console="off",
            init_timeout=_INIT_SECONDS,
            finish_timeout=_FINISH_SECONDS,
            finish_timeout_raises=True,
            save_code=False,
            disable_git=True,
            x_disable_stats=True,
        ),
        **arguments,
    )
    run.define_metric("step")
    run.define_metric("tokens")
    run.define_metric("*", step_metric="step")
    run.define_metric("by_tokens/*", step_metric="tokens")
    return run


def _mode(mode: str) -> str:
    if mode != "auto":
        return mode
    return os.environ.get("WANDB_MODE") or ("online" if _has_key() else "offline")


def _has_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        known = netrc.netrc(os.environ.get("NETRC")).hosts
    except (OSError, netrc.NetrcParseError):
        return False
    # The default server has had more than one name.
    return "api.wandb.ai" in known or urlsplit(_server()).hostname in known


def _server() -> str:
    import wandb

    return str(wandb.setup().settings.base_url)  # which knows the environment and W&B's own settings files


def _lineage(stage: StageDir) -> StageDir:
    # The first training that a stage goes back to; itself if there is none.
    for role in ("encoder", "model"):
        if (parent := stage.parent(role)) is not None:
            return _lineage(parent)
    return stage


def _flat(value: Any, where: str = "") -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {where: value}
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        if not is_description(key) or key == "_name_":
            place = where if key == "_name_" and where else f"{where}.{key}" if where else key
            flat |= _flat(inner, place)
    return flat


if __name__ == "__main__":
    logging.basicConfig(format="%(levelname)s: %(message)s")
    if len(sys.argv) != 2:
        sys.exit("usage: python -m mlmx.training.tracking <run directory>")
    publish_chain(Path(sys.argv[1]))
