"""Linguistic entity masking."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import ConfigDict, Field

from mlmx.build import Ratio
from mlmx.data.rows import CorpusInfo
from mlmx.errors import Problem, UserError, nearest, user_error
from mlmx.masking.corrupt import Corruption
from mlmx.masking.entities import EntitiesFirst, UnitType
from mlmx.models.encoder import Encoder
from mlmx.objectives.masked import MaskedObjective, masked_collator, resolve_view
from mlmx.schedules import PredictedRatio

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class EntityType:
    """A kind of words that is masked first.

    Attributes:
        layer: the annotation layer that tells, ``entity`` or ``pos``.
        classes: names of classes in that layer.
        cap_ratio: at most ``max(1, round(cap_ratio * the type's tokens in the row))`` units of the type are selected before other
            words; 0 takes the type out.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    layer: Literal["entity", "pos"]
    classes: Annotated[tuple[str, ...], Field(min_length=1)]
    cap_ratio: Ratio


class LinguisticEntityMasking(MaskedObjective):
    """Predicts one piece each of named entities, verbs and nouns first, of other words with what is left of the budget (LEM).

    ``lem_mono`` reads segments, ``lem_para`` pairs; the paper runs one after the other. ``lem`` reads whatever the corpus has. The
    control is ``one_piece_per_word``.

    Source:
        LEM, arXiv:2501.05700 (KAIS 67(11), 2025); aloka-fernando/Linguistic-Entity-Masking-LEM, 7b3cda3^,
        ``lem_continual_pretraining_scripts/sa_train_{MLM,TLM}_with_ne_verb_noun_v7_*.py``.

    Terms:
        ``mlm``: sum over the selected tokens i of -log p(x_i | corrupted row), nats; the count is their number.

    Shapes:
        ``selected`` (P,), ``targets`` (P,): positions among the batch's packed tokens, and the ids that stood there;
        ``in_entities`` (P,) bool: whether the token's word has one of the types, for the metric ``selected_in_entities``.

    Deviations:
        The released code's backfill fills rows less than its budget says; ``parity: released_code`` reproduces it, ``paper``
        meets the budget. Its unit is the word (``rule: word``), the paper's the entity (``rule: span``). A type with a cap of
        0 is as if not listed, so that a noun inside a name may still count as a noun. Types come from an annotation stage, by
        example and word, where the released code looks whole sentences up and words that are not found vanish. Random tokens
        are never special ones. Positions start anew with the second side of a pair, as in ``tlm``, so that the two differ in
        nothing but what they mask; ``position_reset: false`` is the released code.

    Raises:
        UserError: if the corpus has no annotation or not the classes of ``types``, if ``view`` asks for pairs of a corpus that has
            none, or if a setting has no effect beside the others.
    """

    def __init__(
        self,
        encoder: Encoder,
        corpus: CorpusInfo,
        *,
        mask_ratio: PredictedRatio,
        count_specials: bool,
        types: Annotated[tuple[EntityType, ...], Field(min_length=1)],
        rule: Literal["word", "span"],
        order: Literal["shared", "by_type"],
        fill: Literal["backfill", "none"],
        parity: Literal["paper", "released_code"],
        corruption: Corruption,
        view: Literal["segment", "pair", "corpus"],
        position_reset: bool,
    ) -> None:
        """Choose what is masked first, and how the budget is filled.

        Args:
            encoder: what is trained.
            corpus: what it is trained on; annotated.
            mask_ratio: the budget is ``max(1, round(mask_ratio * length))`` tokens per row.
            count_specials: whether that length counts special tokens, as in the released code.
            types: kinds of words to mask first; a word belongs to the first one that fits.
            rule: one piece per ``word``, or one per entity ``span`` (other words stay units by themselves).
            order: types are ``shared``, all competing in one random order (released code), or go ``by_type``, as listed.
            fill: whether what is left of the budget goes to other words (``backfill``) or to none.
            parity: ``paper``: the backfill meets the budget; ``released_code``: it falls short as in the released code.
            corruption: parts of the selected tokens that are masked, replaced and kept; they sum to 1.
            view: a row is a ``segment``, a ``pair``, or what the ``corpus`` has: pairs where it is parallel.
            position_reset: whether positions start at 0 again with the second side of a pair; rows with one side are as they are.
        """
        self.check_settings(types=types, rule=rule, order=order, fill=fill, parity=parity)
        known = unit_types(types, corpus)
        if rule == "span" and not any(kind.layer == "entity" and kind.cap_ratio > 0 for kind in known):
            raise user_error("objective.rule", "'span' has no effect where no word is an entity of the types.")
        policy = EntitiesFirst(known, mask_ratio, count_specials, rule, order, fill, parity)
        collator = masked_collator(encoder, policy, corruption, view=resolve_view(view, corpus), position_reset=position_reset)
        super().__init__(encoder, collator)

    @staticmethod
    def check_settings(*, types: tuple[EntityType, ...], rule: str, order: str, fill: str, parity: str, **_: object) -> None:
        """Refuse settings without effect beside the others.

        Raises:
            UserError: with each of them.
        """
        problems = []
        if fill == "none" and parity == "released_code":
            message = "'released_code' concerns the backfill and has no effect with fill=none."
            problems.append(Problem("objective.parity", message))
        if order == "by_type" and len(types) == 1:
            problems.append(Problem("objective.order", "'by_type' has no effect with a single type."))
        kept = {kind.layer for kind in types if kind.cap_ratio > 0}
        if not kept:
            problems.append(Problem("objective.types", "no type is left: all caps are 0."))
        elif rule == "span" and "entity" not in kept:
            problems.append(Problem("objective.rule", "'span' has no effect without a type of layer 'entity'."))
        if problems:
            raise UserError(problems)


def unit_types(types: tuple[EntityType, ...], corpus: CorpusInfo) -> tuple[UnitType, ...]:
    """Return the types with the numbers that the corpus' annotation gives their classes.

    Classes that the annotation does not have are named in the log.

    Raises:
        UserError: if the corpus has no annotation, if its annotation has the layer of a type but none of the type's classes, or if
            no type is left.
    """
    if not corpus.tag_names:
        raise user_error("annotator", "this objective needs annotated words; choose one, such as annotator=gold.")
    problems, known = [], []
    for i, kind in enumerate(types):
        names = corpus.tag_names.get(kind.layer, ())
        numbers = frozenset(names.index(name) for name in kind.classes if name and name in names)
        absent = [name for name in kind.classes if not name or name not in names]
        if not names[1:]:
            log.warning("objective.types[%d]: the annotation has no layer %r; no word is masked first for it", i, kind.layer)
        elif not numbers:
            message = f"none of {list(kind.classes)} is a class of the annotation, which has {list(names[1:])}."
            problems.append(Problem(f"objective.types[{i}].classes", message, nearest(kind.classes[0], names[1:])))
        elif absent:
            log.warning("objective.types[%d]: the annotation has no class %s", i, ", ".join(map(repr, absent)))
        if numbers:
            known.append(UnitType(kind.layer, numbers, kind.cap_ratio))
    if not problems and not any(kind.cap_ratio > 0 for kind in known):
        problems.append(Problem("objective.types", "no type is left: the annotation lacks their layers, or all caps are 0."))
    if problems:
        raise UserError(problems)
    return tuple(known)
