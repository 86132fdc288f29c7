"""Shows what an objective does to a corpus: ``python -m mlmx.training.preview <stage directory> <number of examples>``.

The directory needs no more than the ``config.yaml`` of a pretraining whose parents are finished. Masks are those of the first
epoch, and schedules stand at their beginning. No weights are loaded.
"""

# S rows, T tokens of all rows

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from rich.text import Text
from transformers import AutoModel

from mlmx.build import build
from mlmx.data.batch import Batch, BatchContext, Collator
from mlmx.data.rows import CorpusInfo, RowDataset, TokenRows
from mlmx.data.rows_from_store import open_rows
from mlmx.data.statistic import open_corpus
from mlmx.errors import UserError, user_error
from mlmx.keyed import permutation, row_keys
from mlmx.models.encoder import Encoder, language_model_class
from mlmx.models.load import Pretrained, load_config, load_tokenizer
from mlmx.objectives.composite import Composite, CompositeCollator
from mlmx.objectives.objective import Objective
from mlmx.objectives.wrapper import innermost
from mlmx.stage import StageDir
from mlmx.target import allow_package

# Enough rows for rates that are good to a percent or two, few enough to take no time.
_SAMPLE_ROWS = 4000
_ROWS_AT_ONCE = 500
_FATES = ("mask", "random", "kept")
_STYLES = {"mask": "bold white on red", "random": "bold black on yellow", "kept": "bold black on green", "special": "dim"}
_WORD_MARKS = ("▁", "Ġ", "##")


@dataclass(frozen=True, slots=True)
class Masked:
    """Rows before and after the collator.

    Attributes:
        rows: as the collator arranges them.
        input_ids: (T,) as the model that ``caption`` names reads them.
        selected: (T,) bool, whether the token is marked: to be predicted or, where the objective selects none, changed.
        visible: (T,) bool, whether other tokens see it.
    """

    rows: TokenRows
    input_ids: NDArray[np.int64]
    selected: NDArray[np.bool_]
    visible: NDArray[np.bool_]

    def fate(self, mask_id: int | None) -> NDArray[np.str_]:
        """Return (T,) what became of each selected token, one of ``_FATES``; ``""`` for the others."""
        changed = self.input_ids != self.rows.input_ids
        fates = [self.selected & (self.input_ids == mask_id), self.selected & changed, self.selected]
        return np.select(fates, _FATES, "")


@dataclass(frozen=True, slots=True)
class Preview:
    """An objective and the rows it is given.

    Attributes:
        objective: with an encoder that has no weights.
        collator: the objective's.
        rows: the corpus as the objective reads it.
        corpus: its languages and classes.
        seed: the run's.
    """

    objective: Objective
    collator: Collator
    rows: RowDataset
    corpus: CorpusInfo
    seed: int

    @classmethod
    def of(cls, stage: StageDir) -> Preview:
        """Return the preview of a pretraining stage."""
        config = stage.config()
        for package in config.get("execution", {}).get("plugins", ()):
            allow_package(package)
        spec = config["spec"]
        store, corpus = open_corpus(stage)
        # Nothing is computed, so nothing is allocated: masks depend on the vocabulary alone.
        with torch.device("meta"):
            encoder = _weightless_encoder(stage, spec)
            objective: Objective = build(spec["objective"], encoder, corpus, where="objective")
        collator, trainer = objective.collator(), spec["trainer"]
        rows = open_rows(
            store,
            encoder.vocabulary,
            view=collator.view,
            separator=collator.separator,
            max_length=trainer["max_length"],
            overlong=trainer["overlong"],
        )
        return cls(objective, collator, rows, corpus, spec["seed"])

    def parts(self) -> Iterator[tuple[str, Preview]]:
        """Yield the preview of each part of an objective made of others, with its name; otherwise this one, with none."""
        if not isinstance(self.objective, Composite):
            yield "", self
            return
        assert isinstance(self.collator, CompositeCollator), "a composite's collator has its parts'"
        for name, objective in self.objective.parts.items():
            whole = replace(self, objective=objective, collator=self.collator.parts[name])
            for inner, preview in whole.parts():
                yield f"{name}/{inner}".rstrip("/"), preview

    def sample(self, size: int) -> NDArray[np.int64]:
        """Return the numbers of some rows, drawn from the whole corpus."""
        return permutation(len(self.rows), seed=self.seed, name="preview")[:size]

    def batch(self, indices: NDArray[np.int64]) -> Batch:
        """Return rows as a batch of the first epoch."""
        return self.collator(self.rows.take(indices), self._context(indices))

    def mask(self, indices: NDArray[np.int64]) -> Masked:
        """Return rows with the masks of the first epoch."""
        taken, context = self.rows.take(indices), self._context(indices)
        tensors = self.objective.shown(self.collator(taken, context)).tensors
        rows, input_ids = self.collator.arranged(taken, context), tensors["input_ids"].numpy()
        if len(input_ids) != len(rows.input_ids):
            raise user_error("objective", "it changes the length of rows, so there is no token to show beside another.")
        selected = input_ids != rows.input_ids
        if "selected" in tensors:
            selected = np.zeros(len(input_ids), bool)
            selected[tensors["selected"].numpy()] = True
        visible = tensors["visible"].numpy() if "visible" in tensors else np.ones(len(input_ids), bool)
        return Masked(rows, input_ids, selected, visible)

    def _context(self, indices: NDArray[np.int64]) -> BatchContext:
        return BatchContext(keys=row_keys(seed=self.seed, epoch=0, row_ids=indices), seed=self.seed, progress=0.0)

    @property
    def mask_id(self) -> int | None:
        return self.objective.encoder.vocabulary.mask_id


