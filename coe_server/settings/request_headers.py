"""Headers that a configuration adds to requests: `{name: value}`, where a value may hold `{env.NAME}`. Pure.

A value may be a secret: no sentence here shows one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Annotated

from pydantic import BeforeValidator

from coe_server.settings.secret import unfit_for_a_header

_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110, section 5.6.2
_VARIABLE = re.compile(r"\{env\.([A-Za-z_][A-Za-z0-9_]*)\}")
_OF_THE_CONNECTION = (  # RFC 9110, section 7.6.1, and what frames or addresses a message
    frozenset(("connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade", "http2-settings"))
    | frozenset(("proxy-authenticate", "proxy-authorization", "proxy-connection"))
    | frozenset(("host", "content-length", "expect"))
)
_OF_THE_BODY = frozenset(("content-encoding", "accept-encoding"))


def parse_request_headers(value: object) -> object:
    """The headers as they are, if each can be sent. Raises ValueError, one sentence that names the header."""
    if not isinstance(value, Mapping):
        raise ValueError("must be a mapping of names to texts: {X-Name: value}")
    seen: set[str] = set()
    for name, content in value.items():
        if not isinstance(name, str) or _NAME.fullmatch(name) is None:
            raise ValueError(f"{name!r} is not a header's name: letters, digits and any of !#$%&'*+-.^_`|~")
        if (fault := _fault(name.lower(), content)) is not None:
            raise ValueError(f"'{name}' {fault}")
        if name.lower() in seen:
            raise ValueError(f"'{name}' stands twice; upper and lower case are the same header")
        seen.add(name.lower())
    return value


RequestHeaders = Annotated[dict[str, str], BeforeValidator(parse_request_headers)]


def filled_in(headers: Mapping[str, str], secret: Callable[[str, str], str]) -> dict[str, str]:
    """The headers with every `{env.NAME}` replaced by what `secret(header, NAME)` gives."""
    return {
        name: _VARIABLE.sub(lambda match, name=name: secret(name, match[1]), content.strip())  # type: ignore[misc]
        for name, content in headers.items()
    }


def variables_in(value: str) -> list[str]:
    """The names of the environment variables that a header's value holds."""
    return _VARIABLE.findall(value)


def _fault(name: str, content: object) -> str | None:
    if name in _OF_THE_CONNECTION:
        return "cannot be set: it belongs to the connection, and the HTTP client writes it; leave it out"
    if name in _OF_THE_BODY:
        return "cannot be set: answers are read here, and requests are sent as they came; leave it out"
    return _fault_of_value(content)


def _fault_of_value(content: object) -> str | None:
    if not isinstance(content, str):
        return "must have a text as its value; put the value in quotes"
    if "{env." in _VARIABLE.sub("", content):
        return "has '{env.' in it and no variable's name behind it; write {env.NAME}"
    if not content.strip():
        return "is empty; give it a value or leave it out"
    unfit = unfit_for_a_header(content.strip())
    return None if unfit is None else f"holds {unfit}"
