"""One request to an expert, told in order: read it, decide, and let the response wait for the expert."""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Callable, Mapping

from fastapi import Request
from starlette.responses import Response

from coe_server.engines.engine import EngineRequest
from coe_server.http.apis import Surface
from coe_server.http.auth import CALLER
from coe_server.http.body import LARGE_BYTES, Body
from coe_server.http.client_stream import by, deadline_of
from coe_server.http.headers import callers_id
from coe_server.http.options import wants_stream
from coe_server.http.previous_responses import ResponseId
from coe_server.http.relay import Expectation, Listener
from coe_server.http.request_log import Account
from coe_server.http.routed_response import Errand, RoutedResponse
from coe_server.http.serving import Asked, Service, Serving
from coe_server.http.trace import Trace
from coe_server.keys import Key

# What an engine is told of the caller's headers; its keys above all are nobody else's business.
_PASSED_ON = frozenset(
    (b"accept", b"anthropic-version", b"anthropic-beta", b"x-request-id", b"traceparent", b"tracestate")
)


def answering(service: Service, surface: Surface) -> Callable[[Request], Awaitable[Response]]:
    """The endpoint of one surface."""

    async def read(request: Request, serving: Serving, key: Key | None) -> tuple[Body, Asked]:
        question = await service.incoming.question(request, surface, serving.max_body_bytes, serving.body_seconds)
        return question.body, await service.asked(question, key)

    async def answer(request: Request) -> Response:
        began, serving = time.perf_counter(), service.serving
        due = deadline_of(request.headers)
        key: Key | None = request.scope.get(CALLER)
        if due is None:
            body, asked = await read(request, serving, key)
        else:
            async with by(due):
                body, asked = await read(request, serving, key)
        decision, owner = service.decide(asked), key.name if key else None
        service.chronicle.record(decision, asked.conversation, owner)
        if serving.traffic is not None:
            serving.traffic.see(decision)
        passed_on = _passed_on(request)
        trace = service.tracing.begin(surface, passed_on, body.fields, decision, began)
        errand = Errand(
            decision=decision,
            priority=asked.options.priority,
            fan_out=asked.fan_out,
            owner=service.owner(key),
            is_streamed=wants_stream(body.fields),
            keepalive_seconds=serving.keepalive_seconds,
            due=due,
            request_for=lambda expert: _engine_request(surface, passed_on, body, service.engine_models[expert], trace),
            decide_again=lambda: service.decide(asked),
            decided=lambda again: service.chronicle.record(again, asked.conversation, owner),
            took=service.chronicle.took,
            answered=lambda followed: service.sessions.remember(asked.session, followed),
            spending=asked.serving.router.spending,
            listener_for=_listener_for(service, surface, request),
            expects=Expectation(surface.answered_as, asked.may_be_silent, asked.fan_out > 1),
            has_more_room=service.has_more_room,
        )
        prompt = _prompt(body) if service.log_prompts else None
        account = Account(service.telemetry, decision, began, owner, callers_id(passed_on), prompt, trace)
        return RoutedResponse(service.cache, errand, account)

    return answer


def _listener_for(service: Service, surface: Surface, request: Request) -> Callable[[str], Listener] | None:
    """What hears the answer of an expert: the id of a response, which may be continued with `previous_response_id`."""
    if surface.endpoint != "responses":
        return None
    key = request.scope.get(CALLER)
    owner = key.name if key else None
    return lambda expert: ResponseId(lambda found: service.made.remember(found, expert, owner))


def _passed_on(request: Request) -> dict[str, str]:
    """Of the caller's headers; several lines of one are a list in one line (RFC 9110, 5.3)."""
    found: dict[str, str] = {}
    for name, value in request.scope["headers"]:
        if name in _PASSED_ON:
            before, more = found.get(name.decode()), value.decode("latin-1")
            found[name.decode()] = more if before is None else f"{before}, {more}"
    return found


def _engine_request(
    surface: Surface, passed_on: Mapping[str, str], body: Body, model: str, trace: Trace
) -> EngineRequest:
    # it was read as JSON, whatever the client called it
    headers = (("content-type", "application/json"), *passed_on.items())
    pieces = body.for_engine(model)
    whole = b"".join(pieces) if len(body.raw) <= LARGE_BYTES else pieces
    return EngineRequest("POST", surface.path, trace.onto(headers), whole)


def _prompt(body: Body) -> str | None:
    """What was asked, for a log that may hold it; None where that was so long that it was read aside."""
    found = [body.fields[key] for key in ("messages", "prompt", "input") if key in body.fields]
    return json.dumps(found) if found else None
