"""Interprets HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY as other programs do. Pure.

Messages never show a proxy's credentials.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit

from coe_server.config.addresses import (
    ascii_name,
    is_loopback_host,
    numeric_host,
    parse_web_address,
    shown_address,
)
from coe_server.config.types import unfit_for_a_header
from coe_server.errors import ConfigError

_DEFAULT_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Proxy:
    """An HTTP proxy. `url` is without credentials."""

    url: str
    user: str = field(default="", repr=False)
    password: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class Detour:
    """aiohttp's `arguments` and additional `headers` for requests through a proxy."""

    arguments: Mapping[str, Any] = field(default_factory=dict, repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, proxy: Proxy | None, address: str) -> Detour:
        """The detour to an address. Credentials are sent with CONNECT (https) or with each request (http)."""
        if proxy is None:
            return cls()
        told = _authorization(proxy)
        if address.lower().startswith("https:"):
            return cls({"proxy": proxy.url, "proxy_headers": told})
        return cls({"proxy": proxy.url}, told)


@dataclass(frozen=True, slots=True)
class Proxies:
    """The proxies of an environment; create it with `of`."""

    by_scheme: Mapping[str, tuple[str, str]] = field(default_factory=dict, repr=False)  # scheme -> (variable, value)
    exceptions: tuple[str, ...] = ()

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Proxies:
        """Lower-case variables take precedence, as in curl; an empty value means no proxy."""
        found = {}
        for scheme in _DEFAULT_PORTS:
            for name in (f"{scheme}_proxy", "all_proxy"):
                variable = name if name in environment else name.upper()
                if variable in environment:
                    found[scheme] = (variable, environment[variable].strip())
                    break
        exceptions = environment.get("no_proxy", environment.get("NO_PROXY", ""))
        return cls(found, tuple(exceptions.lower().replace(",", " ").split()))

    def for_address(self, address: str) -> Proxy | None:
        """The proxy for an address; None for loopback addresses.

        Raises ConfigError, naming the variable, for an invalid proxy.
        """
        parts = urlsplit(address)
        host = _canonical(parts.hostname or "")
        variable, text = self.by_scheme.get(parts.scheme, ("", ""))
        if not text or is_loopback_host(host) or self._is_excepted(host, parts.port or _DEFAULT_PORTS[parts.scheme]):
            return None
        return _proxy(variable, text)

    def _is_excepted(self, host: str, port: int) -> bool:
        return any(_covers(exception, host, port) for exception in self.exceptions)


def _authorization(proxy: Proxy) -> dict[str, str]:
    if not (proxy.user or proxy.password):
        return {}
    return {"Proxy-Authorization": f"Basic {b64encode(f'{proxy.user}:{proxy.password}'.encode()).decode()}"}


def _covers(exception: str, host: str, port: int) -> bool:
    """True if an exception matches: `*`, a host, a domain with subdomains (optionally with port), or an IP network."""
    if exception == "*":
        return True
    if _is_in_network(exception, host):
        return True
    name, colon, only_port = exception.rpartition(":")
    if not colon or not only_port.isdigit() or (":" in name and not name.endswith("]")):
        name, only_port = exception, ""
    if only_port and int(only_port) != port:
        return False
    name = _canonical(name.strip("[]").removeprefix("*").strip("."))
    return bool(name) and (host == name or (host.endswith(f".{name}") and numeric_host(host) is None))


def _canonical(host: str) -> str:
    """One spelling of an address or a name: 127.1 and 127.0.0.1, bücher.example and xn--bcher-kva.example."""
    return numeric_host(host) or ascii_name(host.rstrip("."))


def _is_in_network(exception: str, host: str) -> bool:
    try:
        return ip_address(host) in ip_network(exception.strip("[]"), strict=False)
    except ValueError:
        return False


def _proxy(variable: str, text: str) -> Proxy:
    """`http://user:password@host:port`; without a scheme it is http."""
    address = text if "://" in text else f"http://{text}"
    shown = shown_address(address)
    try:
        parts = urlsplit(address)
        if parts.scheme in {"http", "https"}:
            bare = parts._replace(netloc=parts.netloc.rpartition("@")[2], path="", query="", fragment="")
            return Proxy(parse_web_address(bare.geturl()), *_credentials(variable, parts))
    except ValueError as error:
        raise ConfigError(f"{variable}: '{shown}' is not a proxy's address (http://proxy.example:3128)") from error
    raise ConfigError(
        f"{variable}: '{shown}' is not an HTTP proxy, and no other kind is supported; "
        "set an HTTP proxy, or list in NO_PROXY the hosts that need none"
    )


def _credentials(variable: str, parts: SplitResult) -> tuple[str, str]:
    user, password = unquote(parts.username or ""), unquote(parts.password or "")
    if ":" in user or unfit_for_a_header(f"{user}{password}") is not None:
        raise ConfigError(f"{variable}: the proxy's user name or password has characters that are invalid in a header")
    return user, password
