"""The cache with the real driver over a stand-in that misbehaves: who asks is served or told why; nothing is left."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from coe_server.cache.expert_cache import ExpertCache
from coe_server.cache.policy import Limits
from coe_server.cache.queue import Lease
from coe_server.cache.slot import Expert, State
from coe_server.cache.status import ExpertStatus
from coe_server.cache.tiers import Bytes, Tier
from coe_server.engines.engine import EngineRequest
from coe_server.engines.memory import process_tree
from coe_server.engines.vllm.engine import VllmEngine
from coe_server.errors import EngineDied, ExpertUnavailable

from .conftest import DEADLINE_SECONDS, KV_CACHE_BYTES, WEIGHTS_BYTES, StandInLaunch, run_directory_of, runs

ONE_AT_A_TIME = Bytes(device=KV_CACHE_BYTES + WEIGHTS_BYTES + (8 << 20), host=8 << 30)
LIMITS = Limits(max_wait_seconds=0.05, probe_timeout_seconds=0.5)


class Machine:
    """A cache over two experts on a device that holds one; remembers every process it saw."""

    def __init__(self, cache: ExpertCache, engines: dict[str, VllmEngine]) -> None:
        self.cache = cache
        self.engines = engines
        self.pids: set[int] = set()
        self.folders: set[Path] = set()

    def status(self, name: str) -> ExpertStatus:
        return next(status for status in self.cache.status() if status.name == name)

    async def ask(self, name: str) -> str:
        with await self.cache.lease(name) as lease:
            self.note(name)
            return await say(lease)

    async def failures(self) -> list[str]:
        """The reasons of all failures so far; asked once, at the end."""
        self.cache.events.close()
        return [event.fields["reason"] async for event in self.cache.events.after(0) if event.kind == "failure"]

    def note(self, name: str) -> list[int]:
        run = self.engines[name]._run
        assert run is not None
        tree = process_tree(run.process.pid)
        self.pids |= set(tree)
        self.folders.add(run_directory_of(run.process.pid))
        return tree


@asynccontextmanager
async def machine(stand_in: StandInLaunch, **changes: object) -> AsyncIterator[Machine]:
    """`bad` misbehaves as told, `good` does not. Afterwards nothing of either may be left."""
    launches = {"bad": stand_in(name="bad", **changes), "good": stand_in(name="good")}
    engines = {name: VllmEngine(launch) for name, launch in launches.items()}
    cache = ExpertCache([Expert(name, engine) for name, engine in engines.items()], ONE_AT_A_TIME, LIMITS)
    conductor = asyncio.create_task(cache.run())
    seen = Machine(cache, engines)
    try:
        yield seen
    finally:
        conductor.cancel()
        with pytest.raises(asyncio.CancelledError):
            await conductor
    assert cache.ledger.used == Bytes()
    assert [status.leases for status in cache.status()] == [0, 0]
    assert not any(runs(pid) for pid in seen.pids)
    assert not any(folder.exists() for folder in seen.folders)


async def say(lease: Lease) -> str:
    body = json.dumps({"model": lease.expert, "messages": [{"role": "user", "content": "bonjour"}]})
    request = EngineRequest("POST", "/v1/chat/completions", (("content-type", "application/json"),), body.encode())
    async with lease.engine.send(request) as response:
        return b"".join([chunk async for chunk in response.chunks()]).decode()


def run(story: Callable[[], object]) -> None:
    asyncio.run(asyncio.wait_for(story(), 3 * DEADLINE_SECONDS))  # type: ignore[arg-type]  # a coroutine


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        ("hangs on sleep", "engine 'bad' did not answer POST /sleep?level=1&mode=wait within 2.17 s"),
        ("keeps its memory", "engine 'bad' sleeps but freed"),
        ("hangs on sleep, ignores SIGTERM", "engine 'bad' did not answer POST /sleep?level=1&mode=wait within 2.17 s"),
    ],
)
def test_an_engine_that_cannot_sleep_is_stopped_or_killed_and_the_other_gets_the_device(
    stand_in: StandInLaunch, fault: str, why: str
) -> None:
    async def story() -> None:
        patience = {"move_timeout_seconds": 2.0, "stop_timeout_seconds": 0.5}
        async with machine(stand_in, fault=fault, **patience) as seen:
            assert "bonjour" in await seen.ask("bad")
            process = seen.note("bad")
            assert "bonjour" in await seen.ask("good")
            assert not any(runs(pid) for pid in process)
            bad = seen.status("bad")
            assert (bad.state, bad.held) == (State.DISK, Bytes())
            (reason,) = await seen.failures()
            assert reason.startswith(why)
            assert "bonjour" in await seen.ask("bad"), "one failure costs no rest"

    run(story)


def test_garbage_after_a_wake_is_never_served(stand_in: StandInLaunch) -> None:
    async def story() -> None:
        async with machine(stand_in, fault="answers garbage after wake") as seen:
            right = await seen.ask("bad")
            await seen.ask("good")
            assert seen.status("bad").state is State.HOST
            assert await seen.ask("bad") == right, "it was started anew, from its files"
            (reason,) = await seen.failures()
            assert reason.startswith("engine 'bad' answers its canary wrongly: ")

    run(story)


def test_an_engine_that_does_not_start_says_why_and_rests(stand_in: StandInLaunch) -> None:
    async def story() -> None:
        async with machine(stand_in, fault="refuses to start") as seen:
            with pytest.raises(ExpertUnavailable, match="'bad' did not start: ended with status 1"):
                await seen.ask("bad")
            bad = seen.status("bad")
            assert (bad.state, bad.held) == (State.FAILED, Bytes())
            assert bad.failure is not None
            assert bad.failure.endswith("ValueError: this model is not to my taste"), "the log's last words are shown"
            assert "bonjour" in await seen.ask("good")

    run(story)


def test_an_engine_that_dies_mid_stream_twice_rests_with_its_signal_as_the_reason(stand_in: StandInLaunch) -> None:
    async def story() -> None:
        async with machine(stand_in, fault="dies mid-stream") as seen:
            for _ in range(2):
                with await seen.cache.lease("bad") as lease:
                    seen.note("bad")
                    with pytest.raises(EngineDied):
                        await say(lease)
                    assert await lease.engine_is_gone(within_seconds=DEADLINE_SECONDS)
            with pytest.raises(ExpertUnavailable, match="was killed by signal 9"):
                await seen.ask("bad")
            assert seen.status("bad").held == Bytes()
            assert "bonjour" in await seen.ask("good")

    run(story)


def test_a_pinned_expert_whose_engine_dies_comes_back_from_its_image(stand_in: StandInLaunch) -> None:
    async def story() -> None:
        async with machine(stand_in) as seen:
            right = await seen.ask("bad")
            seen.cache.controls.pin("bad", Tier.HOST)
            with await seen.cache.lease("bad") as lease:
                os.kill(seen.note("bad")[1], signal.SIGKILL)
                assert await lease.engine_is_gone(within_seconds=DEADLINE_SECONDS)
            assert await seen.ask("bad") == right
            report = await seen.engines["bad"].running().ask_worker("memory_report")
            assert report["loaded_from_image"]

    run(story)


def test_an_engine_that_stands_still_is_buried_and_the_next_request_is_served(stand_in: StandInLaunch) -> None:
    async def story() -> None:
        pulse = {"pulse_seconds": 0.05, "pulse_timeout_seconds": 3.0, "stop_timeout_seconds": 0.5}
        async with machine(stand_in, **pulse) as seen:
            with await seen.cache.lease("bad") as lease:
                tree = seen.note("bad")
                os.kill(tree[1], signal.SIGSTOP)
                assert await lease.engine_is_gone(within_seconds=DEADLINE_SECONDS)
            assert "bonjour" in await seen.ask("bad")
            assert not any(runs(pid) for pid in tree)

    run(story)
