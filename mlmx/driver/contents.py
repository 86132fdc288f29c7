"""What the inputs of a stage contain: hashes of files and folders, commits of hub repositories.

A stage is named by the content of its inputs, never by their paths. Hashes are cached by (path, size, times), so that typing a
command again reads no data.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Mapping
from glob import glob, has_magic
from pathlib import Path
from typing import Any

from mlmx.errors import Problem, UserError
from mlmx.fingerprint import canonical_json
from mlmx.inputs import input_settings
from mlmx.locks import locked
from mlmx.stage import StageDir, encoder_folder, write_atomically

# A file changed twice within the clock's granularity looks unchanged the second time; what is younger is not cached.
_SETTLED_SECONDS = 2.0
_COMPRESSIONS = {".gz", ".bz2", ".xz", ".zst"}
_COMMIT = re.compile(r"[0-9a-f]{40}")
_HUB_TIMEOUT_SECONDS = 10.0


class Contents:
    """Hashes of files, folders and hub repositories.

    Args:
        cache_path: where hashes of files are kept between calls; safe to share among parallel jobs.
    """

    def __init__(self, cache_path: Path) -> None:
        self._cache_path = cache_path
        self._known = self._read()
        self._new: dict[str, list[Any]] = {}
        self._commits: dict[tuple[str, str, str], str] = {}

    def inputs_of(self, spec: Mapping[str, Any]) -> dict[str, Any]:
        """Return dotted setting -> content (a hash, a commit, None, or a list of them) for everything ``_inputs_`` names in a spec.

        Raises:
            UserError: for each input that is neither a path nor a hub repository.
        """
        inputs: dict[str, Any] = {}
        problems: list[Problem] = []
        for where, setting, node in input_settings(spec):
            try:
                inputs[where] = self._content(node.get(setting), node, where)
            except UserError as error:
                problems += error.problems
        if problems:
            raise UserError(problems)
        return inputs

    def save(self) -> None:
        """Add the new hashes to the cache."""
        if not self._new:
            return
        with locked(self._cache_path.with_suffix(".lock")):
            write_atomically(self._cache_path, json.dumps({**self._read(), **self._new}))
        self._known.update(self._new)
        self._new = {}

    def file_hash(self, path: Path) -> str:
        """Return the SHA-256 of a file's bytes."""
        status = path.stat()
        # The time of change cannot be set back as the time of modification can.
        stamp = [status.st_size, status.st_mtime_ns, status.st_ctime_ns]
        key = str(path.absolute())
        known = self._known.get(key) or self._new.get(key)
        if known is not None and known[:-1] == stamp:
            return str(known[-1])
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if time.time() - max(status.st_mtime, status.st_ctime) > _SETTLED_SECONDS:
            self._new[key] = [*stamp, digest]
        return digest

    def _read(self) -> dict[str, list[Any]]:
        try:
            known: dict[str, list[Any]] = json.loads(self._cache_path.read_text(encoding="utf-8"))
        except (FileNotFoundError, json.JSONDecodeError):
            return {}
        return known

    def _content(self, value: Any, node: Mapping[str, Any], where: str) -> Any:
        if value is None:
            return None
        if isinstance(value, list | tuple):
            return [self._content(inner, node, f"{where}[{i}]") for i, inner in enumerate(value)]
        if isinstance(value, Mapping):
            return {key: self._content(inner, node, f"{where}.{key}") for key, inner in value.items()}
        path = Path(str(value)).expanduser()
        if path.exists():
            return self._path_hash(path, where)
        if has_magic(str(path)) and (matches := sorted(glob(str(path), recursive=True))):  # noqa: PTH207 - absolute patterns too
            return [self._path_hash(Path(match), where) for match in matches]
        if "revision" in node:
            return self._commit(str(value), node["revision"], _repository_type(node, where), where)
        nothing = "no file matches this pattern" if has_magic(str(path)) else "there is no such file or folder"
        raise UserError(Problem(where, f"{str(value)!r}: {nothing}."))

    def _path_hash(self, path: Path, where: str) -> str:
        if path.is_file():
            # The ending says how to read a file; the rest of its name says nothing.
            suffixes = path.suffixes[-2:] if path.suffix in _COMPRESSIONS else path.suffixes[-1:]
            return _digest(["".join(suffixes), self.file_hash(path)])
        stage = path.parent if path.name == "encoder" else path
        if (stage / "config.yaml").exists() and (stage / "lock").exists() and not (stage / "result.json").exists():
            raise UserError(Problem(where, f"the stage {str(stage)!r} is not finished; its files may be half written."))
        if (stage / "manifest.json").exists() and (damage := StageDir(stage).damage(thorough=False)) is not None:
            raise UserError(Problem(where, f"the stage {str(stage)!r} is damaged: {damage}."))
        path = Path(encoder_folder(path))  # A stage directory also holds logs; what is taken from it is the encoder.
        files = sorted(file for file in path.rglob("*") if file.is_file() and not _is_hidden(file.relative_to(path)))
        if not files:
            raise UserError(Problem(where, f"the folder {str(path)!r} is empty."))
        return _digest([[file.relative_to(path).as_posix(), self.file_hash(file)] for file in files])

    def _commit(self, repository: str, revision: str | None, kind: str, where: str) -> str:
        revision = revision or "main"
        if _COMMIT.fullmatch(revision):
            return revision
        key = (kind, repository, revision)
        if key not in self._commits:
            self._commits[key] = _resolve(repository, revision, kind, where)
        return self._commits[key]


