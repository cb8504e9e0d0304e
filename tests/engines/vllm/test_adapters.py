"""Adapters in an engine, with a stand-in that loses them: nothing is ever answered by the base in an adapter's name."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from coe_server.engines.adapter import Adapter, read_adapter
from coe_server.engines.engine import EngineRequest
from coe_server.engines.log_file import log_path
from coe_server.engines.vllm.adapter_canaries import Reference, reference
from coe_server.engines.vllm.engine import VllmEngine
from coe_server.errors import EngineDied, EngineError
from tests.engines.conftest import StandInLaunch
from tests.engines.small_adapter import make_adapter

Story = Callable[[VllmEngine], Awaitable[None]]


@pytest.fixture
def adapters(tmp_path: Path) -> tuple[Adapter, ...]:
    return tuple(read_adapter(name, make_adapter(tmp_path / name, seed=seed)) for seed, name in enumerate(("sql", "c")))


@pytest.fixture
def told(stand_in: StandInLaunch, adapters: tuple[Adapter, ...]) -> Callable[[Story, str], None]:
    """Runs a story on a started engine with two adapters."""

    def run(story: Story, fault: str = "", **changes: Any) -> None:
        async def whole() -> None:
            engine = VllmEngine(stand_in(fault, **{"adapters": adapters} | changes))
            await engine.start()
            try:
                await story(engine)
            finally:
                await engine.stop()

        asyncio.run(whole())

    return run


async def ask(engine: VllmEngine, model: str) -> str:
    """The stand-in's answer: a digest of the weights that it used."""
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": "hi"}]}).encode()
    async with engine.send(EngineRequest("POST", "/v1/chat/completions", (), body, model=model)) as response:
        return b"".join([chunk async for chunk in response.chunks()]).decode()


def loads(engine: VllmEngine) -> int:
    """How often an adapter was loaded while the engine ran."""
    launch = engine.launch
    return log_path(launch.log_directory, launch.name).read_text().count("loaded ")


def test_base_and_adapters_answer_differently_and_alike_after_each_wake(told: Callable[..., None]) -> None:
    async def story(engine: VllmEngine) -> None:
        first = {name: await ask(engine, name) for name in ("french", "sql", "c")}
        assert len(set(first.values())) == 3
        for _ in range(2):
            await engine.sleep()
            await engine.wake()
            assert {name: await ask(engine, name) for name in first} == first
        assert loads(engine) == 0

    told(story)


@pytest.mark.parametrize("fault", ["loses its adapters", "forgets its adapters"])
def test_an_adapter_that_is_lost_at_a_wake_is_loaded_again_before_it_answers(
    told: Callable[..., None], fault: str
) -> None:
    async def story(engine: VllmEngine) -> None:
        right = await ask(engine, "sql")
        await engine.sleep()
        await engine.wake()
        answers = await asyncio.gather(*(ask(engine, "sql") for _ in range(5)))
        assert answers == [right] * 5
        assert loads(engine) == 1, "one canary for all that wait"

    told(story, fault)


def test_an_adapter_that_cannot_be_loaded_again_has_the_base_start_anew(told: Callable[..., None]) -> None:
    async def story(engine: VllmEngine) -> None:
        right = await ask(engine, "sql")
        await engine.sleep()
        await engine.wake()
        with pytest.raises(EngineDied, match="lost adapter 'sql' and did not get it back by loading it again"):
            await ask(engine, "sql")
        assert "lost adapter 'sql'" in await engine.died()
        await engine.start()  # as the cache does
        assert await ask(engine, "sql") == right

    told(story, "loses its adapters for good")


