"""Every annotator, alone and through the annotation stage."""

from __future__ import annotations

import gzip
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml

from mlmx.build import build, problems_of
from mlmx.data.annotate import annotate_store
from mlmx.data.corpus import Annotation, Annotator, Example, Segment
from mlmx.data.prepare import prepare_corpus
from mlmx.data.rows_from_store import open_rows
from mlmx.data.store import TokenStore
from mlmx.data.vocabulary import Vocabulary
from mlmx.data.words import align, mapped_tag, split_words
from mlmx.errors import UserError
from mlmx.inputs import path_problems, resolve_paths

sys.path.insert(0, str(Path(__file__).parents[1]))
from sample import ListCorpus, tokenizer

CONF = Path(__file__).parents[3] / "conf" / "annotator"
REQUIRED = {"paths": {"en": "x"}, "path": "x", "pipelines": {"en": "x"}, "languages": ["en"], "parts": {}}


def node(kind: str, **settings: Any) -> dict[str, Any]:
    return {**yaml.safe_load((CONF / f"{kind}.yaml").read_text()), **settings}


def annotator(kind: str, **settings: Any) -> Annotator:
    found: Annotator = build(node(kind, **settings), where="annotator")
    found.load()
    return found


def tagged(found: Annotator, text: str, language: str = "en") -> dict[str, list[tuple[str, str | None]]]:
    (annotation,) = found.annotate([Segment(text, language)])
    words = [text[start:end] for start, end in annotation.words]
    return {layer: list(zip(words, tags, strict=True)) for layer, tags in annotation.tags.items()}


def stored(tmp_path: Path, *segments: Segment) -> TokenStore:
    languages = tuple(dict.fromkeys(segment.language for segment in segments))
    corpus = ListCorpus([Example(str(i), (segment,)) for i, segment in enumerate(segments)], languages, num_sides=1)
    prepare_corpus(corpus, tokenizer(), tmp_path / "data")
    return TokenStore.open(tmp_path / "data")


@pytest.mark.parametrize("path", sorted(set(CONF.glob("*.yaml")) - {CONF / "none.yaml"}), ids=lambda path: path.stem)
def test_every_yaml_fits_its_class(path: Path) -> None:
    settings = yaml.safe_load(path.read_text())
    required = {key: REQUIRED[key] for key, value in settings.items() if value == "???"}
    assert problems_of({**settings, **required}, "annotator") == []
    assert settings["_version_"] >= 1


def test_none_composes_to_nothing() -> None:
    assert yaml.safe_load((CONF / "none.yaml").read_text()) is None


def test_dictionary_takes_the_most_frequent_class_after_mapping(tmp_path: Path) -> None:
    (tmp_path / "en.tsv").write_text("run\tVBD\t2\nrun\tNN\t5\nrun\tVB\t4\nThe\tDT\n\nodd\tXX\t3\n")
    found = annotator(
        "dictionary", paths={"en": str(tmp_path / "en.tsv")}, tag_map={"VBD": "VERB", "VB": "VERB", "NN": "NOUN", "XX": None}
    )
    assert tagged(found, "the run, odd 3rd new") == {
        "pos": [("the", "DT"), ("run", "VERB"), (",", "PUNCT"), ("odd", None), ("3rd", "NUM"), ("new", None)]
    }
    assert tagged(found, "run", language="de") == {"pos": [("run", None)]}
    exact = annotator("dictionary", paths={"en": str(tmp_path / "en.tsv")}, fold_case=False, number=None, punctuation=None)
    assert tagged(exact, "the The 3 .") == {"pos": [("the", None), ("The", "DT"), ("3", None), (".", None)]}


def test_dictionary_reads_tnt_lexicons(tmp_path: Path) -> None:
    lexicon = "%% comment\n@CARD\t\t5\tNUM\t5\nකොළඹ\t\t7\tNNP\t5\tNNC\t2\n"
    (tmp_path / "si.lex.gz").write_bytes(gzip.compress(lexicon.encode()))
    found = annotator("dictionary", paths={"si": str(tmp_path / "si.lex.gz")})
    assert tagged(found, "කොළඹ @CARD", "si")["pos"] == [("කොළඹ", "NNP"), ("@", "PUNCT"), ("CARD", None)]


