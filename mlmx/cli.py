"""The command line. Imports neither torch nor transformers, and Hydra only where a config is composed."""

from __future__ import annotations

import os
import re
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from mlmx.errors import Problem, UserError, nearest, user_error

app = typer.Typer(
    name="mlmx",
    help="Compare masked-language-model pretraining objectives, exactly and at equal cost.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_INFO = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")
_KINDS = ("objectives", "models", "corpora", "annotators", "tasks", "protocols", "trainers", "trackers", "parallel", "experiments")
_SUMMARIES = {
    "pretrain": "Pretrain an encoder: the stages of the chain, without tasks.",
    "finetune": "Fine-tune a model on tasks, and judge it by them.",
    "eval": "Judge a model by tasks.",
    "run": "Run a whole chain: pretrain, finetune, evaluate.",
}


def _complete(ctx: typer.Context, incomplete: str) -> list[str]:
    """Complete an override: groups, their options, and settings."""
    from mlmx.compose import Command, Composer

    cut = 0
    words = list(ctx.params.get("overrides") or [])
    if os.environ.get("_MLMX_COMPLETE") == "complete_bash":
        # Bash breaks words at =, : and @, and replaces only what comes after the last of them.
        typed = os.environ["COMP_WORDS"].split()
        current = int(os.environ["COMP_CWORD"])
        given = [*typed[:current], typed[current] if current < len(typed) else ""]
        cut = len(given[-1]) if given[-1] not in ("=", ":", "@") else 0
        glued: list[str] = []
        for word in given:
            breaks = word in ("=", ":", "@")
            if glued and (breaks or (glued[-1][-1:] in ("=", ":", "@"))):
                glued[-1] += word
            else:
                glued.append(word)
        words, incomplete = [word for word in glued[2:-1] if "=" in word and not word.startswith("-")], glued[-1]
        cut = len(incomplete) - cut
    command = ctx.info_name or "run"
    folder = ctx.params.get("config_dir")
    composer = Composer(Command(command, _primary(command), Path(folder) if folder else None))
    found = composer.complete(words, incomplete)
    while len(found) == 1 and found[0].endswith(("=", ".", "/")):  # a single match would be closed with a space
        deeper = composer.complete(words, found[0])
        if not deeper or deeper == found:
            break
        found = deeper
    return [match[cut:] for match in found]


def _primary(command: str) -> str:
    return command if command in _SUMMARIES else "pretrain" if command == "preview" else "run"


Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...",
        help="Groups and settings, such as objective=tlm seed=1.",
        autocompletion=_complete,
        show_default=False,
    ),
]
ConfigDir = Annotated[
    Path | None, typer.Option("--config-dir", "-cd", help="A folder of configs of your own, with the same groups.")
]
ConfigName = Annotated[
    str | None, typer.Option("--config-name", "-cn", help="A primary config of your own, instead of the command's.")
]
From = Annotated[
    str | None, typer.Option("--from", metavar="PATH", help="Start from a stage's folder, a model folder or a hub name.")
]
Fresh = Annotated[bool, typer.Option("--fresh", help="Build every stage anew, also finished ones.")]


def _add_stage_command(command: str) -> None:
    def stage_command(
        overrides: Overrides = None,
        from_path: From = None,
        fresh: Fresh = False,
        multirun: Annotated[bool, typer.Option("--multirun", "-m", help="Sweep over values given as a,b,c.")] = False,
        cfg: Annotated[
            Literal["job", "hydra", "all"] | None, typer.Option("--cfg", "-c", help="Show the config instead of running.")
        ] = None,
        resolve: Annotated[bool, typer.Option("--resolve", help="With --cfg: resolve interpolations.")] = False,
        package: Annotated[str | None, typer.Option("--package", "-p", help="With --cfg: show this part only.")] = None,
        info: Annotated[str | None, typer.Option("--info", "-i", help=f"Tell about Hydra: {', '.join(_INFO)}.")] = None,
        hydra_help: Annotated[bool, typer.Option("--hydra-help", help="Hydra's own help.")] = False,
        config_dir: ConfigDir = None,
        config_name: ConfigName = None,
    ) -> None:
        flags = [
            *(["--cfg", cfg] if cfg else []),
            *(["--resolve"] if resolve else []),
            *(["--package", package] if package else []),
        ]
        flags += [*(["--info", info] if info else []), *(["--hydra-help"] if hydra_help else [])]
        with _mistakes_told():
            if info is not None and info not in _INFO:
                raise user_error("--info", f"{info!r} is not valid; there are {', '.join(_INFO)}.", nearest(info, _INFO))
            if (resolve or package) and not cfg:
                raise user_error("--resolve" if resolve else "--package", "only has an effect with --cfg.")
            _start(
                command,
                config_name or command,
                _with_source(overrides, from_path),
                flags,
                config_dir,
                multirun=multirun,
                fresh=fresh,
            )

    app.command(command, help=_SUMMARIES[command])(stage_command)


