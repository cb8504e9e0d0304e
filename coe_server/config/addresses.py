"""Parses hosts and URLs of configurations and requests, e.g. `[::1]`, `http://127.0.0.1:8000/v1`. Resolves no names."""

from __future__ import annotations

import re
import socket
import unicodedata
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Annotated
from urllib.parse import SplitResult, quote, urlsplit

from pydantic import AfterValidator

_HOST_AND_PORT = re.compile(
    r"(?:\[(?P<v6>[0-9a-f:.]+)\]|(?P<name>[a-z0-9._-]+))(?::(?P<port>[0-9]{0,5}))?", re.I | re.A
)
_NAME = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,62})(\.[a-z0-9_][a-z0-9_-]{0,62})*")


@dataclass(frozen=True, slots=True)
class HostPort:
    """A host in canonical form and its port (None if not given)."""

    name: str
    port: int | None

    @classmethod
    def of(cls, text: str) -> HostPort | None:
        """Parse a `Host` header or an origin without its scheme; None if it is neither a name nor an address."""
        found = _HOST_AND_PORT.fullmatch(text.strip())
        if found is None:
            return None
        return cls(canonical_host(found["v6"] or found["name"]), int(found["port"]) if found["port"] else None)


def canonical_host(name: str) -> str:
    """The canonical spelling of a name or address, without brackets."""
    name, percent, interface = name.partition("%")  # names of interfaces have capitals: fe80::1%enP2p1s0
    name = name.lower().removesuffix(".") + percent + interface
    try:
        return str(ip_address(name)) if name[:1].isdigit() or ":" in name else name
    except ValueError:
        return name


def in_url(name: str) -> str:
    """A canonical name as written in a URL: IPv6 addresses in brackets."""
    return f"[{name}]" if ":" in name else name


def parse_host_name(text: str) -> str:
    """The canonical name or address. Raises ValueError with what is allowed."""
    bare = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    name = canonical_host(bare)
    if ":" in name and not _is_address(name):
        raise ValueError(f"{text!r} is not a host name or address; write it without scheme, port and path")
    if ":" not in name and _NAME.fullmatch(ascii_name(name)) is None:
        raise ValueError(f"{text!r} is not a host name or address; allowed: ai.example.com, coe, 10.1.2.3, ::1")
    return ascii_name(name)


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


def ascii_name(name: str) -> str:
    """An internationalised name in ASCII (IDNA), as browsers send it."""
    try:
        return name if name.isascii() else name.encode("idna").decode("ascii")
    except UnicodeError:
        return ""


HostName = Annotated[str, AfterValidator(parse_host_name)]


_EXAMPLES = "http://127.0.0.1:8000/v1, https://api.example.com/v1"
_CREDENTIALS = (
    "leave them out and name the environment variable that holds them "
    "(api_key_env; headers of a remote expert; OTEL_EXPORTER_OTLP_HEADERS for traces)"
)
_LONGEST_HOST = 253  # RFC 1035, section 2.3.4
_LABEL = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)", re.IGNORECASE)  # container names have underscores
_SHORT_IPV4 = re.compile(r"[0-9][0-9a-fx.]*", re.IGNORECASE | re.ASCII)  # the resolver ignores text after a blank
_NOT_IN_A_PATH = re.compile(r"[^A-Za-z0-9._~!$&'()*+,;=:@/?%-]|%(?![0-9a-fA-F]{2})")  # RFC 3986, 3.3 and 3.4
_ENDPOINT = re.compile(  # paths that clients and this server append to a base
    r"/(chat/completions|completions|responses|messages(/count_tokens)?|embeddings"
    r"|rerank|score|tokenize|detokenize|audio/(speech|transcriptions|translations)|images/(generations|edits)"
    r"|(?<=/v1/)models)$",
    re.IGNORECASE,
)


def parse_web_address(text: str) -> str:
    """Return the address. Raises ValueError, without quoting credentials, if it is invalid."""
    shown = shown_address(text)
    if any(character.isspace() or unicodedata.category(character) in {"Cc", "Cf"} for character in text):
        raise ValueError(f"{shown!r} has a blank or a control character; remove it")
    try:
        parts = urlsplit(text)
    except ValueError as error:
        raise ValueError(f"'{shown}' is not an address (an IPv6 host is written http://[::1]:8000/v1)") from error
    if parts.scheme not in {"http", "https"} or not parts.netloc:
        raise ValueError(f"'{shown}' is not an address ({_EXAMPLES})")
    if "@" in parts.netloc:
        raise ValueError(f"'{shown}' has credentials in it; {_CREDENTIALS}")
    if "#" in text:
        raise ValueError(f"'{shown}' has a fragment, which is never sent; remove '#' and the rest")
    if (fault := _port_fault(parts) or _host_fault(parts)) is not None:
        raise ValueError(f"'{shown}' is not an address ({fault})")
    if (wrong := _NOT_IN_A_PATH.search(parts.path) or _NOT_IN_A_PATH.search(parts.query)) is not None:
        raise ValueError(
            f"'{shown}' has {wrong[0]!r}, which no address has; replace it, or write it as {quote(wrong[0])}"
        )
    return text


