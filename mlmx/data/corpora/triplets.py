"""Sentences with one that belongs to them and one that does not."""

from __future__ import annotations

from typing import Literal

from mlmx.data.corpora.records import ColumnsCorpus
from mlmx.errors import user_error


class TripletCorpus(ColumnsCorpus):
    """Triplets for contrastive objectives: a sentence, a positive and a hard negative, in columns of TSV, JSONL or Parquet files.

    From natural language inference: a premise, what it entails, and what contradicts it. Other objectives read the sentences one by
    one. Two columns make pairs, as in ``corpus=parallel``, of one language.

    Args:
        path: a file, a glob, or a list of either.
        format: ``auto`` goes by the ending of the first file (``.tsv``, ``.jsonl``, ``.parquet``, before that of a compression).
        columns: names or indices of the columns with the sentence, its positive and its negative; without the third, pairs.
        header: whether the first line of a TSV file names the columns. Without effect on other files.
        language: the code of the language.
    """

    def __init__(
        self,
        *,
        path: str | list[str],
        format: Literal["auto", "tsv", "jsonl", "parquet"],  # noqa: A002 - the setting's name
        columns: list[str | int],
        header: bool,
        language: str,
    ) -> None:
        if len(columns) not in (2, 3):
            raise user_error("corpus.columns", f"{columns!r}: name the columns of a sentence, its positive and its negative.")
        super().__init__(path=path, file_format=format, columns=columns, header=header, side_languages=[language] * len(columns))
