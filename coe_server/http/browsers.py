"""Which page made a browser send a request, and which host names this server accepts without a key. Pure.

A page elsewhere can make a browser send forms and requests, with the password that the browser remembers. It can change
neither `Origin` nor `Sec-Fetch-Site`, and may add headers only if this server agreed before (CORS). The name of
another site can resolve to this machine (DNS rebinding): its pages then have the same origin as this server and can
read every answer. `Host` has the name that the browser used.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, islice

from coe_server.config.addresses import HostPort, canonical_host, is_loopback_host

OUR_PAGE = "x-coe-page"  # sent by our page: over plain HTTP a browser adds nothing else to a GET
ANOTHER_SITE = "another site"
MOST_ADDRESSES = 8  # of this server that one request may name: each is compared with its origin
_DEFAULT_PORTS = {"http": 80, "https": 443}
_OTHER_SITES = frozenset({"cross-site", "same-site"})  # another port, or another name of the same domain


def other_page(headers: Mapping[str, str]) -> str | None:
    """The origin of another site's page that sent a request; None if no page did, or this server's own."""
    if "origin" not in headers and "sec-fetch-site" not in headers:
        return None
    for origin in lines(headers, "origin"):
        if not _is_ours(origin, headers):
            return origin
    if any(site.strip().lower() in _OTHER_SITES for site in lines(headers, "sec-fetch-site")):
        return ANOTHER_SITE
    return None


def is_from_our_page(headers: Mapping[str, str]) -> bool:
    """True if this server's own page sent it. A client other than a browser can claim this, too."""
    if other_page(headers) is not None:
        return False
    says_so = headers.get("sec-fetch-site", "").strip().lower() == "same-origin"
    return says_so or "origin" in headers or OUR_PAGE in headers


def is_visit(headers: Mapping[str, str]) -> bool:
    """True if the request is a navigation, for example by a link. The page with the link cannot read the answer."""
    return headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest") == "document"


class RequestHeaders(Mapping[str, str]):
    """One request's headers by lower-case name, read once: the first line of each, and all of them with `lines`.

    `raw` is ASGI's list, whose names are in lower case.
    """

    __slots__ = ("_lines",)

    def __init__(self, raw: Iterable[tuple[bytes, bytes]]) -> None:
        self._lines: dict[str, list[str]] = {}
        for name, value in raw:
            self._lines.setdefault(name.decode("latin-1"), []).append(value.decode("latin-1"))

    def __getitem__(self, name: str) -> str:
        return self._lines[name][0]

    def __contains__(self, name: object) -> bool:
        return name in self._lines

    def __iter__(self) -> Iterator[str]:
        return iter(self._lines)

    def __len__(self) -> int:
        return len(self._lines)

    def lines(self, name: str) -> Sequence[str]:
        """Every line of that name."""
        return self._lines.get(name, ())


def lines(headers: Mapping[str, str], name: str) -> Sequence[str]:
    """Every line of that name; a plain mapping has one at most."""
    if isinstance(headers, RequestHeaders):
        return headers.lines(name)
    return [headers[name]] if name in headers else []


def host_of_origin(origin: str) -> HostPort | None:
    """The host of an origin, with its scheme's port; None for `null` and for anything that is no web page's origin."""
    scheme, separator, rest = origin.strip().partition("://")
    default = _DEFAULT_PORTS.get(scheme.lower())
    if not separator or default is None:
        return None
    host = HostPort.of(rest)
    return host and HostPort(host.name, host.port or default)


def _is_ours(origin: str, headers: Mapping[str, str]) -> bool:
    """True if it is the address that the request was sent to, according to the client or a proxy."""
    scheme, _, rest = origin.strip().partition("://")
    if scheme in _DEFAULT_PORTS and rest and rest == headers.get("host"):
        return True
    asked = host_of_origin(origin)
    if asked is None:
        return False
    default = _DEFAULT_PORTS[scheme.lower()]
    return any(
        (host := HostPort.of(one)) is not None and (host.port or default) == asked.port and _is_one(host, asked)
        for one in _own_addresses(headers)
    )


def _is_one(host: HostPort, other: HostPort) -> bool:
    """True if both name the same server, if the port is the same. Loopback has many names."""
    return host.name == other.name or (is_loopback_host(host.name) and is_loopback_host(other.name))


def _own_addresses(headers: Mapping[str, str]) -> list[str]:
    """At most `MOST_ADDRESSES`: each proxy on the way may have added one."""
    forwarded = (one for line in lines(headers, "x-forwarded-host") for one in line.split(",", MOST_ADDRESSES))
    return list(islice(chain(lines(headers, "host"), forwarded), MOST_ADDRESSES))


_USUAL = frozenset({"localhost", "127.0.0.1", "::1"})
_LONGEST_QUOTED = 80


@dataclass(frozen=True, slots=True)
class Hosts:
    """`allowed`: further names, in canonical form, beside the loopback names and the address that was connected to.

    `any_for_clients` (keys.open): another program in front of this server checks callers and host names.
    """

    allowed: frozenset[str] = frozenset()
    any_for_clients: bool = False

    def unknown(self, asked: Iterable[str], bound: str | None) -> str | None:
        """The first of the `Host` lines that is not accepted, shortened for a message; None if all are.

        `bound`: the address of this side of the connection.
        """
        for host in asked:
            if host.strip() and not _is_accepted(self.allowed, host, bound):
                return host[:_LONGEST_QUOTED]
        return None


@lru_cache(maxsize=64)  # nearly every request asks for one of a few; a header is at most 64 KiB long
def _is_accepted(allowed: frozenset[str], host: str, bound: str | None) -> bool:
    asked = HostPort.of(host)
    if asked is None:
        return False
    name = asked.name
    if name in _USUAL or name in allowed or is_loopback_host(name):
        return True
    return bound is not None and name == canonical_host(bound)
