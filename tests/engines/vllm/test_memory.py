"""What the ranks of a vLLM without a GPU hold, each in a process of its own, and whether each gives it back."""

from __future__ import annotations

import asyncio
import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from coe_server.engines.cards import CardFacts, Cards, DeviceBytes
from coe_server.engines.cores import Core
from coe_server.engines.vllm.memory import VllmMemory
from coe_server.errors import EngineError
from tests.engines.conftest import StandInLaunch

HELD_BYTES = (48 << 20, 16 << 20)
HOLDER = """
import mmap, sys
held = mmap.mmap(-1, int(sys.argv[1]), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
for start in range(0, len(held), 1 << 20):
    held[start : start + (1 << 20)] = bytes([1]) * (1 << 20)
print("holds", flush=True)
for line in sys.stdin:
    held.madvise(mmap.MADV_DONTNEED)
    print("freed", flush=True)
"""


class Ranks:
    """Stands for a run of an engine: two processes below this one that hold memory."""

    def __init__(self) -> None:
        self.process = SimpleNamespace(pid=os.getpid())
        self.holders = [
            subprocess.Popen(
                [sys.executable, "-c", HOLDER, str(size)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            for size in HELD_BYTES
        ]
        for rank in range(len(HELD_BYTES)):
            self.hear(rank)

    async def ask_ranks(self, method: str) -> list[dict[str, Any]]:
        assert method == "memory_report"
        return [
            {"pid": holder.pid, "weights_bytes": size - (1 << 20), "kv_cache_bytes": 1 << 20}
            for holder, size in zip(self.holders, HELD_BYTES, strict=True)
        ]

    def free(self, rank: int) -> None:
        stdin = self.holders[rank].stdin
        assert stdin is not None
        stdin.write("free\n")
        stdin.flush()
        self.hear(rank)

    def hear(self, rank: int) -> None:
        stdout = self.holders[rank].stdout
        assert stdout is not None
        assert stdout.readline()


@pytest.fixture
def ranks() -> Iterator[Ranks]:
    started = Ranks()
    yield started
    for holder in started.holders:
        holder.communicate()  # the end of its input is its end


def memory_of(stand_in: StandInLaunch) -> VllmMemory:
    return VllmMemory(stand_in(args={"tensor_parallel_size": 2}, cores=((0,), (0,))), None)


def test_each_card_holds_what_the_largest_rank_does(stand_in: StandInLaunch, ranks: Ranks) -> None:
    memory = memory_of(stand_in)
    asyncio.run(memory.measure(ranks))  # type: ignore[arg-type]  # the part of a run that is asked
    assert memory.footprint.device_awake == max(HELD_BYTES)


def test_a_sleep_is_over_once_every_rank_has_given_its_memory_back(stand_in: StandInLaunch, ranks: Ranks) -> None:
    memory, run = memory_of(stand_in), ranks

    async def story() -> None:
        await memory.measure(run)  # type: ignore[arg-type]
        before = await memory.before_sleep(run)  # type: ignore[arg-type]
        run.free(0)
        with pytest.raises(EngineError, match=r"'french' sleeps but freed \d+ bytes, 15099494 were expected"):
            await memory.until_freed(run, before)  # type: ignore[arg-type]
        run.free(1)
        await memory.until_freed(run, before)  # type: ignore[arg-type]

    asyncio.run(story())


def test_a_rank_that_does_not_report_fails_the_start(stand_in: StandInLaunch, ranks: Ranks) -> None:
    class OneSilent(Ranks):
        async def ask_ranks(self, method: str) -> list[dict[str, Any]]:
            return (await ranks.ask_ranks(method))[:1]

    silent = OneSilent.__new__(OneSilent)
    silent.process = ranks.process
    with pytest.raises(EngineError, match="1 of the 2 ranks have reported their memory"):
        asyncio.run(memory_of(stand_in).measure(silent))  # type: ignore[arg-type]


class OneRank:
    """Stands for a run of an engine that was loaded from files, or from its image."""

    def __init__(self, image: str, loaded_from_image: bool, can_write: bool = True) -> None:
        self._image = image
        self._loaded_from_image = loaded_from_image
        self._can_write = can_write

    async def ask_ranks(self, method: str, timeout_seconds: float = 0) -> list[dict[str, Any]]:
        if method == "memory_report":
            return [{"loaded_from_image": self._loaded_from_image}]
        assert method == "write_image"
        if not self._can_write:
            raise EngineError("no room")
        file = os.open(self._image, os.O_RDWR)
        fcntl.fcntl(file, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
        os.close(file)
        return []


def test_answers_are_compared_for_as_long_as_the_weights_come_from_one_image(stand_in: StandInLaunch) -> None:
    async def story() -> None:
        memory = VllmMemory(stand_in(), None)
        image = (await memory.place(())).image_paths[0]
        try:
            await memory.secure_images(OneRank(image, loaded_from_image=False))  # type: ignore[arg-type]
            memory.first_answers.check("of the first image")
            await memory.secure_images(OneRank(image, loaded_from_image=True))  # type: ignore[arg-type]
            with pytest.raises(EngineError, match="answers its canary wrongly"):
                memory.first_answers.check("another")
            with pytest.raises(EngineError, match="no room"):
                await memory.secure_images(OneRank(image, loaded_from_image=False, can_write=False))  # type: ignore[arg-type]
            memory.first_answers.check("of other files")
        finally:
            await memory.close()

    asyncio.run(story())


class TwoCards(Cards):
    """Cards of a driver, each on a node of its own."""

    def visible(self) -> tuple[str, ...]:
        return ("GPU-a", "GPU-b")

    def facts(self, uuid: str) -> CardFacts:
        return CardFacts(uuid, 24 << 30, numa_node=self.visible().index(uuid))

    def reading(self, uuid: str) -> DeviceBytes:
        return DeviceBytes(24 << 30, 0)


@pytest.mark.parametrize(
    ("seat", "args", "cores"),
    [((1,), {}, ((2, 3),)), ((0, 1), {"tensor_parallel_size": 2}, ()), ((1,), {"numa_bind": True}, ())],
)
def test_an_engine_on_a_gpu_runs_on_the_cores_of_its_node(
    stand_in: StandInLaunch, seat: tuple[int, ...], args: dict[str, Any], cores: tuple[tuple[int, ...], ...]
) -> None:
    two_sockets = [Core(index, index // 2, index) for index in range(4)]
    memory = VllmMemory(stand_in(platform="cuda", args=args), TwoCards(), lambda: two_sockets)
    assert asyncio.run(memory.place(seat)).cores == cores
