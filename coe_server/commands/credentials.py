"""A key as the header that carries it. Knows nothing of what it opens."""

from __future__ import annotations

from coe_server.errors import ConfigError


def bearer(option: str, key: str | None) -> dict[str, str]:
    """The header to send, none without a key; blanks around a key are left out.

    Raises ConfigError for what no header can carry; the key is not shown.
    """
    key = (key or "").strip()
    if not key:
        return {}
    if not (key.isascii() and key.isprintable()):
        raise ConfigError(f"{option}: a key is printable ASCII in one line; this one has something else in it")
    return {"authorization": f"Bearer {key}"}
