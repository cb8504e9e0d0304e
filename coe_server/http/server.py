"""The HTTP server: the application over one service, and the listener with its address.

The address is bound before anything else is started. A port in use is not a configuration error: the other program may
release it, and a later start may succeed.
"""

from __future__ import annotations

import errno
import logging
import math
import socket
import ssl
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, suppress
from functools import partial
from typing import Any, Protocol

import uvicorn
from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from coe_server.config.addresses import host_and_port
from coe_server.config.http import TlsSettings
from coe_server.errors import CoeError
from coe_server.http.apis import APIS, AUTO
from coe_server.http.auth import CALLER
from coe_server.http.connection import Connection
from coe_server.http.errors import install_error_handlers
from coe_server.http.generate import dry_run, endpoint_of
from coe_server.http.middleware import Middleware
from coe_server.http.model_names import unknown_model
from coe_server.http.paths import Paths
from coe_server.http.rate_limits import Bodies, BodyLimits, RateLimits, Rejections
from coe_server.http.routes.admin import Reloader, build_admin
from coe_server.http.routes.feedback import build_feedback
from coe_server.http.routes.learning import build_learning
from coe_server.http.routes.metrics import build_metrics
from coe_server.http.routes.node import build_node
from coe_server.http.routes.nodes import build_nodes
from coe_server.http.routes.openapi import describe
from coe_server.http.routes.own_routes import build_route_editing
from coe_server.http.routes.page import build_page
from coe_server.http.serving import Service
from coe_server.system.process import OpenFilesWatch

logger = logging.getLogger(__name__)

GRACE_SECONDS = 30.0  # for answers in progress when the server stops
# Idle connections stay open for longer than those of proxies and load balancers (nginx and AWS: 60 s), so that the
# proxy closes them: a request on its way over a connection that this server closes would be lost.
IDLE_SECONDS = 75


class Application(Protocol):
    """An ASGI application that also counts what is rejected before it is a whole request."""

    @property
    def rejections(self) -> Rejections: ...

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None: ...


class Listener(uvicorn.Server):
    """uvicorn's server; `before_stop` is called when it stops accepting, before it waits for open connections."""

    def __init__(
        self,
        app: Application,
        host: str,
        port: int,
        before_stop: Callable[[], None],
        grace_seconds: float = GRACE_SECONDS,
        tls: TlsSettings | None = None,
    ) -> None:
        self._scheme = "http" if tls is None else "https"
        super().__init__(
            uvicorn.Config(
                app,
                host=host,
                port=port,
                http=partial(Connection, rejected=app.rejections.count),  # type: ignore[arg-type]  # uvicorn only calls it
                ws="none",
                log_level="warning",
                log_config=None,  # uvicorn's lines go to the same log in the same format
                access_log=False,
                proxy_headers=False,  # forwarded headers of proxies are not trusted
                timeout_keep_alive=IDLE_SECONDS,
                timeout_graceful_shutdown=math.ceil(grace_seconds),
                **({} if tls is None else _tls(tls)),
            )
        )
        self._before_stop = before_stop
        self._open_files = OpenFilesWatch()

    async def on_tick(self, counter: int) -> bool:
        """Called ten times a second."""
        self._open_files.look()
        return await super().on_tick(counter)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for server in self.servers:
            for listening in server.sockets:
                address = host_and_port(*listening.getsockname()[:2])
                logger.info(
                    "listening on %s://%s/v1; page: %s://%s/; GET /readyz reports when the experts are loaded",
                    *(self._scheme, address, self._scheme, address),
                )

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        grace_seconds = self.config.timeout_graceful_shutdown
        logger.info("stopping: new requests are refused; answers in progress have %d s", grace_seconds)
        self._before_stop()
        await super().shutdown(sockets)
        logger.info("stopped")


def _tls(settings: TlsSettings) -> dict[str, Any]:
    """uvicorn's arguments for HTTPS."""
    wanted = settings.client_ca is not None
    return {
        "ssl_certfile": settings.certificate,
        "ssl_keyfile": settings.key,
        "ssl_ca_certs": str(settings.client_ca) if wanted else None,
        "ssl_cert_reqs": ssl.CERT_REQUIRED if wanted else ssl.CERT_NONE,
    }


_NOT_OURS = frozenset({errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT})
_NAME_OR_ADDRESS = "http.host is an address or a name of this machine: 127.0.0.1, or 0.0.0.0 for all of its addresses"


