"""What the benchmarks run on: lines of made-up pieces, as long as lines of text are, and encoders of a given size."""

# N lines, T tokens of some lines

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
import yaml
from numpy.typing import NDArray
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from mlmx.compose import conf_dir
from mlmx.data.rows import CorpusInfo, RowDataset, TokenRows
from mlmx.models.encoder import Encoder
from mlmx.models.load import Scratch

MAX_LENGTH = 128
_SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_CLS, _SEP = 2, 3
_PIECES_PER_WORD = 1.4

CORPUS = CorpusInfo(num_sides=1, languages=("en",), tag_names={"pos": ("", "NOUN", "VERB", "ADJ"), "entity": ("", "PER", "LOC")})


class Lines(RowDataset):
    """Lines with words of one or more pieces, parts of speech and names, one special token at each end.

    Lengths are log-normal with a mean of about ``mean_length`` tokens and at most 128. Half of the time the next piece follows from
    the last one, so that there is something to learn; otherwise pieces are distributed by Zipf's law.
    """

    def __init__(self, num_lines: int, *, vocab_size: int, mean_length: float = 26.0, seed: int = 0) -> None:
        random = np.random.default_rng(seed)
        spread = 0.6
        drawn = random.lognormal(np.log(mean_length) - spread**2 / 2, spread, num_lines)
        self.lengths = np.clip(drawn.round(), 4, MAX_LENGTH).astype(np.int32)
        self.num_truncated = {}
        self._starts = np.concatenate([[0], np.cumsum(self.lengths)])
        size, ordinary = int(self._starts[-1]), vocab_size - len(_SPECIALS)
        pieces = np.minimum(random.zipf(1.2, size) - 1, ordinary - 1)
        follows = random.random(size) < 0.5
        pieces[1:] = np.where(follows[1:], (pieces[:-1] * 7 + 13) % ordinary, pieces[1:])
        self._ids = pieces + len(_SPECIALS)
        first, last = self._starts[:-1], self._starts[1:] - 1
        self._ids[first], self._ids[last] = _CLS, _SEP
        begins = random.random(size) < 1 / _PIECES_PER_WORD
        begins[first + 1] = True
        words = np.cumsum(begins)
        self._words = (words - np.repeat(words[first + 1], self.lengths)).astype(np.int32)
        self._words[first] = self._words[last] = -1
        tag_of_word = random.choice(4, int(words[-1]) + 1, p=[0.5, 0.25, 0.15, 0.1]).astype(np.uint8)
        entity_of_word = np.where(tag_of_word == 1, random.choice(3, len(tag_of_word), p=[0.7, 0.2, 0.1]), 0).astype(np.uint8)
        special = self._words < 0
        self._tags = {
            "pos": np.where(special, 0, tag_of_word[words]).astype(np.uint8),
            "entity": np.where(special, 0, entity_of_word[words]).astype(np.uint8),
        }
        self._tags["entity_start"] = (self._tags["entity"] > 0).astype(np.uint8)

    def take(self, indices: NDArray[np.int64]) -> TokenRows:
        lengths = self.lengths[indices]
        cu_seqlens = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        tokens = np.arange(cu_seqlens[-1]) - np.repeat(cu_seqlens[:-1], lengths) + np.repeat(self._starts[indices], lengths)
        words = self._words[tokens]
        return TokenRows(
            input_ids=self._ids[tokens],
            cu_seqlens=cu_seqlens,
            words=words,
            segments=np.zeros(len(tokens), np.int8),
            languages=np.where(words < 0, -1, 0).astype(np.int8),
            row_ids=indices,
            tags={layer: values[tokens] for layer, values in self._tags.items()},
        )

    def features(self, index: int) -> dict[str, list[Any]]:
        """Return a line as Transformers' collators take it: word boundaries show as gaps between offsets."""
        line = self.take(np.array([index]))
        special = line.words < 0
        starts = 2 * np.arange(len(special)) + line.words
        offsets = np.where(special[:, None], 0, np.stack([starts, starts + 2], axis=1))
        return {
            "input_ids": line.input_ids.tolist(),
            "special_tokens_mask": special.astype(int).tolist(),
            "offset_mapping": offsets.tolist(),
        }


def tokenizer(vocab_size: int) -> PreTrainedTokenizerFast:
    """Return a tokenizer of the words ``w5``, ``w6``, ..., each named after its id."""
    vocabulary = {word: i for i, word in enumerate([*_SPECIALS, *(f"w{i}" for i in range(len(_SPECIALS), vocab_size))])}
    model = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))  # noqa: S106 - no password
    model.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    model.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", _CLS), ("[SEP]", _SEP)]
    )
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), _SPECIALS, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=model, model_max_length=MAX_LENGTH, **names)


def scratch(words: PreTrainedTokenizerFast, *, num_layers: int, hidden_size: int, num_heads: int) -> Scratch:
    """Return where a BERT of this size comes from."""
    return Scratch(
        words,
        architecture="bert",
        num_layers=num_layers,
        hidden_size=hidden_size,
        num_heads=num_heads,
        intermediate_size=4 * hidden_size,
        max_length=MAX_LENGTH,
        initializer_range=0.02,
        attention="bidirectional",
        tokenizer=None,
    )


def encoder(words: PreTrainedTokenizerFast, *, num_layers: int, hidden_size: int, num_heads: int) -> Encoder:
    """Return a BERT of this size, the same one for the same sizes."""
    torch.manual_seed(0)
    return scratch(words, num_layers=num_layers, hidden_size=hidden_size, num_heads=num_heads).build()


def node(group: str, option: str, **settings: Any) -> dict[str, Any]:
    """Return a component's settings as its YAML has them, some replaced."""
    plain = yaml.safe_load((conf_dir() / group / f"{option}.yaml").read_text(encoding="utf-8"))
    return {**plain, **settings}


def versions() -> str:
    """Return what a measurement was made with."""
    return f"Python {platform.python_version()}, torch {torch.__version__}, transformers {transformers.__version__}"


def hardware() -> str:
    """Return the name of the GPU, or of the processor where there is none."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    names = [line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line]
    return names[0] if names else platform.machine()
