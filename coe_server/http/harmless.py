"""Two headers that keep a browser from taking an answer for a page of this server's: what experts say is no program."""

from __future__ import annotations

_POLICY = "content-security-policy"
HARMLESS = {"x-content-type-options": "nosniff", _POLICY: "sandbox"}
_POLICY_NAME = _POLICY.encode()
_PAIRS = tuple((name.encode(), value.encode()) for name, value in HARMLESS.items())


def harmless(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """The headers of an answer with both, unless it has a policy of its own, as the page's files have."""
    if any(name == _POLICY_NAME for name, _ in headers):
        return headers
    return [*headers, *_PAIRS]
