"""Which key a request has, what it gives access to, and which experts and objectives it may name. Pure.

Every path that is neither public nor for clients is the operator's: a new path is closed until it is listed here.
A path without an endpoint needs no protection: any client may learn that it does not exist.
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
from coe_server.http.apis import AUTO, model_names, read_options
from coe_server.http.browsers import Hosts, host_of_origin, is_from_our_page, lines
from coe_server.keys import Key, Keyring
from coe_server.routing.decision import RouteOptions

PUBLIC = frozenset({"/health", "/healthz", "/readyz"})
FOR_CLIENTS = frozenset({"/tokenize", "/detokenize", "/openapi.json"})
SCRAPED = "/metrics"
FOR_FRONTS_PREFIX = "/node/"
CLIENTS_PREFIX = "/v1/"
CALLER = "coe.caller"  # in a request's scope: the `Key` that was presented, or None
MOST_CREDENTIALS = 8  # of one request; each is hashed and compared with every key
_ADDED_BY_PROXIES = ("forwarded", "via", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-real-ip")


@dataclass(frozen=True, slots=True)
class Guard:
    """`on_loopback`: the server listens on a loopback address only, so that every client is on this machine.

    `hosts`: the names that a request without a key may use for this server.
    """

    keyring: Keyring
    on_loopback: bool
    hosts: Hosts = field(default_factory=Hosts)

    def admit(self, path: str, headers: Mapping[str, str]) -> Key | None:
        """The key that gives access to a path; None where none is needed. Raises InvalidApiKey or Forbidden."""
        if path in PUBLIC:
            return None
        if path == SCRAPED and (key := self._scraper(headers)) is not None:
            return key
        if path.startswith(FOR_FRONTS_PREFIX):
            return self._for_fronts(headers)
        return self.client(headers) if is_for_clients(path) else self._operator(headers)

    def client(self, headers: Mapping[str, str]) -> Key | None:
        """The same for clients' paths. A password that a browser remembers is accepted from this server's own page
        only."""
        if not self.keyring.keys:
            return None
        given = list(presented_on_purpose(headers))
        known = list(self._known(given))
        if not known and is_from_our_page(headers):
            known = list(self._known(_presented(headers)))
        if not known:
            raise _unknown(given)
        key = next((one for one in known if not one.scrape), None)
        if key is None:
            raise Forbidden(f"key '{known[0].name}' gives access to {SCRAPED} only")
        return key

    def _scraper(self, headers: Mapping[str, str]) -> Key | None:
        """A key for the metrics only, if one was presented."""
        return next((key for key in self._known(presented_on_purpose(headers)) if key.scrape), None)

    def _for_fronts(self, headers: Mapping[str, str]) -> Key | None:
        """The node key or, as on the operator's paths, an admin key; without either of them any local request."""
        if (key := self._front(headers)) is not None:
            return key
        if any(key.node for key in self.keyring.keys) and not self.keyring.has_admin:
            raise _unknown(list(_presented(headers)))
        return self._operator(headers)

    def _front(self, headers: Mapping[str, str]) -> Key | None:
        """The node key, if it was presented."""
        return next((key for key in self._known(presented_on_purpose(headers)) if key.node), None)

    def owner(self, headers: Mapping[str, str]) -> Key | None:
        """The key that was presented, whether it gives access or not; None if it is unknown."""
        return next(self._known(_presented(headers)), None)

    def _operator(self, headers: Mapping[str, str]) -> Key | None:
        """An admin key gives access; if none exists, so does a request from this machine that came through no proxy."""
        if (front := self._front(headers)) is not None:  # also where an operator on this machine needs no key
            raise Forbidden(
                f"key '{front.name}' is a node key: it opens {CLIENTS_PREFIX} and {FOR_FRONTS_PREFIX} alone"
            )
        if not self.keyring.has_admin:
            self._refuse_unless_local(headers)
            return None
        given = list(_presented(headers))
        known = list(self._known(given))
        if not known:
            raise _unknown(given)
        admin = next((key for key in known if key.admin), None)
        if admin is None:
            raise Forbidden(f"key '{known[0].name}' is not an admin key")
        return admin

    def _refuse_unless_local(self, headers: Mapping[str, str]) -> None:
        if not self.on_loopback:
            raise Forbidden("this path needs an admin key, and none exists; create one with coe keys add --admin")
        for header in _ADDED_BY_PROXIES:
            if header in headers:
                raise Forbidden(
                    f"this request came through a proxy ({header}), which takes an admin key (coe keys add --admin)"
                )

    def _known(self, given: Iterable[str]) -> Iterator[Key]:
        """The known keys among all that was presented."""
        return (key for one in given if (key := self.keyring.find(one)) is not None)


