"""Who is asking, and may they come in: keys for the API, the operator for everything else. Pure.

What is not known to be for everybody or for clients is the operator's: a new path is closed until somebody opens it.
Where no endpoint answers there is nothing to guard: that may be said to every client.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from urllib.parse import SplitResult, urlsplit

from starlette.datastructures import Headers

from coe_server.errors import Forbidden, InvalidApiKey
from coe_server.keys import Key, Keyring

FOR_EVERYBODY = frozenset({"/health", "/healthz", "/readyz"})
FOR_CLIENTS = frozenset({"/tokenize", "/detokenize", "/openapi.json"})
SCRAPED = "/metrics"
CLIENTS_PREFIX = "/v1/"
MOST_CREDENTIALS = 8  # of one request; each is hashed and compared with every key
_OUR_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
_SIGNS_OF_A_PROXY = ("forwarded", "via", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-real-ip")


@dataclass(frozen=True, slots=True)
class Guard:
    """`on_loopback`: the server listens on a loopback address alone, so that whoever reaches it is on this machine."""

    keyring: Keyring
    on_loopback: bool

    def admit(self, path: str, headers: Mapping[str, str]) -> Key | None:
        """The key that opened the door; None where none was needed. Raises InvalidApiKey or Forbidden."""
        if path in FOR_EVERYBODY:
            return None
        if path == SCRAPED and (key := self._scraper(headers)) is not None:
            return key
        return self.client(headers) if is_for_clients(path) else self._operator(headers)

    def client(self, headers: Mapping[str, str]) -> Key | None:
        """The same for what every client may ask."""
        if not self.keyring.keys:
            return None
        known = list(self._known(headers))
        if not known:
            raise _not_ours(headers)
        key = next((one for one in known if not one.scrape), None)
        if key is None:
            raise Forbidden(f"key '{known[0].name}' opens {SCRAPED} and nothing else")
        return key

    def _scraper(self, headers: Mapping[str, str]) -> Key | None:
        """The key that may read the metrics and do nothing else, where one was presented."""
        return next((key for key in self._known(headers) if key.scrape), None)

    def owner(self, headers: Mapping[str, str]) -> Key | None:
        """Whose key was presented, whether it opens the door or not; None if it is none of ours."""
        return next(self._known(headers), None)

    def _operator(self, headers: Mapping[str, str]) -> Key | None:
        """Whoever has an admin key; where none was made, whoever is on this machine: no proxy, no page elsewhere."""
        if not self.keyring.has_admin:
            self._refuse_unless_local(headers)
            return None
        _refuse_other_origins(headers)
        known = list(self._known(headers))
        if not known:
            raise _not_ours(headers)
        admin = next((key for key in known if key.admin), None)
        if admin is None:
            raise Forbidden(f"key '{known[0].name}' is not an admin key")
        return admin

    def _refuse_unless_local(self, headers: Mapping[str, str]) -> None:
        if not self.on_loopback:
            raise Forbidden("this is for the operator, and there is no admin key (coe keys add --admin makes one)")
        for sign in _SIGNS_OF_A_PROXY:
            if sign in headers:
                raise Forbidden(f"this came through a proxy ({sign}); make an admin key (coe keys add --admin)")
        _refuse_other_names(headers)

    def _known(self, headers: Mapping[str, str]) -> Iterator[Key]:
        """The keys of ours among all that was presented."""
        return (key for one in _presented(headers) if (key := self.keyring.find(one)) is not None)


def _not_ours(headers: Mapping[str, str]) -> InvalidApiKey:
    if any(_presented(headers)):
        return InvalidApiKey("the API key is not one of this server's")
    return InvalidApiKey("no API key was given: send `Authorization: Bearer KEY` or `x-api-key: KEY`")


def is_for_clients(path: str) -> bool:
    """Is a path any client's, and not the operator's alone?"""
    return path.startswith(CLIENTS_PREFIX) or path in FOR_CLIENTS


def _presented(headers: Mapping[str, str]) -> Iterator[str]:
    """All that may be a key: in `Authorization: Bearer`, in `x-api-key` (Anthropic's clients), as a browser's password.

    A proxy may add credentials of its own in front of a client's or behind them.
    """
    return islice(filter(None, _all_presented(headers)), MOST_CREDENTIALS)


def _all_presented(headers: Mapping[str, str]) -> Iterator[str]:
    for line in _lines(headers, "authorization"):
        yield from map(_credential, _listed(line))
    for line in _lines(headers, "x-api-key"):
        yield line.strip()


def _lines(headers: Mapping[str, str], name: str) -> Sequence[str]:
    """Every line of that name; a mapping that is not a request's has one at most."""
    if isinstance(headers, Headers):
        return headers.getlist(name)
    return [headers[name]] if name in headers else []


def _listed(line: str) -> list[str]:
    """A line, and where it has commas its parts: some proxies make one line of several."""
    return [line, *line.split(",", MOST_CREDENTIALS)] if "," in line else [line]


def _credential(value: str) -> str:
    scheme, _, given = value.strip().partition(" ")
    match scheme.lower():
        case "bearer":
            return given.strip()
        case "basic":
            return _password(given.strip())
        case _:
            return ""


def _password(credentials: str) -> str:
    try:
        return base64.b64decode(credentials, validate=True).decode().partition(":")[2]
    except (binascii.Error, UnicodeDecodeError):
        return ""


def _refuse_other_origins(headers: Mapping[str, str]) -> None:
    """A browser sends the password that it remembers for any page; the page must be ours."""
    origin = headers.get("origin")
    if origin is not None and _split(origin).netloc not in {headers.get("host"), headers.get("x-forwarded-host")}:
        raise Forbidden(f"this is for the operator, not for pages of {origin!r}")


def _refuse_other_names(headers: Mapping[str, str]) -> None:
    """What a web page elsewhere could send through the operator's browser, also by a name pointed at this address."""
    for header in ("host", "origin"):
        value = headers.get(header)
        if value is not None and not is_of_this_machine(value):
            raise Forbidden(f"this answers this machine only, not {header} {value!r}")


def is_of_this_machine(address: str) -> bool:
    """Does an origin, or a Host header, name this machine?"""
    return _split(address if "//" in address else f"//{address}").hostname in _OUR_NAMES


def _split(address: str) -> SplitResult:
    """Nothing, where it is no address at all: what stands in a header may be anything."""
    try:
        return urlsplit(address)
    except ValueError:
        return urlsplit("")