def show(preview: Preview, console: Console, num_examples: int) -> None:
    """Print what is shown, examples, and the rates over a sample of rows; for each part of an objective made of others."""
    console.print(Text.assemble("marked: ", *_legend()))
    for name, part in preview.parts():
        if name:
            console.print(Text(f"\npart {name}", style="bold"))
        console.print(Text(innermost(part.objective).caption))
        for index in part.sample(num_examples):
            console.print()
            console.print(example_text(part, int(index)))
        console.print()
        console.print(rate_table(part))


def example_text(preview: Preview, index: int) -> Text:
    """Return one row: pieces of a word joined by ``·``, each marked piece with what is read instead."""
    masked = preview.mask(np.array([index]))
    rows, tokenizer = masked.rows, preview.objective.encoder.tokenizer
    fates = masked.fate(preview.mask_id)
    text = Text(f"row {index}", style="bold cyan")
    for i, fate in enumerate(fates.tolist()):
        new_side = i == 0 or any(of[i] != of[i - 1] for of in (rows.segments, rows.row_of_token))
        same_word = i > 0 and rows.words[i] >= 0 and rows.words[i] == rows.words[i - 1]
        text.append("\n  " if new_side else "·" if same_word else " ", style="dim" if same_word else "")
        original = _piece(tokenizer, int(rows.input_ids[i]))
        if not masked.visible[i]:
            original = f"({original})"
        if not fate:
            text.append(original, style=_STYLES["special"] if rows.special[i] else _tag_style(preview.corpus, rows, i))
        elif fate == "kept":
            text.append(original, style=_STYLES["kept"])
        else:
            text.append(f"{original}→{_piece(tokenizer, int(masked.input_ids[i]))}", style=_STYLES[fate])
    return text


