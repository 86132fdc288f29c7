"""Every kind of corpus: what it yields, and what it says about bad input."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest
import yaml

from mlmx.build import build, problems_of
from mlmx.data.corpus import Corpus
from mlmx.errors import UserError
from mlmx.inputs import path_problems
from mlmx.listing import node_of

CONF = Path(__file__).parents[3] / "conf" / "corpus"


def node(kind: str, **settings: Any) -> dict[str, Any]:
    return {**yaml.safe_load((CONF / f"{kind}.yaml").read_text()), **settings}


def corpus(kind: str, **settings: Any) -> Corpus:
    return build(node(kind, **settings), where="corpus")


def texts(source: Corpus) -> list[tuple[str, ...]]:
    return [tuple(segment.text for segment in example.segments) for example in source.examples()]


@pytest.mark.parametrize("path", sorted(CONF.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_yaml_fits_its_class(path: Path) -> None:
    settings = node_of(path)
    assert settings["_version_"] >= 1
    assert "_parallel_" in settings
    required = {
        key: {"path": "x", "name": "x", "languages": ["a", "b"], "parts": {}}[key] for key, v in settings.items() if v == "???"
    }
    assert problems_of({**settings, **required}, "corpus") == []


def test_text_skips_blank_lines_and_counts_them_anew_each_time(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(" one \n\n \ntwo\n")
    source = corpus("text", path=str(tmp_path / "a.txt"), language="en")
    for _ in range(2):
        assert texts(source) == [("one",), ("two",)]
        assert source.skipped == {"blank": 2}
    assert [example.where for example in source.examples()] == [f"{tmp_path}/a.txt:1", f"{tmp_path}/a.txt:4"]
    assert next(source.examples()).segments[0].language == "en"


def test_empty_files_are_told_before_anything_starts(tmp_path: Path) -> None:
    for name, content in (("a.txt", "one\n"), ("b.txt", ""), ("c.txt", "")):
        (tmp_path / name).write_text(content)
    problems = path_problems(node("text", path=[str(tmp_path / "[ab].txt"), str(tmp_path / "c.txt")]), "corpus")
    assert [str(problem) for problem in problems] == [f"corpus.path: the file is empty: {tmp_path}/{name}.txt" for name in "bc"]
    assert not list(path_problems(node("text", path=str(tmp_path / "a.txt")), "corpus"))
    assert not list(path_problems(node("text"), "corpus"))


@pytest.mark.parametrize(
    ("kind", "settings", "content", "told"),
    [
        ("text", {}, "\n \n\n", "no line has text."),
        ("tsv", {}, "\t\n", "no line has text."),
        ("parallel", {"format": "tsv", "languages": ["a", "b"]}, "a\tb\none\t\n", "no line has text on every side."),
        ("conll", {}, "\n\n", "no sentence has words."),
    ],
)
def test_files_without_text_are_named(kind, settings, content, told, tmp_path: Path) -> None:
    (tmp_path / "a").write_text(content)
    with pytest.raises(UserError, match=f"^{tmp_path}/a: {told}$"):
        texts(corpus(kind, path=str(tmp_path / "a"), **settings))
    # What has text besides is left as it is.
    (tmp_path / "b").write_text("one\n")
    if kind == "text":
        assert texts(corpus(kind, path=[str(tmp_path / "a"), str(tmp_path / "b")])) == [("one",)]


def test_jsonl_reads_nested_fields(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"t": {"en": "hi"}}\n{"t": {"en": null}}\n\n{"t.en": "dotted"}\n')
    source = corpus("jsonl", path=str(path), column="t.en")
    assert texts(source) == [("hi",), ("dotted",)]
    assert source.skipped == {"blank": 2}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "a"', r"a\.jsonl:2: is not JSON"),
        ('["text"]', r"a\.jsonl:2: is a JSON list"),
        ('{"txet": "a", "id": 1}', r"a\.jsonl:2: there is no column 'text'; there are: 'txet', 'id'\. Did you mean 'txet'"),
        ('{"text": 3}', r"a\.jsonl:2: column 'text' holds a int"),
        ('{"text": "a", "n": ' + 5000 * "1" + "}", r"a\.jsonl:2: cannot be read as JSON"),
        (100_000 * "[", r"a\.jsonl:2: cannot be read as JSON"),
        (r'{"text": "\ud83d"}', r"a\.jsonl:2: column 'text' holds half of a surrogate pair"),
    ],
)
def test_bad_json_is_named_by_line(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "good"}\n' + line + "\n")
    with pytest.raises(UserError, match=message):
        texts(corpus("jsonl", path=str(tmp_path / "a.jsonl")))


def test_tsv_by_name_and_by_index_and_quotes_are_text(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_text('id\tsentence\n1\t"quoted\n2\tplain"\n')
    assert texts(corpus("tsv", path=str(path), header=True, column="sentence")) == [('"quoted',), ('plain"',)]
    assert texts(corpus("tsv", path=str(path), header=False, column=1)) == [("sentence",), ('"quoted',), ('plain"',)]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"header": True, "column": "sentense"}, r"no column 'sentense'; there are: 'id', 'sentence'\. Did you mean 'sentence'"),
        ({"header": True, "column": "fr"}, "If the first line is no header, set header=false"),
        ({"header": True, "column": 5}, "no column 5"),
        ({"header": False, "column": "sentence"}, "columns are indices"),
        ({"header": False, "column": -1}, "column -1 is not valid"),
        ({"header": False, "column": 1}, r"a\.tsv:2: has 1 columns, so that column 1 is missing"),
    ],
)
def test_missing_tsv_columns(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    (tmp_path / "a.tsv").write_text("id\tsentence\nonly\n")
    with pytest.raises(UserError, match=message):
        texts(corpus("tsv", path=str(tmp_path / "a.tsv"), **settings))


@pytest.mark.parametrize(("header", "content"), [(True, "text\tx\na\tb\na\tb\tc\n"), (False, "a\tb\na\tb\na\tb\tc\n")])
def test_a_tab_within_a_text_is_told(tmp_path: Path, header: bool, content: str) -> None:
    (tmp_path / "a.tsv").write_text(content)
    with pytest.raises(UserError, match=r"a\.tsv:3: has 3 fields, more than the 2 of the first line; is there a tab in a text\?"):
        texts(corpus("tsv", path=str(tmp_path / "a.tsv"), column=0, header=header))


def test_parquet(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    table = pyarrow.table({"text": ["a", None, "c"], "t": [{"en": "x"}, {"en": "y"}, {"en": "z"}]})
    pyarrow.parquet.write_table(table, path)
    source = corpus("parquet", path=str(path))
    assert texts(source) == [("a",), ("c",)]
    assert source.skipped == {"blank": 1}
    assert len(source) == 3
    assert texts(corpus("parquet", path=str(path), column="t.en")) == [("x",), ("y",), ("z",)]
    with pytest.raises(UserError, match=r"no column 'txet'; there are: 'text', 't'\. Did you mean 'text'"):
        texts(corpus("parquet", path=str(path), column="txet"))
    (tmp_path / "b.parquet").write_text("no parquet")
    with pytest.raises(UserError, match="is no Parquet file"):
        texts(corpus("parquet", path=str(tmp_path / "b.parquet")))
    pyarrow.parquet.write_table(pyarrow.table({"text": [f"line {i}" for i in range(3000)]}), tmp_path / "c.parquet")
    content = (tmp_path / "c.parquet").read_bytes()
    (tmp_path / "c.parquet").write_bytes(content[:100] + bytes(300) + content[400:])
    with pytest.raises(UserError, match=r"c\.parquet: cannot be read on: "):
        texts(corpus("parquet", path=str(tmp_path / "c.parquet")))


CONLLU = """# sent_id = 1
# text = Er geht zum Arzt.
1\tEr\ter\tPRON\t_\t_\t2\tnsubj\t_\t_
2\tgeht\tgehen\tVERB\t_\t_\t0\troot\t_\t_
3-4\tzum\t_\t_\t_\t_\t_\t_\t_\t_
3\tzu\tzu\tADP\t_\t_\t5\tcase\t_\t_
4\tdem\tder\tDET\t_\t_\t5\tdet\t_\t_
4.1\tleer\t_\tX\t_\t_\t_\t_\t_\t_
5\tArzt\tArzt\tNOUN\t_\t_\t2\tobl\t_\tNER=B-PER|SpaceAfter=No
6\t.\t.\tPUNCT\t_\t_\t2\tpunct\t_\t_

