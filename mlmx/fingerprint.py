"""The name that a stage's content gives it: everything that has an effect on results, in canonical form, and its hash."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, cast

from mlmx.build import is_description

FORMAT = 1
"""Version of the stage directory and of the fingerprint; raising it makes every finished stage unknown."""

# Of a node's ``_x_`` keys these two decide what is computed; the others describe the component to mlmx.
_IDENTIFYING = ("_target_", "_version_")


def canonical_json(value: Any) -> str:
    """Write a value so that equal values give equal text: sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def canonical_spec(spec: Mapping[str, Any], inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Reduce a spec to what has an effect on results.

    Settings named by ``_no_effect_`` go, as do the keys that only describe a component; settings named by ``_inputs_`` are replaced
    by their content, and the ``revision`` beside a content goes, because the content is what it stood for.

    Args:
        spec: the nodes of a stage.
        inputs: dotted setting -> its content (a hash, a commit, or a list of them).
    """
    return cast(dict[str, Any], _canonical(spec, "", inputs))


def _canonical(value: Any, where: str, inputs: Mapping[str, Any]) -> Any:
    if where and where in inputs:
        return {"content": inputs[where]}
    if isinstance(value, Mapping):
        left_out = set(value.get("_no_effect_") or ())
        if any(_join(where, key) in inputs for key in value.get("_inputs_") or ()):
            left_out.add("revision")
        return {
            key: _canonical(inner, _join(where, key), inputs)
            for key, inner in value.items()
            if key not in left_out and (not is_description(key) or key in _IDENTIFYING)
        }
    if isinstance(value, list | tuple):
        return [_canonical(inner, _join(where, str(i)), inputs) for i, inner in enumerate(value)]
    return value


def _join(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key


def canonical_document(kind: str, spec: Mapping[str, Any], inputs: Mapping[str, Any], parents: Mapping[str, str]) -> dict[str, Any]:
    """Return everything a stage's fingerprint covers.

    Args:
        kind: one of ``KINDS``.
        spec: the nodes of the stage.
        inputs: dotted setting -> its content.
        parents: role -> the parent's fingerprint.
    """
    return {"format": FORMAT, "kind": kind, "spec": canonical_spec(spec, inputs), "parents": dict(parents)}


def fingerprint_of(document: Mapping[str, Any]) -> str:
    """Return the name that a stage's content gives it: 64 hexadecimal digits."""
    return hashlib.sha256(canonical_json(document).encode()).hexdigest()
