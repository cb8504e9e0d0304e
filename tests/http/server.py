"""A whole server with given experts on a loopback port, in a thread; and a client that returns raw answers."""

import asyncio
import http.client
import json
import socket
import threading
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from types import MappingProxyType

from coe_server.cache.expert_cache import ExpertCache
from coe_server.cache.policy import Limits
from coe_server.cache.slot import Expert
from coe_server.cache.tiers import Bytes
from coe_server.cache.turnover import Turnover
from coe_server.errors import ReloadRefused
from coe_server.events import EventLog
from coe_server.http.auth import Guard
from coe_server.http.browsers import Hosts
from coe_server.http.comparer import Comparer
from coe_server.http.learner import Learner
from coe_server.http.routes.admin import Reloader
from coe_server.http.server import GRACE_SECONDS, Listener, build_api
from coe_server.http.serving import Service, Serving
from coe_server.http.tracing.trace import NoTracing
from coe_server.keys import Keyring
from coe_server.metrics import Telemetry
from coe_server.routing.by_name import NamedRouter
from tests.patience import PATIENCE_SECONDS, until


class Door:
    """The application, and the client ports of the requests in progress."""

    def __init__(self, api):
        self._api = api
        self._in_hand = set()
        self._ended = threading.Condition()

    async def __call__(self, scope, receive, send):
        asker = scope["client"][1] if scope["type"] == "http" else None
        self._in_hand.add(asker)
        try:
            await self._api(scope, receive, send)
        finally:
            with self._ended:
                self._in_hand.discard(asker)
                self._ended.notify_all()

    @property
    def rejections(self):
        return self._api.rejections

    def wait_for_end(self, asker):
        with self._ended:
            assert self._ended.wait_for(lambda: asker not in self._in_hand, PATIENCE_SECONDS)


class Watched:
    """A cache, read from another thread: its own loop reads the state, between two changes."""

    def __init__(self, cache, loop):
        self._cache = cache
        self._loop = loop

    def status(self):
        return self._seen(self._cache.status)

    def measured_costs(self):
        return self._seen(self._cache.slots.measured_costs)

    def remove(self, name):
        """As a reload does, and wait until it is gone."""
        self._seen(lambda: self._cache.roster.take_over(Turnover(removed=(name,))))
        until(lambda: all(one.name != name for one in self.status()))

    def _seen(self, part):
        async def look():
            return part()

        return asyncio.run_coroutine_threadsafe(look(), self._loop).result(PATIENCE_SECONDS)


@dataclass
class Running:
    """A running server and its cache, which belongs to another thread: read it, never change it."""

    port: int
    cache: Watched
    door: Door | None = None

    def ask(self, method, path, body=None, headers=None):
        """The answer, after the server has finished the request: it counts some metrics after the last byte."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_SECONDS)
        try:
            connection.request(method, path, body, headers or {})
            asker = connection.sock.getsockname()[1]
            response = connection.getresponse()
            raw = response.read()
            if self.door is not None:
                self.door.wait_for_end(asker)
            return response.status, {k.lower(): v for k, v in response.getheaders()}, raw
        finally:
            connection.close()

    def chat(self, **fields):
        body = {"messages": [{"role": "user", "content": "hello there"}], **fields}
        status, headers, raw = self.ask("POST", "/v1/chat/completions", json.dumps(body))
        return status, headers, json.loads(raw)


def _nothing_to_reload(serving):
    raise ReloadRefused("this server was made by a test")


@contextmanager
def running_server(
    engines,
    router=None,
    limits=None,
    capacity=None,
    embedder=None,
    rebuild=None,
    log_prompts=False,
    keyring=None,
    on_loopback=True,
    hosts=None,
    journal=None,
    tracing=None,
    lengths=None,
    remote=(),
    grace_seconds=GRACE_SECONDS,
    bases=MappingProxyType({}),
    presets=MappingProxyType({}),
    models=MappingProxyType({}),
    forms=None,
    steps_file=None,
    **serving_settings,
):
    """`engines` by name; those in `remote` are remote endpoints; `serving_settings` are fields of `Serving`.

    `forms`: the `Uploads`.

    `bases`: further names, each with the expert whose engine it shares; `presets`: what some of them change; `models`:
    under which name their engines know some of them.
    `steps_file`: where learning keeps its steps; without one nothing is learned.

    The conductor runs on the server's own loop.
    """
    ready = threading.Event()
    box = {}

    def build():
        experts = [Expert(name, engine, remote=name in remote) for name, engine in engines.items()]
        telemetry, events = Telemetry(), EventLog()
        events.subscribe(telemetry.saw)
        room = capacity or Bytes(1 << 40, 1 << 40)
        cache = ExpertCache(experts, room, limits or Limits(max_wait_seconds=0.2), events, bases=bases)
        serving = Serving(
            router=router or NamedRouter([*engines, *bases]),
            default_objective="quality",
            embedder=embedder,
            **{"max_body_bytes": 100_000, **serving_settings},
        )
        service = Service(
            serving=serving,
            cache=cache,
            journal=journal,
            engine_models={name: name for name in engines} | dict(bases) | dict(models),
            presets=presets,
            guard=Guard(keyring or Keyring(), on_loopback=on_loopback, hosts=hosts or Hosts()),
            started=1,
            telemetry=telemetry,
            log_prompts=log_prompts,
            tracing=tracing or NoTracing(),
            lengths=lengths or {},
            **({} if forms is None else {"uploads": forms}),
        )
        if steps_file is not None:
            service.learner = Learner(steps_file, journal, lambda: service.serving.router)
        if journal is not None:
            service.comparer = Comparer(service)
        reloader = Reloader(service, rebuild or _nothing_to_reload)

        @asynccontextmanager
        async def lifespan(_):
            conductor = asyncio.create_task(cache.run())
            box["watched"] = Watched(cache, asyncio.get_running_loop())
            learner = asyncio.create_task(service.learner.run()) if service.learner is not None else None
            ready.set()
            yield
            if learner is not None:
                learner.cancel()
                with suppress(asyncio.CancelledError):
                    await learner
            if service.comparer is not None:
                await service.comparer.close()
            conductor.cancel()
            with suppress(asyncio.CancelledError):
                await conductor
            await reloader.close()
            await asyncio.to_thread(service.bodies.close)

        box["cache"] = cache
        return build_api(service, reloader, lifespan)

    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()  # a request may arrive before the server accepts
        door = Door(build())

        def before_stop():
            box["cache"].stop_admitting()
            box["cache"].events.close()

        server = Listener(door, "127.0.0.1", 0, before_stop, grace_seconds)
        thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
        thread.start()
        assert ready.wait(PATIENCE_SECONDS)
        try:
            yield Running(listening.getsockname()[1], box["watched"], door)
        finally:
            server.should_exit = True
            thread.join(PATIENCE_SECONDS)
            assert not thread.is_alive(), "the server did not stop"
