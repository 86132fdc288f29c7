"""The schemes that entity tags are written in, and their conversion to IOB2."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Literal, get_args

from mlmx.errors import user_error

log = logging.getLogger(__name__)

Scheme = Literal["iob1", "iob2", "iobes", "bilou"]
OUTSIDE = "O"

# The prefixes of a scheme by what they say in IOBES: begin, inside, end, single.
_ROLES: dict[Scheme, dict[str, str]] = {
    "iob1": {"B": "B", "I": "I"},
    "iob2": {"B": "B", "I": "I"},
    "iobes": {"B": "B", "I": "I", "E": "E", "S": "S"},
    "bilou": {"B": "B", "I": "I", "L": "E", "U": "S"},
}


def iob2_label(tag: str, scheme: Scheme) -> str:
    """Return a tag by itself as one of IOB2: a single one begins, an end is inside."""
    prefix, _, name = tag.partition("-")
    return tag if tag == OUTSIDE else f"{'B' if _ROLES[scheme][prefix] in 'BS' else 'I'}-{name}"


def scheme_of(tags: Iterable[str]) -> Scheme | None:
    """Return the first of IOB2, IOBES and BILOU that has all these tags, None if none has or there is no entity among them."""
    distinct = {tag for tag in tags if tag != OUTSIDE}
    schemes: tuple[Scheme, ...] = ("iob2", "iobes", "bilou")
    return next((scheme for scheme in schemes if distinct and all(_is_tag(tag, scheme) for tag in distinct)), None)


def detect(sentences: Iterable[Sequence[str]]) -> Scheme:
    """Return the scheme of tagged sentences: by their prefixes, and for IOB1 by where entities begin.

    IOB1 writes ``B-`` only where an entity follows another one of its class at once, IOB2 wherever one begins. Tags that no scheme
    has are not looked at: reading them is an error.
    """
    prefixes: set[str] = set()
    begins_with_i = begins_with_b = False
    for tags in sentences:
        before = ""
        for tag in tags:
            prefix, _, name = tag.partition("-")
            prefixes.add(prefix)
            if name != before:
                begins_with_i |= prefix == "I"
                begins_with_b |= prefix == "B"
            before = name
    if prefixes & {"E", "S"}:
        return "iobes"
    if prefixes & {"L", "U"}:
        return "bilou"
    return "iob1" if begins_with_i and not begins_with_b else "iob2"


class EntityTags:
    """Reads the entity tags of a source as IOB2.

    A tag that contradicts the scheme, such as an ``I-`` that continues nothing, is read as the evaluation of CoNLL-2000 does: what
    does not continue an entity begins one. Such tags are counted.

    Attributes:
        num_contradictions: how many tags contradicted the scheme.
        first_contradiction: where the first of them stands.

    Args:
        scheme: what the tags are written in.
    """

    def __init__(self, scheme: Scheme) -> None:
        self.scheme: Scheme = scheme
        self.num_contradictions = 0
        self.first_contradiction = ""

    def read(self, tags: Sequence[str], places: Sequence[str]) -> list[str]:
        """Return the tags of a sentence in IOB2.

        Args:
            tags: one per word.
            places: where each stands, for messages.

        Raises:
            UserError: for a tag that the scheme does not have.
        """
        converted: list[str] = []
        before = ""
        is_open = must_close = False
        for tag, place in zip(tags, places, strict=True):
            role, name = self._parts(tag, place)
            continues = is_open and name == before and role in ("I", "E")
            self._count(place, contradicts=self._contradicts(role, name, before, continues=continues, must_close=must_close))
            converted.append(OUTSIDE if role == OUTSIDE else f"{'I' if continues else 'B'}-{name}")
            before = name
            is_open = role in ("B", "I")
            must_close = is_open and self.scheme in ("iobes", "bilou")
        if must_close:
            self._count(places[-1], contradicts=True)
        return converted

    def report(self, source: str) -> None:
        """Say how the tags of a source were read, where that is not plain IOB2."""
        if self.scheme != "iob2":
            log.warning("%s: entity tags are read as %s", source, self.scheme.upper())
        if self.num_contradictions:
            message = "%s: %d entity tags contradict %s, the first at %s; what continues no entity begins one"
            log.warning(message, source, self.num_contradictions, self.scheme.upper(), self.first_contradiction)

    def _parts(self, tag: str, place: str) -> tuple[str, str]:
        if tag == OUTSIDE:
            return OUTSIDE, ""
        if not _is_tag(tag, self.scheme):
            told = ", ".join(f"{prefix}-X" for prefix in _ROLES[self.scheme])
            others = [scheme for scheme in get_args(Scheme) if _is_tag(tag, scheme)]
            hint = f"; entity_scheme={others[0]} has it" if others else ""
            raise user_error(place, f"{tag!r} is no entity tag of {self.scheme.upper()}, which has O, {told}{hint}.")
        prefix, _, name = tag.partition("-")
        return _ROLES[self.scheme][prefix], name

    def _contradicts(self, role: str, name: str, before: str, *, continues: bool, must_close: bool) -> bool:
        if self.scheme == "iob1":
            return role == "B" and name != before
        return (role in ("I", "E") and not continues) or (must_close and not continues)

    def _count(self, place: str, *, contradicts: bool) -> None:
        if contradicts:
            self.num_contradictions += 1
            self.first_contradiction = self.first_contradiction or place


def _is_tag(tag: str, scheme: Scheme) -> bool:
    prefix, separator, name = tag.partition("-")
    return tag == OUTSIDE or (prefix in _ROLES[scheme] and bool(separator and name))
