"""What one vLLM holds on its device and in host memory: its footprint, its image, and whether memory came back.

On a GPU the driver's figures count, on a CPU those of the process. Starts and stops nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from coe_server.engines.image import WeightImage
from coe_server.engines.memory import private_bytes
from coe_server.engines.vllm_command import VllmLaunch, estimated_footprint
from coe_server.engines.vllm_process import VllmRun
from coe_server.errors import EngineError

logger = logging.getLogger(__name__)

_FREED_SECONDS = 2.0
_FREED_POLL_SECONDS = 0.01
_FREED_SHARE = 0.9
_SLOWEST_BYTES_PER_SECOND = 0.2e9  # memory that a virtual machine hands out for the first time


class VllmMemory:
    """Outlives the runs of its engine: a run that died leaves its image to the next one."""

    def __init__(self, launch: VllmLaunch, device_bytes: Callable[[], int]) -> None:
        self.footprint = launch.measured or estimated_footprint(launch)  # until it is measured
        self.is_measured = False  # in this life
        self.image: WeightImage | None = None
        self.on_gpu = launch.platform == "cuda"
        self._launch = launch
        self.device_bytes = device_bytes if self.on_gpu else lambda: 0  # bytes in use on the whole GPU
        self._releasable_bytes = self.footprint.device_awake - self.footprint.device_asleep  # weights and KV cache
        self._canary: str | None = None  # what the weights in the image answer

    @property
    def move_seconds(self) -> float:
        """Time limit of a sleep, a wake or the writing of the image; an engine that takes longer has failed."""
        return self._launch.move_timeout_seconds + self.footprint.device_awake / _SLOWEST_BYTES_PER_SECOND

    def held_bytes(self, run: VllmRun) -> int:
        """The figure that a sleep lowers: bytes in use on the GPU, or private bytes of the process on a CPU."""
        return self.device_bytes() if self.on_gpu else private_bytes(run.process.pid)

    async def image_path(self) -> str | None:
        """Path of the image that an earlier run left, else of a new empty one; None for an engine without an image."""
        if self.image is not None and self.image.over:
            self.image = None  # lost: the next one is written from the files
        if self.image is None and self._launch.can_sleep and not self.on_gpu:
            self.image = await WeightImage.held(self._launch.name, self._launch.user)
        return self.image.path if self.image else None

    async def secure_image(self, run: VllmRun) -> None:
        """Have the image written before the first sleep, unless the engine was loaded from it."""
        if self.image is None:
            return
        report = await run.ask_worker("memory_report")
        if not report["loaded_from_image"]:
            self._canary = None
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
        if self.on_gpu:
            awake = max(0, self.device_bytes() - run.device_bytes_before)
            self.footprint = self.footprint._replace(device_awake=awake, host_process=private)
            return
        report = await run.ask_worker("memory_report")
        awake = int(report["weights_bytes"]) + int(report["kv_cache_bytes"])
        image_bytes = (await self.image.state()).size_bytes if self.image else 0
        process_bytes = max(0, private - awake)
        self.footprint = self.footprint._replace(
            device_awake=awake, device_asleep=0, host_process=process_bytes, host_image=image_bytes
        )

    def check_canary(self, answer: str) -> None:
        """The first answer counts as right. Every later one must equal it, after a restart from the image too."""
        if answer != (self._canary or answer):
            raise EngineError(
                f"engine '{self._launch.name}' answers its canary wrongly: {answer!r} now, {self._canary!r} at first"
            )
        self._canary = answer

    async def until_freed(self, run: VllmRun, held_before: int) -> None:
        """Wait until a sleep has given its memory back, by the system's figures. Raises `EngineError` if it has not."""
        moving = self.footprint.device_awake - self.footprint.device_asleep
        if self.on_gpu:  # before the first sleep the rest that stays is an estimate: graphs may be large
            moving = max(min(moving, self._releasable_bytes), self._launch.kv_cache_bytes)
        wanted = round(_FREED_SHARE * moving)
        freed = await _at_least(wanted, lambda: held_before - self.held_bytes(run))
        if freed < wanted:
            raise EngineError(f"engine '{self._launch.name}' sleeps but freed {freed} bytes, {wanted} were expected")
        if self.on_gpu:
            self.footprint = self.footprint._replace(device_asleep=max(0, self.footprint.device_awake - freed))

    async def until_given_back(self, run: VllmRun) -> None:
        """Wait until the GPU shows the memory of a run that ended as free; log a warning where it stays in use.

        The driver may take a moment after the last process has ended.
        """
        if not self.on_gpu:
            return
        allowed = run.device_bytes_before + round((1 - _FREED_SHARE) * self.footprint.device_awake)
        try:
            missing = -await _at_least(0, lambda: allowed - self.device_bytes())
        except EngineError as error:
            logger.warning("engine '%s' ended; its GPU memory could not be checked: %s", self._launch.name, error)
            return
        if missing > 0:
            logger.warning("engine '%s' ended; the GPU holds %d bytes more than expected", self._launch.name, missing)

    async def close(self) -> None:
        """Give the image back."""
        image, self.image, self._canary = self.image, None, None
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
