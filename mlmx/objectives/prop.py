"""Masked language modelling of a text beside a set of words, and which of two sets represents the text."""

# S rows, T tokens of all rows, P selected tokens, M members of pairs and rows without a pair, R pairs, D width

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mlmx.build import NonNegativeFloat, PositiveFloat
from mlmx.data.arrays import Arrays
from mlmx.data.batch import Batch, BatchContext, extended, packed_batch
from mlmx.data.encoding import offsets_of
from mlmx.data.gather import Side, Source, gather
from mlmx.data.rows import CorpusInfo, TokenRows
from mlmx.data.vocabulary import RowLayout
from mlmx.data.word_sets import WordSets
from mlmx.errors import user_error
from mlmx.keyed import fold, integers
from mlmx.masking.corrupt import Corruption, corrupt
from mlmx.masking.select import WholeWords
from mlmx.masking.units import Draws, ranges
from mlmx.models.encoder import Encoder
from mlmx.models.flops import linear_flops, num_linear_weights
from mlmx.models.pooling import require_pooling
from mlmx.objectives.masked import MaskedCollator, MaskedObjective, masked_collator, select
from mlmx.objectives.objective import Output
from mlmx.schedules import ScheduledRatio


@dataclass(frozen=True, slots=True)
class _Members:
    """The rows of a batch: of each text beside its likelier word set, then of those with a pair beside the other set.

    Attributes:
        rows: M rows.
        row: (M,) the text of each.
        num_tokens: (M,) how many of its tokens are there.
        starts: (M,) where they begin among the tokens of all rows.
    """

    rows: TokenRows
    row: NDArray[np.int64]
    num_tokens: NDArray[np.int64]
    starts: NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class WordSetCollator(MaskedCollator):
    """Puts texts beside word sets, and selects words of the texts; both members of a pair have the same masks.

    Adds to what ``MaskedCollator`` does ``pairs`` (2, R) int64, the rows with the likelier sets and those with the others.

    Attributes:
        sets: what ``WordSets`` collected.
        layout: of a word set and a text.
        single: of a text alone.
        max_length: of a row, in tokens.
    """

    sets: Arrays
    layout: RowLayout
    single: RowLayout
    max_length: int

    def arranged(self, rows: TokenRows, context: BatchContext) -> TokenRows:
        return self._members(rows, rows.input_ids, self._pair_of(rows, Draws(context.keys))).rows

    def __call__(self, rows: TokenRows, context: BatchContext) -> Batch:
        draws = Draws(context.keys)
        pair = self._pair_of(rows, draws)
        selection, scheduled = select(self.policy, rows, draws, context)
        input_ids = corrupt(
            rows.input_ids, selection, draws, corruption=self.corruption, mask_id=self.mask_id, ordinary_ids=self.ordinary_ids
        )
        members = self._members(rows, input_ids, pair)
        others = np.arange(rows.num_rows, len(members.row))
        # Where the selected tokens stand in either member of a pair, unless the text ends before them there.
        member_of_row = np.full((2, rows.num_rows), -1)
        member_of_row[0] = np.arange(rows.num_rows)
        member_of_row[1, members.row[others]] = others
        member = member_of_row[:, selection.row]
        in_text = np.broadcast_to(selection.places - len(self.single.prefix), member.shape)
        there = (member >= 0) & (in_text < members.num_tokens[member])
        targets = np.broadcast_to(rows.input_ids[selection.positions], member.shape)[there]
        keys = fold(context.keys[members.row], (np.arange(len(members.row)) >= rows.num_rows).astype(np.int64))
        return packed_batch(
            members.rows,
            replace(context, keys=keys),
            counts={"mlm": len(targets), "ranking": len(others)},
            selected=(members.starts[member] + in_text)[there],
            targets=targets,
            pairs=np.stack([members.row[others], others]),
            **scheduled,
        )

    def _pair_of(self, rows: TokenRows, draws: Draws) -> NDArray[np.int64]:
        # (S,) a pair of each text; -1 where it has none.
        if rows.sources is None:
            raise user_error("corpus", "this objective needs word sets, and the rows come from no corpus that they were drawn for.")
        offsets, number = self.sets["pair_offsets"], np.arange(rows.num_rows)
        first, count = offsets[rows.sources], offsets[rows.sources + 1] - offsets[rows.sources]
        return np.where(count > 0, first + integers(draws.of("sample", number, np.zeros_like(number)), count), -1)

    def _members(self, rows: TokenRows, input_ids: NDArray[np.int64], pair: NDArray[np.int64]) -> _Members:
        paired = (pair >= 0).nonzero()[0]
        row = np.concatenate([np.arange(rows.num_rows), paired])
        is_other = np.arange(len(row)) >= rows.num_rows
        # The tokens of the words of all sets, laid end to end; a row without a pair has an empty set.
        places = self.sets["set_offsets"]
        num_words = np.where(pair >= 0, (places[pair + 1] - places[pair]) // 2, 0)[row]
        words = self.sets["set_words"][ranges(places[pair[row]] + is_other * num_words, num_words)]
        lexicon = self.sets["lexicon_offsets"]
        sizes = lexicon[words + 1] - lexicon[words]
        set_ids = self.sets["lexicon_pieces"][ranges(lexicon[words], sizes)]
        word_in_set = ranges(np.zeros_like(num_words), num_words).repeat(sizes)
        set_lengths = np.bincount(np.arange(len(row)).repeat(num_words), weights=sizes, minlength=len(row)).astype(np.int64)
        # The text gives way; a set takes half of the room at most.
        room = self.max_length - self.layout.num_special
        kept = np.minimum(set_lengths, room // 2)
        text_lengths = np.minimum(rows.lengths[row] - self.single.num_special, room - kept)
        text_starts = rows.cu_seqlens[row] + len(self.single.prefix)
        languages = rows.languages[text_starts]
        source = Source(
            pieces=np.concatenate([set_ids, input_ids]),
            words=np.concatenate([word_in_set.astype(np.int32), rows.words]),
        )
        sides = [
            Side(starts=offsets_of(set_lengths)[:-1], lengths=kept, languages=languages),
            Side(starts=len(set_ids) + text_starts, lengths=text_lengths, languages=languages),
        ]
        members = gather(self.layout, source, sides, rows.row_ids[row])
        starts = members.cu_seqlens[:-1] + len(self.layout.prefix) + kept + len(self.layout.middle)
        return _Members(members, row, text_lengths, starts.astype(np.int64))


class RepresentativeWords(MaskedObjective):
    """Predicts masked words of a text beside a set of words, and which of two sets is likelier for the text (PROP).

    Sets are drawn from the unigram language model of the text, by a stage of its own. Metrics, beside those of masked language
    modelling: ``ranking_accuracy``, the part of the pairs whose likelier set has the higher score, and ``paired_ratio``, the part
    of the texts that have a pair.

    Source:
        Ma et al. 2021, PROP, arXiv:2010.10137, section 3; Albert-Ma/PROP, ``prop/multiprocessing_generate_word_sets.py`` and
        ``pytorch_pretrain_bert/modeling.py``.

    Terms:
        ``ranking``: sum over the pairs of max(0, margin - s1 + s2), where s1 is the score of the likelier set and s2 that of the
        other, and a score is a linear function of a layer with tanh of the first vector of the row ``[CLS] set [SEP] text [SEP]``;
        the count is the number of pairs. No unit. ``mlm``: sum over the selected tokens i, in both rows of a pair, of -log p(x_i |
        corrupted row), nats; the count is their number.

    Shapes:
        ``selected``, ``targets`` (P,): positions among the batch's packed tokens, and the ids that stood there; ``pairs`` (2, R):
        the rows of the batch with the likelier set, and those with the other one.

    Deviations:
        ``parity: released_code`` takes s1 and s2 from the softmax over the two, so that the loss is never 0 with a margin of 1;
        ``paper`` takes the scores. Words are drawn from the whole lexicon (the released code: from those of the text and as many
        others as make 500), which is one for all languages of the corpus. Which words are stop words is said by
        ``max_text_ratio`` and by a file, in any language; there is no stemming, and texts of any length take part. Each time a text
        is seen, one of its pairs is drawn. Both rows of a pair have the same masks, on whole words, as many tokens as
        ``mask_ratio`` says on average, without the limit of 60. A text that is too long gives way to its set; one in several rows
        has the sets of the whole in each. A text without a pair is read with an empty set, for ``mlm`` alone. Both sides of a row
        have token type 0, where the source's BERT has a segment id for each.

    Raises:
        UserError: if the tokenizer has no mask token or puts no special token before a text, or the encoder is causal.
    """

    caption = f"{MaskedObjective.caption} The vector of the first token tells which of two word sets represents the text better."

    def __init__(
        self,
        encoder: Encoder,
        corpus: CorpusInfo,
        *,
        mask_ratio: ScheduledRatio,
        corruption: Corruption,
        word_sets: WordSets,
        margin: PositiveFloat,
        ranking_weight: NonNegativeFloat,
        parity: Literal["paper", "released_code"],
    ) -> None:
        """Choose what is masked, which sets there are, and how they are compared.

        Args:
            encoder: what is trained.
            corpus: what it is trained on.
            mask_ratio: part of a text's tokens that is selected, in [0, 1], by whole words.
            corruption: parts of the selected words that are masked, replaced and kept; they sum to 1.
            word_sets: how sets are drawn.
            margin: by how much the likelier set has to lie above the other.
            ranking_weight: weight of ``ranking``; that of ``mlm`` is 1.
            parity: what is compared, see *Deviations*.
        """
        require_pooling(encoder, "cls", where="model")
        masked = masked_collator(encoder, WholeWords(mask_ratio, count_specials=False, last_word="fair"), corruption)
        collator = extended(
            masked,
            WordSetCollator,
            sets=word_sets.of(corpus),
            layout=encoder.vocabulary.pair_layout("template"),
            single=encoder.vocabulary.single,
            max_length=encoder.max_length,
        )
        super().__init__(encoder, collator)
        self.weights = {"mlm": 1.0, "ranking": ranking_weight}
        self.margin, self.parity = margin, parity
        # A bias of the score would be the same for both sets.
        dense, score = nn.Linear(encoder.hidden_size, encoder.hidden_size), nn.Linear(encoder.hidden_size, 1, bias=False)
        for linear in (dense, score):
            nn.init.normal_(linear.weight, std=encoder.initializer_range)
        nn.init.zeros_(dense.bias)
        self.scorer = nn.Sequential(dense, nn.Tanh(), score)

    def forward(self, batch: Batch) -> Output:
        hidden_TD = self.encoder(batch)
        output = self.predict(hidden_TD, batch)
        first_2R = batch.tensors["cu_seqlens"].long()[batch.tensors["pairs"]]
        scores_2R = self.scorer(hidden_TD[first_2R])[..., 0]
        scores_2R = scores_2R.to(torch.promote_types(scores_2R.dtype, torch.float32))
        num_pairs = first_2R.new_full((), first_2R.shape[1])
        metrics = {
            **output.metrics,
            "ranking_accuracy": ((scores_2R[0] > scores_2R[1]).sum(), num_pairs),
            "paired_ratio": (num_pairs, num_pairs.new_full((), batch.num_rows) - num_pairs),
        }
        return Output({**output.terms, "ranking": self.ranking_loss(scores_2R)}, metrics)

    def ranking_loss(self, scores_2R: Tensor) -> Tensor:
        """Return the sum of the hinge losses of pairs of scores (2, R), the likelier sets first."""
        compared_2R = scores_2R if self.parity == "paper" else scores_2R.softmax(0)
        return (self.margin - compared_2R[0] + compared_2R[1]).clamp(min=0).sum()

    def flops(self, batch: Batch) -> int:
        encoder = self.encoder.flops(batch)
        if not encoder or self.encoder.head is None:
            return 0
        head = linear_flops(num_linear_weights(self.encoder.head), batch.counts["mlm"])
        return encoder + head + linear_flops(num_linear_weights(self.scorer), 2 * batch.counts["ranking"])
