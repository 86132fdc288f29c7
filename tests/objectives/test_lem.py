from __future__ import annotations

import numpy as np
import pytest
from tiny_pairs import MONOLINGUAL, PARALLEL, batch_of, make_objective, node_of, rows_of

from mlmx.build import problems_of
from mlmx.data.rows import CorpusInfo
from mlmx.errors import UserError

ENTITIES = {"layer": "entity", "classes": ["PER", "LOC"], "cap_ratio": 1.0}
VERBS = {"layer": "pos", "classes": ["VERB"], "cap_ratio": 1.0}


def classes_of(objective, layer, indices):
    """The classes of the selected tokens, and of all ordinary ones."""
    rows = rows_of(objective).take(np.asarray(indices))
    selected = batch_of(objective, indices).tensors["selected"].numpy()
    names = np.array(PARALLEL.tag_names[layer])
    return names[rows.tags[layer][selected]], names[rows.tags[layer][~rows.special]]


def test_lem_reads_what_the_corpus_has():
    assert make_objective("lem").collator().view == "pair"
    assert make_objective("lem", corpus=MONOLINGUAL).collator().view == "segment"
    assert make_objective("lem_mono").collator().view == "segment"
    assert make_objective("lem_para").collator().view == "pair"
    with pytest.raises(UserError, match="not parallel"):
        make_objective("lem_para", corpus=MONOLINGUAL)


def test_entities_come_first():
    # A budget below the number of names in most rows.
    objective = make_objective("lem", types=[ENTITIES], mask_ratio=0.05)
    selected, available = classes_of(objective, "entity", range(48))
    assert np.isin(available, ["PER", "LOC"]).mean() < 0.3
    assert np.isin(selected, ["PER", "LOC"]).mean() > 0.6
    control, _ = classes_of(make_objective("one_piece_per_word", mask_ratio=0.05), "entity", range(48))
    assert np.isin(control, ["PER", "LOC"]).mean() < 0.35


def test_the_share_of_entities_is_a_metric():
    objective = make_objective("lem", types=[ENTITIES])
    batch = batch_of(objective, range(16))
    inside, count = objective(batch).metrics["selected_in_entities"]
    selected, _ = classes_of(objective, "entity", range(16))
    assert int(inside) == np.isin(selected, ["PER", "LOC"]).sum()
    assert int(count) == len(selected)


def test_without_fill_only_the_types_are_selected():
    objective = make_objective("lem", types=[VERBS], fill="none")
    selected, _ = classes_of(objective, "pos", range(48))
    assert set(selected) == {"VERB"}


def test_a_type_with_cap_zero_is_left_out():
    objective = make_objective("lem", types=[{**ENTITIES, "cap_ratio": 0.0}, VERBS], fill="none")
    selected, _ = classes_of(objective, "pos", range(48))
    assert set(selected) == {"VERB"}


def test_words_without_annotation_are_ordinary():
    objective = make_objective("lem", types=[ENTITIES], mask_ratio=1.0)
    rows = rows_of(objective)
    rows.source.tags["entity"][:] = 0
    assert batch_of(objective, range(8), rows=rows).counts["mlm"] > 0


def test_annotation_is_needed():
    with pytest.raises(UserError, match="needs annotated words"):
        make_objective("lem", corpus=CorpusInfo(num_sides=2, languages=("aa", "bb")))


def test_classes_that_the_annotation_lacks(caplog):
    # One of several: said. All of a type's: refused, with what there is and what was probably meant.
    make_objective("lem", types=[{**ENTITIES, "classes": ["PER", "EVENT"]}])
    assert "has no class 'EVENT'" in caplog.text
    with pytest.raises(UserError, match="PERS") as caught:
        make_objective("lem", types=[{**ENTITIES, "classes": ["PERS"]}])
    assert caught.value.problems[0].where == "objective.types[0].classes"
    assert caught.value.problems[0].nearest == "PER"


def test_a_layer_that_the_annotation_lacks(caplog):
    only_pos = CorpusInfo(num_sides=2, languages=("aa", "bb"), tag_names={"pos": PARALLEL.tag_names["pos"]})
    make_objective("lem", types=[ENTITIES, VERBS], corpus=only_pos)
    assert "no layer 'entity'" in caplog.text
    with pytest.raises(UserError, match="no type is left"):
        make_objective("lem", types=[ENTITIES], corpus=only_pos)


@pytest.mark.parametrize(
    ("settings", "where"),
    [
        ({"fill": "none", "parity": "released_code"}, "objective.parity"),
        ({"types": [VERBS], "order": "by_type"}, "objective.order"),
        ({"types": [VERBS], "rule": "span"}, "objective.rule"),
    ],
)
def test_settings_without_effect_are_refused(settings, where):
    with pytest.raises(UserError, match="no effect") as caught:
        make_objective("lem", **settings)
    assert caught.value.problems[0].where == where
    # Also before there is an encoder.
    (problem,) = problems_of(node_of("lem", **settings), "stages.para.objective", "objective")
    assert problem.where == where.replace("objective", "stages.para.objective")


@pytest.mark.parametrize(
    "types", [[], [{**VERBS, "cap_ratio": 2.0}], [{**VERBS, "classes": []}], [{**VERBS, "layer": "ner"}], [{**VERBS, "cap": 1.0}]]
)
def test_wrong_types_are_named(types):
    assert all(problem.where.startswith("objective.types") for problem in problems_of(node_of("lem", types=types), "objective"))
    assert problems_of(node_of("lem", types=types), "objective")
