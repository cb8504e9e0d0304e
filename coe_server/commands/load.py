"""Load generator for an OpenAI-compatible endpoint: sends chat requests and times their streamed answers.

Prompts come from a file or are generated.
"""

from __future__ import annotations

import asyncio
import json
import math
import random
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from coe_server.errors import ConfigError
from coe_server.upstream.reply import why_not_connected


@dataclass(frozen=True, slots=True)
class Plan:
    """The load: `concurrency` requests in flight, or `rate` requests per second (None: `concurrency` applies).

    Ends after `requests` or after `seconds`, whichever comes first.
    """

    url: str
    model: str
    questions: Sequence[Messages]
    concurrency: int = 8
    rate: float | None = None
    requests: int | None = None
    seconds: float | None = None
    max_tokens: int = 64
    headers: Mapping[str, str] = field(default_factory=dict)
    timeout_seconds: float = 300.0


@dataclass(frozen=True, slots=True)
class Answer:
    """One request; times in seconds. `error`: a status or a code; None for a complete answer."""

    error: str | None
    first_token: float | None
    whole: float
    gaps: tuple[float, ...] = ()

    @property
    def tokens(self) -> int:
        return len(self.gaps) + (self.first_token is not None)


@dataclass(slots=True)
class Measured:
    """All answers, and the duration of the run in seconds."""

    answers: list[Answer] = field(default_factory=list)
    seconds: float = 0.0

    def as_json(self) -> dict[str, Any]:
        """Counts, rates, and percentiles in milliseconds (complete answers only). A token is a chunk with text."""
        whole = [answer for answer in self.answers if answer.error is None]
        return {
            "requests": len(self.answers),
            "answered": len(whole),
            "errors": dict(Counter(answer.error for answer in self.answers if answer.error is not None)),
            "seconds": round(self.seconds, 3),
            "requests_per_second": round(len(whole) / self.seconds, 2) if self.seconds else 0.0,
            "tokens_per_second": round(sum(one.tokens for one in whole) / self.seconds, 1) if self.seconds else 0.0,
            "first_token_ms": _percentiles([one.first_token for one in whole if one.first_token is not None]),
            "per_token_ms": _percentiles([gap for one in whole for gap in one.gaps]),
            "answer_ms": _percentiles([one.whole for one in whole]),
        }


async def send_load(plan: Plan, answered: Callable[[Answer], None]) -> Measured:
    """Send the load. `answered` is called when a request ends."""
    measured, began = Measured(), time.perf_counter()
    timeout = aiohttp.ClientTimeout(total=plan.timeout_seconds)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout, headers=plan.headers) as session:

        async def one(number: int) -> None:
            answer = await _ask(session, plan, plan.questions[number % len(plan.questions)])
            measured.answers.append(answer)
            answered(answer)

        turns = _Turns(plan, began)
        if plan.rate is None:
            await asyncio.gather(*(_keep_asking(turns, one) for _ in range(plan.concurrency)))
        else:
            await _ask_at_rate(turns, plan.rate, one)
    measured.seconds = time.perf_counter() - began
    return measured


class _Turns:
    """Numbers the requests, up to the limit of requests or time."""

    def __init__(self, plan: Plan, began: float) -> None:
        self._left = plan.requests
        self._ends = None if plan.seconds is None else began + plan.seconds
        self.number = 0

    def take(self) -> int | None:
        if self._left is not None and self.number >= self._left:
            return None
        if self._ends is not None and time.perf_counter() >= self._ends:
            return None
        self.number += 1
        return self.number - 1


async def _keep_asking(turns: _Turns, one: Callable[[int], Any]) -> None:
    while (number := turns.take()) is not None:
        await one(number)


async def _ask_at_rate(turns: _Turns, rate: float, one: Callable[[int], Any]) -> None:
    """Send at constant intervals, independent of the server's speed."""
    began = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        while (number := turns.take()) is not None:
            await asyncio.sleep(max(0.0, began + number / rate - time.perf_counter()))
            group.create_task(one(number))


async def _ask(session: aiohttp.ClientSession, plan: Plan, messages: Messages) -> Answer:
    body = {
        "model": plan.model,
        "messages": messages,
        "max_tokens": plan.max_tokens,
        "stream": True,
    }
    began = time.perf_counter()
    try:
        async with session.post(plan.url, json=body) as response:
            if response.status != 200:
                return Answer(_code(response.status, await response.read()), None, time.perf_counter() - began)
            return await _read(response, began)
    except (aiohttp.ClientError, OSError, ValueError) as error:
        return Answer(_in_words(error, plan), None, time.perf_counter() - began)


