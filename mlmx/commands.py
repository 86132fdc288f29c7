"""The commands that run no stage: report, export and list."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from mlmx.errors import nearest, user_error
from mlmx.mistakes import mistakes_told, need_writable

_KINDS = (
    *("objectives", "schedules", "models", "corpora", "annotators", "tasks", "protocols", "trainers", "trackers", "parallel"),
    "experiments",
)
ConfigDir = Annotated[
    Path | None, typer.Option("--config-dir", "-cd", help="A folder of configs of your own, with the same groups.")
]


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
    with mistakes_told():
        if not outputs.is_dir():
            raise user_error("outputs", f"there is no such folder: {outputs}")
        from mlmx.report.results import report as report_on

        if out is not None:
            need_writable(out, "--out")
        typer.echo(report_on(outputs, baseline=baseline, out=out, select=select))


def list_options(
    kind: Annotated[str, typer.Argument(help=", ".join(_KINDS) + ".", autocompletion=lambda: list(_KINDS))],
    config_dir: ConfigDir = None,
) -> None:
    """List what there is to select, one line each."""
    with mistakes_told():
        if kind not in _KINDS:
            raise user_error("list", f"there is no list of {kind!r}, only of {', '.join(_KINDS)}.", nearest(kind, _KINDS))
        from mlmx.compose import conf_dir
        from mlmx.listing import options

        found = options(kind, [*([config_dir] if config_dir else []), conf_dir()])
        width = max((len(option.name) for option in found), default=0)
        for option in found:
            about = "" if option.about is None else f" {option.about}"
            typer.echo(f"{option.name:{width}}  {option.summary}{about}".rstrip())


def export(
    stage: Annotated[Path, typer.Argument(help="The directory of a stage that trained or judged an encoder.")],
    out: Annotated[Path, typer.Option("--out", help="The folder to write; there must be none.")],
    form: Annotated[
        Literal["sentence-transformers", "transformers"],
        typer.Option("--format", help="The program that is to load it."),
    ] = "sentence-transformers",
    pooling: Annotated[
        Literal["mean", "cls", "max"] | None,
        typer.Option("--pooling", help="How states become a text's vector, in place of what the stage's task does."),
    ] = None,
    layers: Annotated[
        int | None, typer.Option("--layers", help="How many layers are kept, the first ones; all if not given.")
    ] = None,
    width: Annotated[
        int | None,
        typer.Option("--width", help="How many coordinates of a text's vector are kept, in place of what the stage's task does."),
    ] = None,
) -> None:
    """Write the encoder of a stage into a folder that Sentence-Transformers or Transformers loads."""
    with mistakes_told():
        from mlmx.driver.export import export as export_from

        export_from(stage, out, form=form, pooling=pooling, layers=layers, width=width)
        typer.echo(f"Written to {out}")
