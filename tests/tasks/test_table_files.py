from __future__ import annotations

import bz2
import gzip
import lzma

import pytest

from mlmx.errors import UserError
from mlmx.tasks.table_files import read_columns, read_records


@pytest.mark.parametrize(
    ("suffix", "compress"), [("", bytes), (".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress)]
)
def test_all_formats_give_the_same_records(tmp_path, suffix, compress):
    contents = {
        ".jsonl": '{"text": "a \\"b\\"", "label": 1, "x": null}\n\n\t\n{"label": 2, "text": "c"}\n',
        ".tsv": '\ufefftext\tx\tlabel\na "b"\t\t1\nc\t\t2\n',
        ".csv": 'label,text\r\n1,"a ""b"""\r\n2,c\r\n',
    }
    for kind, content in contents.items():
        path = tmp_path / f"data{kind}{suffix}"
        path.write_bytes(compress(content.encode()))
        assert [record for _, record in read_records(path, ["text", "label"])] == [
            {"text": 'a "b"', "label": "1"},
            {"text": "c", "label": "2"},
        ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": 1}\n{"txt": 1}\n', r"a.jsonl:2: no column 'text'; there are 'txt'. Did you mean 'txt'\?"),
        ("a.jsonl", b'{"text": 1}\n[1]\n', "a.jsonl:2: is a JSON list"),
        ("a.jsonl", b"{\n", "a.jsonl:1: is not JSON"),
        ("a.tsv", b"txt\tlabel\nx\ty\n", r"a.tsv:1: no column 'text'; there are 'txt', 'label'"),
        (
            "a.tsv",
            b"text,label\nx,y\n",
            "there are 'text,label'. Are the columns separated by something else",
        ),
        ("a.tsv", b"text\ttext\nx\ty\n", "a.tsv:1: several columns are called 'text'"),
        ("a.tsv", b"text\tlabel\nx\ty\tz\n", "a.tsv:2: 3 fields, but there are 2 columns: text, label"),
        ("a.jsonl", b'{"text": ["a"]}\n', "a.jsonl:1: column 'text' holds a list; a text, a number or a boolean is needed"),
        ("a.jsonl", b'{"text": "\\ud83d"}\n', "a.jsonl:1: column 'text' holds half of a surrogate pair"),
        ("a.tsv", b"text\tlabel\nx\n", "a.tsv:2: 1 fields, but there are 2 columns: text, label"),
        ("a.tsv", b"text\nx\n\xff\n", "a.tsv:3: byte 1 of the line .* is not UTF-8"),
        ("a.tsv", b"", "a.tsv: the file is empty"),
        ("a.tsv", b"\n \n", "a.tsv: the file is empty"),
        ("a.csv", b'text\nx\n"y\nz\n', "a.csv:4: is not CSV: .* is a quotation mark not closed"),
        ("a.txt", b"x", "a.txt: unknown format"),
        ("a.jsonl.gz", b"x", "a.jsonl.gz:1: cannot be read on"),
    ],
)
def test_bad_input_is_told_with_file_and_line(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        list(read_records(tmp_path / name, ["text"]))


def test_blank_lines_are_no_rows_but_may_stand_in_a_field_of_csv(tmp_path):
    (tmp_path / "a.csv").write_text('text,label\n\n"one\n\ntwo",1\n,\n  \n')
    assert [(where[-5:], record["text"]) for where, record in read_records(tmp_path / "a.csv", ["text", "label"])] == [
        ("csv:5", "one\n\ntwo"),
        ("csv:6", ""),
    ]
    (tmp_path / "a.tsv").write_text("text\tlabel\n\n\t\nx\ty\n")
    assert [record["text"] for _, record in read_records(tmp_path / "a.tsv", ["text", "label"])] == ["", "x"]


def test_what_json_has_besides_texts_becomes_text(tmp_path):
    (tmp_path / "a.jsonl").write_text("".join(f'{{"text": {value}}}\n' for value in ("1", "2.5", "true", "null", "NaN")))
    assert [record["text"] for _, record in read_records(tmp_path / "a.jsonl", ["text"])] == ["1", "2.5", "true", "", ""]


def test_missing_file_and_missing_field(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        list(read_columns(tmp_path / "none.tsv", 2))
    (tmp_path / "a.tsv").write_text("1\tone\ttwo\n2\n")
    with pytest.raises(UserError, match=r"a.tsv:2: 2 fields separated by tabs are expected, found 1"):
        list(read_columns(tmp_path / "a.tsv", 2))


def test_a_field_may_be_long(tmp_path):
    (tmp_path / "a.tsv").write_text("text\n" + 200_000 * "x")
    assert [len(record["text"]) for _, record in read_records(tmp_path / "a.tsv", ["text"])] == [200_000]
