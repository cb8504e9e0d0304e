"""The endpoints, one function each, in the order a client meets them."""

from __future__ import annotations

import json
import time
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from coe_server.cache.lease import Lease
from coe_server.engines.engine import EngineRequest
from coe_server.errors import RequestError
from coe_server.events import EventLog
from coe_server.http.account import Account
from coe_server.http.admin import build_admin
from coe_server.http.body import Body, read_body
from coe_server.http.entrance import Entrance
from coe_server.http.metrics import build_metrics
from coe_server.http.openai_errors import install_error_handlers
from coe_server.http.routed_response import RoutedResponse
from coe_server.http.service import AUTO, Service
from coe_server.routing.decision import RoutingDecision


def build_api(service: Service) -> FastAPI:
    """The whole HTTP surface over `service`."""
    app = FastAPI(title="Composition of Experts", docs_url=None, redoc_url=None)
    install_error_handlers(app, service.telemetry)
    app.add_middleware(Entrance, telemetry=service.telemetry)

    @app.post("/v1/chat/completions")
    async def chat_completions(request: Request) -> Response:
        """Route the conversation, wait for the expert, stream its answer through."""
        began = time.perf_counter()
        body = read_body(await _read_all(request, service.max_body_bytes))
        options = service.options(body)
        decision = await service.decide(body, options)
        _record(service.cache.events, decision)
        return RoutedResponse(
            service.cache,
            decision.expert,
            options.priority,
            _engine_request(request, body, service.engine_models[decision.expert]),
            lambda lease: decision_headers(decision) | wait_header(lease),
            service.router.spending(decision),
            Account(service.telemetry, decision, began, _prompt(body) if service.log_prompts else None),
        )

    @app.post("/v1/route")
    async def route(request: Request) -> JSONResponse:
        """The decision for a chat request, without the answer."""
        body = read_body(await _read_all(request, service.max_body_bytes))
        return JSONResponse((await service.decide(body, service.options(body))).as_json())

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        """Every name that may stand under `model`: the router's objectives and the experts."""
        owners = {name: "router" if name.split(":")[0] == AUTO else "expert" for name in service.models}
        return {
            "object": "list",
            "data": [
                {"id": name, "object": "model", "created": service.started, "owned_by": owner}
                for name, owner in owners.items()
            ],
        }

    @app.api_route("/healthz", methods=["GET", "HEAD"])
    async def healthz() -> dict[str, str]:
        """The process answers."""
        return {"status": "ok"}

    @app.api_route("/readyz", methods=["GET", "HEAD"])
    async def readyz() -> JSONResponse:
        """What is to be preloaded has been; 503 until then."""
        ready = service.cache.ready.is_set()
        return JSONResponse({"status": "ready" if ready else "starting"}, 200 if ready else 503)

    if service.admin:
        app.include_router(build_admin(service.cache))
        app.include_router(build_metrics(service))
    return app


async def _read_all(request: Request, limit_bytes: int) -> bytes:
    """The body, unless it is longer than the limit (413)."""
    pieces: list[bytes] = []
    size = 0
    try:
        async for piece in request.stream():
            size += len(piece)
            if size > limit_bytes:
                error = RequestError(f"the body is larger than {limit_bytes} bytes (http.max_body)")
                error.status, error.code = 413, "body_too_large"
                raise error
            pieces.append(piece)
    except ClientDisconnect as error:
        raise RequestError("the client left before its body was whole") from error
    return b"".join(pieces)


def _engine_request(request: Request, body: Body, model: str) -> EngineRequest:
    accept = (("accept", request.headers["accept"]),) if "accept" in request.headers else ()
    headers = (("content-type", "application/json"), *accept)  # it was read as JSON, whatever the client called it
    return EngineRequest("POST", request.url.path, headers, body.for_engine(model))


def _prompt(body: Body) -> str:
    """What was asked, for a log that may hold it."""
    return json.dumps(body.fields.get("messages"))


def _record(events: EventLog, decision: RoutingDecision) -> None:
    """The decision as an event; the prompt is no part of it."""
    events.record(
        "decision",
        decision_id=decision.decision_id,
        expert=decision.expert,
        category=decision.category,
        confidence=decision.confidence,
        reason=decision.reason,
        residency=decision.ranking[0].residency,
    )


def decision_headers(decision: RoutingDecision) -> dict[str, str]:
    """The decision as response headers; text that is not ASCII is written as JSON escapes."""
    headers = {
        "x-coe-decision-id": decision.decision_id,
        "x-coe-expert": decision.expert,
        "x-coe-reason": decision.reason,
        "x-coe-residency": decision.ranking[0].residency or "",
        "x-coe-routing-ms": f"{decision.routing_ms:.3f}",
        "x-coe-router-version": decision.router_version,
    }
    if decision.category is not None and decision.confidence is not None:
        headers["x-coe-category"] = json.dumps(decision.category)[1:-1]
        headers["x-coe-confidence"] = f"{decision.confidence:.4f}"
    return headers


def wait_header(lease: Lease) -> dict[str, str]:
    return {"x-coe-wait-ms": f"{lease.waited_seconds * 1000:.1f}"}
