"""Whoever kills a preparation or an annotation, whenever: typed again it goes on, and ends as if nothing had been."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sample import ListCorpus, monolingual, tokenizer

from mlmx.data import annotate, arrays, prepare, progress
from mlmx.data.annotate import annotate_store
from mlmx.data.annotators.gold import GoldAnnotator
from mlmx.data.arrays import ArrayWriter
from mlmx.data.corpora.text import TextCorpus
from mlmx.data.corpus import Annotation, Example, Segment
from mlmx.data.encoding import PieceEncoder
from mlmx.data.journal import Journal
from mlmx.data.prepare import prepare_corpus
from mlmx.data.progress import progress_bar
from mlmx.data.store import TokenStore
from mlmx.errors import UserError

TOKENIZER = tokenizer("wordpiece")
NAMES = ("Silva", "Colombo", "Kandy", "Sri Lanka")


class Killed(BaseException):
    """What no code catches."""


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small batches, each saved; no power cut is tried, so nothing waits for the disk."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    monkeypatch.setattr(prepare, "_BATCH_EXAMPLES", 4)
    monkeypatch.setattr(annotate, "_BATCH_SEGMENTS", 4)
    monkeypatch.setattr(arrays, "_SECONDS_BETWEEN_SAVES", 0.0)


def corpus(num_examples: int = 30) -> ListCorpus:
    """Return examples with and without gold tags, with layers that begin late, and some without tokens."""
    examples = []
    for i in range(num_examples):
        name = NAMES[i * 7 % 4]
        segment = Segment(f"{name} is {i}", "en", [(0, len(name)), (len(name) + 1, len(name) + 3)], {})
        if i > 5:
            segment = replace(segment, tags={"pos": ["PROPN", f"X{i % 3}"]} | ({"entity": ["B-LOC", "O"]} if i > 14 else {}))
        examples.append(Example(f"memory:{i}", (segment if i % 9 else Segment("  ", "en"),)))
    return ListCorpus(examples, ("en",), num_sides=1)


def prepared(folder: Path, source: ListCorpus | None = None, identity: str | None = "a") -> dict[str, bytes]:
    prepare_corpus(corpus() if source is None else source, TOKENIZER, folder, identity=identity, show_progress=False)
    return files(folder)


def files(folder: Path) -> dict[str, bytes]:
    assert not folder.with_name(f"{folder.name}.partial").exists()
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def kill_at(
    monkeypatch: pytest.MonkeyPatch, owner: object, name: str, call: int, before: Callable[..., None] | None = None
) -> None:
    """Let a function raise at its n-th call, instead of doing its work."""
    original = getattr(owner, name)
    calls = iter(range(1, 1000))

    def strike(*arguments: object) -> object:
        if next(calls) != call:
            return original(*arguments)
        if before is not None:
            before(*arguments)
        raise Killed

    monkeypatch.setattr(owner, name, strike)


def write_half(writer: ArrayWriter, name: str, values: np.ndarray) -> None:
    file = writer._partial / f"{name}.bin"
    with file.open("ab") as half:
        half.write(values.tobytes()[: values.nbytes // 2] + b"\xff")


MOMENTS = [
    *((ArrayWriter, "append", call, write_half) for call in (1, 6, 20, 60, 77)),
    *((Journal, "add", call, None) for call in (1, 3, 8)),
    (arrays, "write_atomically", 1, None),
    (arrays, "sync_folder", 1, None),
]


@pytest.mark.parametrize(("owner", "name", "call", "before"), MOMENTS, ids=lambda value: getattr(value, "__name__", value))
def test_killed_preparation_goes_on(owner, name, call, before, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    undisturbed = prepared(tmp_path / "undisturbed")
    with monkeypatch.context() as patch:
        kill_at(patch, owner, name, call, before)
        with pytest.raises(Killed):
            prepared(tmp_path / "data")
    assert prepared(tmp_path / "data") == undisturbed


@pytest.mark.parametrize("call", [1, 4, 9, 14])
def test_killed_annotation_goes_on(call: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared(tmp_path / "data")
    store, annotator = TokenStore.open(tmp_path / "data"), GoldAnnotator(tag_map={})
    annotate_store(store, annotator, tmp_path / "undisturbed", identity="a", show_progress=False)
    with monkeypatch.context() as patch:
        kill_at(patch, ArrayWriter, "append", call, write_half)
        with pytest.raises(Killed):
            annotate_store(store, annotator, tmp_path / "tags", identity="a", show_progress=False)
    asked: list[Segment] = []

    class Asked(GoldAnnotator):
        def annotate(self, segments: list[Segment]) -> list[Annotation]:
            asked.extend(segments)
            return super().annotate(segments)

    annotate_store(store, Asked(tag_map={}), tmp_path / "tags", identity="a", show_progress=False)
    assert files(tmp_path / "tags") == files(tmp_path / "undisturbed")
    # Three arrays are appended per batch of four.
    assert len(asked) == store.num_segments - 4 * ((call - 1) // 3)


def test_what_was_tokenised_is_not_tokenised_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with monkeypatch.context() as patch:
        kill_at(patch, Journal, "add", 6)
        with pytest.raises(Killed):
            prepared(tmp_path / "data")
    encoded: list[str] = []
    original = PieceEncoder.encode
    monkeypatch.setattr(PieceEncoder, "encode", lambda self, texts: (encoded.extend(texts), original(self, texts))[1])
    prepared(tmp_path / "data")
    assert caplog.messages == ["goes on after 20 examples that are tokenised already"]
    assert encoded[0].endswith(" is 20")


KILLING = """
import os, signal, sys
from pathlib import Path
from mlmx.data import arrays, prepare
from mlmx.data.corpora.text import TextCorpus
from transformers import PreTrainedTokenizerFast

