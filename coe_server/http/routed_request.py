"""One parsed request: the input of its router, and the request to each expert. Does not depend on leases."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from coe_server.cache.queue import Owner
from coe_server.engines.engine import EngineRequest, Tries
from coe_server.errors import CoeError
from coe_server.http.answers.heard import Heard
from coe_server.http.bodies.body import ENDINGS, LARGE_BYTES, ParsedRequest
from coe_server.http.bodies.presets import Changes
from coe_server.http.client_stream import DEADLINE
from coe_server.http.forwarded import FORWARDED, NOTHING, Forwarded
from coe_server.http.serving import Decides, Service, Serving
from coe_server.http.tracing.trace import Trace
from coe_server.keys import Key
from coe_server.routing.conversation import Conversation, session_key
from coe_server.routing.decision import RouteOptions, RoutingDecision, Shadow

NOTHING_ASKED: Changes = MappingProxyType({})
_LATER_SECONDS = 0.1  # that a node's deadline is behind this server's own, whose error the caller gets


@dataclass(frozen=True, slots=True)
class RoutedRequest:
    """`serving`: router and settings at the start of the request; a reload does not change them.

    `passed_on`: the caller's headers that are forwarded to engines. `due`: the caller's own deadline, in the loop's
    time. `forwarded`: on a node, what the front said of its caller.
    """

    service: Service
    serving: Serving
    router: Decides  # one of the serving's
    parsed: ParsedRequest
    key: Key | None
    conversation: Conversation  # with embeddings, where the router needs them
    options: RouteOptions
    session: bytes | None
    is_streamed: bool
    passed_on: Mapping[str, str]
    due: float | None
    forwarded: Forwarded = NOTHING
    heard: Heard | None = None  # of an answer that is to be compared with another expert's

    def decide(self) -> RoutingDecision:
        """The decision, given the current tiers of all experts."""
        decision = self.router.route(self.conversation, self.options, self.service.availability())
        return decision if self.serving.shadow is None else replace(decision, shadow=self._shadow(self.serving.shadow))

    def _shadow(self, other: Decides) -> Shadow | None:
        """What another router decides; None where it cannot."""
        try:
            found = other.route(self.conversation, replace(self.options, draw=None), self.service.availability())
        except CoeError:
            return None
        return Shadow(found.router_version, found.expert, found.category)

    @property
    def key_name(self) -> str | None:
        return None if self.key is None else self.key.name

    @property
    def owner(self) -> Owner | None:
        """The owner of its leases, with its share of the queues; on a node the front's caller, if it has a key."""
        if self.forwarded.owner is not None or self.key is None:
            return self.forwarded.owner
        return Owner(self.key.name, self.service.guard.keyring.share(self.key))

    def tries(self, decision: RoutingDecision) -> Tries:
        """For the nodes that have its expert. There a conversation is known also if the caller names the expert."""
        session = self.session
        if session is None and self.service.nodes is not None:
            session = session_key(self.conversation, replace(self.options, expert=None), self.key_name)
        return Tries(session, self.parsed.fan_out, has_substitute=decision.has_another and self.repeatable)

    def engine_request(
        self, expert: str, leased: str, trace: Trace, tries: Tries, asked: Changes = NOTHING_ASKED
    ) -> EngineRequest:
        """The request to this expert, at the engine of `leased`: the body unchanged except for the engine's model name,
        without `coe`, and with what a preset changes and what is `asked` beside. A node also gets what this server
        knows of the caller, and the time that is left."""
        model = self.service.model_at(expert, leased)
        passed_on = tuple(self.passed_on.items())
        if self.service.is_on_nodes(expert):
            passed_on += tuple(_to_a_node(Forwarded(self.options.priority, self.owner), self.due))
        if (upload := self.parsed.upload) is not None:
            headers = (("content-type", upload.content_type), *passed_on)
            form = upload.body(model)
            return EngineRequest("POST", self.parsed.api.path, trace.onto(headers), form, tries, model)
        headers = (("content-type", "application/json"), *passed_on)  # the body was read as JSON
        body = self.parsed.body
        pieces = body.for_engine(model, {**self.changes(expert), **asked})
        whole = b"".join(pieces) if len(body.raw) <= LARGE_BYTES else pieces
        return EngineRequest("POST", self.parsed.api.path, trace.onto(headers), whole, tries, model)

    def changes(self, expert: str) -> Changes:
        """What the expert, if it is a preset, changes in the body; nothing where no answer is generated."""
        preset, api = self.service.presets.get(expert), self.parsed.api
        return preset.changes(api.endpoint, self.parsed.body) if preset is not None and api.routed else {}

    @property
    def repeatable(self) -> bool:
        """False once the bytes of a streamed form went to an engine: no other one can get them."""
        return self.parsed.upload is None or self.parsed.upload.repeatable

    def may_be_silent(self, expert: str) -> bool:
        """True if an empty text may be this expert's whole answer: the caller, or a preset, asked for an end."""
        return self.parsed.may_be_silent or any(self.changes(expert).get(name) for name in ENDINGS)

    def has_more_room(self, than: str, expert: str) -> bool:
        """True unless the expert is known to have no longer context than the one for which the request was too long."""
        ours, theirs = self.service.context_tokens(expert), self.service.context_tokens(than)
        return ours is None or theirs is None or ours > theirs


def _to_a_node(told: Forwarded, due: float | None) -> Iterator[tuple[str, str]]:
    """The headers for a node alone: what this server knows of the caller, and the time that is left."""
    if told != NOTHING:
        yield FORWARDED, told.as_header()
    if due is not None:
        left_seconds = due - asyncio.get_running_loop().time()
        yield DEADLINE, f"{max(left_seconds, 0.0) + _LATER_SECONDS:.3f}"
