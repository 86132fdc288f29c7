"""Make a word -> tag dictionary out of tagged text, for `annotator=dictionary`.

    python scripts/tag_dictionary.py train.conllu.gz > en.tsv
    python scripts/tag_dictionary.py --token-column 0 --tag-column 1 parts/*.conll.gz > si.tsv

Writes one line a word, `word<TAB>tag<TAB>count`, with its most frequent tag. A CoNLL-U file is read by its FORM and UPOS columns.
"""

from __future__ import annotations

import argparse
import gzip
import sys
from collections import Counter, defaultdict
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", nargs="+", type=Path)
    parser.add_argument("--token-column", type=int, default=1, help="from 0; the default is CoNLL-U's FORM")
    parser.add_argument("--tag-column", type=int, default=3, help="from 0; the default is CoNLL-U's UPOS")
    parser.add_argument("--lowercase", action="store_true", help="fold the case of words")
    settings = parser.parse_args()

    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for path in settings.path:
        opener = gzip.open if path.suffix == ".gz" else open
        with opener(path, "rt", encoding="utf-8") as lines:
            for line in lines:
                columns = line.rstrip("\n").split("\t")
                if len(columns) <= max(settings.token_column, settings.tag_column):
                    continue  # a comment or a blank line
                if settings.token_column > 0 and not columns[0].isdecimal():
                    continue  # CoNLL-U's ranges (1-2) and empty nodes (1.1) hold no word of their own
                word = columns[settings.token_column]
                counts[word.lower() if settings.lowercase else word][columns[settings.tag_column]] += 1
    for word in sorted(counts):
        tag, count = max(counts[word].items(), key=lambda item: (item[1], item[0]))
        sys.stdout.write(f"{word}\t{tag}\t{count}\n")


if __name__ == "__main__":
    main()
