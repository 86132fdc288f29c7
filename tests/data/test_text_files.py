from __future__ import annotations

import bz2
import gzip
import lzma
from pathlib import Path

import pytest

from mlmx.data.text_files import estimate_lines, find_files, format_of, read_lines
from mlmx.errors import UserError

TEXT = "first\nශ්‍රී ලංකාව\u2028same line\nlast"


@pytest.mark.parametrize("compress", [lambda b: b, gzip.compress, bz2.compress, lzma.compress, "zst"])
def test_lines_are_the_same_however_compressed(tmp_path: Path, compress) -> None:
    ending = {gzip.compress: ".gz", bz2.compress: ".bz2", lzma.compress: ".xz", "zst": ".zst"}.get(compress, "")
    path = tmp_path / f"a.txt{ending}"
    if compress == "zst":
        import pyarrow

        with pyarrow.output_stream(str(path), compression="zstd") as stream:
            stream.write(TEXT.encode())
    else:
        path.write_bytes(compress(TEXT.encode()))
    assert [line for _, line in read_lines(path)] == TEXT.split("\n")
    assert next(read_lines(path))[0] == f"{path}:1"
    assert format_of(path) == "txt"
    assert estimate_lines([path]) == 2


def test_byte_order_mark_and_carriage_returns_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfone\r\ntwo\r\n")
    assert [line for _, line in read_lines(path)] == ["one", "two"]


def test_empty_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.txt").touch()
    with pytest.raises(UserError, match=r"a\.txt: the file is empty"):
        list(read_lines(tmp_path / "a.txt"))


def test_bytes_that_are_not_utf8_are_named_by_line_and_byte(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"good\nba\xe9d\n")
    with pytest.raises(UserError, match=r"a\.txt:2: byte 3 of the line \(0xe9\) is not UTF-8"):
        list(read_lines(path))


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a folder; a file is needed"):
        list(read_lines(tmp_path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("text".encode("utf-16"), r"a\.txt: the file is UTF-16"),
        ("text".encode("utf-16-le"), r"a\.txt:1: holds NUL bytes"),
        (gzip.compress(b"text", mtime=0), r"a\.txt: the file is compressed by gzip; its name must end in \.gz"),
        (lzma.compress(b"text"), r"a\.txt: the file is compressed by xz"),
    ],
)
def test_what_is_no_utf8_text_is_recognised(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(UserError, match=message):
        list(read_lines(tmp_path / "a.txt"))


@pytest.mark.parametrize(
    "content", [gzip.compress(b"line\n" * 10000, mtime=0)[:-20], b"no gzip at all"], ids=["cut off", "no gzip"]
)
def test_broken_compression_is_the_users_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.gz").write_bytes(content)
    with pytest.raises(UserError, match="cannot be read on"):
        list(read_lines(tmp_path / "a.gz"))


def test_files_are_found_by_name_list_and_glob_in_order(tmp_path: Path) -> None:
    for name in ("b.txt", "a.txt", "[c].txt"):
        (tmp_path / name).write_text("x")
    assert [f.name for f in find_files(str(tmp_path / "*.txt"))] == ["[c].txt", "a.txt", "b.txt"]
    assert [f.name for f in find_files([str(tmp_path / "b.txt"), str(tmp_path / "a.*")])] == ["b.txt", "a.txt"]
    assert [f.name for f in find_files(str(tmp_path / "[c].txt"))] == ["[c].txt"]


def test_missing_files_are_all_named_with_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "corpus.txt").write_text("x")
    with pytest.raises(UserError) as caught:
        find_files([str(tmp_path / "corpsu.txt"), str(tmp_path / "*.tsv"), str(tmp_path), str(tmp_path / "no" / "a")])
    messages = [str(problem) for problem in caught.value.problems]
    assert len(messages) == 4
    assert "Did you mean" in messages[0]
    assert "corpus.txt" in messages[0]
    assert "no file matches" in messages[1]
    assert "is a folder" in messages[2]
    assert "folder does not exist" in messages[3]


def test_estimate_is_near_the_number_of_lines(tmp_path: Path) -> None:
    lines = "".join(f"line {i} of some length\n" for i in range(100_000))
    (tmp_path / "a.txt").write_text(lines)
    with gzip.open(tmp_path / "b.gz", "wt") as file:
        file.write(lines)
    assert estimate_lines([tmp_path / "a.txt"]) == pytest.approx(100_000, rel=0.05)
    assert estimate_lines([tmp_path / "b.gz"]) == pytest.approx(100_000, rel=0.5)
