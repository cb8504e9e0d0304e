"""Where an HTTP server is, as people write it: `http://127.0.0.1:8000/v1`. Knows no settings, and asks nobody."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator


def parse_web_address(text: str) -> str:
    """The address as it is, if it has a scheme, a host and, where it names a port, one that there is."""
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as error:
        raise ValueError(f"'{text}' is not an address ({str(error)[0].lower()}{str(error)[1:]})") from error
    if parts.scheme not in {"http", "https"} or not parts.hostname or port == 0:
        raise ValueError(f"'{text}' is not an address (http://127.0.0.1:8000/v1, https://api.example.com/v1)")
    return text


def host_and_port(host: str, port: int) -> str:
    """As they stand in an address: with brackets where the host has colons of its own, ::1 say (RFC 3986, 3.2.2)."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


WebAddress = Annotated[str, AfterValidator(parse_web_address)]
