"""A configuration mistake as one sentence that names key, value and what is allowed. Knows no particular setting."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

# pydantic names the member of a union that it tried; a person did not write it
_TYPES_TRIED = frozenset({"bool", "int", "float", "str"})
_ENGINES = frozenset({"vllm", "remote", "simulated"})
_UNKNOWN = "extra_forbidden"
_SENTENCES = {
    _UNKNOWN: "{key}: there is no such key",
    "missing": "{key}: is missing",
    "union_tag_invalid": "{key}.engine: must be one of vllm, remote, simulated",
    "union_tag_not_found": "{key}.engine: must be one of vllm, remote, simulated",
    "literal_error": "{key}: '{input}' is not one of {expected}",
    "model_type": "{key}: must be a mapping of settings, not {input!r}",
    "dict_type": "{key}: must be a mapping of settings, not {input!r}",
    "list_type": "{key}: must be a list, not {input!r}",
    "too_short": "{key}: must have at least one entry",
    "value_error": "{key}: {error}",
}
_ANY_OTHER = "{key}: {message}, not {input!r}"


def first_mistake(error: ValidationError, raw: Mapping[str, Any]) -> str:
    """The first mistake as `key.path: what is wrong`; a key that is not there before others: it may explain them."""
    mistakes = error.errors(include_url=False)
    first = next((one for one in mistakes if one["type"] == _UNKNOWN), mistakes[0])
    missing = [one for one in mistakes if one["type"] == "missing" and one["loc"][:-1] == first["loc"][:-1]]
    if first["type"] == _UNKNOWN and missing:
        return f"{_dotted(first['loc'], raw)}: there is no such key; {_dotted(missing[0]['loc'], raw)} is missing"
    return _SENTENCES.get(first["type"], _ANY_OTHER).format(
        key=_dotted(first["loc"], raw),
        input=first["input"],
        message=first["msg"][0].lower() + first["msg"][1:],
        expected=first.get("ctx", {}).get("expected"),
        error=first.get("ctx", {}).get("error"),
    )


def _dotted(location: tuple[int | str, ...], raw: Mapping[str, Any]) -> str:
    """`experts.coder.pin` for ('experts', 2, 'vllm', 'pin')."""
    parts: list[str] = []
    node: Any = raw
    for step in location:
        if isinstance(step, int) and isinstance(node, list):
            node = node[step]
            parts.append(str(node.get("name", step)) if isinstance(node, dict) else str(step))
        elif step in _TYPES_TRIED or (step in _ENGINES and isinstance(node, dict) and node.get("engine") == step):
            continue
        else:
            parts.append(str(step))
            node = node.get(step) if isinstance(node, dict) else None
    return ".".join(parts)
