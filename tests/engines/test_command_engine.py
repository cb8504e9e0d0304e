"""A program as an engine: its words, its address, its memory and its end, with a stand-in that misbehaves as told."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from coe_server.cache.expert_cache import ExpertCache
from coe_server.cache.policy import Limits
from coe_server.cache.slot import Expert
from coe_server.cache.tiers import Bytes
from coe_server.engines import command_run
from coe_server.engines.cards import Cards, DeviceBytes
from coe_server.engines.command import CommandEngine
from coe_server.engines.command_run import CommandLaunch, filled, placeholders_in
from coe_server.engines.cores import divided, here
from coe_server.engines.engine import EngineRequest, Footprint
from coe_server.engines.listeners import by_owner, free_port, listeners
from coe_server.engines.log_file import log_path
from coe_server.engines.memory import process_tree
from coe_server.errors import CardLost, EngineDied, EngineError, EngineStartFailed

from .conftest import DEADLINE_SECONDS, eventually, run_directory_of, runs

STAND_IN = str(Path(__file__).with_name("stand_in_command.py"))
ON_SOCKET = ("--socket", "{socket}")
ON_PORT = ("--port", "{port}", "--key", "{api_key}")
UNKNOWN = Footprint(device_awake=1 << 40)

Make = Callable[..., CommandEngine]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def made(*words: str, fault: str = "", footprint: Footprint = UNKNOWN, **changes: Any) -> CommandEngine:
        engine = {key: changes.pop(key) for key in ("is_measured", "moves", "canary", "cards") if key in changes}
        settings: dict[str, Any] = {
            "name": "pet",
            "command": (sys.executable, STAND_IN, "--name", "{name}", "--fault", fault, *(words or ON_SOCKET)),
            "log_directory": tmp_path / "logs",
            "start_timeout_seconds": DEADLINE_SECONDS,
        }
        return CommandEngine(CommandLaunch(**settings | changes), footprint, **engine)

    return made


async def asked(engine: CommandEngine, method: str, path: str, body: Any = None) -> tuple[int, bytes]:
    request = EngineRequest(method, path, (("content-type", "application/json"),), json.dumps(body).encode())
    async with engine.send(request) as response:
        return response.status, b"".join([chunk async for chunk in response.chunks()])


def question(text: str, **more: object) -> dict[str, object]:
    return {"model": "pet", "messages": [{"role": "user", "content": text}], **more}


@pytest.mark.parametrize("words", [ON_SOCKET, ON_PORT], ids=["socket", "port"])
def test_a_started_program_answers_and_nothing_is_left_when_it_stops(make: Make, words: tuple[str, ...]) -> None:
    async def story() -> tuple[tuple[int, bytes], tuple[int, bytes], list[int], Path]:
        engine = make(*words)
        await engine.start()
        keeper = engine.running().process.pid
        whole = await asked(engine, "POST", "/v1/chat/completions", question("hello there"))
        streamed = await asked(engine, "POST", "/v1/chat/completions", question("hello there", stream=True))
        pids, folder = process_tree(keeper), run_directory_of(keeper)
        await engine.stop()
        await engine.stop()
        return whole, streamed, pids, folder

    whole, streamed, pids, folder = asyncio.run(story())
    assert json.loads(whole[1])["choices"][0]["message"]["content"] == "hello there pet"
    assert streamed[0] == 200
    assert streamed[1].endswith(b"data: [DONE]\n\n")
    assert len(pids) == 2, "keeper and program"
    assert not any(runs(pid) for pid in pids)
    assert not folder.exists()


def test_each_start_has_a_key_of_its_own_and_secrets_come_in_the_environment(make: Make) -> None:
    async def story() -> list[dict[str, Any]]:
        engine = make(*ON_PORT, environment={"TOKEN": "hush"}, inherited={"COE_KEY": "no", "HOME": "/root"})
        told = []
        for _ in range(2):
            await engine.start()
            told.append(json.loads((await asked(engine, "GET", "/environment"))[1]))
            await engine.stop()
        return told

    first, second = asyncio.run(story())
    assert first["environment"]["TOKEN"] == "hush"
    assert "COE_KEY" not in first["environment"]
    key = first["words"].index("--key") + 1
    assert first["words"][key] != second["words"][key]
    assert len(first["words"][key]) >= 32


def test_only_known_names_are_placeholders_and_a_value_stays_one_word() -> None:
    words = ["run", '{"a": {b}}', "{model}", "--x={name}{port}", "{models}"]
    assert placeholders_in(words) == {"model", "name", "port"}
    values = {"model": "my {name} model; rm -rf", "name": "n", "port": "1"}
    assert filled(words, values) == ["run", '{"a": {b}}', "my {name} model; rm -rf", "--x=n1", "{models}"]


def test_a_program_that_ends_tells_why(make: Make) -> None:
    with pytest.raises(EngineStartFailed, match=r"ended with status 1\n.*these weights are not mine"):
        asyncio.run(make(fault="dies").start())


def test_a_program_that_is_not_there_is_told(make: Make) -> None:
    with pytest.raises(EngineStartFailed, match="cannot run no-such-program"):
        asyncio.run(make(command=("no-such-program", "{socket}")).start())


class TwoCards(Cards):
    """Two cards whose memory cannot be read, for this reason."""

    def __init__(self, reason: EngineError) -> None:
        super().__init__(None, {})
        self._reason = reason

    def visible(self) -> tuple[str, ...]:
        return "GPU-a", "GPU-b"

    def reading(self, uuid: str) -> DeviceBytes:
        raise self._reason


def test_a_program_starts_where_the_driver_does_not_tell_memory(make: Make) -> None:
    async def story() -> Any:
        engine = make(cards=TwoCards(EngineError("Not Supported")))
        await engine.start(seat=(1,))
        try:
            return json.loads((await asked(engine, "GET", "/environment"))[1])
        finally:
            await engine.stop()

    assert asyncio.run(story())["environment"]["CUDA_VISIBLE_DEVICES"] == "GPU-b"


def test_a_program_does_not_start_on_a_lost_card(make: Make) -> None:
    with pytest.raises(CardLost, match="GPU is lost") as caught:
        asyncio.run(make(cards=TwoCards(CardLost("the GPU is lost", "GPU-b"))).start(seat=(1,)))
    assert caught.value.index == 1


def test_the_key_of_a_start_is_no_option_of_the_program(make: Make) -> None:
    """One key in sixty-four began with a dash when it had letters of Base64."""

    async def story() -> str:
        engine = make(*ON_PORT)
        await engine.start()
        try:
            async with engine.send(EngineRequest("GET", "/environment", (), b"")) as response:
                told = json.loads(b"".join([chunk async for chunk in response.chunks()]))
        finally:
            await engine.stop()
        return str(told["words"][told["words"].index("--key") + 1])

    assert re.fullmatch(r"[0-9a-f]{64}", asyncio.run(story()))


def test_a_program_that_other_machines_reach_does_not_start(make: Make) -> None:
    async def story() -> CommandEngine:
        engine = make(*ON_PORT, fault="listens everywhere")
        with pytest.raises(EngineStartFailed, match=r"listens on 0\.0\.0\.0:\d+, which other machines can reach"):
            await engine.start()
        return engine

    engine = asyncio.run(story())
    with pytest.raises(EngineDied):
        engine.running()


@pytest.fixture
def thief() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        yield taken


def test_a_stolen_port_is_given_up_for_another_once(
    make: Make, thief: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The choice of a port is the one thing here that the system decides: the test decides it."""
    taken = thief.getsockname()[1]
    ports = [taken, free_port()]
    monkeypatch.setattr(command_run, "free_port", lambda: ports.pop(0))

    async def story() -> int:
        engine = make(*ON_PORT)
        await engine.start()
        status, _ = await asked(engine, "GET", "/health")
        await engine.stop()
        return status

    assert asyncio.run(story()) == 200
    ports[:] = [taken, taken]
    with pytest.raises(EngineStartFailed, match=f"another process listens on 127.0.0.1:{taken}"):
        asyncio.run(make(*ON_PORT).start())


