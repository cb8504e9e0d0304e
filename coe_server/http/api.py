"""The endpoints, one function each, in the order a client meets them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from coe_server.http.answer.answering import answering
from coe_server.http.door.bodies import Bodies, BodyLimits
from coe_server.http.door.entrance import Entrance
from coe_server.http.door.guard import CALLER
from coe_server.http.door.paths import Paths
from coe_server.http.door.rate_limits import RateLimits
from coe_server.http.door.refusals import Refusals
from coe_server.http.feedback import build_feedback
from coe_server.http.models import build_models
from coe_server.http.openai_errors import install_error_handlers
from coe_server.http.openapi import describe
from coe_server.http.operator.admin import build_admin
from coe_server.http.operator.metrics import build_metrics
from coe_server.http.operator.reloading import Reloader
from coe_server.http.page.routes import build_page
from coe_server.http.request_id import REQUEST_ID
from coe_server.http.service import Service
from coe_server.http.surfaces import SURFACES

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]


def build_api(service: Service, reloader: Reloader, lifespan: Lifespan) -> Entrance:
    """The whole HTTP surface over `service`; `lifespan` is held while it is served."""
    app = FastAPI(
        title="Composition of Experts",
        openapi_url=None,  # FastAPI's own would be the same for every caller
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
    )
    install_error_handlers(app, service.telemetry)
    straight = {surface.path: answering(service, surface) for surface in SURFACES}
    for surface in SURFACES:
        summary = f"{surface.endpoint.capitalize()}: {'routed, or by' if surface.routed else 'by'} an expert's name"
        app.add_api_route(surface.path, straight[surface.path], methods=["POST"], summary=summary)

    @app.post("/v1/route")
    async def route(request: Request) -> JSONResponse:
        """The decision for a request, without the answer."""
        serving = service.serving
        question = await service.incoming.question(request, None, serving.max_body_bytes, serving.body_seconds)
        key = request.scope[CALLER]
        asked = await service.asked(question, key)
        decision = service.decide(asked)
        told = service.reach(key).seen(decision.as_json())
        return JSONResponse(told, headers={REQUEST_ID: decision.decision_id})

    straight["/v1/route"] = route  # refused as what it decides about would be, with the same line in the log

    app.include_router(build_models(service))
    app.include_router(build_feedback(service.chronicle.journal, service.reach))

    @app.head("/health", include_in_schema=False)
    @app.get("/health")
    @app.head("/healthz", include_in_schema=False)
    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """The process answers."""
        return {"status": "ok"}

    @app.head("/readyz", include_in_schema=False)
    @app.get("/readyz")
    async def readyz() -> JSONResponse:
        """What is to be preloaded has been; 503 until then."""
        ready = service.cache.ready.is_set()
        return JSONResponse({"status": "ready" if ready else "starting"}, 200 if ready else 503)

    app.include_router(build_page(service))
    app.include_router(build_admin(service.cache, reloader))
    app.include_router(build_metrics(service))
    describe(app, lambda request: service.reach(request.scope[CALLER]).models)
    paths = Paths(app.routes)
    refusals = Refusals(service.telemetry, paths.declared)
    bodies = Bodies(lambda: BodyLimits(service.serving.bodies_bytes, service.serving.max_body_bytes))
    return Entrance(app, service.telemetry, lambda: service.guard, RateLimits(), bodies, paths, refusals, straight)
