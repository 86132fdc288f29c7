"""What objectives made of objectives share: parts that train one encoder, each with its own inputs, heads and terms."""

# S rows

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

import numpy as np
from torch import Tensor

from mlmx.build import Unbuilt
from mlmx.data.batch import Batch, BatchContext, Collator, packed_batch
from mlmx.data.rows import CorpusInfo, TokenRows
from mlmx.data.vocabulary import RowLayout, Separator
from mlmx.errors import Problem, UserError, user_error
from mlmx.keyed import fold, stream
from mlmx.models.encoder import Encoder
from mlmx.objectives.objective import Objective, Output
from mlmx.objectives.views import sides_of, stacked
from mlmx.objectives.wrapper import WrappingCollator

PartSettings = TypeVar("PartSettings")


@dataclass(frozen=True, kw_only=True)
class CompositeCollator(Collator):
    """Makes the batches of those parts that a step trains; subclasses say which.

    The batch holds the rows as they are, and everything of part ``x`` under ``x/``: its tensors, among them ``x/input_ids``, its
    keys ``x/keys``, its counts.

    Attributes:
        parts: name -> the part's collator.
        view: what a row is: a pair if it is one to any part.
        separator: how the sides of a pair are joined.
    """

    parts: Mapping[str, Collator]
    view: Literal["segment", "pair"]
    separator: Separator

    @abstractmethod
    def active(self, context: BatchContext) -> Sequence[str]:
        """Return the parts that a step trains; the same for all processes."""

    def __call__(self, rows: TokenRows, context: BatchContext) -> Batch:
        whole = packed_batch(rows, context, counts={})
        tensors, counts, longest = dict(whole.tensors), dict(whole.counts), whole.max_seqlen
        for name in self.active(context):
            batch = self.parts[name](rows, context)
            tensors |= {f"{name}/{key}": tensor for key, tensor in {**batch.tensors, "keys": batch.keys}.items()}
            counts |= {f"{name}/{term}": count for term, count in batch.counts.items()}
            longest = max(longest, batch.max_seqlen)
        return replace(whole, tensors=tensors, counts=counts, max_seqlen=longest)


@dataclass(frozen=True, kw_only=True)
class OwnDraws(WrappingCollator):
    """Another collator's batches, with random choices of their own: independent of those that others make for the same rows.

    Attributes:
        name: what the choices are keyed by, beside the rows' keys and the seed.
    """

    name: str

    def arranged(self, rows: TokenRows, context: BatchContext) -> TokenRows:
        return super().arranged(rows, self._own(context))

    def __call__(self, rows: TokenRows, context: BatchContext) -> Batch:
        return super().__call__(rows, self._own(context))

    def _own(self, context: BatchContext) -> BatchContext:
        key = stream(self.name)
        return replace(context, keys=fold(context.keys, key), seed=int(fold(np.array([context.seed], np.int64), key)[0]))


@dataclass(frozen=True, kw_only=True)
class EachSide(Collator):
    """Another collator's batches of the sides of pairs, each in a row of its own.

    Attributes:
        collator: the other one, of segments.
        single: layout of a row with one side.
        num_sides: of an example.
    """

    collator: Collator
    single: RowLayout
    num_sides: int
    view: Literal["segment", "pair"] = "pair"

    def arranged(self, rows: TokenRows, context: BatchContext) -> TokenRows:
        return self.collator.arranged(*self._sides(rows, context))

    def __call__(self, rows: TokenRows, context: BatchContext) -> Batch:
        return self.collator(*self._sides(rows, context))

    def _sides(self, rows: TokenRows, context: BatchContext) -> tuple[TokenRows, BatchContext]:
        keys = np.concatenate([fold(context.keys, side) for side in range(self.num_sides)])
        return stacked(sides_of(rows, self.single, self.num_sides)), replace(context, keys=keys)