# only a comment

"""


def test_conllu_words_spaces_and_tags(tmp_path: Path) -> None:
    (tmp_path / "a.conllu.gz").write_bytes(gzip.compress(CONLLU.encode()))
    source = corpus("conllu", path=str(tmp_path / "*.gz"), language="de", entity_key="NER")
    (segment,) = next(source.examples()).segments
    assert segment.text == "Er geht zum Arzt."
    assert [segment.text[a:b] for a, b in segment.words or ()] == ["Er", "geht", "zum", "Arzt", "."]
    assert segment.tags == {"pos": ["PRON", "VERB", "ADP", "NOUN", "PUNCT"], "entity": ["O", "O", "O", "B-PER", "O"]}
    assert len(texts(source)) == 1
    assert source.skipped == {"sentence without words": 1}
    plain = corpus("conllu", path=str(tmp_path / "*.gz"), language="de")
    assert list(next(plain.examples()).segments[0].tags) == ["pos"]


def test_conllu_with_missing_columns(tmp_path: Path) -> None:
    (tmp_path / "a.conllu").write_text("1\tEr\n\n")
    with pytest.raises(UserError, match=r"a\.conllu:1: has 2 columns, so that column 3 \(UPOS\) is missing"):
        texts(corpus("conllu", path=str(tmp_path / "a.conllu")))


def test_conllu_with_an_empty_form(tmp_path: Path) -> None:
    (tmp_path / "a.conllu").write_text("1\tEr" + "\t_" * 8 + "\n2\t" + "\t_" * 8 + "\n\n")
    with pytest.raises(UserError, match=r"a\.conllu:2: the word has no FORM"):
        texts(corpus("conllu", path=str(tmp_path / "a.conllu")))


@pytest.mark.parametrize("after", ["", "3\tHaus" + "\t_" * 8 + "\n"])
def test_conllu_with_a_token_without_words(tmp_path: Path, after: str) -> None:
    (tmp_path / "a.conllu").write_text("1-2\tzum" + "\t_" * 8 + "\n" + after)
    with pytest.raises(UserError, match=r"a\.conllu:1: the words that this token consists of do not follow"):
        texts(corpus("conllu", path=str(tmp_path / "a.conllu")))


def test_other_columns_are_no_conllu(tmp_path: Path) -> None:
    (tmp_path / "a.conllu").write_text("\t".join(["Er", *"_________"]) + "\n\n")
    with pytest.raises(UserError, match=r"a\.conllu:1: 'Er' is no word's number"):
        texts(corpus("conllu", path=str(tmp_path / "a.conllu")))


def test_conll_columns(tmp_path: Path) -> None:
    (tmp_path / "a.conll").write_text("-DOCSTART- O\n\nMs NNP B-PER\nSmith NNP I-PER\n\nsleeps VBZ O\n")
    settings = {"pos_column": 1, "entity_column": 2, "separator": "space", "comment": "-DOCSTART-"}
    source = corpus("conll", path=str(tmp_path / "a.conll"), **settings)
    first, second = [example.segments[0] for example in source.examples()]
    assert first.text == "Ms Smith"
    assert first.words == [(0, 2), (3, 8)]
    assert first.tags == {"pos": ["NNP", "NNP"], "entity": ["B-PER", "I-PER"]}
    assert second.text == "sleeps"
    assert source.skipped == {"sentence without words": 1}
    with pytest.raises(UserError, match=r"a\.conll:1: is no word, but the beginning of a document; set comment to '-DOCSTART-'"):
        texts(corpus("conll", path=str(tmp_path / "a.conll"), **{**settings, "comment": None}))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("Ms\tO\nSmith\n", r"2: has 1 columns, so that column 1 \(entity_column\) is missing"),
        ("Ms\tO\nSmith\tO\tx\n", "2: has 3 columns, but the first line of its sentence 2"),
        ("Ms\tO\n \tO\n", "2: token_column holds nothing"),
        ("Ms\tO\nSmith\t\n", "2: entity_column holds nothing"),
    ],
)
def test_ragged_conll(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "a.conll").write_text(content)
    with pytest.raises(UserError, match=rf"a\.conll:{message}"):
        texts(corpus("conll", path=str(tmp_path / "a.conll")))


def write_sides(folder: Path, first: str, second: str) -> list[str]:
    (folder / "a.en").write_text(first)
    (folder / "a.de").write_text(second)
    return [str(folder / "a.en"), str(folder / "a.de")]


def test_parallel_files(tmp_path: Path) -> None:
    source = corpus("parallel", path=write_sides(tmp_path, "one\n\nthree\n", "eins\nzwei\ndrei\n"), languages=["en", "de"])
    assert texts(source) == [("one", "eins"), ("three", "drei")]
    assert source.skipped == {"blank": 1}
    assert [segment.language for segment in next(source.examples()).segments] == ["en", "de"]


@pytest.mark.parametrize(("lines", "longer"), [((3, 5), "a.de:4"), ((5, 3), "a.en:4")])
def test_sides_of_unequal_length(tmp_path: Path, lines: tuple[int, int], longer: str) -> None:
    path = write_sides(tmp_path, "x\n" * lines[0], "y\n" * lines[1])
    with pytest.raises(UserError) as caught:
        texts(corpus("parallel", path=path, languages=["en", "de"]))
    message = str(caught.value)
    assert f"a.en has {lines[0]} lines" in message
    assert f"a.de has {lines[1]}" in message
    assert message.endswith(f"{longer}.")


def test_parallel_columns(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"en": "one", "de": "eins", "fr": "un"}) + "\n")
    (tmp_path / "a.tsv").write_text("7\tone\teins\n")
    languages = ["en", "de"]
    assert texts(corpus("parallel", path=str(tmp_path / "a.jsonl"), languages=languages)) == [("one", "eins")]
    assert texts(corpus("parallel", path=str(tmp_path / "a.jsonl"), columns=["fr", "en"], languages=["fr", "en"])) == [
        ("un", "one")
    ]
    tsv = corpus("parallel", path=str(tmp_path / "a.tsv"), columns=[1, 2], header=False, languages=languages)
    assert texts(tsv) == [("one", "eins")]
    assert tsv.parallel


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"languages": ["en", "en"]}, "two different languages"),
        ({"languages": ["en"]}, "two different languages"),
        ({"columns": ["en"]}, "name two columns"),
        ({"path": "SINGLE"}, "are a list of two"),
        ({"path": ["*.en", "a.de"]}, "matches 2 files"),
    ],
)
def test_bad_parallel_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], message: str) -> None:
    path = write_sides(tmp_path, "x\n", "y\n")
    (tmp_path / "b.en").write_text("x\n")
    monkeypatch.chdir(tmp_path)
    if settings.get("path") == "SINGLE":
        settings = {"path": path[0]}
    with pytest.raises(UserError, match=message):
        texts(corpus("parallel", **{"path": path, "languages": ["en", "de"], **settings}))


def test_triplets(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("anchor\tnegative\tpositive\nA man eats.\tHe sleeps.\tHe has food.\nx\t\ty\n")
    (tmp_path / "a.jsonl").write_text('{"anchor": "a", "positive": "b", "negative": "c"}\n')
    source = corpus("triplets", path=str(tmp_path / "a.tsv"), language="en")
    assert texts(source) == [("A man eats.", "He has food.", "He sleeps.")]
    assert (source.num_sides, source.parallel, source.skipped, len(source)) == (3, False, {"blank": 1}, 3)
    assert source.skipped_at == [f"{tmp_path / 'a.tsv'}:3"]
    assert [segment.language for segment in next(source.examples()).segments] == ["en", "en", "en"]
    assert texts(corpus("triplets", path=str(tmp_path / "a.jsonl"))) == [("a", "b", "c")]
    pairs = corpus("triplets", path=str(tmp_path / "a.jsonl"), columns=["anchor", "positive"])
    assert (texts(pairs), pairs.num_sides, pairs.parallel) == ([("a", "b")], 2, True)


def test_triplets_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x\n")
    (tmp_path / "a.jsonl").write_text('{"anchor": "a", "positive": "b"}\n')
    with pytest.raises(UserError, match=r"corpus\.columns: .* name the columns of a sentence, its positive and its negative"):
        corpus("triplets", path=str(tmp_path / "a.jsonl"), columns=["anchor"])
    with pytest.raises(UserError, match=r"corpus\.format: .*a\.txt is no TSV, JSONL or Parquet file"):
        texts(corpus("triplets", path=str(tmp_path / "a.txt")))
    with pytest.raises(UserError, match=r"a\.jsonl:1: there is no column 'negative'"):
        texts(corpus("triplets", path=str(tmp_path / "a.jsonl")))


def test_hub_reads_pairs_and_triplets_of_one_language(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text('{"a": "one", "b": "two", "c": "three"}\n')
    for columns in ("ab", "abc"):
        source = corpus("hub", name=str(tmp_path), columns=list(columns), languages=["en"] * len(columns))
        assert (source.num_sides, source.parallel, source.languages) == (len(columns), len(columns) == 2, ("en",))
        assert [segment.language for segment in next(source.examples()).segments] == ["en"] * len(columns)


def test_hub_reads_a_local_folder_and_insists_on_a_revision(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text('{"en": "one", "de": "eins"}\n{"en": "two", "de": ""}\n')
    settings = {"name": str(tmp_path), "columns": ["en", "de"], "languages": ["en", "de"]}
    source = corpus("hub", **settings)
    assert source.parallel
    assert texts(source) == [("one", "eins")]
    assert source.skipped == {"blank": 1}
    with pytest.raises(UserError, match=r"corpus\.revision: pin the commit"):
        corpus("hub", **{**settings, "name": "somebody/something"})
    with pytest.raises(UserError, match="there is no column 'fr'"):
        texts(corpus("hub", **{**settings, "columns": ["en", "fr"]}))
    with pytest.raises(UserError, match=r"corpus\.name: .*\[nosuch\] cannot be loaded"):
        texts(corpus("hub", **{**settings, "split": "nosuch"}))
    (tmp_path / "train.jsonl").write_text('{"en": "one", "de": "eins"}\n{"en": \n')  # told by `datasets` only when it comes to it
    with pytest.raises(UserError, match=r"corpus\.name: .*\[train\] cannot be loaded: .*JSON"):
        texts(source)


def test_whatever_datasets_has_to_say_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*args: Any, **settings: Any) -> Any:
        assert settings["revision"] is None, "a local folder has no commits"
        raise RuntimeError("Dataset scripts are no longer supported")

    monkeypatch.setattr("datasets.load_dataset", refuse)
    with pytest.raises(UserError, match=r"corpus\.name: .*\[train\] cannot be loaded: Dataset scripts are no longer"):
        texts(corpus("hub", name=str(tmp_path)))


def test_words_of_the_hub_have_the_names_of_their_classes_as_tags(tmp_path: Path) -> None:
    tags = datasets.List(datasets.ClassLabel(names=["O", "I-PER", "I-LOC"]))
    words = datasets.List(datasets.Value("string"))
    table = {"tokens": [["Anna", "B.", "naps"], [], ["Oslo"]], "ner_tags": [[1, 1, 0], [], [2]], "lang": [["en"] * 3, [], ["no"]]}
    dataset = datasets.Dataset.from_dict(table, features=datasets.Features({"tokens": words, "ner_tags": tags, "lang": words}))
    dataset.to_parquet(str(tmp_path / "train.parquet"))
    source = corpus("hub_words", name=str(tmp_path), language_column="lang")
    segments = [example.segments[0] for example in source.examples()]
    assert [segment.text for segment in segments] == ["Anna B. naps", "Oslo"]
    assert segments[0].words == [(0, 4), (5, 7), (8, 12)]
    # IOB1 comes out as IOB2.
    assert [dict(segment.tags) for segment in segments] == [
        {"entity": ["B-PER", "I-PER", "O"], "language": ["en", "en", "en"]},
        {"entity": ["B-LOC"], "language": ["no"]},
    ]
    assert source.skipped == {"sentence without words": 1}
    with pytest.raises(UserError, match=r"corpus\.revision: pin the commit of some/words"):
        corpus("hub_words", name="some/words")


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"tokens": ["a", "b"], "ner_tags": ["O"]}, r"\[train\]:0: has 2 words and 1 tags in 'ner_tags'"),
        ({"tokens": ["a"], "tags": ["O"]}, r"\[train\]:0: there is no column 'ner_tags'; there are tokens, tags"),
        ({"tokens": ["a"], "ner_tags": [3]}, r"\[train\]:0: column 'ner_tags' is \[3\]; a list of texts is needed"),
        ({"tokens": "a b", "ner_tags": ["O"]}, r"\[train\]:0: column 'tokens' is 'a b'; a list of texts is needed"),
        (
            {"tokens": ["a", " "], "ner_tags": ["O", "O"]},
            r"\[train\]:0: column 'tokens' is .*; a list of texts .* none of them blank",
        ),
    ],
)
def test_bad_words_of_the_hub(tmp_path: Path, record: dict[str, Any], message: str) -> None:
    (tmp_path / "train.jsonl").write_text(json.dumps(record) + "\n")
    with pytest.raises(UserError, match=message):
        texts(corpus("hub_words", name=str(tmp_path)))


def test_mixture(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a\n")
    (tmp_path / "b.txt").write_text("b\n\nc\n")
    parts = {
        name: {"corpus": node("text", path=str(tmp_path / f"{name}.txt"), language=language), "weight": weight}
        for name, language, weight in (("a", "x", 2), ("b", "y", 0.5))
    }
    source = corpus("mixture", parts=parts)
    assert texts(source) == [("a",), ("b",), ("c",)]
    assert [example.part for example in source.examples()] == [0, 1, 1]  # type: ignore[attr-defined]
    assert source.languages == ("x", "y")
    assert source.skipped == {"b: blank": 1}
    outer = corpus("mixture", parts={"both": {"corpus": node("mixture", parts=parts), "weight": 3}, "a": parts["a"]})
    assert texts(outer) == [("a",), ("b",), ("c",), ("a",)]
    assert [example.part for example in outer.examples()] == [0, 1, 1, 2]  # type: ignore[attr-defined]
    assert outer.part_weights == [6.0, 1.5, 2.0]  # type: ignore[attr-defined]
    with pytest.raises(UserError, match=r"corpus\.parts\.a"):
        corpus("mixture", parts={"a": {"corpus": parts["a"]["corpus"]}})
    pair = node("parallel", path=write_sides(tmp_path, "x\n", "y\n"), languages=["en", "de"])
    with pytest.raises(UserError, match="equally many texts each, and those of a have 1, those of p have 2"):
        corpus("mixture", parts={"a": parts["a"], "p": {"corpus": pair, "weight": 1}})