for _command in _SUMMARIES:
    _add_stage_command(_command)


def _with_source(overrides: Sequence[str] | None, source: str | None) -> list[str]:
    """Turn ``--from`` into overrides; paths may have characters that an override would need quoted."""
    if source is None:
        return list(overrides or [])
    from mlmx.compose import quoted

    clash = next((line for line in overrides or [] if re.match(r"model(\.source)?=", line)), None)
    if clash:
        raise user_error("--from", f"gives the model, and so does {clash}; leave one out.")
    folder = Path(source).expanduser()
    encoder = folder / "encoder"
    if encoder.is_dir():  # a stage's folder: its logs are not part of the model
        folder = encoder
    elif (folder / "config.yaml").exists():
        raise user_error("--from", f"{source} is a stage without an encoder: it is not finished, or it trains none.")
    return ["model=pretrained", f"model.source={quoted(folder.absolute() if folder.exists() else source)}", *(overrides or [])]


def _start(
    command: str, config_name: str, overrides: list[str], flags: list[str], config_dir: Path | None, *, multirun: bool, fresh: bool
) -> None:
    from mlmx import config, jobs
    from mlmx.compose import Command

    began = time.time()
    composed = Command(command, config_name, config_dir)
    checked = config.check(composed, overrides, multirun=multirun, keys_only=bool(flags))
    if flags:
        jobs.run_jobs(composed, checked, _no_job, flags=flags)
        return
    for outputs in {frozen["outputs"] for frozen in checked.configs}:
        _need_writable(Path(outputs), "outputs")
    if checked.multirun:
        _check_sweep(checked.configs, fresh=fresh)
    # Jobs of a sweep share stages, so that fresh means: since the command began.
    typed = shlex.join(["mlmx", *sys.argv[1:]])
    job = partial(_run_job, typed=typed, fresh=began if fresh else False)
    jobs.run_jobs(composed, checked, job, flags=["--multirun"] if checked.multirun else [])


def _need_writable(folder: Path, setting: str) -> None:
    """Refuse a folder for results that cannot be made or written to, before work is done that could not be kept."""
    import tempfile

    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(4096))  # A full disk still takes empty files.
    except OSError as error:
        raise user_error(setting, f"{folder} cannot be written to: {error.strerror}.") from error


def _no_job(frozen: dict[str, Any], run_dir: Path, overrides: list[str]) -> None:
    raise AssertionError("this flag only shows something")


def _check_sweep(configs: Sequence[dict[str, Any]], *, fresh: bool) -> None:
    """Check the jobs of a sweep before the first one starts; a single run checks itself."""
    from mlmx.driver.directories import place
    from mlmx.driver.execute import check
    from mlmx.driver.stages import stages_of

    problems: list[Problem] = []
    for frozen in configs:
        try:
            placed = place(stages_of(frozen), Path(frozen["outputs"]))
            check(placed, frozen, fresh=fresh)
        except UserError as error:
            problems += error.problems
    if problems:
        raise UserError(list(dict.fromkeys(problems)))


def _run_job(frozen: dict[str, Any], run_dir: Path, overrides: list[str], *, typed: str, fresh: bool | float) -> float | None:
    from mlmx.driver import chain

    return chain.run({**frozen, "command": typed}, run_dir=run_dir, overrides=overrides, fresh=fresh)


