"""What a preset changes in a body, by the words of each endpoint. Pure.

`set` fills what the caller left out, `force` replaces, `remove` drops. Objects merge by key. A meaning that has several
spellings is one: a caller's `max_tokens` counts as `max_completion_tokens`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from coe_server.http.bodies.body import LARGE_BYTES, Body

# The spelling that each endpoint takes, the one first that is written where the preset has another.
_LIMITS = {
    "chat": ("max_completion_tokens", "max_tokens"),
    "completions": ("max_tokens",),
    "responses": ("max_output_tokens",),
    "messages": ("max_tokens",),
}
_ANY_LIMIT = frozenset(name for names in _LIMITS.values() for name in names)
_EFFORT, _REASONING = "reasoning_effort", "reasoning"  # a word, and an object that has it as `effort`
_TAKES_EFFORT = frozenset(("chat", "responses"))

Changes = Mapping[str, bytes | None]  # member -> its new value, None where it is dropped


@dataclass(frozen=True, slots=True)
class Preset:
    """Members of a body by their names; values are what JSON has. `own`: an endpoint's other preset."""

    fills: Mapping[str, Any]
    replaces: Mapping[str, Any]
    drops: tuple[str, ...]
    own: Mapping[str, Preset] = field(default_factory=dict)

    def changes(self, endpoint: str, body: Body) -> Changes:
        """What is to be changed in this body for this endpoint: nothing where no answer is generated."""
        if endpoint not in _LIMITS:
            return {}
        if endpoint in self.own:
            return self.own[endpoint].changes(endpoint, body)
        draft = _Draft(body)
        for name in self.drops:
            draft.drop(name)
        for name, value in _spelled(self.fills, endpoint):
            draft.fill(name, value)
        for name, value in _spelled(self.replaces, endpoint):
            draft.replace(name, value)
        return draft.changes


def _spelled(members: Mapping[str, Any], endpoint: str) -> Iterator[tuple[str, Any]]:
    """In the endpoint's words; what it has no word for is left out."""
    for name, value in members.items():
        if name in _ANY_LIMIT:
            yield name if name in _LIMITS[endpoint] else _LIMITS[endpoint][0], value
        elif name in {_EFFORT, _REASONING} and endpoint not in _TAKES_EFFORT:
            continue
        elif name == _EFFORT and endpoint == "responses":
            yield _REASONING, {"effort": value}
        else:
            yield name, value


class _Draft:
    """The caller's members, and those that are changed so far."""

    def __init__(self, body: Body) -> None:
        self._places = {member.key: (member.value_start, member.end) for member in body.members}
        self._raw = body.raw
        self.changes: dict[str, bytes | None] = {}

    def has(self, name: str) -> bool:
        return self.changes[name] is not None if name in self.changes else name in self._places

    def drop(self, name: str) -> None:
        for one in _ANY_LIMIT if name in _ANY_LIMIT else (name,):
            if self.has(one):
                self.changes[one] = None
        if name == _EFFORT:
            self._without_effort()
        elif name == _REASONING and self.has(_EFFORT):
            self.changes[_EFFORT] = None

    def fill(self, name: str, value: Any) -> None:
        if name in _ANY_LIMIT and any(self.has(one) for one in _ANY_LIMIT):
            return
        if name == _EFFORT and "effort" in self._object(_REASONING):
            return
        if name == _REASONING and isinstance(value, dict) and self.has(_EFFORT):
            value = {key: part for key, part in value.items() if key != "effort"}
        if not self.has(name):
            if value != {}:
                self.put(name, value)
        elif isinstance(value, dict) and self._is_object(name):
            self.put(name, _merged(value, self._object(name)))

    def replace(self, name: str, value: Any) -> None:
        if name in _ANY_LIMIT:
            self.drop(name)
        if name == _EFFORT:
            self._without_effort()
        if name == _REASONING and isinstance(value, dict) and "effort" in value and self.has(_EFFORT):
            self.changes[_EFFORT] = None
        old = self._object(name)
        self.put(name, _merged(old, value) if isinstance(value, dict) and old else value)

    def put(self, name: str, value: Any) -> None:
        self.changes[name] = json.dumps(value).encode()

    def _without_effort(self) -> None:
        reasoning = self._object(_REASONING)
        if "effort" in reasoning:
            rest = {key: part for key, part in reasoning.items() if key != "effort"}
            self.changes[_REASONING] = json.dumps(rest).encode() if rest else None

    def _is_object(self, name: str) -> bool:
        return self._text(name)[:1] == b"{"

    def _object(self, name: str) -> dict[str, Any]:
        """Empty where it is none, or so large that reading it would delay other requests."""
        text = self._text(name)
        return json.loads(text) if text[:1] == b"{" and len(text) <= LARGE_BYTES else {}

    def _text(self, name: str) -> bytes:
        if name in self.changes:
            return self.changes[name] or b""
        start, end = self._places.get(name, (0, 0))
        return self._raw[start:end]


def _merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """By key, objects inside as well; what is `over` wins."""
    both = {
        key: _merged(under[key], over[key])
        if isinstance(under[key], dict) and isinstance(over[key], dict)
        else over[key]
        for key in under.keys() & over.keys()
    }
    return {**under, **over, **both}