def _unknown(given: Iterable[str]) -> InvalidApiKey:
    if any(given):
        return InvalidApiKey("unknown API key")
    return InvalidApiKey("no API key was given: send `Authorization: Bearer KEY` or `x-api-key: KEY`")


def is_for_clients(path: str) -> bool:
    """True if a path is for clients, not for the operator alone."""
    return path.startswith(CLIENTS_PREFIX) or path in FOR_CLIENTS


def presented_on_purpose(headers: Mapping[str, str]) -> Iterator[str]:
    """Possible keys in `Authorization: Bearer` or `x-api-key` (Anthropic's clients): no browser adds these by
    itself."""
    return _first(_in_headers(headers, {"bearer": str}))


def _presented(headers: Mapping[str, str]) -> Iterator[str]:
    """All possible keys, including a browser's password.

    A proxy may add its own credentials before or after the client's.
    """
    return _first(_in_headers(headers, {"bearer": str, "basic": _password}))


def _first(credentials: Iterator[str]) -> Iterator[str]:
    return islice(filter(None, credentials), MOST_CREDENTIALS)


def _in_headers(headers: Mapping[str, str], schemes: Mapping[str, Callable[[str], str]]) -> Iterator[str]:
    """`schemes` of `Authorization`, each with the function that reads a key from its credentials; others give none."""
    for line in lines(headers, "authorization"):
        for one in _listed(line):
            scheme, _, given = one.strip().partition(" ")
            read = schemes.get(scheme.lower())
            yield read(given.strip()) if read is not None else ""
    for line in lines(headers, "x-api-key"):
        yield line.strip()


def _listed(line: str) -> list[str]:
    """A line and, if it has commas, its parts: some proxies join several lines into one."""
    return [line, *line.split(",", MOST_CREDENTIALS)] if "," in line else [line]


def _password(credentials: str) -> str:
    try:
        return base64.b64decode(credentials, validate=True).decode().partition(":")[2]
    except (binascii.Error, UnicodeDecodeError):
        return ""


def is_of_this_machine(address: str) -> bool:
    """True if an origin or a Host header names the loopback interface."""
    host = host_of_origin(address) if "//" in address else HostPort.of(address)
    return host is not None and is_loopback_host(host.name)


@dataclass(frozen=True, slots=True)
class Reach:
    """The `experts` and `objectives` that one key may use, in the server's order; `withheld`: all other names."""

    experts: tuple[str, ...]
    objectives: tuple[str, ...]
    default_objective: str
    is_limited: bool = False
    has_own_objectives: bool = False
    withheld: frozenset[str] = frozenset()
    aliases: Mapping[str, str] = field(default_factory=dict)  # further names, including those of withheld experts

    @classmethod
    def of(
        cls,
        key: Key | None,
        experts: Collection[str],
        objectives: Collection[str],
        default_objective: str,
        aliases: Mapping[str, str],
    ) -> Reach:
        """What this key may name; without a key, everything. `auto` means an objective that the key may use."""
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
        """The values of `model` that this client may use."""
        return model_names(self.objectives, self.experts) + self._own_aliases

    @property
    def _own_aliases(self) -> tuple[str, ...]:
        names = model_names(self.objectives, self.experts)
        return tuple(alias for alias, goal in self.aliases.items() if goal in names)

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
        options = read_options(fields, self.objectives, self.experts, self.default_objective, self._own_aliases)
        if self.is_limited and options.allow is None:
            return replace(options, allow=frozenset(self.experts))
        return options

    def seen(self, decision: Mapping[str, Any]) -> dict[str, Any]:
        """A decision as plain values, with only the experts of this key in its ranking, and without draws and costs
        that name others."""
        mine = [one for one in decision["ranking"] if one["expert"] in self.experts] if self.is_limited else None
        return (
            {**decision}
            if mine is None
            else {**decision, "ranking": mine, "exploration": None, "shadow": None, "costs": None}
        )

    def _require(self, name: object, param: str, asked: object = None) -> None:
        """Raise ModelWithheld if the key may not use `name`.

        `asked`: the alias in the request, if any; the error shows only that, since the key may not know its target.
        """
        if isinstance(name, str) and name in self.withheld:
            raise ModelWithheld(
                f"this key has no access to '{asked or name}'; it may use {', '.join(self.models)}", param
            )

    def _require_objective(self, name: object) -> None:
        self._require(f"{AUTO}:{name}", "coe.objective")
        if self.has_own_objectives and isinstance(name, str) and name not in self.objectives:
            known = ", ".join(self.objectives) or "none for this key"
            raise UnknownModel(f"unknown objective '{name}'; known: {known}", "coe.objective")
