"""The simulated engine: deterministic answers in OpenAI's shapes, at the stated speed."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from coe_server.engines.engine import EngineRequest
from coe_server.engines.simulated import SimulatedEngine
from coe_server.errors import EngineDied, EngineStartFailed


class Clock:
    """Stands in for asyncio.sleep: adds up what it was asked for and takes no time."""

    def __init__(self) -> None:
        self.pauses: list[float] = []

    async def pause(self, seconds: float) -> None:
        self.pauses.append(seconds)
        await asyncio.sleep(0)


def engine(clock: Clock) -> SimulatedEngine:
    return SimulatedEngine(
        "pretend",
        weights_bytes=15 << 30,
        start_seconds=40,
        wake_seconds=0.4,
        sleep_seconds=0.3,
        ttft_seconds=0.05,
        tokens_per_second=50,
        pause=clock.pause,
    )


def request(**changes: Any) -> EngineRequest:
    messages = [{"role": "user", "content": "no"}, {"role": "assistant", "content": "?"}]
    body = {"model": "pretend", "messages": [*messages, {"role": "user", "content": "good morning"}]} | changes
    return EngineRequest("POST", "/v1/chat/completions", (), json.dumps(body).encode())


async def chunks_of(running: SimulatedEngine, asked: EngineRequest) -> tuple[int, list[bytes]]:
    async with running.send(asked) as response:
        return response.status, [chunk async for chunk in response.chunks()]


def answer_to(asked: EngineRequest) -> tuple[int, list[bytes], list[float]]:
    async def story() -> tuple[int, list[bytes], list[float]]:
        clock = Clock()
        running = engine(clock)
        await running.start()
        clock.pauses.clear()
        status, chunks = await chunks_of(running, asked)
        return status, chunks, clock.pauses

    return asyncio.run(story())


def test_it_names_itself_and_repeats_the_last_user_message() -> None:
    status, chunks, pauses = answer_to(request())
    answer = ChatCompletion.model_validate_json(b"".join(chunks))
    assert status == 200
    assert answer.model == "pretend"
    assert answer.choices[0].message.content == "pretend answers: good morning"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (2, 4, 6)
    assert pauses == [0.05, 0.02, 0.02, 0.02]


def test_a_stream_has_a_role_the_words_a_reason_usage_and_an_end() -> None:
    _, chunks, pauses = answer_to(request(stream=True, stream_options={"include_usage": True}))
    assert all(chunk.startswith(b"data: ") and chunk.endswith(b"\n\n") for chunk in chunks)
    *events, done = [chunk.removeprefix(b"data: ").strip() for chunk in chunks]
    assert done == b"[DONE]"
    role, *words, reason, usage = [ChatCompletionChunk.model_validate_json(event) for event in events]
    assert role.choices[0].delta.role == "assistant"
    assert [word.choices[0].delta.content for word in words] == ["pretend", " answers:", " good", " morning"]
    assert reason.choices[0].finish_reason == "stop"
    assert usage.choices == []
    assert usage.usage is not None
    assert usage.usage.completion_tokens == 4
    assert pauses == [0.05, 0.02, 0.02, 0.02]


def test_max_tokens_cuts_the_answer_and_says_so() -> None:
    for limit in ({"max_tokens": 3}, {"max_completion_tokens": 3}):
        _, chunks, _ = answer_to(request(**limit))
        choice = ChatCompletion.model_validate_json(b"".join(chunks)).choices[0]
        assert (choice.message.content, choice.finish_reason) == ("pretend answers: good", "length")


def test_text_parts_of_a_message_are_joined() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {}}, {"type": "text", "text": "b"}]
    _, chunks, _ = answer_to(request(messages=[{"role": "user", "content": parts}]))
    assert ChatCompletion.model_validate_json(chunks[0]).choices[0].message.content == "pretend answers: a b"


@pytest.mark.parametrize(
    ("asked", "status"),
    [
        (EngineRequest("POST", "/v1/moderations", (), b"{}"), 404),
        (EngineRequest("POST", "/v1/embeddings", (), b"{}"), 400),
        (EngineRequest("GET", "/v1/chat/completions", (), b""), 404),
        (EngineRequest("POST", "/v1/chat/completions", (), b"{"), 400),
        (EngineRequest("POST", "/v1/chat/completions", (), b'{"messages": 1}'), 400),
        (EngineRequest("POST", "/v1/chat/completions", (), b"[]"), 400),
    ],
)
def test_what_it_does_not_understand_gets_openais_error_shape(asked: EngineRequest, status: int) -> None:
    answered, chunks, pauses = answer_to(asked)
    error = json.loads(b"".join(chunks))["error"]
    assert answered == status
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert pauses == []


def test_a_stream_of_a_completion_states_its_usage_where_it_is_asked_for() -> None:
    fields = {"model": "pretend", "prompt": "good morning", "stream": True}
    for options, stated in (({}, [None]), ({"stream_options": {"include_usage": True}}, [4])):
        body = json.dumps({**fields, **options}).encode()
        _, chunks, _ = answer_to(EngineRequest("POST", "/v1/completions", (), body))
        *_, last, done = [chunk.removeprefix(b"data: ") for chunk in chunks]
        assert [(json.loads(last).get("usage") or {}).get("completion_tokens")] == stated
        assert done == b"[DONE]\n\n"


def test_it_complains_to_clients_of_anthropics_api_in_their_shape() -> None:
    status, chunks, _ = answer_to(EngineRequest("POST", "/v1/messages", (), b"{}"))
    told = json.loads(b"".join(chunks))
    assert (status, told["type"], told["error"]["type"]) == (400, "error", "invalid_request_error")


def test_moves_take_the_stated_time_and_a_request_to_a_sleeper_waits() -> None:
    async def story() -> None:
        clock = Clock()
        running = engine(clock)
        with pytest.raises(EngineDied, match="'pretend' is not running"):
            await chunks_of(running, request())
        await running.start()
        await running.sleep()
        asked = asyncio.create_task(chunks_of(running, request()))
        await asyncio.sleep(0)
        assert not asked.done()
        await running.wake()
        assert (await asked)[0] == 200
        assert clock.pauses[:3] == [40, 0.3, 0.4]
        await running.stop()
        await running.stop()
        with pytest.raises(EngineDied):
            await running.wake()

    asyncio.run(story())


def test_a_start_that_takes_longer_than_it_may_fails_when_its_time_is_over() -> None:
    async def story() -> None:
        clock = Clock()
        running = engine(clock)
        with pytest.raises(EngineStartFailed, match="'pretend' was not up within 39 s"):
            await running.start(within_seconds=39)
        assert clock.pauses == [39]
        with pytest.raises(EngineDied):
            await running.wake()
        await running.start(within_seconds=40)
        await running.wake()

    asyncio.run(story())


def test_a_killed_engine_breaks_its_streams_is_noticed_and_starts_again() -> None:
    async def story() -> None:
        running = engine(Clock())
        await running.start()
        death = asyncio.create_task(running.died())
        async with running.send(request(stream=True)) as response:
            stream = response.chunks()
            await anext(stream)
            running.kill("was killed by signal 9")
            with pytest.raises(EngineDied, match="killed by signal 9"):
                await anext(stream)
        assert await death == "engine 'pretend' was killed by signal 9"
        await running.start()
        assert (await chunks_of(running, request()))[0] == 200
        death = asyncio.create_task(running.died())
        await running.stop()
        assert not death.done()
        death.cancel()

    asyncio.run(story())


def test_its_weights_count_on_the_device_and_in_its_image() -> None:
    footprint = engine(Clock()).footprint
    assert (footprint.device_awake, footprint.device_asleep) == (15 << 30, 0)
    assert footprint.host == footprint.host_image == 15 << 30
