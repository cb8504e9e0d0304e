"""The id by which a caller reports an answer: its decision's where there is one, else one made up here."""

from __future__ import annotations

from uuid import uuid4

REQUEST_ID = "x-request-id"  # OpenAI's clients show it as `_request_id`
_NAME = REQUEST_ID.encode()

Headers = list[tuple[bytes, bytes]]


def new_request_id() -> str:
    return uuid4().hex


def identified(headers: Headers) -> Headers:
    """The headers of an answer, with an id if they have none yet."""
    if any(name == _NAME for name, _ in headers):
        return headers
    return [*headers, (_NAME, new_request_id().encode())]
