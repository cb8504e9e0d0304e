"""What one vLLM holds on its device and in host memory: its footprint, its images, and whether memory came back.

On a GPU its ranks tell (`seat_memory.py`), on a CPU their processes are measured. Starts and stops nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from coe_server.engines.canary import FirstAnswers
from coe_server.engines.cards import Cards
from coe_server.engines.cores import Core, Cores, here, near
from coe_server.engines.memory import private_bytes, private_bytes_by_process
from coe_server.engines.vllm.command import Place, VllmLaunch
from coe_server.engines.vllm.footprint import estimated_footprint
from coe_server.engines.vllm.image import WeightImages
from coe_server.engines.vllm.run import VllmRun
from coe_server.engines.vllm.seat_memory import (
    FREED_SHARE,
    HeldAwake,
    RankReport,
    SeatMemory,
    forget_reports,
    read_reports,
)
from coe_server.errors import EngineError

_SLOWEST_BYTES_PER_SECOND = 0.2e9  # first use of memory in a virtual machine
_FREED_SECONDS = 2.0
_FREED_POLL_SECONDS = 0.01


class VllmMemory:
    """The memory of one engine over all its runs: the image of a dead run is used by the next."""

    def __init__(self, launch: VllmLaunch, cards: Cards | None, machine: Callable[[], Sequence[Core]] = here) -> None:
        self.footprint = launch.measured or estimated_footprint(launch)  # an estimate until measured
        self.is_measured = False  # by this server
        self.images = WeightImages(launch)
        self.first_answers = FirstAnswers(launch.name)
        self.seat: SeatMemory | None = None  # None on a CPU
        self._ranks = RankMemory(launch.name, launch.width)  # on a CPU
        self._launch = launch
        self._machine = machine  # its cores
        if launch.platform == "cuda":
            rank_bytes = self.footprint.device_awake - self.footprint.device_asleep
            most_context_bytes = estimated_footprint(launch).device_asleep  # what an earlier start measured may be less
            self.seat = SeatMemory(launch.name, cards or Cards(), launch.width, rank_bytes, most_context_bytes)

    @property
    def move_seconds(self) -> float:
        """Time limit in seconds of a sleep, a wake or the writing of the image."""
        return self._launch.move_timeout_seconds + self.footprint.device_awake / _SLOWEST_BYTES_PER_SECOND

    async def place(self, seat: Sequence[int]) -> Place:
        """Where the next run takes its memory; `seat` are indices of cards, the first ones if it is empty."""
        if self.seat is None:
            cores = self._launch.cores and tuple(
                self._launch.cores[card] for card in (seat or range(self._launch.width))
            )
            return Place(await self.images.paths(), cores=cores)
        await self.seat.take(seat)
        bound = self._launch.option("numa_bind")  # vLLM itself binds the ranks
        near_cards = () if bound else await asyncio.to_thread(_near, self._machine, self.seat)
        return Place((), self.seat.seat, self.seat.utilization(), near_cards)

    async def secure_images(self, run: VllmRun) -> None:
        """Have the images written before the first sleep, unless the engine was loaded from them."""
        fresh = await self.images.fresh(run)
        if any(fresh):
            self.first_answers.forget()
        await self.images.secure(run, fresh, self.move_seconds)

    async def measure(self, run: VllmRun) -> None:
        """Replace the estimated footprint by a measured one."""
        private = private_bytes(run.process.pid)
        if self.seat is not None:
            await self.seat.measure(await _reports(run, self.seat.seat))
            self.footprint = self.footprint._replace(device_awake=max(self.seat.awake), host_process=private)
        else:
            awake = await self._ranks.measure(run)
            self.footprint = self.footprint._replace(
                device_awake=max(awake),
                device_asleep=0,
                host_process=max(0, private - sum(awake)),
                host_image=await self.images.size_bytes(),
            )
        self.is_measured = True

    def taking(self) -> AbstractContextManager[None]:
        """Note, within this context, that the engine may allocate its awake memory."""
        return nullcontext() if self.seat is None else self.seat.taking(self.footprint.device_awake)

    async def before_sleep(self, run: VllmRun) -> HeldAwake | list[int]:
        """The figures that a sleep lowers: of the ranks and their cards, or private bytes of the ranks on a CPU."""
        if self.seat is None:
            return self._ranks.held(run)
        return HeldAwake(await _reports(run, self.seat.seat), await self.seat.look())

    async def until_freed(self, run: VllmRun, before: HeldAwake | list[int]) -> None:
        """Wait until the system shows the memory of a sleep as freed. Raises `EngineError` if it is not."""
        if self.seat is None:
            assert isinstance(before, list), "taken by `before_sleep`"
            await self._ranks.until_freed(run, before)
            return
        assert isinstance(before, HeldAwake)
        reports = await _reports(run, self.seat.seat)
        asleep = await self.seat.until_freed(before, reports)
        pinned = sum(report.pinned_bytes for report in reports)
        self.footprint = self.footprint._replace(device_asleep=asleep, host_image=pinned or self.footprint.host_image)

    async def while_it_ends(self, run: VllmRun, at_once: bool) -> None:
        """End a run, and wait until the GPU shows its memory as free."""
        lives = not run.process.over.done()  # the memory of a dead one may already be free
        before = await self.seat.before_end() if self.seat is not None and lives else None
        await run.end(at_once)
        if self.seat is not None:
            await self.seat.until_given_back(before)

    async def close(self) -> None:
        """Give the images back."""
        self.first_answers.forget()
        await self.images.close()


def _near(machine: Callable[[], Sequence[Core]], seat: SeatMemory) -> tuple[Cores, ...]:
    """The cores on the nodes of its cards, for all ranks together."""
    found = near(machine(), (seat.cards.facts(card).numa_node for card in seat.seat))
    return (found,) if found else ()


async def _reports(run: VllmRun, seat: Sequence[str]) -> tuple[RankReport, ...]:
    """The memory report of each rank, in the order of the cards. Raises `EngineError`."""
    await asyncio.to_thread(forget_reports, run.run_directory)
    await run.ask_worker("coe_report_memory")
    return await asyncio.to_thread(read_reports, run.run_directory, seat)


@dataclass(frozen=True, slots=True)
class _Rank:
    """One of the processes with the weights."""

    pid: int
    awake_bytes: int  # weights and KV cache


class RankMemory:
    """The memory that the ranks of an engine on a CPU use. `width`: their number."""

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
