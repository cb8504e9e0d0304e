"""One endpoint on a real socket: what is retried, how long it waits, what is given up."""

from __future__ import annotations

import asyncio
import gzip
import json
import tracemalloc

import pytest

from router_training.collect.endpoint import Endpoint, Refusal, Reply
from tests.patience import PATIENCE_SECONDS
from tests.training.stand_in_endpoint import Says, StandIn, endpoint

HELLO = [{"role": "user", "content": "hello"}]


def ask(stand_in: StandIn, retries: int, times: int = 1) -> list[Reply | Refusal]:
    async def story() -> list[Reply | Refusal]:
        async with Endpoint(stand_in.base_url, "m", None, {}, timeout_seconds=PATIENCE_SECONDS, retries=retries) as it:
            return [await it.ask(HELLO) for _ in range(times)]

    return asyncio.run(story())


def busy_once(body: object, times: int) -> Says:
    return Says(status=429, headers={"Retry-After": "1"}) if times == 1 else Says()


def test_a_busy_endpoint_is_left_alone_for_as_long_as_it_asks() -> None:
    with endpoint(busy_once) as stand_in:
        (reply,) = ask(stand_in, retries=1)
    assert isinstance(reply, Reply)
    assert reply.attempts == 2
    assert stand_in.arrivals[1] - stand_in.arrivals[0] >= 1.0


def test_the_next_request_waits_too_when_the_one_before_was_given_up() -> None:
    with endpoint(busy_once) as stand_in:
        first, second = ask(stand_in, retries=0, times=2)
    assert isinstance(first, Refusal)
    assert isinstance(second, Reply)
    assert stand_in.arrivals[1] - stand_in.arrivals[0] >= 1.0


def test_without_a_hint_pauses_grow() -> None:
    with endpoint(lambda body, times: Says(status=500) if times < 3 else Says()) as stand_in:
        ask(stand_in, retries=2)
    first, second, third = stand_in.arrivals
    assert second - first >= 0.25
    assert third - second >= 0.5


def test_a_redirect_is_not_followed_with_a_key() -> None:
    with endpoint(lambda body, times: Says(status=307, headers={"Location": "http://127.0.0.1:1/"})) as stand_in:
        (refusal,) = ask(stand_in, retries=3)
    assert isinstance(refusal, Refusal)
    assert refusal.reason.startswith("HTTP 307")
    assert refusal.attempts == 1


def test_an_answer_that_expands_beyond_the_bound_is_refused_early() -> None:
    packed = gzip.compress(bytes(256 << 20))
    with endpoint(lambda body, times: Says(raw=packed, headers={"Content-Encoding": "gzip"})) as stand_in:
        tracemalloc.start()
        try:
            (refusal,) = ask(stand_in, retries=0)
            assert tracemalloc.get_traced_memory()[1] < 128 << 20
        finally:
            tracemalloc.stop()
    assert isinstance(refusal, Refusal)
    assert "more than 32 MiB" in refusal.reason


