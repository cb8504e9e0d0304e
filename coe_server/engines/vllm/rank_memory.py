"""Memory of one engine without a GPU: what each rank, a process of its own, holds and gives back."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from coe_server.engines.memory import private_bytes, private_bytes_by_process
from coe_server.engines.vllm.run import VllmRun
from coe_server.engines.vllm.seat_memory import FREED_SHARE
from coe_server.errors import EngineError

_FREED_SECONDS = 2.0
_FREED_POLL_SECONDS = 0.01


@dataclass(frozen=True, slots=True)
class _Rank:
    """One of the processes with the weights."""

    pid: int
    awake_bytes: int  # weights and KV cache


class RankMemory:
    """`width`: the number of ranks."""

    def __init__(self, name: str, width: int) -> None:
        self._name = name
        self._width = width
        self._ranks: tuple[_Rank, ...] = ()  # as they were measured

    async def measure(self, run: VllmRun) -> list[int]:
        """The bytes of each awake rank. Raises `EngineError`."""
        self._ranks = tuple(_rank(report) for report in await run.ask_ranks("memory_report"))
        if len(self._ranks) != self._width:
            raise EngineError(f"{len(self._ranks)} of the {self._width} ranks have reported their memory")
        return [rank.awake_bytes for rank in self._ranks]

    def held(self, run: VllmRun) -> list[int]:
        """Private bytes of each rank now. Of a single one all processes count: it needs not be told apart from those
        beside it."""
        if len(self._ranks) == 1:
            return [private_bytes(run.process.pid)]
        held = private_bytes_by_process(run.process.pid)
        return [held.get(rank.pid, 0) for rank in self._ranks]

    async def until_freed(self, run: VllmRun, before: list[int]) -> None:
        """Wait until the system shows the memory of a sleep as freed, rank by rank: what one frees too much is no room
        on another's card. Raises `EngineError` if it is not."""
        wanted = [round(FREED_SHARE * rank.awake_bytes) for rank in self._ranks]
        now = asyncio.get_running_loop().time
        deadline = now() + _FREED_SECONDS
        while True:
            freed = [then - held for then, held in zip(before, self.held(run), strict=True)]
            short = [(seen, least) for seen, least in zip(freed, wanted, strict=True) if seen < least]
            if not short:
                return
            if now() > deadline:
                seen, least = short[0]
                raise EngineError(f"engine '{self._name}' sleeps but freed {seen} bytes, {least} were expected")
            await asyncio.sleep(_FREED_POLL_SECONDS)  # the system does not announce that memory was freed


def _rank(report: dict[str, Any]) -> _Rank:
    return _Rank(int(report.get("pid", 0)), int(report["weights_bytes"]) + int(report["kv_cache_bytes"]))