def parse_base_url(text: str) -> str:
    """As `parse_web_address`, for the base of an API: it must not include an endpoint's path."""
    base = ApiBase.of(parse_web_address(text))
    if (endpoint := _ENDPOINT.search(base.root)) is not None:
        rest = f"{base.root[: endpoint.start()]}{'?...' if base.query else ''}"
        raise ValueError(
            f"'{shown_address(text)}' is the address of one endpoint; write the part before '{endpoint[0]}': {rest}"
        )
    return text


def host_and_port(host: str, port: int) -> str:
    """`host:port`, with brackets around an IPv6 address (RFC 3986, 3.2.2)."""
    return f"{in_url(host)}:{port}"


WebAddress = Annotated[str, AfterValidator(parse_web_address)]
BaseUrl = Annotated[str, AfterValidator(parse_base_url)]


@dataclass(frozen=True, slots=True)
class ApiBase:
    """The base URL of an API. `root` has no trailing slash; `query` (Azure's `api-version=1`) is added to every URL."""

    root: str
    query: str = ""

    @classmethod
    def of(cls, base_url: str) -> ApiBase:
        root, _, query = base_url.partition("?")
        return cls(root.rstrip("/"), query)

    def with_query(self, path: str) -> str:
        """A path, which may have its own query, with the base's query appended."""
        if not self.query:
            return path
        return f"{path}{'&' if '?' in path else '?'}{self.query}"

    def url(self, path: str) -> str:
        """The URL of the endpoint `path`."""
        return self.with_query(self.root + path)


def shown_address(address: str) -> str:
    """An address for messages and logs, without credentials and query values, which may be secret."""
    without_user = re.sub(r"^([a-z][a-z0-9+.-]*://)?.*@", r"\1...@", address, flags=re.IGNORECASE | re.DOTALL)
    return re.sub(r"\?.+", "?...", without_user, flags=re.DOTALL)


def is_loopback_host(host: str) -> bool:
    """True if a host (without brackets) is a loopback name or address."""
    host = host.rstrip(".").lower()
    if host == "localhost" or host.endswith(".localhost"):  # RFC 6761, section 6.3
        return True
    return is_loopback_address(host)


def is_loopback_address(host: str) -> bool:
    """True for a loopback address; False for every name, such as 127.example.com."""
    address = numeric_host(host)
    return address is not None and (ip_address(address).is_loopback or _is_mapped_loopback(address))


def _port_fault(parts: SplitResult) -> str | None:
    try:
        port = parts.port
    except ValueError:
        bare = parts.netloc.count(":") > 1 and "[" not in parts.netloc
        return "an IPv6 host needs brackets: http://[::1]:8000/v1" if bare else "its port is not one of 1 to 65535"
    return "its port is not one of 1 to 65535" if port == 0 else None


def _host_fault(parts: SplitResult) -> str | None:
    host = parts.hostname or ""
    if not host:
        return _EXAMPLES
    if parts.netloc.startswith("["):
        between = parts.netloc.rpartition("]")[2]
        return f"'{between}' is between its host and its port" if between and between[0] != ":" else None
    try:
        ascii_host = host.encode("idna").decode("ascii").rstrip(".")
    except UnicodeError:
        return f"'{host}' is not a host's name"
    labels = ascii_host.split(".")
    if len(ascii_host) > _LONGEST_HOST or not all(_LABEL.fullmatch(label) for label in labels):
        return f"'{host}' is not a host's name"
    if labels[-1].isdigit() and numeric_host(ascii_host) is None:
        return f"'{host}' is neither a name nor an IPv4 address"
    return None


def numeric_host(host: str) -> str | None:
    """The canonical IP address; None for a name. Accepts short IPv4 forms, as the system's resolver does, and an IPv6
    zone as it stands in a URL (`fe80::1%25eth0`, RFC 6874)."""
    try:
        return str(ip_address(host.replace("%25", "%")))
    except ValueError:
        pass
    try:
        return socket.inet_ntoa(socket.inet_aton(host)) if _SHORT_IPV4.fullmatch(host) else None
    except OSError:
        return None


def _is_mapped_loopback(address: str) -> bool:
    mapped = getattr(ip_address(address), "ipv4_mapped", None)
    return mapped is not None and mapped.is_loopback