def rate_table(preview: Preview, num_rows: int = _SAMPLE_ROWS) -> Table:
    """Return the realised rate by kind of token, over a sample of rows."""
    sample = preview.sample(num_rows)
    totals: dict[tuple[str, str], list[int]] = {}
    fates: dict[str, int] = {}
    for start in range(0, len(sample), _ROWS_AT_ONCE):
        masked = preview.mask(sample[start : start + _ROWS_AT_ONCE])
        for kind, name, member in _kinds(masked.rows, preview.corpus):
            total = totals.setdefault((kind, name), [0, 0])
            total[0] += int(member.sum())
            total[1] += int((member & masked.selected).sum())
        for name, count in zip(*np.unique(masked.fate(preview.mask_id), return_counts=True), strict=True):
            fates[str(name)] = fates.get(str(name), 0) + int(count)
    num_selected = max(sum(fates.get(name, 0) for name in _FATES), 1)
    table = Table(title=f"rates over {len(sample)} of {len(preview.rows)} rows", title_justify="left")
    for column in ("", "class", "tokens", "marked", "rate", "share of marked"):
        table.add_column(column, justify="left" if column in ("", "class") else "right", no_wrap=column != "share of marked")
    last = ""
    for (kind, name), (count, selected) in totals.items():
        if count:
            if kind != last:
                table.add_section()
            table.add_row(
                "" if kind == last else kind,
                name,
                str(count),
                str(selected),
                f"{selected / count:.4f}",
                f"{selected / num_selected:.4f}",
            )
            last = kind
    table.add_section()
    for number, name in enumerate(_FATES):
        count = fates.get(name, 0)
        table.add_row("" if number else "became", name, "", str(count), "", f"{count / num_selected:.4f}")
    return table


def _kinds(rows: TokenRows, corpus: CorpusInfo) -> Iterator[tuple[str, str, NDArray[np.bool_]]]:
    # Kinds of tokens, as (T,) bool: all, special ones, then by language and by the classes of the annotation.
    ordinary = ~rows.special
    yield "all", "ordinary tokens", ordinary
    yield "all", "special tokens", rows.special
    for number, language in enumerate(corpus.languages):
        yield "language", language, rows.languages == number
    for layer, title in (("pos", "part of speech"), ("entity", "entity")):
        if layer in rows.tags:
            for number, name in enumerate(corpus.tag_names[layer]):
                yield title, name or "(not annotated)", ordinary & (rows.tags[layer] == number)


def _piece(tokenizer: Any, token_id: int) -> str:
    token: str = tokenizer.convert_ids_to_tokens(token_id)
    text: str = tokenizer.decode([token_id]).strip()
    if not text or "\N{REPLACEMENT CHARACTER}" in text:
        # Part of a character, or a mark of its own: as the tokenizer writes it.
        text = token
    for mark in _WORD_MARKS:
        text = text.removeprefix(mark) or text
    return text


def _tag_style(corpus: CorpusInfo, rows: TokenRows, i: int) -> str:
    entity = int(rows.tags["entity"][i]) if "entity" in rows.tags else 0
    return "underline" if entity and corpus.tag_names["entity"][entity] != "O" else ""


def _legend() -> Iterator[tuple[str, str] | str]:
    yield ("masked", _STYLES["mask"])
    yield " "
    yield ("replaced at random", _STYLES["random"])
    yield " "
    yield ("kept", _STYLES["kept"])
    yield "; underlined: in an entity; (in brackets): no other token sees it"


def _weightless_encoder(stage: StageDir, spec: Mapping[str, Any]) -> Encoder:
    parent = stage.parent("encoder")
    if parent is not None:
        return _from_config(load_config(parent.encoder_dir), load_tokenizer(parent.encoder_dir))
    trained = stage.parent("tokenizer")
    model = build(spec["model"], load_tokenizer(trained.tokenizer_dir) if trained else None, where="model")
    if isinstance(model, Pretrained):
        return _from_config(model.config(), model.load_tokenizer())
    encoder: Encoder = model.build()
    return encoder


def _from_config(config: Any, tokenizer: Any) -> Encoder:
    try:
        model = language_model_class(config).from_config(config)
    except ValueError:
        model = AutoModel.from_config(config)
    return Encoder(model, tokenizer)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the preview of a stage; return 2 for mistakes of the user."""
    parser = argparse.ArgumentParser(prog="python -m mlmx.training.preview", description="Show what an objective masks.")
    parser.add_argument("stage", type=Path, help="directory with the config.yaml of a pretraining")
    parser.add_argument("num_examples", type=int, help="how many examples to show")
    given = parser.parse_args(arguments)
    try:
        show(Preview.of(StageDir(given.stage)), Console(), given.num_examples)
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
