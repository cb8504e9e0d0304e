"""The id by which a caller reports an answer: its decision's where there is one, else one made up here.

The caller's own id for its request is told to the log and to engines of this machine, never back.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from uuid import uuid4

REQUEST_ID = "x-request-id"  # OpenAI's clients show it as `_request_id`
_ID_NAME = REQUEST_ID.encode()
_PLAIN = re.compile(
    r"[A-Za-z0-9._:;=@/+-]{1,128}"
)  # a UUID, a hash, a load balancer's id: nothing that a log must fear

Headers = list[tuple[bytes, bytes]]


def new_request_id() -> str:
    return uuid4().hex


def identified(headers: Headers) -> Headers:
    """The headers of an answer, with an id if they have none yet."""
    if any(name == _ID_NAME for name, _ in headers):
        return headers
    return [*headers, (_ID_NAME, new_request_id().encode())]


def callers_id(headers: Mapping[str, str]) -> str | None:
    """The caller's own id for its request, fit for a log; None where it gives none that is short and plain."""
    given = headers.get(REQUEST_ID, "")
    return given if _PLAIN.fullmatch(given) else None
