"""The vLLM driver against a stand-in that misbehaves on command."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from coe_server.engines.canary import FirstAnswers
from coe_server.engines.cards import DeviceBytes
from coe_server.engines.engine import EngineRequest
from coe_server.engines.keeper import DROPPED, LONGEST_BYTES
from coe_server.engines.kept_process import KeptProcess, make_run_directory
from coe_server.engines.log_file import log_path
from coe_server.engines.memory import private_bytes, process_tree
from coe_server.engines.vllm.command import VllmLaunch, detect_platform
from coe_server.engines.vllm.engine import VllmEngine, _bring_up
from coe_server.engines.vllm.image import WeightImage
from coe_server.engines.vllm.seat_memory import HeldAwake, RankReport, SeatMemory
from coe_server.errors import EngineDied, EngineError, EngineStartFailed
from tests.engines.conftest import (
    DEADLINE_SECONDS,
    KV_CACHE_BYTES,
    WEIGHTS_BYTES,
    StandInLaunch,
    eventually,
    run_directory_of,
    runs,
)

AWAKE_BYTES = KV_CACHE_BYTES + WEIGHTS_BYTES


def keeper_of(engine: VllmEngine) -> int:
    assert engine._run is not None
    return engine._run.process.pid


def image_of(engine: VllmEngine) -> WeightImage:
    (image,) = engine._memory.images
    return image


async def whole_tree(engine: VllmEngine) -> list[int]:
    """The processes of an engine that is starting, once all are there."""

    def complete() -> bool:
        return engine._run is not None and len(process_tree(keeper_of(engine))) == 3

    await asyncio.to_thread(eventually, complete)
    return process_tree(keeper_of(engine))


async def say(engine: VllmEngine, text: str) -> list[bytes]:
    body = json.dumps({"model": "french", "messages": [{"role": "user", "content": text}], "stream": True})
    request = EngineRequest("POST", "/v1/chat/completions", (("content-type", "application/json"),), body.encode())
    async with engine.send(request) as response:
        assert response.status == 200
        assert ("X-Engine", "french") in response.headers
        return [chunk async for chunk in response.chunks()]


def test_a_started_engine_answers_and_nothing_is_left_when_it_stops(stand_in: StandInLaunch) -> None:
    async def story() -> tuple[list[bytes], list[int], Path]:
        engine = VllmEngine(stand_in())
        await engine.start()
        pids, folder = process_tree(keeper_of(engine)), run_directory_of(keeper_of(engine))
        answer = await say(engine, "bonjour")
        await engine.stop()
        await engine.stop()
        return answer, pids, folder

    answer, pids, folder = asyncio.run(story())
    assert b"".join(answer).startswith(b"data: bonjour\n\n")
    assert len(pids) == 3, "keeper, server, core"
    assert not any(runs(pid) for pid in pids)
    assert not folder.exists()


def test_the_footprint_is_estimated_first_and_exact_once_started(stand_in: StandInLaunch) -> None:
    async def story() -> None:
        engine = VllmEngine(stand_in())
        estimate = engine.footprint
        assert estimate.device_awake >= AWAKE_BYTES
        assert estimate.host_image >= WEIGHTS_BYTES
        await engine.start()
        measured, tree_bytes = engine.footprint, private_bytes(keeper_of(engine))
        await engine.stop()
        assert measured.device_awake == AWAKE_BYTES
        assert measured.host_image == WEIGHTS_BYTES
        assert 0 < measured.host_process <= tree_bytes

    asyncio.run(story())


def test_an_engine_that_may_not_sleep_has_no_image_and_refuses_to(stand_in: StandInLaunch) -> None:
    async def story() -> None:
        engine = VllmEngine(stand_in(can_sleep=False))
        assert not engine.footprint.can_sleep
        await engine.start()
        assert not engine.footprint.can_sleep
        with pytest.raises(EngineError, match="started without sleep mode"):
            await engine.sleep()
        await engine.stop()

    asyncio.run(story())


def test_sleep_gives_the_memory_back_and_wake_brings_the_same_answers(stand_in: StandInLaunch) -> None:
    async def story() -> None:
        engine = VllmEngine(stand_in())
        await engine.start()
        before, awake_bytes = await say(engine, "bonjour"), private_bytes(keeper_of(engine))
        image = image_of(engine)
        assert (await image.state()).sealed, "it was written before the engine served"
        for _ in range(2):
            await engine.sleep()
            assert awake_bytes - private_bytes(keeper_of(engine)) >= 0.9 * AWAKE_BYTES
            await engine.wake()
            assert private_bytes(keeper_of(engine)) >= 0.9 * awake_bytes
        assert b"".join(await say(engine, "bonjour")) == b"".join(before)
        assert (await image.state()).size_bytes == engine.footprint.host_image == WEIGHTS_BYTES
        await engine.stop()
        assert image.over, "the image went with the engine"

    asyncio.run(story())


def test_an_engine_that_refuses_to_start_is_quoted(stand_in: StandInLaunch) -> None:
    launch = stand_in("refuses to start")
    with pytest.raises(EngineStartFailed, match=r"'french' did not start: ended with status 1\n.*not to my taste$"):
        asyncio.run(VllmEngine(launch).start())


def test_a_command_that_does_not_exist_is_a_start_that_failed(stand_in: StandInLaunch) -> None:
    launch = stand_in(command=("/nowhere/vllm",))
    with pytest.raises(EngineStartFailed, match="cannot run /nowhere/vllm: No such file or directory"):
        asyncio.run(VllmEngine(launch).start())


@pytest.mark.parametrize(
    ("fault", "limit", "within", "told"),
    [
        ("never healthy", 2, 60.0, "not ready after 2 s"),
        ("never healthy", 60, 2.0, "not up within 2 s, far longer"),
        ("hangs on write_image", 2, None, "not ready after 2 s"),
    ],
)
def test_an_engine_that_is_never_ready_is_given_up_and_removed(
    stand_in: StandInLaunch, fault: str, limit: float, within: float | None, told: str
) -> None:
    async def story() -> set[int]:
        engine, pids = VllmEngine(stand_in(fault, start_timeout_seconds=limit, stop_timeout_seconds=0.5)), set()
        starting = asyncio.create_task(engine.start(within))
        while not starting.done():  # how far it comes in that time depends on the machine
            pids.update(process_tree(keeper_of(engine)) if engine._run else ())
            await asyncio.wait({starting}, timeout=0.02)
        with pytest.raises(EngineStartFailed, match=told):
            await starting
        return pids

    pids = asyncio.run(story())
    assert pids
    assert not any(runs(pid) for pid in pids)


def test_a_cancelled_start_leaves_nothing(stand_in: StandInLaunch) -> None:
    async def story() -> list[int]:
        engine = VllmEngine(stand_in("never healthy"))
        starting = asyncio.create_task(engine.start())
        pids = await whole_tree(engine)
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
        return pids

    assert not any(runs(pid) for pid in asyncio.run(story()))


def test_a_sleep_that_hangs_ends_at_its_deadline(stand_in: StandInLaunch) -> None:
    async def story() -> None:
        engine = VllmEngine(stand_in("hangs on sleep", move_timeout_seconds=2.0, stop_timeout_seconds=0.5))
        await engine.start()
        with pytest.raises(EngineError, match=r"did not answer POST /sleep.* within 2\.17 s") as failure:
            await engine.sleep()
        assert str(failure.value).endswith("\nRuntimeError: the pillow is gone"), "the log's last words are told"
        await engine.stop()

    asyncio.run(story())


def test_an_engine_that_keeps_its_memory_is_not_believed(stand_in: StandInLaunch) -> None:
    async def story() -> None:
        engine = VllmEngine(stand_in("keeps its memory"))
        await engine.start()
        with pytest.raises(EngineError, match=r"freed -?\d+ bytes, 30198989 were expected"):
            await engine.sleep()
        await engine.stop()

    asyncio.run(story())


def test_an_image_that_could_still_be_changed_is_refused(stand_in: StandInLaunch) -> None:
    with pytest.raises(EngineStartFailed, match="'french' left its image open to changes"):
        asyncio.run(VllmEngine(stand_in("leaves its image open")).start())


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        ("says nothing", "'french' gave no usable answer to its canary"),
        ("speaks no JSON", "'french' answered POST /v1/completions without JSON"),
    ],
)
def test_an_engine_that_cannot_be_understood_does_not_begin_to_serve(
    stand_in: StandInLaunch, fault: str, why: str
) -> None:
    with pytest.raises(EngineStartFailed, match=f"'french' did not start: engine {why}"):
        asyncio.run(VllmEngine(stand_in(fault)).start())


def test_a_wrong_canary_after_a_wake_is_an_error(stand_in: StandInLaunch) -> None:
    async def story() -> None:
        engine = VllmEngine(stand_in("answers garbage after wake"))
        await engine.start()
        await engine.sleep()
        with pytest.raises(EngineError, match="'french' answers its canary wrongly"):
            await engine.wake()
        await engine.stop()

    asyncio.run(story())


def test_an_engine_that_ignores_sigterm_is_killed(stand_in: StandInLaunch) -> None:
    async def story() -> list[int]:
        engine = VllmEngine(stand_in("ignores SIGTERM", stop_timeout_seconds=0.5))
        await engine.start()
        pids = process_tree(keeper_of(engine))
        await engine.stop()
        return pids

    assert not any(runs(pid) for pid in asyncio.run(story()))


def test_an_engine_that_has_failed_is_not_given_the_time_of_one_that_works(stand_in: StandInLaunch) -> None:
    async def story() -> list[int]:
        engine = VllmEngine(stand_in("ignores SIGTERM", stop_timeout_seconds=600))
        await engine.start()
        pids = process_tree(keeper_of(engine))
        async with asyncio.timeout(DEADLINE_SECONDS):
            await engine.stop(at_once=True)
        return pids

    assert not any(runs(pid) for pid in asyncio.run(story()))


def test_a_second_stop_waits_for_the_end_of_the_first(stand_in: StandInLaunch) -> None:
    async def story() -> None:
        engine = VllmEngine(stand_in("ignores SIGTERM", stop_timeout_seconds=0.5))
        await engine.start()
        pids = process_tree(keeper_of(engine))
        first = asyncio.create_task(engine.stop())
        await asyncio.sleep(0)  # it has begun
        await engine.stop()
        assert not any(runs(pid) for pid in pids)
        await first

    asyncio.run(story())


def test_after_a_stop_that_was_cancelled_the_next_one_leaves_nothing(stand_in: StandInLaunch) -> None:
    async def story() -> None:
        engine = VllmEngine(stand_in("ignores SIGTERM", stop_timeout_seconds=0.5))
        await engine.start()
        pids = process_tree(keeper_of(engine))
        first = asyncio.create_task(engine.stop())
        await asyncio.sleep(0)  # it has begun
        first.cancel()
        await engine.stop()
        assert not any(runs(pid) for pid in pids)
        with pytest.raises(asyncio.CancelledError):
            await first

    asyncio.run(story())


def test_while_it_stops_it_takes_no_request(stand_in: StandInLaunch) -> None:
    async def story() -> None:
        engine = VllmEngine(stand_in("ignores SIGTERM", stop_timeout_seconds=0.5))
        await engine.start()
        stopping = asyncio.create_task(engine.stop())
        await asyncio.sleep(0)  # it has begun
        with pytest.raises(EngineDied, match="is not running"):
            await say(engine, "bonjour")
        await stopping

    asyncio.run(story())


def test_the_log_of_an_engine_that_talks_without_end_stays_bounded_while_the_server_stands_still(
    stand_in: StandInLaunch,
) -> None:
    async def story() -> None:
        launch = stand_in("talks without end")
        log = log_path(launch.log_directory, "french")

        def shortened() -> bool:
            assert log.stat().st_size <= LONGEST_BYTES
            with log.open("rb") as file:
                return file.read(len(DROPPED)) == DROPPED

        engine = VllmEngine(launch)
        await engine.start()
        assert eventually(shortened), "nothing else runs on this loop meanwhile"
        await engine.stop()
        assert log.stat().st_size <= LONGEST_BYTES

    asyncio.run(story())


def test_all_that_an_engine_wrote_before_it_died_is_read_before_the_reason_is_told(stand_in: StandInLaunch) -> None:
    async def story() -> None:
        engine = VllmEngine(stand_in("dies mid-stream with a report"))
        await engine.start()
        with pytest.raises(EngineDied, match="'french'"):
            await say(engine, "bonjour")
        reason = await asyncio.wait_for(engine.died(), DEADLINE_SECONDS)
        assert reason == "engine 'french' was killed by signal 9\nRuntimeError: the last word"
        await engine.stop()

    asyncio.run(story())


def test_a_sleep_that_kills_the_engine_is_told_with_its_last_words(stand_in: StandInLaunch) -> None:
    async def story() -> None:
        engine = VllmEngine(stand_in("dies on sleep"))
        await engine.start()
        with pytest.raises(EngineError) as failure:
            await engine.sleep()
        assert str(failure.value).endswith("\nRuntimeError: the last word")
        await engine.stop()

    asyncio.run(story())


def test_an_answer_that_breaks_off_is_a_dead_engine_and_the_next_start_works(stand_in: StandInLaunch) -> None:
    async def story() -> None:
        engine = VllmEngine(stand_in("dies mid-stream"))
        await engine.start()
        pids = process_tree(keeper_of(engine))
        with pytest.raises(EngineDied, match="'french'"):
            await say(engine, "bonjour")
        reason = await asyncio.wait_for(engine.died(), DEADLINE_SECONDS)
        assert reason == "engine 'french' was killed by signal 9\nstand-in is up"
        assert not any(runs(pid) for pid in pids), "the rest of its tree went too"
        with pytest.raises(EngineDied, match="is not running"):
            await say(engine, "bonjour")
        await engine.start()
        assert not any(runs(pid) for pid in pids)
        await engine.stop()

    asyncio.run(story())


async def dead(engine: VllmEngine) -> VllmEngine:
    """The engine after its process was killed."""
    await engine.start()
    os.kill(process_tree(keeper_of(engine))[1], signal.SIGKILL)
    await asyncio.wait_for(engine.died(), DEADLINE_SECONDS)
    return engine


async def loaded_from_image(engine: VllmEngine) -> bool:
    return bool((await engine.running().ask_worker("memory_report"))["loaded_from_image"])


def test_after_a_death_the_next_start_loads_from_the_image_and_not_from_the_files(stand_in: StandInLaunch) -> None:
    async def story() -> None:
        launch = stand_in()
        engine = await dead(VllmEngine(launch))
        weights = Path(launch.model) / "model.safetensors"
        weights.write_bytes(bytes(WEIGHTS_BYTES))  # a start from these would not answer as before
        await engine.start()
        assert await loaded_from_image(engine)
        await engine.sleep()
        await engine.wake()
        await engine.stop()

    asyncio.run(story())


def test_a_stop_after_a_death_gives_the_image_back_and_the_next_start_reads_the_files(stand_in: StandInLaunch) -> None:
    async def story() -> None:
        engine = await dead(VllmEngine(stand_in()))
        image = image_of(engine)
        assert (await image.state()).size_bytes == engine.footprint.host_image
        await engine.stop()
        assert image.over
        assert not runs(image.pid)
        await engine.start()
        assert not await loaded_from_image(engine)
        await engine.stop()

    asyncio.run(story())


def test_an_image_that_the_engine_does_not_trust_is_written_anew(stand_in: StandInLaunch) -> None:
    async def story() -> None:
        engine = await dead(VllmEngine(stand_in("does not trust its image")))
        image = image_of(engine)
        path = image.path
        await engine.start()
        assert not await loaded_from_image(engine)
        state = await image.state()
        assert (state.sealed, image.path, state.size_bytes) == (True, path, WEIGHTS_BYTES)
        await engine.sleep()
        await engine.wake()
        await engine.stop()

    asyncio.run(story())


def test_a_restart_that_answers_otherwise_than_before_fails_and_drops_the_image(stand_in: StandInLaunch) -> None:
    async def story() -> None:
        engine = await dead(VllmEngine(stand_in("answers garbage after restart")))
        image = image_of(engine)
        with pytest.raises(EngineStartFailed, match="'french' answers its canary wrongly"):
            await engine.start()
        assert image.over
        await engine.start()
        assert not await loaded_from_image(engine)
        await engine.stop()

    asyncio.run(story())


@pytest.mark.parametrize("asleep", [False, True], ids=["awake", "asleep"])
def test_an_image_that_is_lost_is_a_death_and_the_next_start_writes_a_new_one(
    stand_in: StandInLaunch, asleep: bool
) -> None:
    async def story() -> None:
        engine = VllmEngine(stand_in(stop_timeout_seconds=0.5))
        await engine.start()
        lost, pids = image_of(engine), process_tree(keeper_of(engine))
        if asleep:
            await engine.sleep()
        os.kill(lost.pid, signal.SIGKILL)
        reason = await asyncio.wait_for(engine.died(), DEADLINE_SECONDS)
        told = "engine 'french' lost its image: the process that held it was killed by signal 9\n"
        assert reason.startswith(told)
        with pytest.raises(EngineDied, match="is not running"):
            await say(engine, "bonjour")
        await engine.start()
        assert not any(runs(pid) for pid in pids), "what had no image any more was ended first"
        assert image_of(engine) is not lost
        assert (await image_of(engine).state()).size_bytes == WEIGHTS_BYTES
        await engine.sleep()
        await engine.wake()
        await engine.stop()

    asyncio.run(story())


def test_an_image_that_is_lost_after_a_death_is_written_anew_from_the_files(stand_in: StandInLaunch) -> None:
    async def story() -> None:
        engine = await dead(VllmEngine(stand_in()))
        lost = image_of(engine)
        os.kill(lost.pid, signal.SIGKILL)
        await lost.lost()
        await engine.start()
        assert not await loaded_from_image(engine)
        assert (await image_of(engine).state()).sealed
        await engine.stop()

    asyncio.run(story())


def test_an_image_that_is_lost_while_its_engine_starts_is_a_start_that_failed(stand_in: StandInLaunch) -> None:
    async def story() -> None:
        engine = VllmEngine(stand_in(stop_timeout_seconds=0.5))
        starting = asyncio.create_task(engine.start())
        pids = await whole_tree(engine)
        os.kill(image_of(engine).pid, signal.SIGKILL)
        with pytest.raises(EngineStartFailed, match="'french' did not start"):
            await starting
        assert not any(runs(pid) for pid in pids)
        await engine.start()
        assert (await image_of(engine).state()).sealed
        await engine.stop()

    asyncio.run(story())


def test_an_engine_that_stands_still_is_noticed_and_can_be_stopped(stand_in: StandInLaunch) -> None:
    async def story() -> None:
        engine = VllmEngine(stand_in(pulse_seconds=0.05, pulse_timeout_seconds=2.0, stop_timeout_seconds=0.5))
        await engine.start()
        await engine.sleep()
        await engine.wake()
        pids = process_tree(keeper_of(engine))
        os.kill(pids[1], signal.SIGSTOP)
        reason = await asyncio.wait_for(engine.died(), DEADLINE_SECONDS)
        assert reason.startswith("engine 'french' hangs: its worker did not answer within 2 s\n")
        with pytest.raises(EngineDied, match="is not running"):
            await say(engine, "bonjour")
        await engine.stop()
        assert not any(runs(pid) for pid in pids)

    asyncio.run(story())


def test_a_move_that_takes_longer_than_a_pulse_is_no_death(stand_in: StandInLaunch) -> None:
    async def story() -> None:
        pulse = {"pulse_seconds": 0.5, "pulse_timeout_seconds": 0.1, "stop_timeout_seconds": 0.5}
        fault = "hangs on sleep, hangs on check_health"
        engine = VllmEngine(stand_in(fault, move_timeout_seconds=2.0, **pulse))
        await engine.start()
        with pytest.raises(EngineError, match="did not answer POST /sleep"):
            await engine.sleep()
        assert not engine._died.is_set()
        await engine.stop()

    asyncio.run(story())


def test_stopping_is_not_dying(stand_in: StandInLaunch) -> None:
    async def story() -> None:
        engine = VllmEngine(stand_in())
        await engine.start()
        death = asyncio.create_task(engine.died())
        await engine.stop()
        assert not death.done()
        death.cancel()

    asyncio.run(story())


def test_a_killed_keeper_takes_its_engine_along(stand_in: StandInLaunch) -> None:
    async def story() -> tuple[list[int], Path]:
        engine = VllmEngine(stand_in())
        await engine.start()
        pids, folder = process_tree(keeper_of(engine)), run_directory_of(keeper_of(engine))
        os.kill(keeper_of(engine), signal.SIGKILL)
        await asyncio.wait_for(engine.died(), DEADLINE_SECONDS)
        await engine.stop()
        return pids, folder

    pids, folder = asyncio.run(story())
    assert len(pids) == 3
    assert not any(runs(pid) for pid in pids)
    assert not folder.exists()


TRACKED = """
import multiprocessing.resource_tracker, os, sys, time
from multiprocessing.shared_memory import SharedMemory
block = SharedMemory(create=True, size=4096)
print(block.name, flush=True)
time.sleep(1e6)
"""


def test_a_killed_keeper_leaves_the_resource_trackers_time_to_remove_shared_memory(tmp_path: Path) -> None:
    async def story() -> Path:
        run_directory, log = make_run_directory(), tmp_path / "log"
        kept = await KeptProcess.start((sys.executable, "-c", TRACKED), os.environ, run_directory, log)
        await asyncio.to_thread(eventually, lambda: log.exists() and log.read_text().endswith("\n"))
        block = Path("/dev/shm") / log.read_text().strip()
        assert block.exists()
        os.kill(kept.pid, signal.SIGKILL)
        await asyncio.wait_for(asyncio.shield(kept.over), DEADLINE_SECONDS)
        return block

    assert not asyncio.run(story()).exists()


LOOP_ENDS = """
import asyncio, os, sys
from pathlib import Path
from coe_server.engines.kept_process import KeptProcess, make_run_directory