@app.command()
def plan(overrides: Overrides = None, from_path: From = None, config_dir: ConfigDir = None, config_name: ConfigName = None) -> None:
    """Show the stages a run would have, what is finished, and what the rest will cost; runs nothing."""
    with _mistakes_told():
        frozen = _one_config("run", config_name, _with_source(overrides, from_path), config_dir)
        from mlmx.driver import chain

        chain.plan(frozen)


@app.command()
def preview(
    overrides: Overrides = None,
    num_examples: Annotated[int, typer.Option("--num-examples", "-n", min=1, help="How many examples to show.")] = 5,
    from_path: From = None,
    config_dir: ConfigDir = None,
    config_name: ConfigName = None,
) -> None:
    """Show in colour what an objective masks in a corpus, what it puts there, and the realised rates."""
    with _mistakes_told():
        frozen = _one_config("pretrain", config_name, _with_source(overrides, from_path), config_dir)
        from mlmx.driver import chain

        chain.preview(frozen, num_examples)


def _one_config(command: str, config_name: str | None, overrides: list[str], config_dir: Path | None) -> dict[str, Any]:
    from mlmx.compose import Command
    from mlmx.config import check

    frozen = check(Command(command, config_name or command, config_dir), overrides).configs[0]
    _need_writable(Path(frozen["outputs"]), "outputs")
    return frozen


@app.command()
def report(
    outputs: Annotated[Path, typer.Argument(help="The folder with runs/ and stages/.")] = Path("outputs"),
    baseline: Annotated[str | None, typer.Option("--baseline", help="The configuration to compare the others with.")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder for Markdown and CSV; default: OUTPUTS/report.")] = None,
    select: Annotated[
        str | None,
        typer.Option("--select", help="A setting of tasks, such as trainer.learning_rate: keep the value that is best on dev."),
    ] = None,
) -> None:
    """Print and write the table of results: means and intervals over seeds, and differences from a baseline."""
    with _mistakes_told():
        if not outputs.is_dir():
            raise user_error("outputs", f"there is no such folder: {outputs}")
        from mlmx.report.results import report as report_on

        if out is not None:
            _need_writable(out, "--out")
        typer.echo(report_on(outputs, baseline=baseline, out=out, select=select))


@app.command(name="list")
def list_options(
    kind: Annotated[str, typer.Argument(help=", ".join(_KINDS) + ".", autocompletion=lambda: list(_KINDS))],
    config_dir: ConfigDir = None,
) -> None:
    """List what there is to select, one line each."""
    with _mistakes_told():
        if kind not in _KINDS:
            raise user_error("list", f"there is no list of {kind!r}, only of {', '.join(_KINDS)}.", nearest(kind, _KINDS))
        from mlmx.compose import conf_dir
        from mlmx.listing import options

        found = options(kind, [*([config_dir] if config_dir else []), conf_dir()])
        width = max((len(option.name) for option in found), default=0)
        for option in found:
            typer.echo(f"{option.name:{width}}  {option.summary}".rstrip())


@contextmanager
def _mistakes_told() -> Iterator[None]:
    """Show the user's mistakes without a traceback, and exit 2."""
    try:
        yield
    except UserError as error:
        _tell(error.problems)
        raise typer.Exit(2) from None
    except Exception as error:
        # Named by what they carry, since importing their modules would import Hydra: jobs.JobsFailed, launch.StageFailedError.
        failures = getattr(error, "failures", None)
        if failures is None and not getattr(error, "told_by_log", False):
            raise
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2 if failures and all(failure["user"] for failure in failures) else 1) from None


def _tell(problems: Sequence[Problem]) -> None:
    if len(problems) > 1:
        typer.echo(f"{len(problems)} problems:", err=True)
    for problem in problems:
        typer.echo(f"error: {problem}" if len(problems) == 1 else f"  {problem}", err=True)


def _with_default_info(argv: list[str]) -> list[str]:
    """Let ``--info`` stand alone, as in Hydra."""
    completed = []
    for i, word in enumerate(argv):
        completed.append(word)
        if word in ("--info", "-i") and (i + 1 == len(argv) or argv[i + 1] not in _INFO):
            completed.append("all")
    return completed


def main() -> None:
    """Run the command line."""
    run: Callable[..., Any] = app
    run(args=_with_default_info(sys.argv[1:]), prog_name="mlmx")


if __name__ == "__main__":
    main()