@pytest.mark.parametrize(
    ("name", "line", "message"),
    [
        ("a.tsv", "word", r"a\.tsv:2: has one column"),
        ("a.tsv", "word\tNN\tmany", r"a\.tsv:2: 'many' in the third column is no count"),
        ("a.lex", "word\t3\tNN", r"a\.lex:2: is no entry of a TnT lexicon"),
    ],
)
def test_malformed_dictionaries(tmp_path: Path, name: str, line: str, message: str) -> None:
    (tmp_path / name).write_text("\n" + line + "\n")
    with pytest.raises(UserError, match=message):
        annotator("dictionary", paths={"en": str(tmp_path / name)})
    with pytest.raises(UserError, match=r"annotator\.paths\.en: there is no file"):
        annotator("dictionary", paths={"en": str(tmp_path / "nothing")})
    with pytest.raises(UserError, match="names no dictionary"):
        annotator("dictionary", paths={})


def test_gazetteer_finds_the_longest_names(tmp_path: Path) -> None:
    (tmp_path / "names.tsv").write_text("sri lanka\tශ්‍රී ලංකාව\nsri\tශ්‍රී\nsri lanka army\tx\nu.s.\tx\nab\tx\n")
    path = str(tmp_path / "names.tsv")
    found = annotator("gazetteer", paths={"en": path, "si": path}, columns={"si": 1}, entity_class="LOC")
    assert [tag for _, tag in tagged(found, "Sri Lanka, SRI Lankan ab lanka Sri Lanka Army.")["entity"]] == (
        ["B-LOC", "I-LOC", None, "B-LOC", None, None, None, "B-LOC", "I-LOC", "I-LOC", None]
    )
    assert tagged(found, "ශ්‍රී ලංකාව", "si")["entity"] == [("ශ්‍රී", "B-LOC"), ("ලංකාව", "I-LOC")]
    # A corpus may have cut words otherwise than the list would.
    (annotation,) = found.annotate([Segment("the U.S. now", "en", [(0, 3), (4, 8), (9, 12)])])
    assert annotation.tags["entity"] == [None, "B-LOC", None]
    with pytest.raises(UserError, match=r"names\.tsv:1: has 2 columns, so that column 4 is missing"):
        annotator("gazetteer", paths={"en": path}, columns={"en": 4})


def test_combined_asks_in_order_and_by_language(tmp_path: Path) -> None:
    (tmp_path / "names").write_text("silva\n")
    (tmp_path / "first").write_text("run\tVERB\n")
    (tmp_path / "second").write_text("run\tNOUN\ncow\tNOUN\nsilva\tNOUN\n")
    parts = {
        "names": {"annotator": node("gazetteer", paths={"en": str(tmp_path / "names")})},
        "first": {"annotator": node("dictionary", paths={"en": str(tmp_path / "first")}), "layers": ["pos"]},
        "second": {"annotator": node("dictionary", paths={c: str(tmp_path / "second") for c in ("en", "de")}), "languages": ["en"]},
    }
    found = annotator("combined", parts=parts)
    assert found.layers == ("pos", "entity")
    assert tagged(found, "Silva run cow ox") == {
        "pos": [("Silva", "NOUN"), ("run", "VERB"), ("cow", "NOUN"), ("ox", None)],
        "entity": [("Silva", "B-PER"), ("run", None), ("cow", None), ("ox", None)],
    }
    assert {tag for _, tag in tagged(found, "run", "de")["pos"]} == {None}
    with pytest.raises(UserError, match=r"annotator\.parts\.names\.layers: pos"):
        annotator("combined", parts={"names": {**parts["names"], "layers": ["pos"]}})
    with pytest.raises(UserError, match=r"annotator\.parts\.names\.annotator: .*Field required"):
        annotator("combined", parts={"names": {"annotater": parts["names"]["annotator"]}})


def test_gold_with_a_tag_map() -> None:
    segment = Segment("Ms Silva", "en", [(0, 2), (3, 8)], {"pos": ["NN", "??"], "entity": ["B-person", "I-person"]})
    found = annotator("gold", tag_map={"pos": {"NN": "NOUN", "??": None}, "entity": {"person": "PER"}})
    (annotation,) = found.annotate([segment])
    assert annotation.tags == {"pos": ["NOUN", None], "entity": ["B-PER", "I-PER"]}