def test_a_program_that_forks_away_has_ended_and_its_child_is_ended_too(make: Make) -> None:
    async def story() -> None:
        engine = make(fault="forks away")
        with pytest.raises(EngineStartFailed, match="ended with status 0"):
            await engine.start()

    asyncio.run(story())


def test_a_killed_program_is_noticed_and_starts_again(make: Make) -> None:
    async def story() -> str:
        engine = make()
        await engine.start()
        program = process_tree(engine.running().process.pid)[-1]
        os.kill(program, signal.SIGKILL)
        reason = await engine.died()
        with pytest.raises(EngineDied):
            await asked(engine, "GET", "/health")
        await engine.start()
        assert (await asked(engine, "GET", "/health"))[0] == 200
        await engine.stop()
        return reason

    assert asyncio.run(story()).startswith("engine 'pet' was killed by signal 9\nstand-in is up")


def test_a_signal_of_its_own_ends_a_program_that_ignores_sigterm(make: Make, tmp_path: Path) -> None:
    async def story() -> None:
        engine = make(fault="ignores SIGTERM", stop=("SIGINT",))
        await engine.start()
        await engine.stop()

    asyncio.run(story())
    assert "ends by itself" in log_path(tmp_path / "logs", "pet").read_text()


def test_a_stop_program_runs_before_the_start_too_and_its_failure_is_no_matter(make: Make, tmp_path: Path) -> None:
    note = tmp_path / "stopped"
    script = f"open({str(note)!r}, 'a').write('x'); raise SystemExit(1)"

    async def story() -> None:
        engine = make(fault="ignores SIGTERM", stop=(sys.executable, "-c", script))
        await engine.start()
        assert note.read_text() == "x"
        await engine.stop(at_once=True)

    asyncio.run(story())
    assert note.read_text() == "xx"


