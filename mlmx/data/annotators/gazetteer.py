"""Names by list."""

from __future__ import annotations

from collections.abc import Sequence

from mlmx.data.corpus import Annotation, Annotator, Segment
from mlmx.data.text_files import find_files, read_lines
from mlmx.data.words import split_words
from mlmx.errors import user_error

_Names = dict[str, set[tuple[str, ...]]]
"""First word -> the names that begin with it, as words."""


class GazetteerAnnotator(Annotator):
    """Finds the names of a list, the longest first. A word in no name is not annotated (the list does not know it).

    Args:
        paths: language -> file or files, one name a line. Languages that are not named stay without annotation.
        columns: language -> index of the tab-separated column with the name, 0 if not named (a bilingual list has two).
        entity_class: the class of all names in the lists, such as ``PER``.
        fold_case: whether upper and lower case are the same.
        min_characters: shorter names are left out.
    """

    def __init__(
        self,
        *,
        paths: dict[str, str | list[str]],
        columns: dict[str, int],
        entity_class: str,
        fold_case: bool,
        min_characters: int,
    ) -> None:
        if not paths:
            raise user_error("annotator.paths", "names no list: paths={<language>: <file>}.")
        self.layers = ("entity",)
        self.entity_class = entity_class
        self.fold_case = fold_case
        self.min_characters = min_characters
        self.names = {language: self._load(path, language, columns.get(language, 0)) for language, path in paths.items()}

    def annotate(self, segments: Sequence[Segment]) -> list[Annotation]:
        annotations = []
        for segment in segments:
            words = split_words(segment.text) if segment.words is None else segment.words
            tags: list[str | None] = [None] * len(words)
            for first, last in self._matches([segment.text[start:end] for start, end in words], segment.language):
                tags[first : last + 1] = [f"B-{self.entity_class}"] + [f"I-{self.entity_class}"] * (last - first)
            annotations.append(Annotation(words, {"entity": tags}))
        return annotations

    def _matches(self, words: Sequence[str], language: str) -> list[tuple[int, int]]:
        # First and last word of each name, left to right. A word may itself be cut (``U.S.``): names begin and end at words.
        names = self.names.get(language, {})
        units = [(unit, number) for number, word in enumerate(words) for unit in self._units(word)]
        found: list[tuple[int, int]] = []
        position = 0
        while position < len(units):
            length = 0
            if position == 0 or units[position - 1][1] != units[position][1]:
                for name in names.get(units[position][0], ()):
                    end = position + len(name)
                    ends_word = end == len(units) or (end < len(units) and units[end][1] != units[end - 1][1])
                    if len(name) > length and ends_word and tuple(unit for unit, _ in units[position:end]) == name:
                        length = len(name)
            if length:
                found.append((units[position][1], units[position + length - 1][1]))
            position += max(length, 1)
        return found

    def _units(self, text: str) -> list[str]:
        folded = text.casefold() if self.fold_case else text
        return [folded[start:end] for start, end in split_words(folded)]

    def _load(self, path: str | list[str], language: str, column: int) -> _Names:
        names: _Names = {}
        for file in find_files(path, f"annotator.paths.{language}"):
            for where, line in read_lines(file):
                if not line.strip():
                    continue
                columns = line.split("\t")
                if column >= len(columns):
                    raise user_error(where, f"has {len(columns)} columns, so that column {column} is missing.")
                units = tuple(self._units(columns[column]))
                if units and len(columns[column].strip()) >= self.min_characters:
                    names.setdefault(units[0], set()).add(units)
        return names
