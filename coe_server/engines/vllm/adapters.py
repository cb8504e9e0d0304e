"""The adapters of one running vLLM: each is seen to answer before its first request, and loaded again if it is lost.

They may come and go while it runs: a new one is loaded at its first request, a former one unloaded after its last. What
no load brings back has the engine started anew, once; what that does not bring back is refused.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress

from coe_server.engines.adapter import Adapter
from coe_server.engines.engine import EngineRequest
from coe_server.engines.vllm.adapter_canaries import AdapterCanaries
from coe_server.engines.vllm.run import CONTROL_SECONDS, VllmRun
from coe_server.errors import EngineDied, EngineError

logger = logging.getLogger(__name__)

_QUOTED_CHARACTERS = 300


class VllmAdapters:
    """The adapters of one engine over all its runs. Its owner calls `begin` and `doubt` between requests."""

    def __init__(self, adapters: Iterable[Adapter]) -> None:
        self.there = AdapterSet(adapters)
        self._asked: Counter[str] = Counter()  # requests under way
        self._canaries = AdapterCanaries()
        self._proven: set[str] = set()  # in this run, since its last wake
        self._restarted_for: set[str] = set()  # since they were last proven
        self._hopeless: set[str] = set()  # in this run
        self._locks: dict[str, asyncio.Lock] = {}
        self._lost = asyncio.Event()
        self._loss = ""

    def take(self, adapters: Iterable[Adapter]) -> None:
        """Have exactly these from now on. Others answer what was asked of them, and are unloaded."""
        came = self.there.take(adapters)
        for names in (self._proven, self._restarted_for, self._hopeless):
            names.difference_update(came)

    async def begin(self, run: VllmRun) -> None:
        """A new run: learn what is not known of its adapters. Raises `EngineError`."""
        self._lost.clear()
        self._hopeless.clear()
        self.doubt()
        if await self._canaries.base_is_another(run):
            self._canaries.forget()
            self._restarted_for.clear()
        self.there.begin(run.launch.adapters)
        for one in run.launch.adapters:
            if not self._canaries.knows(one):
                await self._canaries.learn(run, one)
                self._note(one.name)

    @asynccontextmanager
    async def asked(self, run: VllmRun, name: str) -> AsyncIterator[None]:
        """While a request to the adapter, or to the base, is under way. Raises as `prove`."""
        self._asked[name] += 1
        try:
            await self._unload_former(run)
            await self.prove(run, name)
            yield
        finally:
            self._asked[name] -= 1
        await self._unload_former(run)

    def doubt(self) -> None:
        """The engine woke up: no adapter is known to be there."""
        self._proven.clear()

    async def prove(self, run: VllmRun, name: str) -> None:
        """Return once the adapter has answered its canary rightly in this run, since its last wake.

        A wrong answer has it loaded again; if that does not help, the engine is lost and starts anew. Raises
        `EngineDied` then, and `EngineError` for an adapter that not even a new start has brought back.
        """
        adapter = self.there.get(name)
        if name in self._proven or adapter is None:
            return
        async with self._locks.setdefault(name, asyncio.Lock()):
            if name in self._proven:
                return
            if name in self._hopeless:
                raise _stays_wrong(name)
            if name in self.there.absent:
                await _load_new(self.there, self._canaries, run, adapter)
            elif not await _is_there(self._canaries, run, name):
                logger.warning("adapter '%s' of '%s' is lost in the engine; it is loaded again", name, run.launch.name)
                if not await _is_back(self._canaries, run, adapter):
                    self._give_up(run, name)
            self._note(name)

    async def lost(self) -> str:
        """Wait until only a new start can bring an adapter back. Returns why."""
        await self._lost.wait()
        return self._loss

    async def _unload_former(self, run: VllmRun) -> None:
        for name in self.there.to_unload:
            async with self._locks.setdefault(name, asyncio.Lock()):
                if name in self.there.to_unload and not self._asked[name]:
                    self.there.absent.add(name)
                    self._proven.discard(name)
                    with suppress(EngineError):  # the engine had lost it
                        await _unload(run, name)
                    logger.info("adapter '%s' of '%s' is unloaded", name, run.launch.name)

    def _note(self, name: str) -> None:
        """It has answered rightly."""
        self._restarted_for.discard(name)
        if name not in self.there.absent:
            self._proven.add(name)

    def _give_up(self, run: VllmRun, name: str) -> None:
        """Have the engine started anew, once for each loss: one broken adapter must not keep its base busy."""
        if name in self._restarted_for:
            self._hopeless.add(name)
            error = _stays_wrong(name)
            logger.error("%s", error)
            raise error
        self._restarted_for.add(name)
        self._loss = f"lost adapter '{name}' and did not get it back by loading it again"
        self._lost.set()
        raise EngineDied(f"engine '{run.launch.name}' {self._loss}; it starts anew")


async def _load_new(there: AdapterSet, canaries: AdapterCanaries, run: VllmRun, adapter: Adapter) -> None:
    """Have the running engine take a further adapter, and learn its answers. Raises EngineError if it does not."""
    try:
        await _load(run, adapter)
        await canaries.learn(run, adapter)
    except EngineDied:
        raise
    except EngineError as error:
        error.backs_off = "never"  # its base is well
        raise
    there.load(adapter)
    logger.info("adapter '%s' of '%s' is loaded", adapter.name, run.launch.name)


async def _is_there(canaries: AdapterCanaries, run: VllmRun, name: str) -> bool:
    """False also if the engine does not know it, and answers with an error."""
    try:
        return await canaries.answers_rightly(run, name)
    except EngineDied:
        raise
    except EngineError as error:
        logger.warning("adapter '%s': %s", name, error)
        return False


async def _is_back(canaries: AdapterCanaries, run: VllmRun, adapter: Adapter) -> bool:
    """Load it again. Returns whether it answers now."""
    try:
        await _load(run, adapter)
    except EngineDied:
        raise
    except EngineError as error:
        logger.warning("adapter '%s': %s", adapter.name, error)
        return False
    return await _is_there(canaries, run, adapter.name)


def _stays_wrong(name: str) -> EngineError:
    error = EngineError(
        f"adapter '{name}' answers its canary wrongly, also after its base was started anew; its base and the other"
        " adapters are served"
    )
    error.backs_off = "never"  # its base is well
    return error


async def _load(run: VllmRun, adapter: Adapter) -> None:
    """Load it, after what is left of it: under a new number, so that no cached prefix of the old one is used."""
    try:
        await _unload(run, adapter.name)
    except EngineDied:
        raise
    except EngineError:  # it was not there
        pass
    await command(run, "/v1/load_lora_adapter", {"lora_name": adapter.name, "lora_path": str(adapter.folder)})


async def _unload(run: VllmRun, name: str) -> None:
    await command(run, "/v1/unload_lora_adapter", {"lora_name": name})


async def command(run: VllmRun, path: str, payload: dict[str, object]) -> None:
    """A control call that is answered with a sentence, not with JSON. Raises `EngineError`."""
    headers = (("content-type", "application/json"),)
    request = EngineRequest("POST", path, headers, json.dumps(payload).encode())
    try:
        async with asyncio.timeout(CONTROL_SECONDS), run.http.send(request) as response:
            said = b"".join([chunk async for chunk in response.chunks()])
    except TimeoutError as error:
        raise EngineError(f"engine '{run.launch.name}' did not answer {path} within {CONTROL_SECONDS:g} s") from error
    if response.status != 200:
        quoted = said[:_QUOTED_CHARACTERS].decode(errors="replace")
        raise EngineError(f"engine '{run.launch.name}' answered {path} with {response.status}\n{quoted}")


class AdapterSet:
    """The adapters of one engine over all its runs."""

    def __init__(self, adapters: Iterable[Adapter]) -> None:
        self._known = {one.name: one for one in adapters}
        self._former: dict[str, Adapter] = {}  # for requests that chose them before they went
        self.absent: set[str] = set()  # not loaded: they came while it ran, or were unloaded

    def __contains__(self, name: str) -> bool:
        return name in self._known or name in self._former

    def get(self, name: str) -> Adapter | None:
        return self._known.get(name) or self._former.get(name)

    def take(self, adapters: Iterable[Adapter]) -> frozenset[str]:
        """Have exactly these from now on; the others are former ones. Returns the names that came."""
        wanted = {one.name: one for one in adapters}
        for name in self._known.keys() - wanted.keys():
            self._former[name] = self._known.pop(name)
        came = frozenset(wanted.keys() - self._known.keys())
        for name in came:
            self._former.pop(name, None)
        self.absent |= came
        self._known = wanted | self._known
        return came

    def seen(self, adapters: Iterable[Adapter]) -> tuple[Adapter, ...]:
        """Those of them that an engine can start with: one that it never loaded could keep its base from starting."""
        return tuple(one for one in adapters if one.name not in self.absent)

    def begin(self, adapters: Iterable[Adapter]) -> None:
        """A new run started with these: it has no others of the former ones."""
        self.absent |= self._former.keys() - {one.name for one in adapters}

    def load(self, adapter: Adapter) -> None:
        """The running engine has taken it, which counts unless another one has its name by now."""
        if adapter in (self._known.get(adapter.name), self._former.get(adapter.name)):
            self.absent.discard(adapter.name)

    @property
    def to_unload(self) -> list[str]:
        """Former ones that are loaded."""
        return sorted(self._former.keys() - self.absent)
