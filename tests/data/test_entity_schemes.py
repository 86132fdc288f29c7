from __future__ import annotations

import logging

import numpy as np
import pytest

from mlmx.data.entity_schemes import EntityTags, detect, iob2_label, scheme_of
from mlmx.errors import UserError

IOB2 = ["B-PER", "I-PER", "B-PER", "O", "B-LOC", "B-LOC", "I-LOC", "O", "O", "B-PER"]
WRITTEN = {
    "iob1": "I-PER I-PER B-PER O I-LOC B-LOC I-LOC O O I-PER",
    "iob2": "B-PER I-PER B-PER O B-LOC B-LOC I-LOC O O B-PER",
    "iobes": "B-PER E-PER S-PER O S-LOC B-LOC E-LOC O O S-PER",
    "bilou": "B-PER L-PER U-PER O U-LOC B-LOC L-LOC O O U-PER",
}


def read(scheme: str, text: str) -> tuple[list[str], EntityTags]:
    tags = EntityTags(scheme)
    return tags.read(text.split(), [f"a:{i}" for i in range(1, len(text.split()) + 1)]), tags


@pytest.mark.parametrize("scheme", WRITTEN)
def test_every_scheme_is_detected_and_says_the_same(scheme):
    assert detect([WRITTEN[scheme].split()]) == scheme
    converted, tags = read(scheme, WRITTEN[scheme])
    assert converted == IOB2
    assert tags.num_contradictions == 0


def encode(tags: list[str], scheme: str) -> list[str]:
    # IOB2 to a scheme, word by word from its definition.
    written = []
    for i, tag in enumerate(tags):
        prefix, _, name = tag.partition("-")
        goes_on = i + 1 < len(tags) and tags[i + 1] == f"I-{name}"
        after_same = i > 0 and tags[i - 1].partition("-")[2] == name
        if tag == "O":
            written.append("O")
        elif scheme == "iob1":
            written.append(f"{'B' if prefix == 'B' and after_same else 'I'}-{name}")
        elif scheme == "iob2":
            written.append(tag)
        else:
            begin_end_single = "BES" if scheme == "iobes" else "BLU"
            kind = begin_end_single[2] if prefix == "B" and not goes_on else "B" if prefix == "B" else "I"
            written.append(f"{kind if prefix == 'B' or goes_on else begin_end_single[1]}-{name}")
    return written


@pytest.mark.parametrize("scheme", WRITTEN)
def test_random_sentences_come_back(scheme):
    rng = np.random.default_rng(0)
    for _ in range(200):
        tags, before = [], ""
        for draw in rng.choice(["O", "B-A", "B-b-A", "I"], 12):
            tag = (f"I-{before}" if before else "O") if draw == "I" else str(draw)
            before = tag.partition("-")[2]
            tags.append(tag)
        converted, read_tags = read(scheme, " ".join(encode(tags, scheme)))
        assert converted == tags
        assert read_tags.num_contradictions == 0


@pytest.mark.parametrize(
    ("scheme", "written", "expected", "number", "first"),
    [
        ("iob1", "O B-X I-X", "O B-X I-X", 1, "a:2"),
        ("iob2", "O I-X I-Y I-Y", "O B-X B-Y I-Y", 2, "a:2"),
        ("iobes", "S-X I-X O", "B-X B-X O", 2, "a:2"),  # continues nothing, and is never closed
        ("iobes", "B-X S-X", "B-X B-X", 1, "a:2"),
        ("iobes", "B-X I-X", "B-X I-X", 1, "a:2"),
        ("bilou", "B-X L-Y U-X", "B-X B-Y B-X", 1, "a:2"),
    ],
)
def test_contradictions_are_read_as_beginnings_and_counted(scheme, written, expected, number, first, caplog):
    converted, tags = read(scheme, written)
    assert converted == expected.split()
    assert (tags.num_contradictions, tags.first_contradiction) == (number, first)
    with caplog.at_level(logging.WARNING):
        tags.report("a")
    assert f"a: {number} entity tags contradict {scheme.upper()}, the first at {first}" in caplog.text


@pytest.mark.parametrize(
    ("scheme", "tag", "message"),
    [
        ("iob2", "PER", r"a:2: 'PER' is no entity tag of IOB2, which has O, B-X, I-X\.$"),
        ("iob2", "S-PER", r"a:2: 'S-PER' is no entity tag of IOB2, which has O, B-X, I-X; entity_scheme=iobes has it\.$"),
        ("iobes", "L-PER", "entity_scheme=bilou has it"),
        ("iobes", "M-PER", "which has O, B-X, I-X, E-X, S-X"),
        ("bilou", "B-", "'B-' is no entity tag"),
        ("iob1", "o", "'o' is no entity tag"),
    ],
)
def test_tags_of_no_scheme(scheme, tag, message):
    with pytest.raises(UserError, match=message):
        read(scheme, f"O {tag}")


def test_labels_of_a_tagger():
    assert scheme_of(["O", "B-PER", "I-PER"]) == "iob2"
    assert scheme_of(["O", "B-PER", "I-PER", "E-PER", "S-PER"]) == "iobes"
    assert scheme_of(["O", "B-PER", "L-PER", "U-PER"]) == "bilou"
    assert scheme_of(["O", "PER", "B-PER"]) is None
    assert scheme_of(["O"]) is None
    assert [iob2_label(tag, "iobes") for tag in ("O", "B-X", "I-X", "E-X", "S-X")] == ["O", "B-X", "I-X", "I-X", "B-X"]
