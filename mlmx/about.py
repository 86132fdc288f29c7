"""What a task's YAML says of it under ``_about_``: where its data come from, and which of its scores is the main one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from mlmx.errors import Problem

_Text = Annotated[str, Field(min_length=1)]


@dataclass(frozen=True, slots=True, kw_only=True, config=ConfigDict(extra="forbid"))
class About:
    """What there is to know of a task; without effect on what it computes.

    Attributes:
        source: where its data come from: a citation, an address, the user's files, or made up by mlmx. What comes from the hub has
            its commit among the settings.
        licence: that of the data.
        metric: the main one of its scores, with its settings as the YAML has them; None where it is known only when it runs.
        direction: whether a ``higher`` or a ``lower`` value of it is better.
    """

    source: _Text
    licence: _Text
    metric: _Text | None
    direction: Literal["higher", "lower"]

    def __str__(self) -> str:
        metric = "" if self.metric is None else f"Main score: {self.metric} ({self.direction} is better). "
        return f"{metric}Data: {self.source}; licence: {self.licence}."


def about(task: Mapping[str, Any]) -> About | None:
    """Return what a task's node says of it; None if it says nothing.

    Raises:
        pydantic.ValidationError: if that is not what ``about_problems`` lets pass.
    """
    return TypeAdapter(About).validate_python(task["_about_"]) if "_about_" in task else None


def about_problems(task: Mapping[str, Any], where: str) -> Iterator[Problem]:
    """Yield what is wrong with what a task's node says of it.

    Args:
        task: the node.
        where: its place in the config.
    """
    try:
        about(task)
    except ValidationError as error:
        for detail in error.errors():
            yield Problem(".".join([where, "_about_", *map(str, detail["loc"])]), f"{detail['msg']}.")
