"""Judged examples are looked for in all that the encoder was pretrained on, whatever way it came to it."""

import json
import shutil

import pytest

from tests.integration.chains import SECONDS, mlmx, stage, stages, summaries

pytestmark = [pytest.mark.slow, pytest.mark.timeout(8 * SECONDS)]

TINY = [f"model.{name}={value}" for name, value in (("num_layers", 1), ("hidden_size", 32), ("intermediate_size", 64))]
TRAINING = ["trainer.max_steps=2", "trainer.batch_tokens=256", "model.tokenizer.vocab_size=200", *TINY]
LONG = "one two three four five six seven eight nine ten eleven twelve thirteen"
EIGHT = "red green blue white black brown pink grey"
# Text of an example, and where the pretraining has seen it.
EXAMPLES = {
    "A whole line.": "first",
    f"Before {LONG}, after.": "first",
    EIGHT: "left",
    "Another WHOLE line!": "right",
    "a line": None,
    "one two three four five six seven eight nine ten eleven twelve and more": None,
    "red green blue white black brown pink": None,
    "nothing of the kind": None,
}
CORPORA = {
    "first": ["a whole line", f"this line says {LONG}"],
    "left": [f"and {EIGHT} and so on"],
    "right": ["another whole line"],
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Two pretrainings in a row, the second on a mixture, and what was fine-tuned and judged after them."""
    folder = tmp_path_factory.mktemp("chain")
    for name, lines in CORPORA.items():
        filling = [f"line {i} of the corpus {name} fills it up" for i in range(60)]
        (folder / f"{name}.txt").write_text("\n".join([*filling, *lines]) + "\n")
    for split in ("train", "test"):
        texts = EXAMPLES if split == "test" else [f"example {i}" for i in range(8)]
        rows = [f"{text}\t{'ab'[i % 2]}\n" for i, text in enumerate(texts)]
        (folder / f"{split}.tsv").write_text("".join(["text\tlabel\n", *rows]))
    mixture = "stages.second.corpus"
    settings = [
        *TRAINING,
        "chain=[first,second]",
        "corpus=text",
        f"corpus.path={folder}/first.txt",
        f"+corpus@{mixture}=mixture",
        *(f"+corpus@{mixture}.parts.{name}.corpus=text" for name in ("left", "right")),
        *(f"{mixture}.parts.{name}.corpus.path={folder}/{name}.txt" for name in ("left", "right")),
        *(f"+{mixture}.parts.{name}.weight=1" for name in ("left", "right")),
        *judged(folder),
        "decontamination.leave_out=true",
    ]
    said = mlmx(outputs=folder / "outputs", settings=settings, seconds=4 * SECONDS)
    return folder, said


def judged(folder):
    data = [f"task.sentiment_files.data.{split}={folder}/{split}.tsv" for split in ("train", "test")]
    return [
        "task=[sentiment_files]",
        *data,
        "task.sentiment_files.trainer.max_steps=2",
        "task.sentiment_files.trainer.max_epochs=null",
    ]


def test_what_any_pretraining_has_seen_is_counted_listed_and_left_out(trained):
    folder, said = trained
    evaluation = stage(folder / "outputs", "eval")
    assert len(evaluation.result()["contamination"]["corpora"]) == 2
    assert evaluation.result()["contamination"]["unknown"] is None
    found = [json.loads(line) for line in evaluation.contamination_path.read_text().splitlines()]
    assert [text for record in found for text in record["texts"]] == [text for text, place in EXAMPLES.items() if place]
    assert [record["whole_line"] for record in found] == [True, False, False, True]
    assert "4 of 8 examples of split test also occur in a pretraining corpus" in said
    (summary,) = summaries(folder / "outputs")
    by_split = {score["split"]: score for score in summary["scores"] if score["metric"] == "accuracy"}
    assert by_split["test"]["contaminated"] == [4, 8]
    predictions = [json.loads(line) for line in evaluation.predictions_path.read_text().splitlines()]
    clean = [one["label"] == one["prediction"] for one in predictions if one["split"] == "test_decontaminated"]
    assert len(clean) == by_split["test_decontaminated"]["num_examples"] == 4
    assert by_split["test_decontaminated"]["value"] == sum(clean) / 4


def test_where_an_encoder_comes_from_is_known_from_its_stage_and_not_from_a_copy(trained, tmp_path):
    folder, _ = trained
    second = next(one for one in stages(folder / "outputs", "pretrain") if one.parent("encoder"))
    shutil.copytree(second.encoder_dir, tmp_path / "copy")
    for source, corpora, unknown in ((second.path, 3, None), (tmp_path / "copy", 1, str(tmp_path / "copy"))):
        outputs = tmp_path / f"outputs{corpora}"
        settings = ["corpus=text", f"corpus.path={folder}/left.txt", "trainer.max_steps=2", "trainer.batch_tokens=256"]
        settings += ["task=[bitext]", "task.bitext.data.num_pairs=20"]
        mlmx("--from", str(source), outputs=outputs, settings=settings, seconds=2 * SECONDS)
        told = stage(outputs, "eval").result()["contamination"]
        assert (len(told["corpora"]), told["unknown"]) == (corpora, unknown)