def test_an_adapter_that_no_start_brings_back_is_refused_and_its_siblings_are_served(
    told: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    async def story(engine: VllmEngine) -> None:
        base = await ask(engine, "french")
        await engine.sleep()
        await engine.wake()
        with pytest.raises(EngineDied):
            await ask(engine, "sql")
        await engine.start()
        for _ in range(3):
            with pytest.raises(EngineError, match="also after its base was started anew") as refused:
                await ask(engine, "sql")
            assert refused.value.backs_off == "never"
        assert await ask(engine, "french") == base
        engine.running()

    told(story, "loses its adapters for good, over restarts")


def test_an_adapter_without_effect_is_told_of_once_and_served(
    told: Callable[..., None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def story(engine: VllmEngine) -> None:
        await engine.sleep()
        await engine.wake()
        assert await ask(engine, "idle") == await ask(engine, "french")

    idle = read_adapter("idle", make_adapter(tmp_path / "idle"))
    with caplog.at_level(logging.WARNING):
        told(story, "loses its adapters, over restarts", adapters=(idle,), environment=_lost(tmp_path))
    told_of = [one for one in caplog.messages if "the engine could lose it unseen" in one]
    assert len(told_of) == 1


def _lost(tmp_path: Path) -> dict[str, str]:
    """As if the adapter were lost from the first start on: it answers as its base."""
    (tmp_path / "model/lost").touch()
    return {"STAND_IN_FAULT": "loses its adapters, over restarts"}


def test_an_adapter_whose_files_changed_is_learned_anew_at_the_next_start(
    told: Callable[..., None], adapters: tuple[Adapter, ...]
) -> None:
    async def story(engine: VllmEngine) -> None:
        before = await ask(engine, "sql")
        make_adapter(adapters[0].folder, seed=9)
        await engine.start()
        after = await ask(engine, "sql")
        assert after != before
        await engine.sleep()
        await engine.wake()
        assert await ask(engine, "sql") == after

    told(story)


@pytest.fixture
def further(tmp_path: Path) -> Adapter:
    return read_adapter("further", make_adapter(tmp_path / "further", seed=5))


async def status_of(engine: VllmEngine, model: str) -> int:
    """What the engine itself answers, without a look at its adapters."""
    asked = json.dumps({"model": model, "prompt": "hi"}).encode()
    async with engine.send(EngineRequest("POST", "/v1/completions", (), asked)) as answer:
        return answer.status


def test_a_running_engine_takes_a_further_adapter_at_its_first_request(
    told: Callable[..., None], further: Adapter
) -> None:
    async def story(engine: VllmEngine) -> None:
        engine.take_adapters((*engine.launch.adapters, further))
        assert loads(engine) == 0
        answers = await asyncio.gather(*(ask(engine, "further") for _ in range(5)))
        assert len({*answers, await ask(engine, "french"), await ask(engine, "sql")}) == 3
        assert loads(engine) == 1
        await engine.sleep()
        await engine.wake()
        assert await ask(engine, "further") == answers[0]
        await engine.start()
        assert await ask(engine, "further") == answers[0], "it is loaded at each start from now on"

    told(story)


def test_an_adapter_that_goes_answers_what_was_asked_of_it_and_is_then_unloaded(
    told: Callable[..., None], adapters: tuple[Adapter, ...]
) -> None:
    async def story(engine: VllmEngine) -> None:
        right = await ask(engine, "sql")
        body = json.dumps({"model": "sql", "messages": [{"role": "user", "content": "hi"}]}).encode()
        async with engine.send(EngineRequest("POST", "/v1/chat/completions", (), body, model="sql")) as begun:
            engine.take_adapters(adapters[1:])
            assert await ask(engine, "c"), "its sibling's answer does not take it away"
            assert await status_of(engine, "sql") == 200
            assert await ask(engine, "sql") == right, "a request that waited since before it went"
            assert loads(engine) == 0
            assert b"".join([chunk async for chunk in begun.chunks()]).decode() == right
        assert await status_of(engine, "sql") == 404
        assert await ask(engine, "sql") == right, "the last one that waited"
        assert loads(engine) == 1
        assert await status_of(engine, "sql") == 404
        await engine.start()
        assert await status_of(engine, "sql") == 404
        assert [one.name for one in engine.launch.adapters] == ["c"]

    told(story)


def test_the_last_adapter_can_go_and_another_one_come(told: Callable[..., None], further: Adapter) -> None:
    async def story(engine: VllmEngine) -> None:
        room = engine.adapter_room
        engine.take_adapters(())
        assert await ask(engine, "french")
        assert [await status_of(engine, name) for name in ("sql", "c")] == [404, 404]
        await engine.start()
        assert engine.adapter_room == room
        engine.take_adapters((further,))
        assert await ask(engine, "further") != await ask(engine, "french")

    told(story)


def test_an_adapter_of_a_name_that_was_there_answers_with_its_own_matrices(
    told: Callable[..., None], adapters: tuple[Adapter, ...], tmp_path: Path
) -> None:
    async def story(engine: VllmEngine) -> None:
        before = await ask(engine, "sql")
        engine.take_adapters(adapters[1:])
        engine.take_adapters((read_adapter("sql", make_adapter(tmp_path / "other", seed=9)), *adapters[1:]))
        assert await ask(engine, "sql") not in {before, await ask(engine, "french")}

    told(story)


def test_an_adapter_that_the_engine_refuses_fails_alone_until_its_files_are_there(
    told: Callable[..., None], further: Adapter
) -> None:
    async def story(engine: VllmEngine) -> None:
        weights = further.folder / "adapter_model.safetensors"
        kept = weights.read_bytes()
        weights.unlink()
        engine.take_adapters((*engine.launch.adapters, further))
        with pytest.raises(EngineError, match="answered /v1/load_lora_adapter with 404") as refused:
            await ask(engine, "further")
        assert refused.value.backs_off == "never"
        assert await ask(engine, "sql")
        await engine.start()
        assert await ask(engine, "sql"), "an adapter that never answered is not in its base's way"
        weights.write_bytes(kept)
        assert await ask(engine, "further")

    told(story)


@pytest.mark.parametrize(
    ("answer", "shows"),
    [("ab", True), ("ax", False), ("a", None), ("zz", None), ("", None), ("abc", True), ("axc", False), ("ay", None)],
)
def test_an_answer_is_an_adapters_if_it_follows_it_where_it_leaves_the_base(answer: str, shows: bool | None) -> None:
    known = reference("prompt", tuple("abcd"), tuple("axcd"))
    assert known == Reference("prompt", ("a", "b"), ("a", "x"))
    assert known.shows(tuple(answer)) is shows


def test_equal_answers_tell_nothing() -> None:
    assert reference("prompt", ("a", "b"), ("a", "b")) is None
