from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from mlmx import listing
from mlmx.build import build
from mlmx.data.annotate import annotate_store
from mlmx.data.prepare import prepare_corpus, train_tokenizer
from mlmx.data.store import TokenStore
from mlmx.models.load import load_tokenizer
from mlmx.objectives.wrapper import innermost
from mlmx.stage import StageDir
from mlmx.training.estimate import estimate
from mlmx.training.preview import Preview, example_text, main, show
from tests.objectives.tiny_pairs import NAMES, PARALLEL, make_objective, node_of, rows_of

CONF = Path(__file__).parents[2] / "conf"


def component(path: str, **settings):
    return {**listing.node_of(CONF / path), **settings}


@pytest.fixture(scope="module", params=["unigram", "wordpiece", "bpe"])
def prepared(request, tmp_path_factory):
    """A corpus with gold annotation and a tokenizer of each kind, as stages leave them."""
    folder = tmp_path_factory.mktemp("stages")
    tokenizer = component("model/tiny.yaml")["tokenizer"] | {"algorithm": request.param, "vocab_size": 500}
    corpus = component("corpus/microworld.yaml", num_pairs=150)
    train_tokenizer(build(tokenizer), [build(corpus)], folder / "t" / "tokenizer", show_progress=False)
    prepare_corpus(build(corpus), load_tokenizer(folder / "t" / "tokenizer"), folder / "p" / "data", show_progress=False)
    store = TokenStore.open(folder / "p" / "data")
    annotate_store(store, build(component("annotator/gold.yaml")), folder / "a" / "data", show_progress=False)
    return folder, tokenizer


def stage_of(prepared, name: str, **settings) -> StageDir:
    folder, tokenizer = prepared
    stage = StageDir(folder / f"pretrain-{name}")
    spec = {
        "seed": 0,
        "model": component("model/tiny.yaml", tokenizer=tokenizer),
        "objective": component(f"objective/{name}.yaml", **settings),
        "trainer": component("trainer/pretrain.yaml"),
    }
    stage.write_config({"kind": "pretrain", "spec": spec, "parents": {"tokenizer": "t", "prepare": "p", "annotate": "a"}})
    return stage


def printed(preview: StageDir | Preview, num_examples: int = 3) -> str:
    console = Console(file=io.StringIO(), width=500, force_terminal=False)
    show(preview if isinstance(preview, Preview) else Preview.of(preview), console, num_examples)
    return console.file.getvalue()


def tiny_preview(name: str, **settings) -> Preview:
    """The preview of an objective of any name, with statistics of the tiny corpus."""
    objective = make_objective(name, **settings)
    return Preview(objective, objective.collator(), rows_of(objective), PARALLEL, seed=0)


def test_each_part_of_an_objective_made_of_others_is_shown(prepared):
    falling = {"_target_": "mlmx.schedules.Linear", "start": 1.0, "end": 0.0}
    parts = {
        "first": {"objective": component("objective/mlm.yaml", mask_ratio=falling), "weight": 1.0},
        "second": {"objective": component("objective/tlm.yaml"), "weight": 1.0},
    }
    output = printed(stage_of(prepared, "sum", parts=parts))
    assert output.index("part first") < output.index("part second")
    rates = [line.split("│")[5].strip() for line in output.splitlines() if "ordinary tokens" in line]
    assert rates[0] == "1.0000"
    assert float(rates[1]) == pytest.approx(0.15, abs=0.04)


@pytest.mark.parametrize("name", ["mlm", "lem"])
def test_examples_and_rates(prepared, name):
    output = printed(stage_of(prepared, name))
    assert output.count("row ") >= 3
    assert "→[MASK]" in output
    lines = {
        line.split("│")[2].strip(): [cell.strip() for cell in line.split("│")[3:-1]] for line in output.splitlines() if "│" in line
    }
    assert lines["special tokens"][1:3] == ["0", "0.0000"]
    tokens, predicted, rate, _ = lines["ordinary tokens"]
    assert float(rate) == pytest.approx(int(predicted) / int(tokens), abs=1e-4)
    assert float(rate) == pytest.approx(0.15, abs=0.04)
    assert {"qla", "qka", "NOUN", "VERB", "PER", "O"} <= set(lines)
    assert int(lines["qla"][0]) + int(lines["qka"][0]) == int(tokens)
    assert float(lines["mask"][3]) == pytest.approx(0.8, abs=0.06)
    if name == "lem":
        # Seldom, with what names, verbs and nouns leave of the budget.
        assert float(lines["PUNCT"][2]) < 0.08


@pytest.mark.parametrize("prepared", ["unigram"], indirect=True)
@pytest.mark.parametrize("name", [name for name in NAMES if "_statistics_" not in node_of(name)])
def test_every_objective_is_shown(prepared, name):
    assert "row " in printed(stage_of(prepared, name, **node_of(name)), 2)