async def main():
    command = (sys.executable, "-c", "import time; time.sleep(1e6)")
    kept = await KeptProcess.start(command, os.environ, make_run_directory(), Path(sys.argv[1]))
    print(kept.pid, flush=True)

asyncio.run(main())
sys.stdin.read()
"""


def test_a_loop_that_ends_takes_its_processes_along_while_its_server_lives_on(tmp_path: Path) -> None:
    words = [sys.executable, "-c", LOOP_ENDS, str(tmp_path / "log")]
    server = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert server.stdout is not None
    with server, server.stdout:
        try:
            keeper = int(server.stdout.readline())
            assert eventually(lambda: not runs(keeper))
            assert server.poll() is None
        finally:
            server.kill()


class FakeCard:
    """One card, with what it shows as used at each reading; the last one stays."""

    def __init__(self, *used: int) -> None:
        self.used = list(used)
        self.taken = 0

    def visible(self) -> tuple[str, ...]:
        return ("GPU-a",)

    def reading(self, uuid: str) -> DeviceBytes:
        return DeviceBytes(10_000, self.used.pop(0) if len(self.used) > 1 else self.used[0])

    def readings(self, indices: Sequence[int]) -> tuple[DeviceBytes, ...]:
        return tuple(self.reading("GPU-a") for _ in indices)

    def processes(self, uuid: str) -> None:
        return None

    def taken_by_others(self, engine: object, uuid: str) -> int:
        return self.taken


def measured_on(card: FakeCard) -> SeatMemory:
    memory = SeatMemory("french", card, 1, 3000, 1000)  # type: ignore[arg-type]  the part of it that is used

    async def story() -> None:
        await memory.take()
        await memory.measure([RankReport(1, "GPU-a", 3000, 0, 0)])

    asyncio.run(story())
    return memory


def test_a_start_that_ends_during_a_sleep_does_not_hide_what_the_sleep_freed() -> None:
    card = FakeCard(1000, 4000, 4000, 1000 + 4000)
    memory = measured_on(card)

    async def story() -> int:
        awake, asleep = (RankReport(1, "GPU-a", size, 0, 0) for size in (3000, 0))
        card.taken = 4000
        before = HeldAwake((awake,), await memory.look())
        card.taken = 0  # the start is over, and its bytes are there
        return await memory.until_freed(before, (asleep,))

    assert asyncio.run(story()) == 1000


def test_on_a_gpu_a_stop_lasts_until_the_driver_shows_the_memory_free() -> None:
    card = FakeCard(1000, 5000, 5000, 5000, 5000, 1000)
    memory = measured_on(card)

    async def story() -> None:
        await memory.until_given_back(await memory.before_end())

    asyncio.run(story())
    assert card.used == [1000]


def test_device_memory_that_never_comes_back_is_told_and_does_not_hold_a_stop_up(
    caplog: pytest.LogCaptureFixture,
) -> None:
    memory = measured_on(FakeCard(1000, 5000))

    async def story() -> None:
        await memory.until_given_back(await memory.before_end())

    asyncio.run(story())
    assert caplog.messages == ["engine 'french' ended; the GPU holds 3600 bytes more than expected"]


def test_without_a_driver_to_ask_an_engine_for_cuda_does_not_start(stand_in: StandInLaunch) -> None:
    if detect_platform() == "cuda":
        pytest.skip("this machine has a driver")
    with pytest.raises(EngineStartFailed, match="cannot read the GPU's memory"):
        asyncio.run(VllmEngine(stand_in(platform="cuda")).start())


SERVER = """
import asyncio, json, sys
from pathlib import Path
from coe_server.engines.memory import process_tree
from coe_server.engines.vllm.engine import VllmEngine, _bring_up
from coe_server.engines.vllm.command import VllmLaunch, detect_platform

