"""An answer under a preset's own name: `model` in it says the preset's, where its engine wrote its base's.

The rest of the answer is unchanged, byte for byte.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator

from coe_server.engines.engine import EngineResponse
from coe_server.http.headers import content_type

# A string is a token also where its end is missing: otherwise each escaped quote in it would be tried as a beginning.
_TOKEN = re.compile(rb'("(?:[^"\\]++|\\.)*+("?))(\s*:)?|[{}\[\]]', re.DOTALL)
_END_OF_STRING = re.compile(rb'(?:[^"\\]++|\\.)*+"', re.DOTALL)
_CONTAINERS = (b'"response"', b'"message"')  # whose `model` is the answer's: events of responses and of messages
_HELD_BYTES = 256  # of a string whose end is not there yet; a longer one is no name of a member
_LENGTH = "content-length"


class OwnName:
    """An `EngineResponse` (see `engine.py`) with this name in place of the model's."""

    def __init__(self, answer: EngineResponse, name: str) -> None:
        self._answer = answer
        self._name = name

    @property
    def status(self) -> int:
        return self._answer.status

    @property
    def headers(self) -> tuple[tuple[str, str], ...]:
        """Without the length, which changes."""
        return tuple(pair for pair in self._answer.headers if pair[0].lower() != _LENGTH)

    async def chunks(self) -> AsyncIterator[bytes]:
        named = Named(self._name)
        async for chunk in self._answer.chunks():
            if told := named.hear(chunk):
                yield told
        if named.rest:
            yield named.rest


def under_own_name(answer: EngineResponse, name: str) -> EngineResponse:
    """The answer with `name` as its model, if it is JSON or events of JSON in plain bytes."""
    coded = any(key.lower() == "content-encoding" and value.lower() != "identity" for key, value in answer.headers)
    kind = content_type(answer.headers) or ""
    readable = not coded and (kind.endswith("json") or kind == "text/event-stream")
    return OwnName(answer, name) if readable and 200 <= answer.status < 300 else answer


class Named:
    """Replaces the value of `model` in JSON, or in events of JSON, that comes in pieces."""

    def __init__(self, name: str) -> None:
        self.rest = b""  # of what came, held until more of it is there
        self._name = json.dumps(name).encode()
        self._depth = 0  # open objects and lists
        self._inner = b""  # the key of the one at depth 2
        self._key = b""  # whose value comes next
        self._in_long_string = False

    def hear(self, piece: bytes) -> bytes:
        """What can be sent on after this piece."""
        piece, self.rest = self.rest + piece, b""
        sent, at = bytearray(), 0
        if self._in_long_string:
            if (end := _END_OF_STRING.match(piece)) is None:
                return self._hold(piece, len(piece) - _backslashes(piece) % 2)
            self._in_long_string = False
            at = end.end()
            sent += piece[:at]
        for token in _TOKEN.finditer(piece, at):
            string, end_quote, colon = token.groups()
            if string is not None and not end_quote:
                break
            if string is not None and colon is None and token.end() == len(piece) and len(string) <= _HELD_BYTES:
                break  # a colon may follow
            sent += piece[at : token.start()]
            sent += self._token(token[0], string, colon)
            at = token.end()
        quote = piece.find(b'"', at)
        if quote < 0:
            return bytes(sent) + piece[at:]
        if len(piece) - quote > _HELD_BYTES:
            self._in_long_string, self._key = True, b""
        whole = len(piece) - _backslashes(piece) % 2 if self._in_long_string else quote
        return bytes(sent) + self._hold(piece, whole, at)

    def _hold(self, piece: bytes, end: int, begin: int = 0) -> bytes:
        self.rest = piece[end:]
        return piece[begin:end]

    def _token(self, token: bytes, string: bytes | None, colon: bytes | None) -> bytes:
        if string is None:
            self._turn(1 if token in b"{[" else -1)
            self._key = b""
        elif colon is not None:
            self._key = string
        else:
            is_model, self._key = self._key == b'"model"' and self._is_outermost, b""
            return self._name if is_model else token
        return token

    def _turn(self, levels: int) -> None:
        """Go into an object or list, or out of it. Only a few are known: an answer may open them without end."""
        self._depth = max(0, self._depth + levels)
        if self._depth == 2 and levels > 0:
            self._inner = self._key

    @property
    def _is_outermost(self) -> bool:
        return self._depth == 1 or (self._depth == 2 and self._inner in _CONTAINERS)


def _backslashes(piece: bytes) -> int:
    """How many stand at its end."""
    return len(piece) - len(piece.rstrip(b"\\"))
