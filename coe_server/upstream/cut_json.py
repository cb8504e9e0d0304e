"""Reads the members of a JSON object of which only the beginning or the end is there. Does not know what they mean."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from coe_server.upstream.complaint import json_value

_MOST_TRIED = 32  # occurrences of the word, from the end of a long body
_DECODER = json.JSONDecoder()
_KEY = re.compile(r"\s*[{,]\s*(?=\")")
_COLON = re.compile(r"\s*:\s*")


def members_at_beginning(text: str) -> dict[str, Any]:
    """The members of the object that begins the text. One that is cut has what is there of its object or text.

    The text must be within the limits of `is_complex`.
    """
    members: dict[str, Any] = {}
    at = 0
    while (key_at := _KEY.match(text, at)) is not None:
        try:
            key, at = _DECODER.raw_decode(text, key_at.end())
            colon = _COLON.match(text, at)
            if colon is None:
                return members
            members[key], at = _value_at(text, colon.end())
        except ValueError:
            return members
    return members


def _value_at(text: str, at: int) -> tuple[Any, int]:
    """A value and where it ends. Raises ValueError for one that is cut and neither an object nor a text."""
    try:
        return _DECODER.raw_decode(text, at)
    except ValueError:
        if text.startswith("{", at):
            return members_at_beginning(text[at:]), len(text)
        if text.startswith('"', at):
            return text[at + 1 :], len(text)
        raise


def last_member(end: bytes, word: bytes) -> Mapping[str, Any] | str | None:
    """The value of the top-level member `word` (in quotation marks) at the end of an object; None if there is none.

    The text from the word on, with a brace before it, is valid JSON exactly if the word was a top-level key.
    """
    start = len(end)
    for _ in range(_MOST_TRIED):
        start = end.rfind(word, 0, start)
        if start < 0:
            return None
        try:
            payload = json_value(b"{" + end[start:])
        except ValueError:
            continue
        if isinstance(payload, Mapping):
            found = payload[word.strip(b'"').decode()]
            return found or None
    return None
