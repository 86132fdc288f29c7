"""Pipelines of Stanza."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mlmx.build import Positive
from mlmx.data.corpus import Annotation, Annotator, Segment, require_package
from mlmx.errors import user_error

# Stanza's entity tags: begin, inside, end, single.
_IOB2 = {"B": "B", "I": "I", "E": "I", "S": "B"}


class StanzaAnnotator(Annotator):
    """Stanza's parts of speech and entities. Needs ``pip install 'mlmx[stanza]'`` and the models of the languages.

    Args:
        languages: languages to annotate; others stay without annotation.
        processors: Stanza's processors: ``tokenize,pos`` and, for languages that have it, ``ner``; ``mwt`` where it is needed.
        batch_size: texts per batch.
    """

    def __init__(self, *, languages: list[str], processors: str, batch_size: Positive) -> None:
        require_package("stanza")
        names = processors.replace(" ", "").split(",")
        self.layers = tuple(layer for layer, processor in (("pos", "pos"), ("entity", "ner")) if processor in names)
        if not languages or not self.layers:
            raise user_error("annotator", "needs languages, and pos or ner among its processors.")
        self.batch_size = batch_size
        self.languages = languages
        self.processors = ",".join(names)

    def load(self) -> None:
        import stanza

        self.pipelines = {}
        for language in self.languages:
            try:
                self.pipelines[language] = stanza.Pipeline(
                    language, processors=self.processors, download_method=None, logging_level="ERROR"
                )
            except Exception as error:  # Stanza raises errors of many classes for a model that is missing.
                command = f"python -c 'import stanza; stanza.download(\"{language}\")'"
                message = f"{language!r} cannot be loaded ({error}); download it with: {command}."
                raise user_error("annotator.languages", message) from error

    def annotate(self, segments: Sequence[Segment]) -> list[Annotation]:
        annotations = [Annotation((), {})] * len(segments)
        for language, pipeline in self.pipelines.items():
            chosen = [i for i, segment in enumerate(segments) if segment.language == language]
            for start in range(0, len(chosen), self.batch_size):
                part = chosen[start : start + self.batch_size]
                for i, document in zip(part, pipeline.bulk_process([segments[i].text for i in part]), strict=True):
                    annotations[i] = self._annotation(document)
        return annotations

    def _annotation(self, document: Any) -> Annotation:
        tokens = [token for sentence in document.sentences for token in sentence.tokens]
        tags: dict[str, list[str | None]] = {}
        if "pos" in self.layers:
            tags["pos"] = [token.words[0].upos for token in tokens]
        if "entity" in self.layers:
            tags["entity"] = [_iob2(token.ner) for token in tokens]
        return Annotation([(token.start_char, token.end_char) for token in tokens], tags)


def _iob2(tag: str | None) -> str | None:
    prefix, separator, name = (tag or "").partition("-")
    return f"{_IOB2[prefix]}-{name}" if separator else tag or None