def test_annotations_run_parallel_to_the_words_of_the_tokenizer(tmp_path: Path) -> None:
    # The corpus has U.S. and don't as words; the tokenizer cuts them.
    words = [(0, 2), (3, 8), (9, 13), (14, 19), (20, 21)]
    tags = {"pos": ["NOUN", "PROPN", "PROPN", "VERB", "PUNCT"], "entity": ["B-PER", "I-PER", "B-LOC", "O", "O"]}
    store = stored(tmp_path, Segment("Ms Silva U.S. don't .", "en", words, tags), Segment("Ms", "si"))
    meta = annotate_store(store, annotator("gold"), tmp_path / "tags")
    store = store.with_annotations(tmp_path / "tags")
    names = store.info.tag_names
    assert names == {"pos": ("", "NOUN", "PROPN", "VERB", "PUNCT"), "entity": ("", "O", "PER", "LOC")}
    cut = [store.text(0)[a:b] for a, b in store.words(0)]
    assert cut == ["Ms", "Silva", "U", ".", "S", ".", "don", "'", "t", "."]
    assert [names["entity"][i] for i in store.tags["entity"]] == ["PER", "PER", *["LOC"] * 4, "O", "O", "O", "O", ""]
    assert store.tags["entity_start"].tolist() == [1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0]
    assert [names["pos"][i] for i in store.tags["pos"]] == ["NOUN", *["PROPN"] * 5, *["VERB"] * 3, "PUNCT", ""]
    assert meta["by_layer"]["pos"]["en"] == {
        "words": 10,
        "not_annotated": 0,
        "classes": {"NOUN": 1, "PROPN": 5, "VERB": 3, "PUNCT": 1},
    }
    assert meta["by_layer"]["entity"]["si"]["not_annotated"] == 1

    vocabulary = Vocabulary.from_tokenizer(tokenizer())
    rows = open_rows(store, vocabulary, view="segment", max_length=8).take(np.arange(3))
    inner = ~rows.special
    word_of_piece = np.repeat(np.arange(store.num_words), np.diff(np.append(store.arrays["word_pieces"], store.num_pieces)))
    for layer in ("pos", "entity", "entity_start"):
        np.testing.assert_array_equal(rows.tags[layer][inner], store.tags[layer][word_of_piece][: inner.sum()])
        assert (rows.tags[layer][rows.special] == 0).all()


def test_pairs_have_the_tags_of_their_sides(tmp_path: Path) -> None:
    def side(text: str, language: str, tag: str) -> Segment:
        return Segment(text, language, [(0, len(text))], {"pos": [tag]})

    pairs = [(side("one", "en", "NUM"), side("ලංකාව", "si", "NOUN")), (side("met", "en", "VERB"), side("රැස්", "si", "ADV"))]
    corpus = ListCorpus([Example(str(i), pair) for i, pair in enumerate(pairs)], ("en", "si"), num_sides=2)
    prepare_corpus(corpus, tokenizer(), tmp_path / "data")
    store = TokenStore.open(tmp_path / "data")
    annotate_store(store, annotator("gold"), tmp_path / "tags")
    store = store.with_annotations(tmp_path / "tags")
    rows = open_rows(store, Vocabulary.from_tokenizer(tokenizer()), view="pair", max_length=60).take(np.array([1, 0]))
    names = store.info.tag_names["pos"]
    tags = {(int(r), int(s)): names[t] for r, s, t in zip(rows.row_of_token, rows.segments, rows.tags["pos"], strict=True) if t}
    assert tags == {(0, 0): "VERB", (0, 1): "ADV", (1, 0): "NUM", (1, 1): "NOUN"}


def test_adjacent_entities_and_plain_tags_begin_where_they_should(tmp_path: Path) -> None:
    spans = [(i * 2, i * 2 + 1) for i in range(6)]
    iob = Segment("a b c d e f", "en", spans, {"entity": ["B-PER", "B-PER", "I-PER", "O", "I-LOC", "I-PER"]})
    plain = Segment("a b c d e f", "en", spans, {"entity": ["PER", "PER", "LOC", "O", "LOC", "LOC"]})
    store = stored(tmp_path, iob, plain)
    annotate_store(store, annotator("gold"), tmp_path / "tags")
    starts = store.with_annotations(tmp_path / "tags").tags["entity_start"].tolist()
    assert starts == [1, 1, 0, 0, 1, 1, 1, 0, 1, 0, 1, 0]


def test_a_layer_that_the_corpus_lacks_has_no_classes(tmp_path: Path) -> None:
    store = stored(tmp_path, Segment("one", "en", [(0, 3)], {"pos": ["NUM"]}))
    annotate_store(store, annotator("gold"), tmp_path / "tags")
    assert store.with_annotations(tmp_path / "tags").info.tag_names == {"pos": ("", "NUM"), "entity": ("",)}


