"""Universal Dependencies treebanks."""

from __future__ import annotations

import re
from typing import Literal

from mlmx.data.corpora.sentences import Block, Sentence, SentenceFiles, columns_of
from mlmx.data.entity_schemes import OUTSIDE, Scheme
from mlmx.errors import user_error

_NUMBER = re.compile(r"\d+([-.]\d+)?")


class ConllUCorpus(SentenceFiles):
    """CoNLL-U files: sentences with their words and gold parts of speech (UPOS).

    A token of several syntactic words (German *zum* = *zu dem*) is one word here, with the part of speech of the first of them;
    empty nodes of enhanced graphs are left out. Spaces follow ``SpaceAfter``.

    Args:
        path: a file, a glob, or a list of either; compressed files (gz, bz2, xz, zst) are read as they are.
        language: the code of the language.
        entity_key: the key of the last column (MISC) that holds the entity of a word (``NER=B-PER``); null for none. Words without
            the key are no entities.
        entity_scheme: what entities are written in: ``iob1``, ``iob2``, ``iobes``, ``bilou``, or ``detect``, by the tags
            themselves. They are converted to IOB2; tags that contradict the scheme are counted and reported.
        language_key: the key of MISC that holds the language of a word, in code-mixed text (``Lang=hi``); null for none. Words
            without the key are in ``language``.
    """

    def __init__(
        self,
        *,
        path: str | list[str],
        language: str,
        entity_key: str | None,
        entity_scheme: Scheme | Literal["detect"],
        language_key: str | None,
    ) -> None:
        super().__init__(path=path, language=language, entity_scheme=entity_scheme)
        # Layer -> its key in MISC, and what a word without the key has.
        keys = {"entity": (entity_key, OUTSIDE), "language": (language_key, language)}
        self.keys = {layer: (key, default) for layer, (key, default) in keys.items() if key is not None}

    def read(self, block: Block) -> Sentence | None:
        sentence = Sentence(block[0][0], [], [], [], {"pos": [], **{layer: [] for layer in self.keys}})
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
            is_token = "-" in number
            if is_token or int(number) > covered_until:
                _check_words_of_token(sentence)
                sentence.words.append(form)
                sentence.places.append(where)
                sentence.spaces.append(features.get("SpaceAfter") != "No")
            if is_token:
                covered_until = int(number.split("-")[1])
            elif len(sentence.tags["pos"]) < len(sentence.words):
                # The first syntactic word of a token gives the token its tags.
                sentence.tags["pos"].append(upos)
                for layer, (key, default) in self.keys.items():
                    sentence.tags[layer].append(features.get(key) or default)
        _check_words_of_token(sentence)
        return sentence if sentence.words else None


def _check_words_of_token(sentence: Sentence) -> None:
    if len(sentence.tags["pos"]) < len(sentence.words):
        raise user_error(sentence.places[-1], "the words that this token consists of do not follow.")