@pytest.mark.parametrize("name", NAMES)
def test_shares_sum_to_1_and_captions_are_printed(name):
    preview = tiny_preview(name)
    captions = [innermost(part.objective).caption for _, part in preview.parts()]
    pattern, told = "|".join(re.escape(caption) for caption in captions), printed(preview, 1)
    assert re.findall(pattern, told) == captions
    for shown in re.split(pattern, told)[1:]:
        cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in shown.splitlines() if line.startswith("│")]
        marked = {cell[1]: (int(cell[3]), float(cell[5])) for cell in cells}
        for kinds in (["ordinary tokens", "special tokens"], ["mask", "random", "kept"]):
            number, share = np.sum([marked[kind] for kind in kinds if kind in marked], axis=0)
            # What corrupts nothing token by token has nothing to mark.
            assert share == pytest.approx(float(number > 0), abs=2e-4)


def test_places_are_predicted_of_all_tokens_but_special_ones():
    preview = tiny_preview("position_prediction")
    masked = preview.mask(np.arange(8))
    assert masked.selected.tolist() == (~masked.rows.special).tolist()
    assert not masked.visible[masked.selected].all()
    assert "all but special ones; those in brackets" in preview.objective.caption


def test_captions_say_what_is_predicted_and_who_reads_what_is_shown():
    def caption(name: str, **settings) -> str:
        return tiny_preview(name, **settings).objective.caption

    assert caption("mlm") == "Marked are the tokens to predict, in what the encoder reads."
    assert caption("rts").startswith("Marked are the tokens that were replaced; for every token,")
    assert caption("meap").endswith("what the encoder predicts at a mask is the next token.")
    assert "in what the generator reads. The encoder reads" in caption("electra")
    assert "in what the generator reads." in caption("ernie_gram")
    assert "generator" not in caption("ernie_gram", generator_ratio=None)
    # One around another says what that says.
    assert caption("electra") in printed(tiny_preview("frequency_weighted", objective=node_of("electra")))


@pytest.mark.parametrize("prepared", ["unigram"], indirect=True)
def test_a_plan_counts_the_objective_where_its_rows_are_there(prepared, monkeypatch):
    monkeypatch.setattr(StageDir, "finished", property(lambda _: True))

    def costs(name: str, **settings):
        stage = stage_of(prepared, name, **{**node_of(name), **settings})
        parents = {role: str(path.path) for role, path in stage.parents().items()}
        record = {**stage.config(), "parents": parents, "fingerprint": "a" * 64}
        return estimate([record])[0]

    mlm, retromae = costs("mlm"), costs("retromae")
    assert mlm["counted"]
    preview = Preview.of(stage_of(prepared, "retromae", **node_of("retromae")))
    assert retromae["num_parameters"] == sum(parameter.numel() for parameter in preview.objective.parameters())
    assert retromae["num_parameters"] > mlm["num_parameters"]
    batch = preview.batch(preview.sample(100))
    expected = preview.objective.flops(batch) / batch.num_tokens * retromae["tokens"]
    assert retromae["flops"] == pytest.approx(expected, rel=0.05)
    assert retromae["flops"] > 1.5 * mlm["flops"]
    wrong = costs("starbucks_srl", pairs=[[3, 64]])
    assert not wrong["counted"]
    assert wrong["problem"].startswith("objective.pairs[0]: [3, 64] is no smaller part")
    assert wrong["num_parameters"] == mlm["num_parameters"]


def test_words_are_whole_with_every_kind_of_tokenizer(prepared):
    # Words of gold text are separated by spaces or punctuation, whatever marks the tokenizer uses.
    preview = Preview.of(stage_of(prepared, "whole_word", mask_ratio=0.5))
    masked = preview.mask(np.arange(100))
    word = np.where(masked.rows.special, -1, masked.rows.row_of_token * 1000 + masked.rows.words)
    chosen = np.isin(word, np.unique(word[masked.selected]))
    np.testing.assert_array_equal(chosen, masked.selected)
    assert np.unique(word[chosen], return_counts=True)[1].max() >= 3


def test_the_program(prepared, capsys):
    assert main([str(stage_of(prepared, "tlm").path), "1"]) == 0
    assert "tokens to predict" in capsys.readouterr().out


def test_a_mistake_of_the_user_exits_with_2(prepared, capsys):
    assert main([str(stage_of(prepared, "lem", types=[{"layer": "pos", "classes": ["VERBS"], "cap_ratio": 1.0}]).path), "1"]) == 2
    assert "VERB" in capsys.readouterr().err


def test_views_of_an_example_are_shown_one_below_the_other(prepared):
    preview = Preview.of(stage_of(prepared, "simcse_supervised"))
    masked = preview.mask(np.arange(3))
    assert masked.rows.num_rows == 6
    assert not masked.selected.any()
    _, first, second = example_text(preview, 0).plain.splitlines()
    assert first.split()[0] == second.split()[0] == "[CLS]"
    assert first != second
