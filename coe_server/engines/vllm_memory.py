"""What one vLLM holds on its device and in host memory: its footprint, its image, and whether memory came back.

On a GPU its ranks tell (`seat_memory.py`), on a CPU the figures of the process count. Starts and stops nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

from coe_server.engines.cards import Cards
from coe_server.engines.image import WeightImage
from coe_server.engines.memory import private_bytes
from coe_server.engines.seat_memory import FREED_SHARE, HeldAwake, SeatMemory
from coe_server.engines.vllm_command import Place, VllmLaunch, estimated_footprint
from coe_server.engines.vllm_process import VllmRun
from coe_server.errors import EngineError

_FREED_SECONDS = 2.0
_FREED_POLL_SECONDS = 0.01
_SLOWEST_BYTES_PER_SECOND = 0.2e9  # memory that a virtual machine hands out for the first time


class VllmMemory:
    """Outlives the runs of its engine: a run that died leaves its image to the next one."""

    def __init__(self, launch: VllmLaunch, cards: Cards | None) -> None:
        self.footprint = launch.measured or estimated_footprint(launch)  # until it is measured
        self.is_measured = False  # in this life
        self.image: WeightImage | None = None
        self.seat: SeatMemory | None = None  # None on a CPU
        self._launch = launch
        self._canaries: dict[int, str] = {}  # what the weights answer, by copy
        if launch.platform == "cuda":
            rank_bytes = self.footprint.device_awake - self.footprint.device_asleep
            most_context_bytes = estimated_footprint(launch).device_asleep  # what an earlier start measured may be less
            self.seat = SeatMemory(launch.name, cards or Cards(), launch.width, rank_bytes, most_context_bytes)

    @property
    def move_seconds(self) -> float:
        """Time limit of a sleep, a wake or the writing of the image; an engine that takes longer has failed."""
        return self._launch.move_timeout_seconds + self.footprint.device_awake / _SLOWEST_BYTES_PER_SECOND

    async def place(self, seat: Sequence[int]) -> Place:
        """Where the next run takes its memory; `seat` are indices of visible cards, the first ones if it is empty."""
        image_path = await self.image_path()
        if self.seat is None:
            return Place(image_path)
        await self.seat.take(seat)
        return Place(image_path, self.seat.seat, self.seat.utilization())

    async def image_path(self) -> str | None:
        """Path of the image that an earlier run left, else of a new empty one; None for an engine without an image."""
        if self.image is not None and self.image.over:
            self.image = None  # lost: the next one is written from the files
        if self.image is None and self._launch.can_sleep and self.seat is None:
            self.image = await WeightImage.held(self._launch.name, self._launch.user)
        return self.image.path if self.image else None

    async def secure_image(self, run: VllmRun) -> None:
        """Have the image written before the first sleep, unless the engine was loaded from it."""
        if self.image is None:
            return
        report = await run.ask_worker("memory_report")
        if not report["loaded_from_image"]:
            self._canaries.clear()
            if (await self.image.state()).sealed:  # the worker found a reason not to trust it
                await self.image.renew()
            await run.ask_worker("write_image", self.move_seconds)
        if not (await self.image.state()).sealed:
            raise EngineError(f"engine '{self._launch.name}' left its image open to changes")

    async def measure(self, run: VllmRun) -> None:
        """Replace the estimated footprint by a measured one."""
        await self._measure(run)
        self.is_measured = True

    async def _measure(self, run: VllmRun) -> None:
        private = private_bytes(run.process.pid)
        if self.seat is not None:
            await self.seat.measure(await run.memory_reports(self.seat.seat))
            self.footprint = self.footprint._replace(device_awake=max(self.seat.awake), host_process=private)
            return
        report = await run.ask_worker("memory_report")
        awake = int(report["weights_bytes"]) + int(report["kv_cache_bytes"])
        image_bytes = (await self.image.state()).size_bytes if self.image else 0
        process_bytes = max(0, private - awake)
        self.footprint = self.footprint._replace(
            device_awake=awake, device_asleep=0, host_process=process_bytes, host_image=image_bytes
        )

    def taking(self) -> AbstractContextManager[None]:
        """While the engine takes the memory that it holds when it is awake."""
        return nullcontext() if self.seat is None else self.seat.taking(self.footprint.device_awake)

    def check_canary(self, answer: str, copy: int = 0) -> None:
        """The first answer counts as right. Every later one must equal it, after a restart from the image too."""
        first = self._canaries.setdefault(copy, answer)
        if answer != first:
            raise EngineError(
                f"engine '{self._launch.name}' answers its canary wrongly: {answer!r} now, {first!r} at first"
            )

    async def before_sleep(self, run: VllmRun) -> HeldAwake | int:
        """The figures that a sleep lowers: of the ranks and their cards, or private bytes of the process on a CPU."""
        if self.seat is None:
            return private_bytes(run.process.pid)
        return await self.seat.before_sleep(await run.memory_reports(self.seat.seat))

    async def until_freed(self, run: VllmRun, before: HeldAwake | int) -> None:
        """Wait until a sleep has given its memory back, by the system's figures. Raises `EngineError` if it has not."""
        if self.seat is not None:
            assert isinstance(before, HeldAwake)
            reports = await run.memory_reports(self.seat.seat)
            asleep = await self.seat.until_freed(before, reports)
            pinned = sum(report.pinned_bytes for report in reports)
            self.footprint = self.footprint._replace(
                device_asleep=asleep, host_image=pinned or self.footprint.host_image
            )
            return
        assert isinstance(before, int)
        wanted = round(FREED_SHARE * (self.footprint.device_awake - self.footprint.device_asleep))
        freed = await _at_least(wanted, lambda: before - private_bytes(run.process.pid))
        if freed < wanted:
            raise EngineError(f"engine '{self._launch.name}' sleeps but freed {freed} bytes, {wanted} were expected")

    async def while_it_ends(self, run: VllmRun, at_once: bool) -> None:
        """End a run, and wait until the GPU shows its memory as free."""
        lives = not run.process.over.done()  # the memory of one that died may be free already
        before = await self.seat.before_end() if self.seat is not None and lives else None
        await run.end(at_once)
        if self.seat is not None:
            await self.seat.until_given_back(before)

    async def close(self) -> None:
        """Give the image back."""
        image, self.image = self.image, None
        self._canaries.clear()
        if image is not None:
            await image.close()


async def _at_least(wanted: int, size_bytes: Callable[[], int]) -> int:
    """The first reading that reaches `wanted`, or the last one before the time limit."""
    now = asyncio.get_running_loop().time
    deadline = now() + _FREED_SECONDS
    while True:
        seen = size_bytes()
        if seen >= wanted or now() > deadline:
            return seen
        await asyncio.sleep(_FREED_POLL_SECONDS)  # the system does not announce that memory was freed
