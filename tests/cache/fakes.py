"""An engine without a model, whose moves a test can hold, fail or count. It records broken promises of the cache."""

import asyncio
from contextlib import asynccontextmanager, contextmanager

from coe_server.cache.tiers import Bytes
from coe_server.engines.engine import Footprint
from coe_server.errors import CardLost, EngineDied, EngineError, EngineStartFailed


class Memory:
    """What the fakes of one cache really hold, against its capacity; and every promise that was broken."""

    def __init__(self, capacity):
        self.capacity = capacity
        self.held = {}
        self.broken_promises = []

    def promise(self, kept, sentence):
        if not kept:
            self.broken_promises.append(sentence)

    def hold(self, name, device, host, seat=(0,)):
        self.held[name] = Bytes([device if card in seat else 0 for card in range(max(seat) + 1)], host)
        used = sum(self.held.values(), Bytes())
        self.promise(used.fits(self.capacity), f"over capacity: {self.held}")


class Life:
    """From one start of an engine to its end: the requests that use it, and whether it died."""

    def __init__(self):
        self.users = 0
        self.over = asyncio.Event()

    @contextmanager
    def in_use(self):
        self.users += 1
        try:
            yield
        finally:
            self.users -= 1


class FakeEngine:
    """Moves instantly unless `gate` is cleared. `fail` names the calls that fail once."""

    def __init__(self, name, footprint, memory):
        self.name = name
        self.footprint = footprint or Footprint(device_awake=10, host_process=10, host_image=5)
        self.memory = memory
        self.calls = []
        self.stops_at_once = []  # for each stop: True if it had to be immediate
        self.fail = set()
        self.hangs = False
        self.is_out_of_reach = False
        self.lost_card = None  # a start on this card fails with CardLost
        self.seat = (0,)  # the cards of its last start
        self.gate = asyncio.Event()
        self.gate.set()
        self.life = Life()

    async def start(self, within_seconds=None, seat=(0,)):
        if self.lost_card in seat:
            error = CardLost("GPU is lost")
            error.index = self.lost_card
            raise error
        self.seat = seat
        try:
            async with asyncio.timeout(within_seconds):
                await self._move("start", self.footprint.device_awake, self.footprint.host)
        except TimeoutError:
            await self.stop()
            raise EngineStartFailed(f"{self.name} was not up within {within_seconds:g} s") from None
        self.life = Life()

    async def sleep(self):
        await self._move("sleep", self.footprint.device_asleep, self.footprint.host)

    async def wake(self):
        await self._move("wake", self.footprint.device_awake, self.footprint.host)

    async def stop(self, at_once=False):
        idle = self.life.users == 0 or self.life.over.is_set() or "closing" in self.calls
        self.memory.promise(idle, f"{self.name} was stopped while in use")
        self.calls.append("stop")
        self.stops_at_once.append(at_once)
        self._hold(0, 0)

    async def died(self):
        await self.life.over.wait()
        return f"engine '{self.name}' was killed"

    @asynccontextmanager
    async def send(self, request):
        assert request.path == "/health", "the cache asks for signs of life and nothing else"
        if self.hangs:
            await asyncio.Event().wait()
        if self.is_out_of_reach:
            raise EngineDied(f"{self.name} refuses connections")
        yield "alive"

    def die(self):
        self.life.over.set()

    async def _move(self, call, device, host):
        self.memory.promise(self.life.users == 0 or self.life.over.is_set(), f"{self.name}: {call} while in use")
        self.calls.append(call)
        if device > self.footprint.device_asleep:
            self._hold(device, host)
        await self.gate.wait()
        await asyncio.sleep(0)
        if call in self.fail:
            self.fail.discard(call)
            raise (EngineStartFailed if call == "start" else EngineError)(f"{self.name} failed to {call}")
        self._hold(device, host)

    def _hold(self, device, host):
        self.memory.hold(self.name, device, host, self.seat)
