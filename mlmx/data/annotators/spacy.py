"""Pipelines of spaCy."""

from __future__ import annotations

from collections.abc import Sequence

from mlmx.build import Positive
from mlmx.data.corpus import Annotation, Annotator, Segment, require_package
from mlmx.errors import user_error


class SpacyAnnotator(Annotator):
    """spaCy's parts of speech and entities. Needs ``pip install 'mlmx[spacy]'`` and the pipelines named.

    Args:
        pipelines: language -> name of an installed pipeline (``en_core_web_sm``) or a folder. Languages that are not named stay
            without annotation.
        batch_size: texts per batch.
    """

    def __init__(self, *, pipelines: dict[str, str], batch_size: Positive) -> None:
        require_package("spacy")
        if not pipelines:
            raise user_error("annotator.pipelines", "names no pipeline: pipelines={<language>: <pipeline>}.")
        self.layers = ("pos", "entity")
        self.batch_size = batch_size
        self.names = pipelines

    def load(self) -> None:
        import spacy

        self.pipelines = {}
        for language, name in self.names.items():
            try:
                self.pipelines[language] = spacy.load(name)
            except OSError as error:
                message = f"{name!r} cannot be loaded ({error}); install it with: python -m spacy download {name}."
                raise user_error(f"annotator.pipelines.{language}", message) from error

    def annotate(self, segments: Sequence[Segment]) -> list[Annotation]:
        annotations = [Annotation((), {})] * len(segments)
        for language, pipeline in self.pipelines.items():
            chosen = [i for i, segment in enumerate(segments) if segment.language == language]
            documents = pipeline.pipe([segments[i].text for i in chosen], batch_size=self.batch_size)
            for i, document in zip(chosen, documents, strict=True):
                tokens = [token for token in document if not token.is_space]
                entities: list[str | None] = [f"{token.ent_iob_}-{token.ent_type_}" if token.ent_type_ else "O" for token in tokens]
                tags: dict[str, list[str | None]] = {"pos": [token.pos_ or None for token in tokens], "entity": entities}
                annotations[i] = Annotation([(token.idx, token.idx + len(token.text)) for token in tokens], tags)
        return annotations
