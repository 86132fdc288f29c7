"""The command line. Imports neither torch nor transformers, and Hydra only where a config is composed."""

from __future__ import annotations

import re
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from mlmx.commands import ConfigDir, export, list_options, report
from mlmx.completion import complete
from mlmx.errors import Problem, UserError, nearest, user_error
from mlmx.mistakes import mistakes_told, need_writable

app = typer.Typer(
    name="mlmx",
    help="Compare masked-language-model pretraining objectives, exactly and at equal cost.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_INFO = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")
_SUMMARIES = {
    "pretrain": "Pretrain an encoder: the stages of the chain, without tasks.",
    "finetune": "Fine-tune a model on tasks, and judge it by them.",
    "eval": "Judge a model by tasks.",
    "run": "Run a whole chain: pretrain, finetune, evaluate.",
}

Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...",
        help="Groups and settings, such as objective=tlm seed=1.",
        autocompletion=complete,
        show_default=False,
    ),
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
        with mistakes_told():
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
        need_writable(Path(outputs), "outputs")
    if checked.multirun:
        _check_sweep(checked.configs, fresh=fresh)
    # Jobs of a sweep share stages, so that fresh means: since the command began.
    typed = shlex.join(["mlmx", *sys.argv[1:]])
    job = partial(_run_job, typed=typed, fresh=began if fresh else False)
    jobs.run_jobs(composed, checked, job, flags=["--multirun"] if checked.multirun else [])


def _no_job(frozen: dict[str, Any], run_dir: Path, overrides: list[str]) -> None:
    raise AssertionError("this flag only shows something")


def _check_sweep(configs: Sequence[dict[str, Any]], *, fresh: bool) -> None:
    """Check the jobs of a sweep before the first one starts; a single run checks itself."""
    from mlmx.driver.execute import checked_stages

    problems: list[Problem] = []
    for frozen in configs:
        try:
            checked_stages(frozen, fresh=fresh)
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
    with mistakes_told():
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
    with mistakes_told():
        frozen = _one_config("pretrain", config_name, _with_source(overrides, from_path), config_dir)
        from mlmx.driver import chain

        chain.preview(frozen, num_examples)


def _one_config(command: str, config_name: str | None, overrides: list[str], config_dir: Path | None) -> dict[str, Any]:
    from mlmx.compose import Command
    from mlmx.config import check

    frozen = check(Command(command, config_name or command, config_dir), overrides).configs[0]
    need_writable(Path(frozen["outputs"]), "outputs")
    return frozen


app.command()(report)
app.command()(export)
app.command(name="list")(list_options)


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
