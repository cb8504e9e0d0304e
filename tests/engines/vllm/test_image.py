"""The image: written once by another process, then never again by any; held by a process that knows nothing else."""

from __future__ import annotations

import asyncio
import fcntl
import mmap
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import uvloop

from coe_server.engines.vllm import image as image_module
from coe_server.engines.vllm.image import WeightImage
from coe_server.errors import EngineError
from tests.engines.conftest import eventually, runs
from tests.patience import PATIENCE_SECONDS

WRITER = """
import fcntl, os, sys
file = os.open(sys.argv[1], os.O_RDWR)
os.ftruncate(file, 10_001)
os.pwrite(file, b"weights", 0)
fcntl.fcntl(file, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
"""
LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}

Told = Callable[[Callable[[WeightImage], Awaitable[None]]], None]


@asynccontextmanager
async def image_of(name: str) -> AsyncIterator[WeightImage]:
    image = await WeightImage.held(name)
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            yield image
    finally:
        await image.close()


@pytest.fixture(params=LOOPS.values(), ids=LOOPS)
def told(request: pytest.FixtureRequest) -> Iterator[Told]:
    """Runs a story about the image of an expert, on each of the loops that the server may run on."""
    with asyncio.Runner(loop_factory=request.param) as runner:

        def tell(story: Callable[[WeightImage], Awaitable[None]]) -> None:
            async def whole() -> None:
                async with image_of("french") as image:
                    await story(image)

            runner.run(whole())

        yield tell


def write(image: WeightImage) -> None:
    subprocess.run([sys.executable, "-c", WRITER, image.path], check=True)


def opened_by(pid: int) -> list[str]:
    """What kinds of files a process has open."""
    folder = f"/proc/{pid}/fd"
    return sorted(os.readlink(f"{folder}/{number}").partition(":")[0] for number in os.listdir(folder))


def content(path: str) -> bytes:
    return Path(path).read_bytes()


def change_is_refused(path: str) -> None:
    with open(path, "r+b", buffering=0) as file:
        changes: list[Callable[[], Any]] = [
            lambda: os.pwrite(file.fileno(), b"x", 0),
            lambda: os.ftruncate(file.fileno(), 1),
            lambda: os.ftruncate(file.fileno(), 20_000),
            lambda: mmap.mmap(file.fileno(), 4096, flags=mmap.MAP_SHARED),
        ]
        for change in changes:
            with pytest.raises(PermissionError):
                change()


def seal_against_shrinking(path: str) -> None:
    with open(path, "r+b", buffering=0) as file:
        fcntl.fcntl(file, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)


def test_another_process_writes_and_seals_it_and_the_size_is_exact(told: Told) -> None:
    async def story(image: WeightImage) -> None:
        state = await image.state()
        assert (state.size_bytes, state.sealed) == (0, False)
        write(image)
        state = await image.state()
        assert (state.size_bytes, state.sealed) == (10_001, True)
        assert content(image.path).startswith(b"weights")

    told(story)


def test_a_sealed_image_cannot_be_changed_shortened_or_lengthened(told: Told) -> None:
    async def story(image: WeightImage) -> None:
        write(image)
        change_is_refused(image.path)

    told(story)


def test_a_half_sealed_image_does_not_count_as_sealed(told: Told) -> None:
    async def story(image: WeightImage) -> None:
        seal_against_shrinking(image.path)
        assert not (await image.state()).sealed

    told(story)


def test_a_closed_image_is_gone_with_its_holder_and_may_be_closed_again(told: Told) -> None:
    async def story(image: WeightImage) -> None:
        await image.close()
        await image.close()
        assert image.over
        assert not runs(image.pid)
        with pytest.raises(EngineError, match="the image of engine 'french' is lost"):
            await image.state()

    told(story)


def test_a_holder_that_stands_still_is_closed_all_the_same(told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_module, "_END_SECONDS", 0.5)

    async def story(image: WeightImage) -> None:
        os.kill(image.pid, signal.SIGSTOP)
        await image.close()
        assert not runs(image.pid)

    told(story)


def test_a_renewed_image_is_empty_and_can_be_written_again_at_the_same_path(told: Told) -> None:
    async def story(image: WeightImage) -> None:
        path = image.path
        write(image)
        await image.renew()
        state = await image.state()
        assert (image.path, state.size_bytes, state.sealed) == (path, 0, False)
        write(image)
        state = await image.state()
        assert (state.size_bytes, state.sealed) == (10_001, True)

    told(story)


def test_a_name_may_be_longer_than_the_kernel_allows() -> None:
    async def story() -> None:
        async with image_of("a name longer than Linux allows " * 20) as image:
            write(image)

    asyncio.run(story())


def test_a_killed_holder_is_noticed_and_told(told: Told) -> None:
    async def story(image: WeightImage) -> None:
        os.kill(image.pid, signal.SIGKILL)
        assert await image.lost() == "lost its image: the process that held it was killed by signal 9"
        assert image.over
        with pytest.raises(EngineError, match="the image of engine 'french' is lost: its holder does not answer"):
            await image.renew()

    told(story)


@pytest.mark.usefixtures("left_open")
def test_the_holder_has_nothing_but_the_image_and_its_connection(told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOSTED_KEY", "secret")

    async def story(image: WeightImage) -> None:
        assert b"secret" not in content(f"/proc/{image.pid}/environ")
        assert opened_by(image.pid) == ["/dev/null"] * 3 + ["/memfd", "socket"]
        assert os.readlink(f"/proc/{image.pid}/cwd") == "/"

    told(story)


@pytest.fixture
def left_open() -> Iterator[None]:
    """A file that a process started by us would have open as well, as a shell may leave one to the server."""
    with open(__file__) as file:
        os.set_inheritable(file.fileno(), True)
        yield


SERVER = """
import asyncio
from coe_server.engines.vllm import image as image_module
from coe_server.engines.vllm.image import WeightImage

async def main():
    image = await WeightImage.held("french")
    print(image.pid, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


def test_the_image_vanishes_with_a_server_that_is_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", SERVER], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        holder = int(server.stdout.readline())
        assert runs(holder)
        server.kill()
    assert eventually(lambda: not runs(holder))