class Composite(Objective):
    """Objectives that train one encoder, in one training: one budget, one schedule, one optimiser, one order of the data.

    Each part corrupts the rows for itself and runs the encoder on what comes out. A step that does not train a part has none of its
    terms, and leaves the parameters that only this part has as they are: no gradient, so no decay either, and their moments wait.

    Attributes:
        names: of the parts, in order.
    """

    def __init__(self, encoder: Encoder, corpus: CorpusInfo, parts: Mapping[str, Unbuilt[Objective]]) -> None:
        """Build the parts around one encoder.

        Raises:
            UserError: if names are no identifiers, parts join pairs in different ways, one exports another encoder than they share,
                or draws the word embeddings that others train.
        """
        super().__init__()
        self.encoder = encoder
        self._num_sides = corpus.num_sides
        self.names = tuple(parts)
        head, keeps_head = encoder.head, False
        words = encoder.base.get_input_embeddings().weight
        are_trained = words.requires_grad
        for name, part in parts.items():
            # Who needs no language-model head drops it; it stays if any part needs it, with its weights.
            encoder.head = head
            built = part.build(encoder, corpus)
            self.add_module(f"part_{name}", built)
            keeps_head |= encoder.head is not None
            head = head if encoder.head is None else encoder.head
            if built.exported is not encoder:
                raise user_error(f"objective.parts.{name}.objective.export", "what parts share and is exported is the encoder.")
            if are_trained and not words.requires_grad and len(parts) > 1:
                message = "draws the word embeddings anew, which the other parts train; it can only be trained by itself."
                raise user_error(f"objective.parts.{name}.objective", message)
        encoder.head = head if keeps_head else None
        shares = self.shares(self.names, 0.0)
        self.weights = {
            f"{name}/{term}": shares[name] * weight for name, part in self.parts.items() for term, weight in part.weights.items()
        }
        self.batch_coupled = any(part.batch_coupled for part in self.parts.values())
        self._last_active: Sequence[str] = ()

    @staticmethod
    def check_settings(*, parts: Mapping[str, Any]) -> None:
        """Refuse to train nothing.

        Raises:
            UserError: if there is no part, or a name cannot be one.
        """
        given_parts(parts)

    @property
    def parts(self) -> dict[str, Objective]:
        """Name -> part."""
        return {name: self.get_submodule(f"part_{name}") for name in self.names}  # type: ignore[misc]

    @abstractmethod
    def shares(self, active: Sequence[str], progress: float) -> Mapping[str, float]:
        """Return, for each part that a batch is for, what the weights of its terms are multiplied by."""

    def part_collators(self) -> tuple[dict[str, Collator], Literal["segment", "pair"], Separator]:
        """Return the parts' collators for one kind of rows, and that kind: pairs if any part reads pairs."""
        collators = {name: part.collator() for name, part in self.parts.items()}
        of_pairs = [name for name, collator in collators.items() if collator.view == "pair"]
        if not of_pairs:
            return collators, "segment", "template"
        for name in of_pairs[1:]:
            first, other = (f"{one}: {collators[one].separator}" for one in (of_pairs[0], name))
            if collators[name].separator != collators[of_pairs[0]].separator:
                message = f"must join the sides of a pair in the same way (separator), not one so and one so: {first}; {other}."
                raise user_error("objective.parts", message)
        single = self.encoder.vocabulary.single
        read = {
            name: collator if name in of_pairs else EachSide(collator=collator, single=single, num_sides=self._num_sides)
            for name, collator in collators.items()
        }
        return read, "pair", collators[of_pairs[0]].separator

    def forward(self, batch: Batch) -> Output:
        terms: dict[str, Tensor] = {}
        metrics: dict[str, tuple[Tensor, Tensor]] = {}
        self._last_active = self.active(batch)
        for name in self._last_active:
            output = self.parts[name](part_of(batch, name))
            terms |= {f"{name}/{term}": value for term, value in output.terms.items()}
            metrics |= {f"{name}/{metric}": value for metric, value in output.metrics.items()}
        return Output(terms, metrics)

    def active(self, batch: Batch) -> list[str]:
        """Return the parts that a batch is for."""
        return [name for name in self.names if f"{name}/input_ids" in batch.tensors]

    def weights_of(self, batch: Batch) -> Mapping[str, float]:
        return {
            f"{name}/{term}": share * weight
            for name, share in self.shares(self.active(batch), batch.progress).items()
            for term, weight in self.parts[name].weights_of(part_of(batch, name)).items()
        }

    def flops(self, batch: Batch) -> int:
        each = [self.parts[name].flops(part_of(batch, name)) for name in self.active(batch)]
        return sum(each) if all(each) else 0

    def before_step(self) -> None:
        for part in self.parts.values():
            part.before_step()

    def after_step(self, step: int) -> None:
        for name in self._last_active:
            self.parts[name].after_step(step)


def part_of(batch: Batch, name: str) -> Batch:
    """Return what a composite's batch holds for one part."""
    prefix = f"{name}/"
    tensors = {key.removeprefix(prefix): tensor for key, tensor in batch.tensors.items() if key.startswith(prefix)}
    counts = {term.removeprefix(prefix): count for term, count in batch.counts.items() if term.startswith(prefix)}
    return replace(batch, keys=tensors.pop("keys"), tensors=tensors, counts=counts)


def given_parts(parts: Mapping[str, PartSettings | None]) -> dict[str, PartSettings]:
    """Return the parts that are not null.

    Raises:
        UserError: if none is left, or a name cannot be part of the names of terms and parameters.
    """
    given = {name: part for name, part in parts.items() if part is not None}
    problems = [
        Problem(f"objective.parts.{name}", "is no name for a part: letters, digits and _ are allowed, no digit first.")
        for name in given
        if not name.isidentifier()
    ]
    if not given:
        problems.append(Problem("objective.parts", "must have a part: name -> {objective: <an objective>, ...}."))
    if problems:
        raise UserError(problems)
    return given