def pinned(value: Any, inputs: Mapping[str, Any], where: str = "") -> Any:
    """Copy a spec so that it means the same tomorrow: the revision of a hub repository becomes the commit it stood for."""
    if isinstance(value, Mapping):
        copy = {key: pinned(inner, inputs, f"{where}.{key}" if where else key) for key, inner in value.items()}
        for key in value.get("_inputs_") or ():
            content = inputs.get(f"{where}.{key}" if where else key)
            if isinstance(content, str) and _COMMIT.fullmatch(content):
                copy["revision"] = content
        return copy
    if isinstance(value, list | tuple):
        return [pinned(inner, inputs, f"{where}.{i}") for i, inner in enumerate(value)]
    return value


def source_hash() -> str:
    """Return the hash of mlmx's own source files."""
    package = Path(__file__).parent.parent
    files = sorted(package.rglob("*.py"))
    return _digest([[file.relative_to(package).as_posix(), hashlib.sha256(file.read_bytes()).hexdigest()] for file in files])


def _digest(value: Any) -> str:
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") or part == "__pycache__" for part in path.parts)


def _repository_type(node: Mapping[str, Any], where: str) -> str:
    """Tell what a hub id names: what corpora and tasks read are data sets, unless the component says otherwise."""
    declared = node.get("_repository_type_")
    if declared is not None:
        return str(declared)
    return "dataset" if where.split(".")[0] in ("corpus", "corpora", "task") else "model"


def _resolve(repository: str, revision: str, kind: str, where: str) -> str:
    """Return the commit a revision of a hub repository stands for; from the local cache where the hub cannot be reached."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError
    from huggingface_hub.utils._validators import validate_repo_id

    try:
        validate_repo_id(repository)
        commit = HfApi().repo_info(repository, repo_type=kind, revision=revision, timeout=_HUB_TIMEOUT_SECONDS).sha
        assert commit is not None, "the hub names the commit of a revision"
        return str(commit)
    except HFValidationError as error:
        raise UserError(Problem(where, f"{repository!r} is neither an existing path nor the name of a hub repository.")) from error
    except RevisionNotFoundError as error:
        raise UserError(Problem(where, f"the hub's {kind} {repository!r} has no revision {revision!r}.")) from error
    except Exception as error:
        # Whatever the hub's client is built on (requests, httpx, httpx2) raises errors of its own, of no common kind.
        # Offline, the cache remembers which commit a revision stood for when it was fetched.
        reference = Path(constants.HF_HUB_CACHE) / f"{kind}s--{repository.replace('/', '--')}" / "refs" / revision
        if not isinstance(error, RepositoryNotFoundError) and reference.is_file():
            return reference.read_text(encoding="utf-8").strip()
        message = (
            f"{repository!r} is no existing path, and the hub has no {kind} of this name that can be read"
            if isinstance(error, RepositoryNotFoundError)
            else f"{repository!r} is no existing path, is not in the local cache of the hub, and the hub cannot be reached"
        )
        raise UserError(Problem(where, f"{message} ({type(error).__name__}).")) from error
