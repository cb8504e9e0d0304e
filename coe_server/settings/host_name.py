"""A server's name as it stands in a `Host` header: `ai.example.com`, `10.1.2.3`, `[::1]`. Resolves no name."""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Annotated

from pydantic import AfterValidator

_HOST_AND_PORT = re.compile(
    r"(?:\[(?P<v6>[0-9a-f:.]+)\]|(?P<name>[a-z0-9._-]+))(?::(?P<port>[0-9]{0,5}))?", re.I | re.A
)
_NAME = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,62})(\.[a-z0-9_][a-z0-9_-]{0,62})*")


@dataclass(frozen=True, slots=True)
class HostPort:
    """`name` in its canonical form; `port` is None where none is given."""

    name: str
    port: int | None

    @classmethod
    def of(cls, text: str) -> HostPort | None:
        """What a `Host` header, or an origin behind its scheme, names; None where it is neither name nor address."""
        found = _HOST_AND_PORT.fullmatch(text.strip())
        if found is None:
            return None
        return cls(canonical_host(found["v6"] or found["name"]), int(found["port"]) if found["port"] else None)


def canonical_host(name: str) -> str:
    """One spelling for each name and each address, without brackets."""
    name = name.lower().removesuffix(".")
    try:
        return str(ip_address(name)) if name[:1].isdigit() or ":" in name else name
    except ValueError:
        return name


def in_url(name: str) -> str:
    """A canonical name as it stands in a URL: an IPv6 address has brackets there."""
    return f"[{name}]" if ":" in name else name


def parse_host_name(text: str) -> str:
    """The canonical name or address. Raises ValueError, saying what is allowed."""
    bare = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    name = canonical_host(bare)
    if ":" in name and HostPort.of(f"[{name}]") is None:
        raise ValueError(f"{text!r} is not a host's name or address; write it without scheme, port and path")
    if ":" not in name and _NAME.fullmatch(_ascii(name)) is None:
        raise ValueError(f"{text!r} is not a host's name or address; allowed: ai.example.com, coe, 10.1.2.3, ::1")
    return _ascii(name)


def _ascii(name: str) -> str:
    """As browsers write a name that has other letters."""
    try:
        return name if name.isascii() else name.encode("idna").decode("ascii")
    except UnicodeError:
        return ""


HostName = Annotated[str, AfterValidator(parse_host_name)]