async def main():
    settings = json.loads(sys.argv[1])
    settings["log_directory"], settings["command"] = Path(settings["log_directory"]), tuple(settings["command"])
    engine = VllmEngine(VllmLaunch(**settings))
    await engine.start()
    await engine.sleep()
    print(json.dumps(process_tree(engine._run.process.pid)), flush=True)
    await engine.died()

asyncio.run(main())
"""


@pytest.mark.parametrize("fault", ["", "ignores SIGTERM", "a child escapes"])
def test_a_killed_server_leaves_no_process_and_no_files(stand_in: StandInLaunch, fault: str) -> None:
    launch = stand_in(fault)
    server = subprocess.Popen([sys.executable, "-c", SERVER, settings_of(launch)], stdout=subprocess.PIPE)
    assert server.stdout is not None
    with server, server.stdout:
        try:
            pids = json.loads(server.stdout.readline())
            folder = run_directory_of(pids[0])
            assert (folder / "engine.sock").exists()
        finally:
            server.kill()
    assert len(pids) == (4 if fault == "a child escapes" else 3)
    assert eventually(lambda: not any(runs(pid) for pid in pids))
    assert eventually(lambda: not folder.exists())


def settings_of(launch: VllmLaunch) -> str:
    names = ("name", "model", "kv_cache_bytes", "platform", "command", "environment", "start_timeout_seconds")
    settings = {name: getattr(launch, name) for name in names}
    return json.dumps(settings | {"log_directory": str(launch.log_directory)})


class Asked:
    """In the place of an engine's channel: how long each question may take."""

    def __init__(self) -> None:
        self.limits_seconds: list[float] = []

    async def ask(self, method: str, path: str, timeout_seconds: float, *rest: Any) -> dict[str, Any]:
        self.limits_seconds.append(timeout_seconds)
        return {"choices": [{"text": "right"}]}


def test_the_first_answer_has_minutes_for_kernels_are_compiled_with_it(tmp_path: Path) -> None:
    async def nothing(*given: object) -> None:
        return None

    launch = VllmLaunch("french", "/models/french", 1, tmp_path, "cpu")
    asked = Asked()
    run = SimpleNamespace(launch=launch, http=asked, until_healthy=nothing)
    memory = SimpleNamespace(secure_images=nothing, measure=nothing, seat=None, first_answers=FirstAnswers(launch.name))
    asyncio.run(_bring_up(run, memory))  # type: ignore[arg-type]  the parts of both that are used
    assert asked.limits_seconds == [300.0]