def taken_address(host: str, port: int) -> list[socket.socket]:
    """Sockets bound to every address of `host`, not listening yet. Raises CoeError with the reason and what to do."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        reason = (error.strerror or str(error)) if isinstance(error, OSError) else "not a valid name"
        raise _cannot_listen(host, port, reason, _NAME_OR_ADDRESS) from error
    sockets: list[socket.socket] = []
    try:
        for family, _, _, _, address in dict.fromkeys(found):
            with suppress(_NotOurs):
                sockets.append(_bound(family, address))
        if not sockets:
            raise OSError(errno.EADDRNOTAVAIL, "Cannot assign requested address")
    except OSError as error:
        for one in sockets:
            one.close()
        way_out = _NAME_OR_ADDRESS if error.errno in _NOT_OURS else "give another port (http.port or --port)"
        raise _cannot_listen(host, port, error.strerror or str(error), way_out) from error
    return sockets


class _NotOurs(Exception):
    """An address of `host` that this machine does not have, such as ::1 of localhost."""


def _bound(family: int, address: tuple[object, ...]) -> socket.socket:
    try:
        one = socket.socket(family, socket.SOCK_STREAM)
        try:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            one.bind(address)
        except BaseException:
            one.close()
            raise
    except OSError as error:
        if error.errno in _NOT_OURS:
            raise _NotOurs from error
        raise
    return one


def _cannot_listen(host: str, port: int, reason: str, way_out: str) -> CoeError:
    return CoeError(f"cannot listen on {host_and_port(host, port)}: {reason[0].lower()}{reason[1:]}; {way_out}")


Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]


def build_api(service: Service, reloader: Reloader, lifespan: Lifespan) -> Middleware:
    """The whole HTTP interface over `service`; `lifespan` is held while it is served."""
    app = FastAPI(
        title="Composition of Experts",
        openapi_url=None,  # FastAPI's own would be the same for every key
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
    )
    install_error_handlers(app, service.telemetry)
    direct = {api.path: endpoint_of(service, api) for api in APIS}
    for api in APIS:
        summary = f"{api.endpoint.capitalize()}: {'routed, or by' if api.routed else 'by'} an expert's name"
        app.add_api_route(api.path, direct[api.path], methods=["POST"], summary=summary)

    @app.post("/v1/route")
    async def route(request: Request) -> Response:
        """The decision for a request, without the answer."""
        return await dry_run(service, request)

    direct["/v1/route"] = route  # a rejection is logged as for the requests it decides about

    rated = None if service.learner is None else service.learner.rated
    _add(app, build_models(service))
    _add(app, build_feedback(service.journal, service.reach, rated))

    @app.head("/health", include_in_schema=False)
    @app.get("/health")
    @app.head("/healthz", include_in_schema=False)
    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """200 while the process runs."""
        return {"status": "ok"}

    @app.head("/readyz", include_in_schema=False)
    @app.get("/readyz")
    async def readyz() -> JSONResponse:
        """200 once all preloaded experts are loaded and, on a front, every node has answered or failed to; 503 until
        then."""
        ready = service.cache.ready.is_set() and (service.nodes is None or service.nodes.settled)
        return JSONResponse({"status": "ready" if ready else "starting"}, 200 if ready else 503)

    _add(app, build_page(service))
    _add(app, build_admin(service, reloader))
    _add(app, build_learning(service))
    _add(app, build_route_editing(service, reloader))
    _add(app, build_metrics(service))
    if service.node is not None:
        _add(app, build_node(service, service.node))
    if service.nodes is not None:
        _add(app, build_nodes(service.nodes))
    describe(app, lambda request: service.reach(request.scope[CALLER]).models)
    paths = Paths(app.routes)
    rejections = Rejections(service.telemetry, paths.declared)
    bodies = Bodies(lambda: BodyLimits(service.serving.bodies_bytes, service.serving.max_body_bytes))
    return Middleware(app, service.telemetry, lambda: service.guard, RateLimits(), bodies, paths, rejections, direct)


def _add(app: FastAPI, router: APIRouter) -> None:
    """Its routes as they are. `include_router` builds each of them again at the first request: in the event loop, and
    under `warnings.catch_warnings`, which is not safe beside other threads."""
    app.router.routes.extend(router.routes)


def build_models(service: Service) -> APIRouter:
    """`GET /v1/models` and one of them."""
    models = APIRouter()

    def entry(name: str) -> dict[str, Any]:
        owner = "expert" if name in service.engine_models else "router" if name.partition(":")[0] == AUTO else "alias"
        return {"id": name, "object": "model", "created": service.started, "owned_by": owner}

    def names(request: Request) -> tuple[str, ...]:
        return service.reach(request.scope.get(CALLER)).models

    @models.head("/v1/models", include_in_schema=False)
    @models.get("/v1/models")
    async def every_model(request: Request) -> dict[str, Any]:
        """The values of `model` that the client may use: objectives of the router, experts, and aliases of both."""
        return {"object": "list", "data": [entry(name) for name in names(request)]}

    @models.head("/v1/models/{name:path}", include_in_schema=False)
    @models.get("/v1/models/{name:path}")
    async def one_model(name: str, request: Request) -> dict[str, Any]:
        """One of them; 404 if there is none of that name."""
        if name not in names(request):
            raise unknown_model(name, names(request))
        return entry(name)

    return models