def test_a_corpus_without_any_tag_is_the_users_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="gave no word a tag"):
        annotate_store(stored(tmp_path, Segment("one", "en")), annotator("gold"), tmp_path / "tags")
    assert not (tmp_path / "tags").exists()


def _tagger(folder: Path, num_positions: int = 512) -> None:
    import torch
    from transformers import BertConfig, BertForTokenClassification

    torch.manual_seed(0)
    trained = tokenizer()
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    sizes["max_position_embeddings"] = num_positions
    labels = ["O", "B-person", "I-person"]
    model = BertForTokenClassification(BertConfig(vocab_size=len(trained), num_labels=3, **sizes))
    model.config.id2label = dict(enumerate(labels))
    model.config.label2id = {label: i for i, label in enumerate(labels)}
    torch.nn.init.normal_(model.classifier.weight, std=3.0)
    model.save_pretrained(folder)
    trained.save_pretrained(folder)


def test_checkpoint_tags_words_as_the_model_alone_does(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForTokenClassification

    _tagger(tmp_path / "tagger")
    found = annotator("hf", path=str(tmp_path / "tagger"), tag_map={"person": "PER"}, batch_tokens=40)
    texts = ["Ms Silva went to Colombo.", "island", "The committee (in Kandy) met."]
    annotations = found.annotate([Segment(text, "en") for text in texts])
    model = AutoModelForTokenClassification.from_pretrained(tmp_path / "tagger").eval()
    for text, annotation in zip(texts, annotations, strict=True):
        words = [text[a:b] for a, b in split_words(text)]
        encoded = tokenizer()(words, is_split_into_words=True, return_tensors="pt")
        with torch.no_grad():
            labels = model(**encoded).logits.argmax(-1)[0].tolist()
        ids = encoded.word_ids()
        expected = [["O", "B-PER", "I-PER"][labels[ids.index(word)]] for word in range(len(words))]
        assert annotation.tags["entity"] == expected
    windowed = annotator("hf", path=str(tmp_path / "tagger"), max_length=8)
    assert None not in windowed.annotate([Segment(texts[0], "en")])[0].tags["entity"]


def test_windows_are_no_longer_than_the_model(tmp_path: Path) -> None:
    _tagger(tmp_path / "tagger", num_positions=8)
    found = annotator("hf", path=str(tmp_path / "tagger"), max_length=256)
    assert None not in found.annotate([Segment("Ms Silva went to Colombo with Ms Perera.", "en")])[0].tags["entity"]


def test_a_model_without_a_trained_head_is_refused(tmp_path: Path) -> None:
    from transformers import BertForTokenClassification, BertModel

    _tagger(tmp_path / "tagger")
    base: BertModel = BertForTokenClassification.from_pretrained(tmp_path / "tagger").bert
    base.save_pretrained(tmp_path / "tagger")
    with pytest.raises(UserError, match="is no trained token classifier"):
        annotator("hf", path=str(tmp_path / "tagger"))
    with pytest.raises(UserError, match="cannot be loaded") as caught:
        annotator("hf", path=str(tmp_path / "nothing"))
    assert len(str(caught.value).splitlines()) == 1
    (tmp_path / "tagger" / "config.json").write_text('{"model_type": "clip"}')
    with pytest.raises(UserError, match="cannot be loaded") as caught:
        annotator("hf", path=str(tmp_path / "tagger"))
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(("kind", "settings"), [("spacy", {"pipelines": {"en": "x"}}), ("stanza", {"languages": ["en"]})])
def test_extras_say_how_to_install_them(monkeypatch: pytest.MonkeyPatch, kind: str, settings: dict[str, Any]) -> None:
    monkeypatch.setitem(sys.modules, kind, None)
    with pytest.raises(UserError, match=rf"pip install 'mlmx\[{kind}\]'"):
        annotator(kind, **settings)


def test_mistakes_of_an_annotator_are_told_before_anything_starts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "spacy", None)
    (problem,) = problems_of(node("spacy", pipelines={"en": "x"}), "stages.para.annotator", "annotator")
    assert "pip install 'mlmx[spacy]'" in str(problem)
    broken = tmp_path / "en.paths.tsv"
    broken.write_text("word\ttag\nalone\n")
    (problem,) = problems_of(node("dictionary", paths={"en": str(broken)}), "stages.para.annotator", "annotator")
    assert problem.where == f"{broken}:2"
    broken.write_text("Colombo\n")
    parts = {"names": {"annotator": node("gazetteer", paths={"en": str(broken)}), "layers": ["pos"]}}
    (problem,) = problems_of(node("combined", parts=parts), "stages.para.annotator", "annotator")
    assert problem.where == "stages.para.annotator.parts.names.layers"
    # A tagger is loaded by the stage that needs it.
    assert problems_of(node("hf", path=str(tmp_path)), "annotator", "annotator") == []


