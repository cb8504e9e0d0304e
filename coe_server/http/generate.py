"""One request to an expert, step by step.

1. read: the body, once, within its limits (`_read`)
2. route: the caller's options, the conversation's session, and the router's decision (`_prepared`, `decide`)
3. admit: the response waits for a lease of the chosen expert (`RoutedResponse`)
4. relay: the engine's answer goes to the caller, piece by piece (`Relay`)
5. log: metrics, trace, decision log and one log line (`RequestLog`)
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

from fastapi import Request
from starlette.responses import JSONResponse, Response

from coe_server.errors import EmbeddingUnavailable, Forbidden
from coe_server.http.apis import Api, read_nothing, require_expert, require_fan_out, wants_stream
from coe_server.http.auth import CALLER
from coe_server.http.bodies.body import ParsedRequest, parse_form
from coe_server.http.bodies.uploads import Upload
from coe_server.http.client_stream import deadline_of, within
from coe_server.http.forwarded import FORWARDED, NOTHING, read_forwarded
from coe_server.http.headers import REQUEST_ID
from coe_server.http.previous_responses import FIELD as PREVIOUS
from coe_server.http.request_log import RequestLog
from coe_server.http.routed_request import RoutedRequest
from coe_server.http.routed_response import RoutedResponse
from coe_server.http.serving import Service
from coe_server.keys import Key
from coe_server.metrics import EMBEDDING_FAILURES
from coe_server.routing.conversation import Conversation, session_key
from coe_server.routing.decision import RouteOptions
from coe_server.routing.embeddings import Embedder, with_embeddings

logger = logging.getLogger(__name__)

# The caller's headers that are forwarded to an engine; the caller's keys are not.
_PASSED_ON = frozenset(
    (b"accept", b"anthropic-version", b"anthropic-beta", b"x-request-id", b"traceparent", b"tracestate")
)


def endpoint_of(service: Service, api: Api) -> Callable[[Request], Awaitable[Response]]:
    """The endpoint of one API."""

    async def answer(request: Request) -> Response:
        return await generate(service, api, request)

    return answer


async def generate(service: Service, api: Api, request: Request) -> Response:
    """Read and route; the returned response admits, relays and logs."""
    arrived, due = time.perf_counter(), deadline_of(request.headers)
    async with within(due):
        parsed = await _read(service, api, request)
        with _closed_if_refused(parsed.upload):
            routed = await _prepared(service, parsed, request, due, may_draw=True)
            decision = routed.decide()
    if service.comparer is not None:
        routed = service.comparer.listen(routed, decision)
    return RoutedResponse(routed, decision, RequestLog(routed, decision, arrived))


async def dry_run(service: Service, request: Request) -> Response:
    """The decision for a request, without the answer."""
    routed = await _prepared(service, await _read(service, None, request), request, None)
    decision = routed.decide()
    told = service.reach(routed.key).seen(decision.as_json())
    return JSONResponse(told, headers={REQUEST_ID: decision.decision_id})


async def _read(service: Service, api: Api | None, request: Request) -> ParsedRequest:
    serving = service.serving
    if api is not None and api.form:
        return parse_form(await service.uploads.received(request, serving.uploads, request.scope[CALLER]), api)
    asked = api if api is None or not _was_read(service, request.scope[CALLER]) else replace(api, read=read_nothing)
    return await service.bodies.parsed(request, asked, serving.max_body_bytes, serving.body_seconds)


def _was_read(service: Service, key: Key | None) -> bool:
    """True if a front has read the conversation and chosen the expert: nothing here needs it but a log of prompts."""
    is_logged = service.journal is not None and service.journal.keeps_prompts
    return service.node is not None and key is not None and key.node and not is_logged


async def _prepared(
    service: Service, parsed: ParsedRequest, request: Request, due: float | None, *, may_draw: bool = False
) -> RoutedRequest:
    """Everything that the decision needs. Raises RequestError naming the field that is wrong.

    A conversation's expert is drawn at its first turn.
    """
    key: Key | None = request.scope[CALLER]
    owner, serving, conversation = key.name if key else None, service.serving, parsed.conversation
    require_fan_out(parsed.fan_out, service.cache.limits.max_fan_out, owner, key.max_fan_out if key else None)
    options, forwarded, draw = _options(service, parsed, key, owner), NOTHING, None
    if service.node is not None and (key is None or key.node):
        forwarded = read_forwarded(request.headers.get(FORWARDED))
    if serving.embedder is not None and options.expert is None:
        conversation = await _embedded(service, conversation, serving.embedder)
    session = session_key(conversation, options, owner)
    if (kept := service.sessions.last(session, conversation, options)) is None:
        draw = random.random() if may_draw and not conversation.continues else None
    priority = options.priority if forwarded is NOTHING else forwarded.priority
    options = replace(options, key=owner, kept=kept, draw=draw, priority=priority)
    router = serving.router_for(session, options.objective)
    is_streamed, passed_on = wants_stream(parsed.body.fields), _passed_on(request)
    return RoutedRequest(
        service, serving, router, parsed, key, conversation, options, session, is_streamed, passed_on, due, forwarded
    )


@contextmanager
def _closed_if_refused(upload: Upload | None) -> Iterator[None]:
    try:
        yield
    except BaseException:
        if upload is not None:
            upload.close()
        raise


def _options(service: Service, parsed: ParsedRequest, key: Key | None, owner: str | None) -> RouteOptions:
    """The request's options, checked against the rights of its key."""
    api, fields, reach = parsed.api, parsed.body.fields, service.reach(key)
    options = reach.options(fields)
    if options.priority == "high" and key is not None and not (key.priority or key.admin):
        raise Forbidden(
            f"key '{key.name}' may not use coe.priority 'high'; omit it, or create a key that may "
            "(coe keys add --priority)"
        )
    if api.endpoint == "responses":
        options = service.made.continued(fields.get(PREVIOUS), options, owner)
    if not (api.routed or api.media):
        require_expert(options, api.path, reach.experts)
    return options


async def _embedded(service: Service, conversation: Conversation, embedder: Embedder) -> Conversation:
    """The conversation with embeddings. If they are unavailable, without them: then it counts as out of domain."""
    try:
        return await with_embeddings(conversation, embedder)
    except EmbeddingUnavailable as error:
        service.telemetry.count(EMBEDDING_FAILURES)
        logger.warning("a prompt is routed without its embedding: %s", error)
        return conversation


def _passed_on(request: Request) -> Mapping[str, str]:
    """Several lines of one header are a list in one line (RFC 9110, 5.3)."""
    found: dict[str, str] = {}
    for name, value in request.scope["headers"]:
        if name in _PASSED_ON:
            before, more = found.get(name.decode()), value.decode("latin-1")
            found[name.decode()] = more if before is None else f"{before}, {more}"
    return found
