"""Writing what a stage trained in a form that other programs load."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Literal

from mlmx.driver.command import attached
from mlmx.errors import user_error
from mlmx.stage import StageDir, encoder_folder

Format = Literal["sentence-transformers", "transformers"]

_EXPORT = "mlmx.training.export"


def export(
    folder: Path, out: Path, *, form: Format, pooling: str | None, layers: int | None = None, width: int | None = None
) -> None:
    """Write the encoder of a stage into a new folder.

    Args:
        folder: the directory of a stage that trained or judged an encoder.
        out: where to write.
        form: ``transformers`` copies the encoder; ``sentence-transformers`` also says how a text becomes a vector, as the stage's
            task makes them.
        pooling: for ``sentence-transformers``: in place of the task's pooling.
        layers: how many are kept, the first ones; None: all.
        width: for ``sentence-transformers``: how many coordinates of a vector are kept, in place of what the task keeps.

    Raises:
        UserError: if there is no finished stage with an encoder, or ``out`` is taken.
    """
    of_vectors = {"--pooling": pooling, "--width": width}
    if form == "transformers" and (given := [name for name, value in of_vectors.items() if value is not None]):
        raise user_error(given[0], "has no place in a folder of Transformers; it takes --format sentence-transformers.")
    encoder = _encoder_of(StageDir(folder))
    if out.exists():
        raise user_error("--out", f"{out} is there already.")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        # Written beside it and renamed: half a folder never has its name.
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as temporary:
            partial = Path(temporary) / out.name
            if form == "transformers" and layers is None:
                shutil.copytree(encoder, partial)
            else:
                options = {**of_vectors, "--layers": layers, "--format": form}
                arguments = [str(word) for option in options.items() if option[1] is not None for word in option]
                command, environment = attached(_EXPORT, str(folder), str(encoder), str(partial), *arguments)
                done = subprocess.run(command, env=environment, check=False)
                if done.returncode:
                    raise SystemExit(done.returncode)
            partial.rename(out)
    except OSError as error:
        raise user_error("--out", f"{out} cannot be written: {error.strerror or error}.") from error


def _encoder_of(stage: StageDir) -> Path:
    where = str(stage.path)
    if not stage.config_path.is_file():
        raise user_error("stage", f"{where} is no directory of a stage{'' if stage.path.exists() else ': there is none'}.")
    if not stage.finished:
        state = stage.status().get("state", "not begun")
        raise user_error("stage", f"{where} is not finished ({state}), so that it has no encoder yet.")
    if stage.config()["kind"] == "eval":
        parent = stage.parent("model") or stage.parent("encoder")
        if parent is None:  # eval --from FOLDER
            return _given_encoder(stage)
        stage = parent
    if not (stage.encoder_dir / "config.json").is_file():
        raise user_error("stage", f"{where} has no encoder: stages that train one are called pretrain-... and finetune-...")
    return stage.encoder_dir


def _given_encoder(stage: StageDir) -> Path:
    source = (stage.config()["spec"].get("model") or {}).get("source")
    folder = Path(encoder_folder(source)) if source else None
    if folder is None or not (folder / "config.json").is_file():
        told = f"{source}, which is no folder of this machine" if source else "an encoder that nobody trained"
        raise user_error("stage", f"{stage.path} judges {told}: there is nothing to export.")
    return folder
