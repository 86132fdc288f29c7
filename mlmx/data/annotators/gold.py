"""The tags that a corpus brings along."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mlmx.data.corpus import Annotation, Annotator, Segment
from mlmx.data.words import mapped_tag


class GoldAnnotator(Annotator):
    """The corpus' own gold tags (CoNLL-U, CoNLL columns, microworld).

    Args:
        tag_map: layer -> {tag: class}: what the corpus' tags are called here, null for a tag to drop; tags that are not named stay.
    """

    def __init__(self, *, tag_map: Mapping[str, Mapping[str, str | None]]) -> None:
        self.layers = ("pos", "entity")
        self.tag_map = tag_map

    def annotate(self, segments: Sequence[Segment]) -> list[Annotation]:
        return [
            Annotation(
                segment.words or (),
                {layer: [mapped_tag(tag, self.tag_map.get(layer)) for tag in tags] for layer, tags in segment.tags.items()},
            )
            for segment in segments
        ]
