"""The images of an engine's ranks over all its runs: what a dead run has written is used by the next."""

from __future__ import annotations

from collections.abc import Iterator

from coe_server.engines.vllm.command import VllmLaunch
from coe_server.engines.vllm.image import WeightImage
from coe_server.engines.vllm.run import VllmRun
from coe_server.errors import EngineError


class WeightImages:
    """One of each rank, from the first `paths` to `close`; none for an engine that cannot sleep."""

    def __init__(self, launch: VllmLaunch) -> None:
        self._launch = launch
        self._images: tuple[WeightImage, ...] = ()

    def __iter__(self) -> Iterator[WeightImage]:
        return iter(self._images)

    async def paths(self) -> tuple[str, ...]:
        """Of the images that an earlier run left, else of new empty ones."""
        if any(image.over for image in self._images):  # lost: the next ones are written from the files
            await self.close()
        if not self._images and self._launch.can_sleep:
            for _ in range(self._launch.width):
                self._images += (await WeightImage.held(self._launch.name, self._launch.user),)
        return tuple(image.path for image in self._images)

    async def secure(self, run: VllmRun, within_seconds: float) -> bool:
        """Have them written, unless the engine was loaded from them. Returns whether they were. Raises EngineError."""
        if not self._images:
            return False
        reports = await run.ask_ranks("memory_report")
        fresh = [not report["loaded_from_image"] for report in reports]
        if any(fresh):
            for image, is_fresh in zip(self._images, fresh, strict=True):
                if is_fresh and (await image.state()).sealed:  # the worker rejected it
                    await image.renew()
            await run.ask_ranks("write_image", within_seconds)
        for image in self._images:
            if not (await image.state()).sealed:
                raise EngineError(f"engine '{self._launch.name}' left its image open to changes")
        return any(fresh)

    async def size_bytes(self) -> int:
        """Of all together."""
        return sum([(await image.state()).size_bytes for image in self._images])

    async def close(self) -> None:
        """Give them back."""
        images, self._images = self._images, ()
        for image in images:
            await image.close()
