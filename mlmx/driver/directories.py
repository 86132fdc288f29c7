"""Which directory belongs to a stage: its content gives it a fingerprint, and the fingerprint its place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlmx.driver.command import Group
from mlmx.driver.contents import Contents, pinned
from mlmx.driver.stages import place_of
from mlmx.errors import Problem, UserError
from mlmx.fingerprint import FORMAT, canonical_document, fingerprint_of
from mlmx.stage import Stage, StageDir

_SHORT = 8


@dataclass(frozen=True, eq=False)
class Placed:
    """A stage whose inputs were read: what it is called and where its files lie.

    Attributes:
        stage: what is to be done.
        document: everything the fingerprint covers.
        fingerprint: 64 hexadecimal digits.
        inputs: dotted setting -> content.
        parents: role -> the parent, placed.
        folder: where all stages lie.
    """

    stage: Stage
    document: Mapping[str, Any]
    fingerprint: str
    inputs: Mapping[str, Any]
    parents: Mapping[str, Placed]
    folder: Path

    @property
    def directory(self) -> StageDir:
        """The stage's directory; an equal stage that was given another name before is the same stage."""
        kind, short = self.stage.kind, self.fingerprint[:_SHORT]
        own = StageDir(self.folder / f"{kind}-{self.stage.name}-{short}")
        if own.config_path.exists():
            return own
        for path in sorted(self.folder.glob(f"{kind}-*-{short}")):
            other = StageDir(path)
            if other.finished and other.config()["fingerprint"] == self.fingerprint:
                return other
        return own

    @property
    def group(self) -> Group:
        """The processes that carry it out."""
        return Group.of(self.stage.kind, self.stage.execution["parallel"])

    @property
    def label(self) -> str:
        """What people are told."""
        return f"{self.stage.kind} {self.stage.name} {self.fingerprint[:_SHORT]}"

    def config(self, source: str) -> dict[str, Any]:
        """Return the content of ``config.yaml``.

        Args:
            source: hash of the source files that carry it out.
        """
        return {
            "format": FORMAT,
            "kind": self.stage.kind,
            "name": self.stage.name,
            "fingerprint": self.fingerprint,
            "spec": pinned(self.stage.spec, self.inputs),
            "parents": {role: parent.directory.path.name for role, parent in self.parents.items()},
            "inputs": dict(self.inputs),
            "source": source,
            "execution": dict(self.stage.execution),
        }


def place(stages: Sequence[Stage], outputs: Path) -> list[Placed]:
    """Read the inputs of stages and give each its directory.

    Args:
        stages: each after its parents.
        outputs: the folder of all results.

    Raises:
        UserError: if inputs do not exist.
    """
    contents = Contents(outputs / ".cache" / "contents.json")
    placed: dict[Stage, Placed] = {}
    problems: dict[str, Problem] = {}
    for stage in stages:
        inputs: Mapping[str, Any] = {}
        try:
            inputs = contents.inputs_of(stage.spec)
        except UserError as error:
            for problem in error.problems:
                told = Problem(place_of(stage, problem.where), problem.message, problem.nearest)
                problems[str(told)] = told
        parents = {role: placed[parent] for role, parent in stage.parents.items()}
        document = canonical_document(
            stage.kind, stage.spec, inputs, {role: parent.fingerprint for role, parent in parents.items()}
        )
        fingerprint = fingerprint_of(document)
        placed[stage] = Placed(stage, document, fingerprint, inputs, parents, outputs / "stages")
    if problems:
        raise UserError(list(problems.values()))
    contents.save()
    return list(placed.values())
