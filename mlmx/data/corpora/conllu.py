"""Universal Dependencies treebanks."""

from __future__ import annotations

import re
from collections.abc import Iterator

from mlmx.data.corpora.sentences import Block, columns_of, join_words, read_blocks
from mlmx.data.corpus import Corpus, Example, Segment
from mlmx.data.text_files import find_files
from mlmx.errors import user_error

NO_WORDS = "sentence without words"
_NUMBER = re.compile(r"\d+([-.]\d+)?")


class ConllUCorpus(Corpus):
    """CoNLL-U files: sentences with their words and gold parts of speech (UPOS).

    A token of several syntactic words (German *zum* = *zu dem*) is one word here, with the part of speech of the first of them;
    empty nodes of enhanced graphs are left out. Spaces follow ``SpaceAfter``.

    Args:
        path: a file, a glob, or a list of either; compressed files (gz, bz2, xz, zst) are read as they are.
        language: the code of the language.
        entity_key: the key of the last column (MISC) that holds the entity of a word in IOB2 (``NER=B-PER``); null for none. Words
            without the key are no entities.
    """

    def __init__(self, *, path: str | list[str], language: str, entity_key: str | None) -> None:
        self.path = path
        self.entity_key = entity_key
        self.parallel = False
        self.languages = (language,)
        self.skipped = {}

    def examples(self) -> Iterator[Example]:
        self.skipped = {}
        for file in find_files(self.path):
            for block in read_blocks(file):
                if (example := self._example(block)) is not None:
                    yield example
                else:
                    self.skipped[NO_WORDS] = self.skipped.get(NO_WORDS, 0) + 1

    def _example(self, block: Block) -> Example | None:
        words: list[str] = []
        spaces: list[bool] = []
        tags: dict[str, list[str]] = {"pos": [], "entity": []}
        covered_until = 0
        needed = [("ID", 0), ("FORM", 1), ("UPOS", 3), ("MISC", 9)]
        for where, line in block:
            if line.startswith("#"):
                continue
            columns = columns_of(where, line, lambda text: text.split("\t"), needed)
            number, form, upos, misc = columns[0], columns[1], columns[3], columns[9]
            if not _NUMBER.fullmatch(number):
                raise user_error(where, f"{number!r} is no word's number (1, 1-2 or 1.1), so this is no CoNLL-U.")
            if "." in number:
                continue
            if not form.strip():
                raise user_error(where, "the word has no FORM (second column).")
            features = dict(item.partition("=")[::2] for item in misc.split("|"))
            if "-" in number:
                covered_until = int(number.split("-")[1])
                words.append(form)
                spaces.append(features.get("SpaceAfter") != "No")
                continue
            if int(number) > covered_until:
                words.append(form)
                spaces.append(features.get("SpaceAfter") != "No")
            if len(tags["pos"]) < len(words):
                # The first syntactic word of a token gives the token its tags.
                tags["pos"].append(upos)
                tags["entity"].append(features.get(self.entity_key or "", "O") or "O")
        if not words:
            return None
        if self.entity_key is None:
            del tags["entity"]
        text, spans = join_words(words, spaces)
        return Example(block[0][0], (Segment(text, self.languages[0], spans, tags),))
