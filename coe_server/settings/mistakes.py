"""A configuration mistake as one sentence that names key, value and what is allowed. Knows no particular setting."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from coe_server.visible import brief

_TAGS = {"engine": "vllm, remote, simulated"}  # where pydantic does not say what may stand there
_LONGEST_CHARACTERS = 600  # of a sentence with a value of any length
_UNKNOWN = "extra_forbidden"
_SENTENCES = {
    _UNKNOWN: "{key}: there is no such key",
    "missing": "{key}: is missing",
    "union_tag_invalid": "{key}.{tag}: must be one of {tags}",
    "union_tag_not_found": "{key}.{tag}: must be one of {tags}",
    "literal_error": "{key}: '{input}' is not one of {expected}",
    "model_type": "{key}: must be a mapping of settings, not {input!r}",
    "model_attributes_type": "{key}: must be a mapping of settings, not {input!r}",
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
    context = first.get("ctx", {})
    tag = str(context.get("discriminator", "")).strip("'")
    told = _SENTENCES.get(first["type"], _ANY_OTHER).format(
        key=_dotted(first["loc"], raw),
        input=first["input"],
        message=first["msg"][0].lower() + first["msg"][1:],
        expected=context.get("expected"),
        error=context.get("error"),
        tag=tag,
        tags=str(context.get("expected_tags", _TAGS.get(tag, "those that the example shows"))).replace("'", ""),
    )
    return brief(told.removeprefix(": "), _LONGEST_CHARACTERS)  # what concerns the whole names its keys itself


def _dotted(location: tuple[int | str, ...], raw: Mapping[str, Any]) -> str:
    """`experts.coder.pin` for ('experts', 2, 'vllm', 'pin'): a step that nobody wrote is left out.

    Those are the members of a union that pydantic tried, by their tag (`engine`, `kind`) or by their type.
    """
    parts: list[str] = []
    node: Any = raw
    for step in location:
        if isinstance(node, list) and isinstance(step, int):
            node = node[step]
            parts.append(str(node.get("name", step)) if isinstance(node, dict) else str(step))
        elif step == "[key]":  # what is wrong is the key that stands before it
            continue
        elif isinstance(node, dict) and (step in node or step not in {node.get("engine"), node.get("kind")}):
            parts.append(str(step))
            node = node.get(step)
    return ".".join(parts)
