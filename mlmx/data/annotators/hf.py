"""Taggers of Transformers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from mlmx.build import Positive
from mlmx.data.corpus import Annotation, Annotator, Segment
from mlmx.data.entity_schemes import iob2_label, scheme_of
from mlmx.data.positions import longest_row
from mlmx.data.rows import TokenRows
from mlmx.data.rows_from_text import WordRows
from mlmx.data.vocabulary import Vocabulary
from mlmx.data.words import mapped_tag, split_words
from mlmx.errors import user_error
from mlmx.loading import ONLY_SAFETENSORS, reason_for
from mlmx.stage import encoder_folder


class HuggingFaceAnnotator(Annotator):
    """A token-classification checkpoint, from the hub or a local folder (one that mlmx fine-tuned, too).

    The tag of a word is the one predicted at its first piece. Sentences longer than the model are tagged in windows.

    Args:
        path: a folder, a stage of mlmx, or a repository of the hub.
        revision: commit of the repository; null for its newest (the run's fingerprint then holds the commit found).
        layer: which layer its tags fill; entity tags in IOB2 (``B-PER``), IOBES, BILOU or plain (``PER``).
        tag_map: tag -> class; null for a tag to drop, tags that are not named stay. Null for no map.
        max_length: tokens per window at most; fewer where the model has fewer positions.
        batch_tokens: tokens per forward at most, padding included.
        trust_remote_code: whether code from the repository may run.
    """

    def __init__(
        self,
        *,
        path: str,
        revision: str | None,
        layer: Literal["pos", "entity"],
        tag_map: dict[str, str | None] | None,
        max_length: Positive,
        batch_tokens: Positive,
        trust_remote_code: bool,
    ) -> None:
        self.layers = (layer,)
        self.path = path
        self.tag_map = tag_map
        self.max_length = max_length
        self.batch_tokens = batch_tokens
        self._loading: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}

    def load(self) -> None:
        import torch
        from safetensors import SafetensorError
        from transformers import AutoModelForTokenClassification, AutoTokenizer

        folder = encoder_folder(self.path)
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(folder, **self._loading)
            model, loading = AutoModelForTokenClassification.from_pretrained(
                folder, output_loading_info=True, **ONLY_SAFETENSORS, **self._loading
            )
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            reason = reason_for(error, folder)
            raise user_error("annotator.path", f"{self.path} cannot be loaded as a token classifier: {reason}") from error
        if missing := sorted(loading["missing_keys"]):
            # Transformers would tag with a head of random numbers.
            raise user_error(
                "annotator.path", f"{self.path} is no trained token classifier: it has no weights for {', '.join(missing)}."
            )
        self.max_length = min(self.max_length, longest_row(model))
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = model.to(self.device).eval()
        self.vocabulary = Vocabulary.from_tokenizer(self.tokenizer)
        labels = [model.config.id2label[i] for i in range(model.config.num_labels)]
        if self.layers == ("entity",) and (scheme := scheme_of(labels)) is not None:
            labels = [iob2_label(label, scheme) for label in labels]
        self.tags = [mapped_tag(label, self.tag_map) for label in labels]

    def annotate(self, segments: Sequence[Segment]) -> list[Annotation]:
        spans = [split_words(segment.text) if segment.words is None else segment.words for segment in segments]
        words = [[segment.text[start:end] for start, end in own] for segment, own in zip(segments, spans, strict=True)]
        tags: list[list[str | None]] = [[None] * len(own) for own in words]
        rows = WordRows(words, self.tokenizer, self.vocabulary, self.max_length)
        # Sorted by length, so that little is padding.
        waiting = np.argsort(-rows.lengths, kind="stable")
        while len(waiting):
            batch_size = max(1, self.batch_tokens // int(rows.lengths[waiting[0]]))
            indices, waiting = waiting[:batch_size], waiting[batch_size:]
            predicted = self._predict(rows.take(indices))
            sentences = np.repeat(rows.sentences[indices], rows.lengths[indices])
            positions = rows.word_positions(indices)
            first = positions >= 0
            for sentence, word, label in zip(sentences[first], positions[first], predicted[first], strict=True):
                tags[sentence][word] = self.tags[label]
        return [Annotation(own, {self.layers[0]: found}) for own, found in zip(spans, tags, strict=True)]

    def _predict(self, rows: TokenRows) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        import torch

        inside = torch.arange(int(rows.lengths.max()))[None, :] < torch.from_numpy(rows.lengths)[:, None]
        input_ids = torch.full(inside.shape, self.vocabulary.pad_id)
        input_ids[inside] = torch.from_numpy(rows.input_ids)
        with torch.inference_mode():
            logits = self.model(input_ids=input_ids.to(self.device), attention_mask=inside.long().to(self.device)).logits
        labels: np.ndarray[tuple[int], np.dtype[np.int64]] = logits.argmax(-1).cpu()[inside].numpy()
        return labels