class Deadly(TextCorpus):
    def examples(self):
        for number, example in enumerate(super().examples()):
            if number == 57:
                os.kill(os.getpid(), signal.SIGKILL)
            yield example

prepare._BATCH_EXAMPLES, arrays._SECONDS_BETWEEN_SAVES = 20, 0.0
text, folder, data = sys.argv[1:]
tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
prepare.prepare_corpus(Deadly(path=text, language="en"), tokenizer, Path(data), identity="a")
"""


def test_kill_minus_nine(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    text = tmp_path / "a.txt"
    text.write_text("".join(f"Ms Silva went to Kandy {i} times\n\n" for i in range(80)))
    TOKENIZER.save_pretrained(tmp_path / "tokenizer")
    command = [sys.executable, "-c", KILLING, str(text), str(tmp_path / "tokenizer"), str(tmp_path / "data")]
    done = subprocess.run(command, env={**os.environ, "HF_HUB_OFFLINE": "1"}, check=False)
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "data").exists()
    source = TextCorpus(path=str(text), language="en")
    resumed = prepare_corpus(source, TOKENIZER, tmp_path / "data", identity="a")
    assert caplog.messages == ["goes on after 40 examples that are tokenised already"]
    assert resumed == prepare_corpus(source, TOKENIZER, tmp_path / "undisturbed", identity="a")
    assert resumed["skipped"] == {"blank": 80}
    assert files(tmp_path / "data") == files(tmp_path / "undisturbed")


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def flip_first(path: Path) -> None:
    path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])


@pytest.mark.parametrize("damage", [truncate, flip, flip_first, Path.unlink])
@pytest.mark.parametrize("name", ["pieces.bin", "text_offsets.bin", "journal.jsonl"])
def test_damage_is_noticed_and_made_anew(
    damage: Callable[[Path], None], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    undisturbed = prepared(tmp_path / "undisturbed")
    with monkeypatch.context() as patch:
        kill_at(patch, Journal, "add", 7)
        with pytest.raises(Killed):
            prepared(tmp_path / "data")
    # What follows the last save is cut off in any case.
    lines = (tmp_path / "data.partial" / "journal.jsonl").read_bytes().splitlines()
    for array, written in json.loads(lines[-1][9:])["arrays"].items():
        os.truncate(tmp_path / "data.partial" / f"{array}.bin", written["num_bytes"])
    damage(tmp_path / "data.partial" / name)
    assert prepared(tmp_path / "data") == undisturbed
    # A journal that lacks its last line or all of them is what a kill leaves behind, too.
    assert (f"data.partial/{name} is damaged" in caplog.text) == (name != "journal.jsonl" or damage in (flip, flip_first))


def test_only_the_same_is_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(identity: str | None) -> None:
        shutil.rmtree(tmp_path / "data.partial", ignore_errors=True)
        with monkeypatch.context() as patch:
            kill_at(patch, ArrayWriter, "append", 60)
            with pytest.raises(Killed):
                prepared(tmp_path / "data", identity=identity)

    interrupt("a")
    changed = corpus()
    changed.given = [Example("memory:0", (Segment("Other", "en"),)), *changed.given[1:]]
    with pytest.raises(UserError, match="corpus: has changed since this preparation was interrupted; begin anew with --fresh"):
        prepared(tmp_path / "data", changed)
    with pytest.raises(UserError, match="has changed"):
        prepared(tmp_path / "data", corpus(5))
    for begun, asked in (("a", "b"), ("a", None), (None, None)):
        interrupt(begun)
        made = prepared(tmp_path / "data", changed, identity=asked)
        assert made == prepared(tmp_path / "other", changed, identity=asked)


def test_what_is_finished_stays(tmp_path: Path) -> None:
    made = prepared(tmp_path / "data")
    inode = (tmp_path / "data").stat().st_ino
    assert prepared(tmp_path / "data", monolingual([])) == made
    assert (tmp_path / "data").stat().st_ino == inode
    prepared(tmp_path / "data", identity="b")
    assert (tmp_path / "data").stat().st_ino != inode
    truncate(tmp_path / "data" / "words.bin")
    with pytest.raises(UserError, match=r"words\.bin: has .* bytes, not the"):
        prepared(tmp_path / "data", identity="b")


@pytest.mark.parametrize(("damage", "said"), [(truncate, "has 59 bytes, not the 60"), (Path.unlink, "is missing")])
def test_a_store_with_a_damaged_file_is_not_opened(damage: Callable[[Path], None], said: str, tmp_path: Path) -> None:
    prepared(tmp_path / "stage" / "data", monolingual(["one"] * 30))
    damage(tmp_path / "stage" / "data" / "pieces.bin")
    with pytest.raises(UserError) as error:
        TokenStore.open(tmp_path / "stage" / "data")
    (problem,) = error.value.problems
    assert problem.where == str(tmp_path / "stage" / "data" / "pieces.bin")
    assert "--fresh" in problem.message
    assert str(tmp_path / "stage") in problem.message


def test_a_bad_line_late_in_a_file_is_named_and_leaves_nothing_half_written(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"one line\n" * 90 + b"\xff\n" + b"one line\n" * 9)
    with pytest.raises(UserError, match=r"a\.txt:91: byte 1 of the line \(0xff\) is not UTF-8"):
        prepare_corpus(TextCorpus(path=str(tmp_path / "a.txt"), language="en"), TOKENIZER, tmp_path / "data", identity="a")
    assert not (tmp_path / "data").exists()


def test_progress_goes_into_a_log_as_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN_LINES", 0.0)
    monkeypatch.setattr(sys, "stderr", io.StringIO())

    def items() -> Iterator[range]:
        for start in range(0, 3000, 1000):
            yield range(start, start + 1000)

    assert len(list(progress_bar(items(), "tokenise", total=3000, size=len))) == 3
    first, *_, last = sys.stderr.getvalue().splitlines()
    assert first.startswith("tokenise: 1,000 of about 3,000, 0:00:00 left, ")
    assert last.startswith("tokenise: 3,000, ")
    sys.stderr.truncate(0)
    with suppress(StopIteration):
        next(progress_bar(items(), "tokenise", show=False))
    assert not sys.stderr.getvalue()
