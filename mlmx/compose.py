"""Compose configs as Hydra does, without running anything."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import version
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import CachingConfigRepository
from hydra._internal.utils import create_config_search_path
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.utils import setup_globals
from hydra.errors import ConfigCompositionException
from hydra.plugins.completion_plugin import DefaultCompletionPlugin
from hydra.types import RunMode
from omegaconf import DictConfig
from yaml import YAMLError  # type: ignore[import-untyped, unused-ignore]

from mlmx.errors import user_error


def conf_dir() -> Path:
    """Return the folder of mlmx's own configs: inside the installed package, or at the root of a checkout."""
    package = Path(__file__).resolve().parent
    installed = package / "conf"
    return installed if installed.is_dir() else package.parent / "conf"


def quoted(value: object) -> str:
    """Return a value as Hydra's override grammar reads it back, whatever characters it has."""
    text = str(value).replace("\\'", "\\\\'").replace("'", "\\'")
    if text.endswith("\\"):
        text += "\\"
    return f"'{text}'"


@dataclass(frozen=True, slots=True)
class Command:
    """What is to be composed.

    Attributes:
        name: ``pretrain``, ``finetune``, ``eval`` or ``run``.
        config_name: the primary config, by default that of the command.
        config_dir: the user's own folder of configs.
    """

    name: str
    config_name: str
    config_dir: Path | None = None


class _SharedRepository(CachingConfigRepository):  # type: ignore[misc, unused-ignore]
    """Reads each file once for all compositions of a command; Hydra copies its repository, and with it the cache, for each."""

    def __deepcopy__(self, memo: dict[int, Any]) -> _SharedRepository:
        return self

    def load_config(self, config_path: str) -> Any:
        # Composing merges into what is loaded, so that a composition would find the choices of the one before it.
        return copy.deepcopy(super().load_config(config_path))


class Composer:
    """Composes configs as Hydra does, without running anything."""

    def __init__(self, command: Command) -> None:
        config_dir = command.config_dir
        version.setbase("1.3")
        setup_globals()
        self.command = command
        self.config_name = command.config_name
        self._composed: dict[tuple[str, ...], DictConfig] = {}
        search_path = create_config_search_path(str(conf_dir()))
        if config_dir is not None:
            if not config_dir.is_dir():
                raise user_error("--config-dir", f"there is no such folder: {config_dir}")
            search_path.prepend(
                provider="command-line", path=f"file://{config_dir.resolve()}", anchor=SearchPathQuery(provider="schema")
            )
        self.loader = ConfigLoaderImpl(search_path)
        self.loader.repository = _SharedRepository(self.loader.repository)
        self.repository = self.loader.repository
        self._parser = OverridesParser.create(config_loader=self.loader)

    def compose(self, overrides: list[str]) -> DictConfig:
        """Return the composed config, Hydra's own node included; not to be changed."""
        key = tuple(overrides)
        if key not in self._composed:
            self._composed[key] = self.loader.load_configuration(self.config_name, overrides, run_mode=RunMode.RUN)
        return self._composed[key]

    def parse(self, line: str) -> Override:
        """Return a parsed override."""
        return self._parser.parse_overrides([line])[0]

    def options(self, group: str) -> list[str]:
        """Return the options of a group."""
        return [str(option) for option in self.repository.get_group_options(group)]

    def groups(self) -> list[str]:
        """Return the groups of the first level."""
        return [str(group) for group in self.repository.get_group_options("", ObjectType.GROUP)]

    def complete(self, words: Sequence[str], word: str) -> list[str]:
        """Return the overrides that ``word`` can be completed to, after the overrides ``words``."""
        key, equals, value = word.partition("=")
        group = key.lstrip("+").partition("@")[0]
        if equals and self.repository.group_exists(group):
            done = max(value.rfind(","), value.rfind("[")) + 1  # of several options, the last one is being typed
            return [f"{key}={value[:done]}{option}" for option in self.options(group) if option.startswith(value[done:])]
        found = DefaultCompletionPlugin(self.loader)._query(self.config_name, " ".join([*words, word]))
        typed = word.rpartition(".")[2]
        return [match for match in found if typed.startswith("_") or "._" not in match]


def message_of(error: BaseException) -> str:
    """Return what a user needs to read of an error of Hydra, OmegaConf or YAML, in one line."""
    # In the lines that follow, a YAML error names its file and line, and Hydra says how to compose; where it misses a file, it
    # lists all that it has there.
    whole = isinstance(error, YAMLError) or type(error) is ConfigCompositionException
    text = " ".join(str(error).split()) if whole else str(error).strip().partition("\n")[0]
    return text or type(error).__name__