async def _read(response: aiohttp.ClientResponse, began: float) -> Answer:
    first, last, gaps, error, is_done, is_stream = None, began, [], None, False, False
    async for line in response.content:
        if not line.startswith(b"data:"):
            continue
        data, is_stream = line[5:].strip(), True
        is_done = is_done or data == b"[DONE]"
        event = {} if data == b"[DONE]" else _object(json.loads(data))
        if event.get("error"):
            error = str(_object(event["error"]).get("code") or "error")
        if not _has_content(event):
            continue
        now = time.perf_counter()
        if first is None:
            first = now - began
        else:
            gaps.append(now - last)
        last = now
    whole = time.perf_counter() - began
    if not is_done:
        error = error or ("broken off" if is_stream else "not a stream of events")
    return Answer(error, first, whole, tuple(gaps))


def _has_content(event: Mapping[str, Any]) -> bool:
    """True if any choice has content or reasoning."""
    choices = event.get("choices")
    deltas = (_object(_object(one).get("delta")) for one in (choices if isinstance(choices, list) else ()))
    return any(delta.get(kind) for delta in deltas for kind in ("content", "reasoning_content", "reasoning"))


def _object(value: Any) -> Mapping[str, Any]:
    """The value if it is a JSON object, else an empty one."""
    return value if isinstance(value, dict) else {}


def _in_words(error: Exception, plan: Plan) -> str:
    """The error of a request without a complete answer."""
    match error:
        case TimeoutError():
            return f"no complete answer within {plan.timeout_seconds:g} s"
        case aiohttp.ClientConnectorError():
            return f"cannot connect: {why_not_connected(error.os_error)}"
        case aiohttp.ClientConnectionError() | aiohttp.ClientPayloadError() | ConnectionError():
            return "broken off"
        case aiohttp.InvalidURL():
            return "invalid URL"
        case ValueError():
            return "not JSON"
        case _:
            return str(error) or type(error).__name__


def _code(status: int, body: bytes) -> str:
    """`429 queue_full`, or only the status if the body has no code."""
    try:
        return f"{status} {_object(_object(json.loads(body)).get('error')).get('code') or ''}".strip()
    except ValueError:
        return str(status)


def _percentiles(seconds: Sequence[float]) -> dict[str, float] | None:
    """Nearest-rank percentiles in milliseconds; None for no values."""
    if not seconds:
        return None
    ranked = sorted(seconds)
    return {
        name: round(1000 * ranked[math.ceil(share * len(ranked)) - 1], 3)
        for name, share in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("max", 1.0))
    }


Messages = list[Mapping[str, Any]]

MADE_UP = (
    "What is {a} plus {b}?",
    "Write a function that returns every {a}th element of a list.",
    "Name {a} rivers that flow into the sea.",
    "How many minutes are {a} hours and {b} minutes?",
    "Translate into French: I have {a} apples and {b} pears.",
)


def made_up_questions(count: int, seed: int = 0) -> list[Messages]:
    """Generated questions, reproducible by seed."""
    chance = random.Random(seed)
    return [
        _asked(chance.choice(MADE_UP).format(a=chance.randint(2, 99), b=chance.randint(2, 99))) for _ in range(count)
    ]


def read_questions(file: Path) -> list[Messages]:
    """`prompt` or `messages` of each JSON line. If the file is not .jsonl, any other line is itself a prompt.

    Raises ConfigError naming file and line.
    """
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ConfigError(f"--prompts: {file} is not text in UTF-8") from error
    except OSError as error:
        raise ConfigError(f"--prompts: {file} cannot be read ({error.strerror})") from error
    questions = [_question(file, number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    if not questions:
        raise ConfigError(f"--prompts: {file} is empty")
    return questions


def _question(file: Path, number: int, line: str) -> Messages:
    try:
        entry = json.loads(line)
    except ValueError:
        entry = None
    if not isinstance(entry, dict):
        if file.suffix == ".jsonl":
            raise ConfigError(f"--prompts: {file}, line {number} is not a JSON object")
        return _asked(line)
    if isinstance(entry.get("prompt"), str):
        return _asked(entry["prompt"])
    messages = entry.get("messages")
    if isinstance(messages, list) and messages and all(isinstance(message, dict) for message in messages):
        return messages
    raise ConfigError(f"--prompts: {file}, line {number} has neither a text 'prompt' nor a list of 'messages'")


def _asked(prompt: str) -> Messages:
    return [{"role": "user", "content": prompt}]
