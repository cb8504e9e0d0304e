"""A mistake that pydantic found in settings or foreign data, as one sentence: key, value and what is allowed."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from coe_server.system.visible import brief

_LONGEST_CHARACTERS = 600  # limit of a sentence that quotes a value
_UNKNOWN = "extra_forbidden"
_SENTENCES = {
    _UNKNOWN: "{key}: there is no such key",
    "missing": "{key}: is missing",
    "union_tag_invalid": "{key}.{tag}: '{found}' is not one of {tags}",
    "union_tag_not_found": "{key}.{tag}: is missing; write one of {tags}",
    "literal_error": "{key}: '{input}' is not one of {expected}",
    "model_type": "{key}: must be a mapping of settings, not {input!r}",
    "model_attributes_type": "{key}: must be a mapping of settings, not {input!r}",
    "dict_type": "{key}: must be a mapping of settings, not {input!r}",
    "list_type": "{key}: must be a list, not {input!r}",
    "too_short": "{key}: must have at least {entries}",
    "value_error": "{key}: {error}",
}
_PLAIN = (
    (r", (unable to|got a number).*", ""),
    ("^Value error, ", ""),
    (r"^\w+ should", "must"),
    ("^Input is not a valid path for .*", "must be a path"),
    ("less than or equal to", "at most"),
    ("greater than or equal to", "at least"),
    ("a valid integer", "a whole number"),
    ("a valid ", "a "),
)
_NO_TAGS: Mapping[str, str] = {}
_ANY_OTHER = "{key}: {message}, not {input!r}"


@dataclass(frozen=True, slots=True)
class Mistake:
    """The first mistake that pydantic found in foreign data, without the value. `str`: one sentence with the key."""

    key: str  # dotted; empty if the whole value is wrong
    message: str

    @classmethod
    def first(cls, errors: Sequence[Any], root: str = "", known: Collection[str] = ()) -> Mistake:
        """The first of pydantic's `errors`, below the key `root`; `known`: the allowed keys."""
        error = errors[0]
        key = ".".join(map(str, ([root] if root else []) + list(error["loc"])))
        if error["type"] == _UNKNOWN and known:
            return cls(brief(key), f"there is no such key; allowed: {', '.join(known)}")
        return cls(brief(key), brief(plainly(error["msg"])))

    def __str__(self) -> str:
        return f"{self.key}: {self.message}" if self.key else self.message

    @property
    def invalid(self) -> str:
        """The mistake as the predicate of a sentence about a file."""
        return f"is not valid{f' at {self.key}' if self.key else ''}: {self.message}"


def first_mistake(error: ValidationError, raw: Mapping[str, Any], model: type[BaseModel]) -> str:
    """The first mistake as `key.path: what is wrong`; unknown keys come first, since they may explain others."""
    return all_mistakes(error, raw, model)[0]


def all_mistakes(
    error: ValidationError,
    raw: Mapping[str, Any],
    model: type[BaseModel],
    tags: Mapping[str, str] = _NO_TAGS,
) -> list[str]:
    """All mistakes as `key.path: what is wrong`, unknown keys first, with a similar key of `model` suggested.

    A missing key is reported together with an unknown one, which is probably its misspelling. `tags`: allowed values of
    a key that selects the kind of a mapping, if pydantic does not give them.
    """
    mistakes = error.errors(include_url=False)
    unknown = [one for one in mistakes if one["type"] == _UNKNOWN]
    missing = {one["loc"][:-1]: one for one in reversed(mistakes) if one["type"] == "missing"}
    told, explained = [], []
    for one in unknown:
        beside = missing.get(one["loc"][:-1])
        meant = _did_you_mean(one["loc"], model)
        if beside is not None:
            explained.append(beside["loc"])
            meant = f"; {_dotted(beside['loc'], raw)} is missing"
        told.append(brief(f"{_dotted(one['loc'], raw)}: there is no such key{meant}", _LONGEST_CHARACTERS))
    others = (one for one in mistakes if one["type"] != _UNKNOWN and one["loc"] not in explained)
    return list(dict.fromkeys([*told, *(_sentence(one, raw, tags) for one in others)]))


def _sentence(mistake: ErrorDetails, raw: Mapping[str, Any], tags: Mapping[str, str]) -> str:
    context = mistake.get("ctx", {})
    tag = str(context.get("discriminator", "")).strip("'")
    told = _SENTENCES.get(mistake["type"], _ANY_OTHER).format(
        key=_dotted(mistake["loc"], raw),
        input=mistake["input"],
        message=plainly(mistake["msg"]),
        expected=context.get("expected"),
        error=context.get("error"),
        tag=tag,
        found=context.get("tag"),
        entries="one entry" if (least := context.get("min_length")) == 1 else f"{least} entries",
        tags=str(context.get("expected_tags", tags.get(tag, "those that the example shows"))).replace("'", ""),
    )
    return brief(told.removeprefix(": "), _LONGEST_CHARACTERS)  # a mistake of the whole mapping names its keys itself


def plainly(message: str) -> str:
    """Pydantic's message as the predicate of a sentence: `must be at most 65535`."""
    for pattern, words in _PLAIN:
        message = re.sub(pattern, words, message)
    return message[0].lower() + message[1:]


def _did_you_mean(location: tuple[int | str, ...], model: type[BaseModel]) -> str:
    """`; did you mean 'pin'?` if a similar key is allowed there, else empty."""
    types: list[Any] = [model]
    for step in location[:-1]:
        types = [inner for one in types for inner in _below(one, step)]
    models = [found for one in types for found in _models_in(one)]
    allowed = sorted({field.alias or name for one in models for name, field in one.model_fields.items()})
    near = difflib.get_close_matches(str(location[-1]), allowed, n=1)
    return f"; did you mean '{near[0]}'?" if near else ""


def _below(annotation: Any, step: int | str) -> list[Any]:
    """The types one step down a location: of a field, of an entry of a list or mapping, or of a tagged union."""
    if get_origin(annotation) in {list, dict}:
        return [get_args(annotation)[-1]]
    if not _is_model(annotation):
        return [inner for part in get_args(annotation) for inner in _below(part, step)]
    fields = annotation.model_fields
    if step in fields:
        return [fields[step].annotation]
    return [annotation] if any(step in get_args(field.annotation) for field in fields.values()) else []


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if _is_model(annotation):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models_in(part)]


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _dotted(location: tuple[int | str, ...], raw: Mapping[str, Any]) -> str:
    """`experts.coder.pin` for ('experts', 2, 'vllm', 'pin'): steps that are not in the file are left out.

    Such steps are pydantic's names of union members: their tag (`engine`, `kind`) or type.
    """
    parts: list[str] = []
    node: Any = raw
    for before, step in zip((None, *location), location, strict=False):
        if isinstance(node, list) and isinstance(step, int):
            node = node[step]
            parts.append(str(node.get("name", step)) if isinstance(node, dict) else str(step))
        elif step == "[key]":  # the key before it is wrong
            continue
        elif isinstance(before, int) and isinstance(node, dict) and step == node.get("engine"):
            continue  # a kind may have the name of one of its keys
        elif isinstance(node, dict) and (step in node or step not in {node.get("engine"), node.get("kind")}):
            parts.append(str(step))
            node = node.get(step)
    return ".".join(parts)
