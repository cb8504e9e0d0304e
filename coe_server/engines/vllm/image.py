"""An expert's image: a sealed memfd owned by a small holder process. One for each rank, over all runs of its engine.

Neither this module nor the file format (`worker/coe_weight_image.py`) depends on the device.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from coe_server.engines.user import EngineUser, python_of
from coe_server.engines.vllm.command import VllmLaunch
from coe_server.engines.vllm.run import VllmRun
from coe_server.errors import EngineError
from coe_server.system.child import signal_child

_HOLDER = Path(__file__).with_name("image_holder.py")
_SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
_ANSWER_SECONDS = 30.0  # time limit for the holder's answer
_END_SECONDS = 10.0


class ImageState(NamedTuple):
    """The state of the memfd, as the holder reports it."""

    descriptor: int
    size_bytes: int
    seals: int

    @property
    def sealed(self) -> bool:
        """True if no process, not even the holder, can change, shrink or grow the image."""
        return self.seals & _SEALS == _SEALS


class WeightImage:
    """Empty at first; an engine opens `path`, writes it once and seals it. It ends with the server, even on SIGKILL.

    The memory belongs to a holder process (`image_holder.py`, `pid`). Engines cannot open the server's own files
    through /proc: the server has secrets and is protected from inspection.
    """

    def __init__(
        self,
        name: str,
        holder: asyncio.subprocess.Process,
        answers: asyncio.StreamReader,
        connection: asyncio.StreamWriter,
    ) -> None:
        self.pid = holder.pid
        self._name = name
        self._holder = holder
        self._answers = answers
        self._connection = connection
        self._one_question = asyncio.Lock()
        self._over: asyncio.Task[int] = asyncio.create_task(self._watch())
        self.path = ""

    @classmethod
    async def held(cls, name: str, user: EngineUser | None = None) -> WeightImage:
        """An empty image for the expert `name` in a new process of `user`. Raises `OSError` or `EngineError`."""
        ours, theirs = socket.socketpair()
        with theirs:
            answers, connection = await asyncio.open_unix_connection(sock=ours)
            try:
                holder = await _start_holder(theirs, name, user)
            except BaseException:
                connection.close()
                raise
        image = cls(name, holder, answers, connection)
        try:
            image.path = f"/proc/{holder.pid}/fd/{(await image._answered()).descriptor}"
        except BaseException:
            await image.close()
            raise
        return image

    @property
    def over(self) -> bool:
        """True if the image was closed or lost."""
        return self._over.done()

    async def state(self) -> ImageState:
        """Ask the holder. Raises `EngineError` if it has ended or does not answer."""
        return await self._ask(b"state\n")

    async def renew(self) -> None:
        """Replace it by an empty one at the same path, after an engine rejected it. Raises `EngineError`."""
        await self._ask(b"renew\n")

    async def lost(self) -> str:
        """Wait until the holder ends unexpectedly; returns how it ended."""
        status = await asyncio.shield(self._over)
        return f"lost its image: the process that held it {_ending(status)}"

    async def close(self) -> None:
        """Release the memory, except while an engine has it open. Repeated calls have no effect."""
        self._connection.close()
        done, _ = await asyncio.wait({self._over}, timeout=_END_SECONDS)
        if not done:  # the holder hangs
            signal_child(self._holder, signal.SIGKILL)
        await asyncio.shield(self._over)

    async def _ask(self, question: bytes) -> ImageState:
        async with self._one_question:
            if not self._connection.is_closing():  # if closed, reading the answer reports it
                self._connection.write(question)
            return await self._answered()

    async def _answered(self) -> ImageState:
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                return ImageState(*map(int, (await self._answers.readline()).split()))
        except (OSError, TimeoutError, ValueError, TypeError) as error:
            raise EngineError(f"the image of engine '{self._name}' is lost: its holder does not answer") from error

    async def _watch(self) -> int:
        try:
            return await self._holder.wait()
        finally:
            self._connection.close()  # cancelled: the loop ends, and the image with it


async def _start_holder(connection: socket.socket, name: str, user: EngineUser | None) -> asyncio.subprocess.Process:
    """Start it in a separate session, so that Ctrl-C on the server's terminal does not end it before the engines."""
    return await asyncio.create_subprocess_exec(
        *python_of(user),
        *(str(_HOLDER), str(connection.fileno()), name),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,  # otherwise engines could open the server's log through it
        stderr=asyncio.subprocess.DEVNULL,
        env={},
        cwd=os.sep,
        start_new_session=True,
        pass_fds=(connection.fileno(),),
    )


def _ending(status: int) -> str:
    return f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"


class WeightImages:
    """An image of each rank's weights, from the first `paths` to `close`; none for an engine that cannot sleep."""

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

    async def fresh(self, run: VllmRun) -> tuple[bool, ...]:
        """For each rank, true if its engine was loaded from files and not from its image; empty without images."""
        if not self._images:
            return ()
        return tuple([not report["loaded_from_image"] for report in await run.ask_ranks("memory_report")])

    async def secure(self, run: VllmRun, fresh: Sequence[bool], within_seconds: float) -> None:
        """Have the images of the `fresh` ranks written, and see that all are closed to changes. Raises EngineError."""
        if any(fresh):
            for image, is_fresh in zip(self._images, fresh, strict=True):
                if is_fresh and (await image.state()).sealed:  # the worker rejected it
                    await image.renew()
            await run.ask_ranks("write_image", within_seconds)
        for image in self._images:
            if not (await image.state()).sealed:
                raise EngineError(f"engine '{self._launch.name}' left its image open to changes")

    async def size_bytes(self) -> int:
        """Of all together."""
        return sum([(await image.state()).size_bytes for image in self._images])

    async def close(self) -> None:
        """Give them back."""
        images, self._images = self._images, ()
        for image in images:
            await image.close()