def test_a_refused_connection_is_a_reason() -> None:
    nowhere = StandIn(lambda body, times: Says(), base_url="http://127.0.0.1:1/v1")
    (refusal,) = ask(nowhere, retries=0)
    assert isinstance(refusal, Refusal)
    assert refusal.reason == "http://127.0.0.1:1/v1/chat/completions: cannot connect, connection refused"


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nobody.invalid"])
def test_an_endpoint_that_never_answered_is_given_up_after_a_few_quick_tries(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("router_training.collect.endpoint.FIRST_PAUSE_SECONDS", 0.001)
    nowhere = StandIn(lambda body, times: Says(), base_url=f"http://{address}/v1")
    for retries, attempts in ((100, 3), (1, 2)):
        (refusal,) = ask(nowhere, retries)
        assert isinstance(refusal, Refusal)
        assert (refusal.hopeless, refusal.attempts) == (True, attempts)


def test_an_endpoint_that_answered_before_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that is started again, in the middle of a night's collection."""
    monkeypatch.setattr("router_training.collect.endpoint.FIRST_PAUSE_SECONDS", 0.001)

    async def story() -> Reply | Refusal:
        with endpoint(lambda body, times: Says(status=500)) as stand_in:
            it = Endpoint(stand_in.base_url, "m", None, {}, timeout_seconds=PATIENCE_SECONDS, retries=5)
            await it.__aenter__()
            await it.ask(HELLO)
        refusal = await it.ask(HELLO)
        await it.__aexit__(None, None, None)
        return refusal

    refusal = asyncio.run(story())
    assert isinstance(refusal, Refusal)
    assert "cannot connect" in refusal.reason
    assert (refusal.hopeless, refusal.attempts) == (False, 6)


def test_an_answer_without_end_is_ended() -> None:
    """More than an answer may have; the rest is not read."""
    with endpoint(lambda body, times: Says(raw=b"x" * (33 * 2**20))) as stand_in:
        (refusal,) = ask(stand_in, retries=0)
    assert isinstance(refusal, Refusal)
    assert "more than 32 MiB" in refusal.reason


NO_ANSWERS = {
    "an error": b'{"error": {"message": "Provider returned error", "code": 502}}',
    "a choice that failed": b'{"choices": [{"finish_reason": "error", "message": {"content": ""}}]}',
    "no choices": b'{"choices": []}',
    "silence": b'{"choices": [{"finish_reason": "stop", "message": {"content": ""}}]}',
    "a page": b"<html>Sign in</html>",
    "nothing": b"",
}


@pytest.mark.parametrize("raw", NO_ANSWERS.values(), ids=NO_ANSWERS)
def test_what_is_no_answer_is_asked_for_again_and_then_missing(raw: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("router_training.collect.endpoint.FIRST_PAUSE_SECONDS", 0.001)
    with endpoint(lambda body, times: Says(raw=raw) if times < 3 else Says()) as stand_in:
        (reply,) = ask(stand_in, retries=2)
    assert isinstance(reply, Reply)
    assert (reply.completion.text, reply.attempts) == ("yes", 3)
    with endpoint(lambda body, times: Says(raw=raw)) as stand_in:
        (refusal,) = ask(stand_in, retries=1)
    assert isinstance(refusal, Refusal)
    assert (refusal.reason.startswith("no answer"), refusal.hopeless, refusal.attempts) == (True, False, 2)


@pytest.mark.parametrize(
    ("status", "raw"),
    [
        (401, b""),
        (402, b""),
        (404, b"not found"),
        (410, b""),
        (400, b'{"error": {"message": "credit balance too low"}}'),
    ],
)
def test_what_no_other_request_will_get_past_is_hopeless(status: int, raw: bytes) -> None:
    with endpoint(lambda body, times: Says(status=status, raw=raw)) as stand_in:
        (refusal,) = ask(stand_in, retries=3)
    assert isinstance(refusal, Refusal)
    assert (refusal.hopeless, refusal.attempts) == (True, 1)


def test_a_prompt_that_is_too_long_is_missing_and_the_next_is_asked() -> None:
    too_long = b'{"error": {"message": "maximum context length is 5 tokens", "code": "context_length_exceeded"}}'
    with endpoint(lambda body, times: Says(status=400, raw=too_long)) as stand_in:
        (refusal,) = ask(stand_in, retries=3)
    assert isinstance(refusal, Refusal)
    assert (refusal.hopeless, refusal.attempts) == (False, 1)


def test_one_good_choice_of_two_is_the_answer() -> None:
    raw = b'{"choices": [{"finish_reason": "error", "message": {"content": "ye"}}, {"message": {"content": "yes"}}]}'
    with endpoint(lambda body, times: Says(raw=raw)) as stand_in:
        (reply,) = ask(stand_in, retries=0)
    assert isinstance(reply, Reply)
    assert reply.completion.text == "yes"


@pytest.mark.parametrize(
    "message",
    ['x requires moderation on Y. Your input was flagged for "violence".', "Content violates usage guidelines."],
)
def test_a_prompt_that_is_flagged_is_missing_and_does_not_end_the_run(message: str) -> None:
    raw = json.dumps({"error": {"message": message, "code": 403}}).encode()
    with endpoint(lambda body, times: Says(status=403, raw=raw)) as stand_in:
        (refusal,) = ask(stand_in, retries=3)
    assert isinstance(refusal, Refusal)
    assert (refusal.hopeless, refusal.attempts) == (False, 1)
