"""A JSON request body, read once: its fields for routing, and every other byte kept as it came."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from json.decoder import scanstring
from typing import Any, NoReturn

from coe_server.errors import RequestError


@dataclass(frozen=True, slots=True)
class Member:
    """One top-level `"key": value` and where it stands in the text; ends are exclusive."""

    key: str
    start: int
    value_start: int
    end: int


@dataclass(frozen=True, slots=True)
class Body:
    """The parsed top-level object together with the text it came from."""

    text: str
    fields: Mapping[str, Any]
    members: tuple[Member, ...]

    def for_engine(self, model: str) -> bytes:
        """The same bytes with the value of `model` replaced (or added) and `coe` removed."""
        pieces = []
        position = 0
        for index, member in enumerate(self.members):
            if member.key == "model":
                pieces.append(self.text[position : member.value_start] + json.dumps(model))
                position = member.end
            elif member.key == "coe":
                start, end = self._with_its_comma(index)
                pieces.append(self.text[position : max(position, start)])
                position = max(position, end)
        text = "".join((*pieces, self.text[position:]))
        return (text if "model" in self.fields else _add_model(text, model)).encode()

    def _with_its_comma(self, index: int) -> tuple[int, int]:
        """What to cut so that valid JSON remains: up to the next member, or back to the end of the one before."""
        member = self.members[index]
        if index + 1 < len(self.members):
            return member.start, self.members[index + 1].start
        kept_before = [m for m in self.members[:index] if m.key != "coe"]
        return (kept_before[-1].end if kept_before else member.start), member.end


def read_body(raw: bytes) -> Body:
    """Parse a request body. Raises RequestError with a sentence if it is not one JSON object in UTF-8."""
    try:
        text = raw.decode()
        members, fields = _scan_object(text)
    except UnicodeDecodeError as error:
        raise RequestError(f"the body is not UTF-8 (byte {error.start})") from error
    except json.JSONDecodeError as error:
        raise RequestError(
            f"the body is not valid JSON: {error.msg} (line {error.lineno}, column {error.colno})"
        ) from error
    except RecursionError as error:
        raise RequestError("the body is nested too deeply") from error
    except ValueError as error:
        raise RequestError(f"the body is not valid JSON: {error}") from error
    return Body(text, fields, members)


def _scan_object(text: str) -> tuple[tuple[Member, ...], dict[str, Any]]:
    position = _skip_space(text, 0)
    if text[position : position + 1] != "{":
        raise RequestError("the body must be a JSON object")
    members: list[Member] = []
    fields: dict[str, Any] = {}
    position = _skip_space(text, position + 1)
    while text[position : position + 1] != "}":
        if members:
            position = _expect(text, position, ",")
        start = position
        _expect(text, position, '"')
        key, position = scanstring(text, position + 1, True)
        value_start = _expect(text, _skip_space(text, position), ":")
        fields[key], end = _DECODER.raw_decode(text, value_start)
        members.append(Member(key, start, value_start, end))
        position = _skip_space(text, end)
    if _skip_space(text, position + 1) != len(text):
        raise json.JSONDecodeError("Extra data", text, position + 1)
    return tuple(members), fields


def _expect(text: str, position: int, character: str) -> int:
    """The position of what follows `character`, which must stand here."""
    if text[position : position + 1] != character:
        raise json.JSONDecodeError(f"Expecting '{character}'", text, position)
    return _skip_space(text, position + 1)


def _skip_space(text: str, position: int) -> int:
    match = _SPACE.match(text, position)
    assert match is not None, "the pattern matches the empty string"
    return match.end()


def _add_model(text: str, model: str) -> str:
    brace = text.index("{") + 1
    comma = "" if text[brace:].lstrip().startswith("}") else ", "
    return f'{text[:brace]}"model": {json.dumps(model)}{comma}{text[brace:]}'


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


_SPACE = re.compile(r"[ \t\n\r]*")
_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)