def test_its_memory_is_measured_once_it_runs(make: Make) -> None:
    async def story() -> Footprint:
        engine = make("--megabytes", "64", *ON_SOCKET, is_measured=True)
        assert engine.footprint == UNKNOWN
        await engine.start()
        await engine.stop()
        return engine.footprint

    measured = asyncio.run(story())
    assert 64 << 20 < measured.device_awake < 512 << 20
    assert not measured.can_sleep


def test_it_sleeps_and_wakes_by_its_own_requests(make: Make) -> None:
    async def story(fault: str) -> None:
        engine = make(
            fault=fault,
            moves=("POST /sleep", "POST /wake"),
            canary=("/v1/completions", {"prompt": "1 2 3"}),
            footprint=Footprint(device_awake=5, host_image=5),
        )
        await engine.start()
        try:
            await engine.sleep()
            await engine.wake()
        finally:
            await engine.stop()

    asyncio.run(story(""))
    with pytest.raises(EngineError, match="answers its canary wrongly: 'no' now, 'yes' at first"):
        asyncio.run(story("wakes up wrong"))
    with pytest.raises(EngineError, match="answered POST /sleep with 500"):
        asyncio.run(story("cannot sleep"))


def test_listeners_are_told_with_their_addresses_and_owner() -> None:
    for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"), (socket.AF_INET, "0.0.0.0")):
        with socket.create_server((address, 0), family=family) as server:
            port = server.getsockname()[1]
            found = [one for one in listeners() if one.port == port]
            assert [(one.address, one.is_loopback) for one in found] == [(address, address != "0.0.0.0")]
            own, others = by_owner(os.getpid())
            assert found[0] in own
            assert found[0] not in others


def test_nothing_is_left_of_a_start_that_was_given_up(make: Make) -> None:
    async def story() -> list[int]:
        engine = make(health="/nowhere")
        starting = asyncio.create_task(engine.start())
        await asyncio.to_thread(eventually, lambda: engine._run is not None)
        assert engine._run is not None
        keeper = engine._run.process.pid
        await asyncio.to_thread(eventually, lambda: len(process_tree(keeper)) == 2)
        pids = process_tree(keeper)
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
        return pids

    assert not any(runs(pid) for pid in asyncio.run(story()))


def test_two_programs_take_turns_on_one_device_and_leave_no_byte(make: Make, tmp_path: Path) -> None:
    async def story() -> None:
        size, turns = Footprint(device_awake=60), 10
        engines = {name: make(name=name, footprint=size, log_directory=tmp_path / name) for name in ("left", "right")}
        cache = ExpertCache(
            [Expert(name, engine) for name, engine in engines.items()],
            Bytes(device=100, host=100),
            Limits(max_wait_seconds=0.05),
        )
        conductor = asyncio.create_task(cache.run())
        pids: set[int] = set()
        try:
            for turn in range(turns):
                name = ("left", "right")[turn % 2]
                with await cache.lease(name):
                    pids |= set(process_tree(engines[name].running().process.pid))
                    status, answer = await asked(engines[name], "POST", "/v1/chat/completions", question("hello"))
                assert (status, json.loads(answer)["choices"][0]["message"]["content"]) == (200, f"hello {name}")
                assert cache.ledger.used.device <= 100
            assert len(pids) == 2 * turns, "each turn has a keeper and a program of its own"
        finally:
            conductor.cancel()
            with pytest.raises(asyncio.CancelledError):
                await conductor
        assert cache.ledger.used == Bytes()
        assert not any(runs(pid) for pid in pids)

    asyncio.run(story())


def test_a_program_runs_on_the_cores_of_its_card(make: Make) -> None:
    cards = divided(here(), 2)

    async def story() -> None:
        engine = make(cores=cards)
        await engine.start(seat=(1,))
        (program,) = process_tree(engine.running().process.pid)[1:2]
        bound = os.sched_getaffinity(program)
        await engine.stop()
        assert bound == set(cards[1])

    asyncio.run(story())