@pytest.mark.parametrize(
    "given", [node("hf", path=""), node("dictionary", paths={"en": ""}), node("gazetteer", paths={"en": ["", "there.txt"]})]
)
def test_an_empty_path_is_no_folder(given: dict[str, Any]) -> None:
    resolve_paths({"annotator": given})
    assert any("is empty" in str(problem) for problem in path_problems(given, "annotator"))


def test_spacy_documents_become_annotations(monkeypatch: pytest.MonkeyPatch) -> None:
    def token(text: str, idx: int, pos: str, iob: str, kind: str) -> SimpleNamespace:
        return SimpleNamespace(text=text, idx=idx, pos_=pos, ent_iob_=iob, ent_type_=kind, is_space=text.isspace())

    document = [token("Ms", 0, "NOUN", "B", "PER"), token("Silva", 3, "PROPN", "I", "PER"), token(" ", 8, "SPACE", "O", "")]
    module = ModuleType("spacy")
    module.load = lambda name: SimpleNamespace(pipe=lambda texts, batch_size: [document for _ in texts])  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "spacy", module)
    found = annotator("spacy", pipelines={"en": "x"})
    first, second = found.annotate([Segment("irrelevant", "de"), Segment("Ms Silva ", "en")])
    assert first == Annotation((), {})
    assert second == Annotation([(0, 2), (3, 8)], {"pos": ["NOUN", "PROPN"], "entity": ["B-PER", "I-PER"]})


def test_stanza_documents_become_annotations(monkeypatch: pytest.MonkeyPatch) -> None:
    def token(start: int, end: int, pos: str, ner: str) -> SimpleNamespace:
        return SimpleNamespace(start_char=start, end_char=end, words=[SimpleNamespace(upos=pos)], ner=ner)

    sentence = SimpleNamespace(tokens=[token(0, 2, "NOUN", "B-PER"), token(3, 8, "PROPN", "E-PER"), token(9, 16, "PROPN", "S-LOC")])
    module = ModuleType("stanza")
    pipeline = SimpleNamespace(bulk_process=lambda texts: [SimpleNamespace(sentences=[sentence]) for _ in texts])
    module.Pipeline = lambda *_, **__: pipeline  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "stanza", module)
    (annotation,) = annotator("stanza", languages=["en"]).annotate([Segment("Ms Silva Colombo", "en")])
    assert annotation.tags == {"pos": ["NOUN", "PROPN", "PROPN"], "entity": ["B-PER", "I-PER", "B-LOC"]}
    assert annotator("stanza", languages=["en"], processors="tokenize,pos").layers == ("pos",)


def test_alignment_by_most_shared_characters() -> None:
    words = np.array([(0, 3), (3, 4), (4, 5), (6, 16), (17, 17), (20, 22)])
    others = np.array([(0, 5), (6, 8), (8, 14), (14, 16)])
    assert align(words, others).tolist() == [0, 0, 0, 2, -1, -1]
    assert align(words, np.zeros((0, 2), int)).tolist() == [-1] * 6


def test_words_of_text_keep_vowel_signs_and_joiners() -> None:
    text = "ශ්‍රී ලංකාව, (don't) ❤"
    assert [text[a:b] for a, b in split_words(text)] == ["ශ්‍රී", "ලංකාව", ",", "(", "don", "'", "t", ")", "❤"]


@pytest.mark.parametrize(
    ("tag", "expected"),
    [("NN", "NOUN"), ("B-person", "B-PER"), ("I-person", "I-PER"), ("B-misc", None), ("B-x", "O"), ("JJ", "JJ"), ("O", "O")],
)
def test_tag_maps(tag: str, expected: str | None) -> None:
    assert mapped_tag(tag, {"NN": "NOUN", "person": "PER", "misc": None, "x": "O"}) == expected
    assert mapped_tag(tag, None) == tag
