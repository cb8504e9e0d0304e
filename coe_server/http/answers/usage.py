"""Extracts the token counts stated in an answer from its bytes. Pure; the bytes are not changed or delayed.

Parsing begins at `"usage"`, inside of an object. With an opening brace in front, the bytes are valid JSON only if the
word was a key of that object, so that a text that mentions usage is not mistaken for it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol

WINDOW_BYTES = 64 * 1024  # of the end of an answer, which contain its usage
MOST_TOKENS = 1_000_000_000  # of one answer; more is a mistake
_MOST_TRIED = 32  # places with the word, from the end
_WORD = b'"usage"'
_OBJECT = re.compile(rb'"usage"\s*:\s*\{')
_JSON = json.JSONDecoder()  # its `raw_decode` takes a third of the time of `json.loads`
# What ends an object opened with `{"":{`: the whole is the inner one, or an event around it (OpenAI's responses,
# Anthropic's `message_start`).
_OPENING, _WHOLE, _WRAPPED = b'{"":{', b"}", b""


class Usage(NamedTuple):
    """Token counts; None if not stated. `cached_prompt` is a part of `prompt`."""

    prompt: int | None = None
    cached_prompt: int | None = None
    completion: int | None = None

    @property
    def stated(self) -> list[tuple[str, int]]:
        """The stated counts, by kind."""
        return [(kind, tokens) for kind, tokens in zip(self._fields, self, strict=True) if tokens is not None]


UNSTATED = Usage()


class UsageReader(Protocol):
    """Reads one answer."""

    def hear(self, piece: bytes) -> None:
        """The next piece of it."""

    def usage(self) -> Usage:
        """The counts stated so far."""


class UsageInBody:
    """Reads a JSON body, cut anywhere, and keeps its end."""

    def __init__(self) -> None:
        self._end = bytearray()

    def hear(self, piece: bytes) -> None:
        self._end += piece[-WINDOW_BYTES:]
        if len(self._end) > 2 * WINDOW_BYTES:
            del self._end[:-WINDOW_BYTES]

    def usage(self) -> Usage:
        return _usage((_statement(self._end, (_WHOLE,)),))


class UsageInEvents:
    """Reads whole events. Anthropic's streams state prompt tokens at the beginning and completion tokens at the end."""

    def __init__(self) -> None:
        self._first = self._last = b""

    def hear(self, piece: bytes) -> None:
        if _WORD in piece and _speaks(piece):
            self._note([line for line in piece.splitlines() if _speaks(line)])

    def usage(self) -> Usage:
        if not self._last:
            return UNSTATED
        lines = (self._last,) if self._last is self._first else (self._first, self._last)
        return _usage([_statement(line, (_WHOLE, _WRAPPED)) for line in lines])

    def _note(self, lines: Sequence[bytes]) -> None:
        if lines:
            self._first = self._first or lines[0]
            self._last = lines[-1]


def _speaks(text: bytes) -> bool:
    start = text.find(_WORD)  # by far the fastest search
    return start >= 0 and _OBJECT.search(text, start) is not None


def _statement(text: bytes | bytearray, endings: Iterable[bytes]) -> Mapping[str, object]:
    """The last usage object that is a member of what `text` ends with; empty where there is none."""
    start = len(text)
    for _ in range(_MOST_TRIED):
        start = text.rfind(_WORD, 0, start)
        if start < 0 or len(text) - start > WINDOW_BYTES:
            break
        if text[start - 1 : start] == b"\\" or _OBJECT.match(text, start) is None:
            continue  # in a text, or without counts
        for ending in endings:
            if found := _member(_OPENING + text[start:] + ending):
                return found
    return {}


def _member(text: bytes) -> Mapping[str, object]:
    try:
        decoded = text.decode().rstrip()
        whole, end = _JSON.raw_decode(decoded)
    except (ValueError, RecursionError):
        return {}
    inner = whole[""] if end == len(decoded) else None
    found = inner.get("usage") if isinstance(inner, dict) else None
    return found if isinstance(found, dict) else {}


def _usage(statements: Iterable[Mapping[str, object]]) -> Usage:
    """The counts of all usage objects; later ones override earlier ones."""
    told: dict[str, int] = {}
    for statement in statements:
        details = statement.get("prompt_tokens_details") or statement.get("input_tokens_details")
        if isinstance(details, dict):
            told |= _counts(details)
        told |= _counts(statement)
    if not told:
        return UNSTATED
    prompt, read = told.get("prompt_tokens"), told.get("cache_read_input_tokens")
    if prompt is None and "input_tokens" in told:  # Anthropic's are without what the cache read or wrote
        prompt = told["input_tokens"] + (read or 0) + told.get("cache_creation_input_tokens", 0)
    cached = told.get("cached_tokens", read)
    if cached is not None:
        cached = None if prompt is None else min(cached, prompt)
    return Usage(prompt, cached, told.get("completion_tokens", told.get("output_tokens")))


def _counts(said: Mapping[str, object]) -> dict[str, int]:
    """All numbers that can be counts; True is not one."""
    return {name: count for name, count in said.items() if type(count) is int and 0 <= count <= MOST_TOKENS}
