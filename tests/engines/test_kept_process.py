"""The server's side of a keeper, on the event loop that the server runs on."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest
import uvloop

from coe_server.engines.kept_process import KeptProcess, make_run_directory
from tests.patience import PATIENCE_SECONDS

LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


@pytest.mark.parametrize("loop", LOOPS.values(), ids=LOOPS)
def test_the_last_words_of_an_engine_that_ended_are_had_at_once_and_more_than_once(loop, tmp_path: Path) -> None:
    log = tmp_path / "engine.log"

    async def story() -> None:
        command = (sys.executable, "-c", "print('the last word')")
        process = await KeptProcess.start(command, {}, make_run_directory(), log)
        async with asyncio.timeout(PATIENCE_SECONDS):
            await asyncio.gather(process.noted(), asyncio.shield(process.over))
            assert process.over.result() == 0
            for _ in range(2):
                await process.noted()
        assert log.read_text() == "the last word\n"

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(story())


@pytest.mark.parametrize("loop", LOOPS.values(), ids=LOOPS)
def test_what_a_living_engine_has_written_is_in_its_log_when_that_was_asked_for(loop, tmp_path: Path) -> None:
    log = tmp_path / "engine.log"
    command = (sys.executable, "-c", "import time; print('a word', flush=True); time.sleep(600)")

    async def story() -> None:
        process = await KeptProcess.start(command, {}, make_run_directory(), log)
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                while not log.read_text():
                    await process.noted()
            assert log.read_text() == "a word\n"
        finally:
            await process.end(grace_seconds=0.0)

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(story())


@pytest.mark.parametrize("loop", LOOPS.values(), ids=LOOPS)
def test_an_engine_has_nothing_open_that_the_servers_own_parent_left_open(loop, tmp_path: Path) -> None:
    log = tmp_path / "engine.log"
    command = (
        sys.executable,
        "-c",
        "import os; print([os.readlink(f'/proc/self/fd/{n}') for n in range(3, 256)"
        " if os.path.exists(f'/proc/self/fd/{n}')])",
    )

    async def story() -> None:
        process = await KeptProcess.start(command, {}, make_run_directory(), log)
        async with asyncio.timeout(PATIENCE_SECONDS):
            await asyncio.shield(process.over)
        assert __file__ not in log.read_text()
        assert process.over.result() == 0

    with open(__file__) as left_open, asyncio.Runner(loop_factory=loop) as runner:
        os.set_inheritable(left_open.fileno(), True)
        runner.run(story())


def test_a_command_runs_on_the_cores_that_it_is_given(tmp_path: Path) -> None:
    log, core = tmp_path / "engine.log", max(os.sched_getaffinity(0))
    command = (sys.executable, "-c", "import os; print(sorted(os.sched_getaffinity(0)))")

    async def story() -> None:
        process = await KeptProcess.start(command, {}, make_run_directory(), log, cores=(core,))
        async with asyncio.timeout(PATIENCE_SECONDS):
            assert await process.over == 0

    asyncio.run(story())
    assert log.read_text() == f"[{core}]\n"


def test_a_command_runs_all_the_same_where_its_cores_are_gone(tmp_path: Path) -> None:
    log = tmp_path / "engine.log"
    command = (sys.executable, "-c", "print('runs')")

    async def story() -> None:
        process = await KeptProcess.start(command, {}, make_run_directory(), log, cores=(1023,))
        async with asyncio.timeout(PATIENCE_SECONDS):
            assert await process.over == 0

    asyncio.run(story())
    assert log.read_text() == "cannot bind to the cores [1023]: Invalid argument\nruns\n"
