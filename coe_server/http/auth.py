"""Who is asking, and may they come in: keys for the API, the operator for everything else. Pure.

What is not known to be for everybody or for clients is the operator's: a new path is closed until somebody opens it.
Where no endpoint answers there is nothing to guard: that may be said to every client.

What one caller may name: the experts and objectives of its key. Pure; knows nothing of how a key is shown.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

from coe_server.config.addresses import HostPort, is_loopback_host
from coe_server.errors import Forbidden, InvalidApiKey, ModelWithheld, UnknownModel
from coe_server.http.browsers import Hosts, host_of_origin, is_from_our_page, lines
from coe_server.http.options import AUTO, model_names, read_options
from coe_server.keys import Key, Keyring
from coe_server.routing.decision import RouteOptions

FOR_EVERYBODY = frozenset({"/health", "/healthz", "/readyz"})
FOR_CLIENTS = frozenset({"/tokenize", "/detokenize", "/openapi.json"})
SCRAPED = "/metrics"
CLIENTS_PREFIX = "/v1/"
CALLER = "coe.caller"  # in a request's scope: the `Key` that was presented, or None
MOST_CREDENTIALS = 8  # of one request; each is hashed and compared with every key
_SIGNS_OF_A_PROXY = ("forwarded", "via", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-real-ip")


@dataclass(frozen=True, slots=True)
class Guard:
    """`on_loopback`: the server listens on a loopback address alone, so that every client is on this machine.

    `hosts`: the names by which it may be asked without a key.
    """

    keyring: Keyring
    on_loopback: bool
    hosts: Hosts = field(default_factory=Hosts)

    def admit(self, path: str, headers: Mapping[str, str]) -> Key | None:
        """The key that opened the door; None where none was needed. Raises InvalidApiKey or Forbidden."""
        if path in FOR_EVERYBODY:
            return None
        if path == SCRAPED and (key := self._scraper(headers)) is not None:
            return key
        return self.client(headers) if is_for_clients(path) else self._operator(headers)

    def client(self, headers: Mapping[str, str]) -> Key | None:
        """The same for what every client may ask; the password that a browser remembers is for our page alone."""
        if not self.keyring.keys:
            return None
        given = list(presented_on_purpose(headers))
        known = list(self._known(given))
        if not known and is_from_our_page(headers):
            known = list(self._known(_presented(headers)))
        if not known:
            raise _not_ours(given)
        key = next((one for one in known if not one.scrape), None)
        if key is None:
            raise Forbidden(f"key '{known[0].name}' opens {SCRAPED} and nothing else")
        return key

    def _scraper(self, headers: Mapping[str, str]) -> Key | None:
        """The key that may read the metrics and do nothing else, where one was presented."""
        return next((key for key in self._known(presented_on_purpose(headers)) if key.scrape), None)

    def owner(self, headers: Mapping[str, str]) -> Key | None:
        """Whose key was presented, whether it opens the door or not; None if it is none of ours."""
        return next(self._known(_presented(headers)), None)

    def _operator(self, headers: Mapping[str, str]) -> Key | None:
        """An admin key opens; where none was made, a request of this machine that came through no proxy."""
        if not self.keyring.has_admin:
            self._refuse_unless_local(headers)
            return None
        given = list(_presented(headers))
        known = list(self._known(given))
        if not known:
            raise _not_ours(given)
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

    def _known(self, given: Iterable[str]) -> Iterator[Key]:
        """The keys of ours among all that was presented."""
        return (key for one in given if (key := self.keyring.find(one)) is not None)


def _not_ours(given: Iterable[str]) -> InvalidApiKey:
    if any(given):
        return InvalidApiKey("the API key is not one of this server's")
    return InvalidApiKey("no API key was given: send `Authorization: Bearer KEY` or `x-api-key: KEY`")


def is_for_clients(path: str) -> bool:
    """Is a path any client's, and not the operator's alone?"""
    return path.startswith(CLIENTS_PREFIX) or path in FOR_CLIENTS


def presented_on_purpose(headers: Mapping[str, str]) -> Iterator[str]:
    """What may be a key in `Authorization: Bearer` or `x-api-key` (Anthropic's clients): no browser adds these."""
    return _first(_in_headers(headers, {"bearer": str}))


def _presented(headers: Mapping[str, str]) -> Iterator[str]:
    """All that may be a key, a browser's password among it.

    A proxy may add credentials of its own in front of a client's or behind them.
    """
    return _first(_in_headers(headers, {"bearer": str, "basic": _password}))


def _first(credentials: Iterator[str]) -> Iterator[str]:
    return islice(filter(None, credentials), MOST_CREDENTIALS)


def _in_headers(headers: Mapping[str, str], schemes: Mapping[str, Callable[[str], str]]) -> Iterator[str]:
    """`schemes` of `Authorization`, each with how a key is read from what it gives; others give none."""
    for line in lines(headers, "authorization"):
        for one in _listed(line):
            scheme, _, given = one.strip().partition(" ")
            read = schemes.get(scheme.lower())
            yield read(given.strip()) if read is not None else ""
    for line in lines(headers, "x-api-key"):
        yield line.strip()


def _listed(line: str) -> list[str]:
    """A line, and where it has commas its parts: some proxies make one line of several."""
    return [line, *line.split(",", MOST_CREDENTIALS)] if "," in line else [line]


def _password(credentials: str) -> str:
    try:
        return base64.b64decode(credentials, validate=True).decode().partition(":")[2]
    except (binascii.Error, UnicodeDecodeError):
        return ""


def is_of_this_machine(address: str) -> bool:
    """Does an origin, or a Host header, name this machine by its loopback interface?"""
    host = host_of_origin(address) if "//" in address else HostPort.of(address)
    return host is not None and is_loopback_host(host.name)


@dataclass(frozen=True, slots=True)
class Reach:
    """`experts` and `objectives` are what may be named, in the server's order; `withheld` is what else there is."""

    experts: tuple[str, ...]
    objectives: tuple[str, ...]
    default_objective: str
    is_limited: bool = False
    has_own_objectives: bool = False
    withheld: frozenset[str] = frozenset()
    aliases: Mapping[str, str] = field(default_factory=dict)  # further names, those of what is withheld among them

    @classmethod
    def of(
        cls,
        key: Key | None,
        experts: Collection[str],
        objectives: Collection[str],
        default_objective: str,
        aliases: Mapping[str, str],
    ) -> Reach:
        """What this key reaches; without a key, everything. `auto` means an objective that the key may ask for."""
        if key is None or (key.experts is None and key.objectives is None):
            return cls(tuple(experts), tuple(objectives), default_objective, aliases=aliases)
        allowed_experts, allowed_objectives = key.experts, key.objectives
        own_experts = tuple(one for one in experts if allowed_experts is None or one in allowed_experts)
        own_objectives = tuple(one for one in objectives if allowed_objectives is None or one in allowed_objectives)
        reachable = allowed_objectives is None or default_objective in own_objectives
        default = default_objective if reachable else next(iter(own_objectives), default_objective)
        withheld = set(model_names(objectives, experts)) - set(model_names(own_objectives, own_experts))
        return cls(
            own_experts,
            own_objectives,
            default,
            is_limited=allowed_experts is not None,
            has_own_objectives=allowed_objectives is not None,
            withheld=frozenset(withheld),
            aliases=aliases,
        )

    @property
    def models(self) -> tuple[str, ...]:
        """Every name this caller may put under `model`."""
        names = model_names(self.objectives, self.experts)
        return names + tuple(alias for alias, goal in self.aliases.items() if goal in names)

    def options(self, fields: Mapping[str, Any]) -> RouteOptions:
        """The options in a body. Raises ModelWithheld for what the key may not use, else as `read_options`."""
        model = fields.get("model")
        if isinstance(model, str) and model in self.aliases:
            fields = {**fields, "model": self.aliases[model]}
        self._require(fields.get("model"), "model", model)
        coe = fields.get("coe")
        if isinstance(coe, Mapping):
            self._require_objective(coe.get("objective"))
            allow = coe.get("allow")
            for name in allow if isinstance(allow, list) else ():
                self._require(name, "coe.allow")
        options = read_options(fields, self.objectives, self.experts, self.default_objective)
        if self.is_limited and options.allow is None:
            return replace(options, allow=frozenset(self.experts))
        return options

    def seen(self, decision: Mapping[str, Any]) -> dict[str, Any]:
        """A decision as plain values, with the experts of this key alone in its ranking."""
        mine = [one for one in decision["ranking"] if one["expert"] in self.experts] if self.is_limited else None
        return {**decision} if mine is None else {**decision, "ranking": mine}

    def _require(self, name: object, param: str, asked: object = None) -> None:
        """`asked` is what the caller calls it: what an alias stands for is told to those alone who may use it."""
        if isinstance(name, str) and name in self.withheld:
            raise ModelWithheld(
                f"this key has no access to '{asked or name}'; it has to {', '.join(self.models)}", param
            )

    def _require_objective(self, name: object) -> None:
        self._require(f"{AUTO}:{name}", "coe.objective")
        if self.has_own_objectives and isinstance(name, str) and name not in self.objectives:
            known = ", ".join(self.objectives) or "none for this key"
            raise UnknownModel(f"there is no objective '{name}'; there are {known}", "coe.objective")
