"""One chat request to a running server, streamed or not, and what a client sees of its answer."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import aiohttp

_ANSWERING = re.compile(rb": coe answering expert=(\S+) ")
_LAST_WORDS_SECONDS = 10.0  # for the server's own word that the deadline has passed

Ending = Literal["answered", "refused", "broken", "late"]  # refused: told so in words, before or in the answer


@dataclass(frozen=True, slots=True)
class Seen:
    """The result of one request; times in seconds since the trace began. `text` is the answer or the error message."""

    arrived: float
    finished: float
    ending: Ending
    expert: str
    text: str
    tokens: int = 0
    waited: float = 0.0  # for a lease, as the server says


@dataclass(frozen=True, slots=True)
class Asker:
    """Asks one server; `clock` gives the seconds since the trace began."""

    session: aiohttp.ClientSession
    url: str
    clock: Callable[[], float]
    deadline_seconds: float

    async def ask(self, prompt: str, model: str, most_tokens: int, stream: bool) -> Seen:
        """Never raises: an exception becomes part of the result."""
        arrived = self.clock()
        body = {"model": model, "messages": [{"role": "user", "content": prompt}], "temperature": 0}
        body |= {"max_tokens": most_tokens, "stream": stream}
        if stream:
            body["stream_options"] = {"include_usage": True}
        try:
            async with asyncio.timeout(self.deadline_seconds + _LAST_WORDS_SECONDS):
                return await self._ask(body, stream, arrived)
        except TimeoutError:
            return Seen(arrived, self.clock(), "late", "", f"nothing within {self.deadline_seconds:g} s")
        except (aiohttp.ClientError, OSError, ValueError, KeyError) as error:
            return Seen(arrived, self.clock(), "broken", "", repr(error))

    async def _ask(self, body: dict[str, Any], stream: bool, arrived: float) -> Seen:
        deadline = {"x-request-timeout": f"{self.deadline_seconds:g}"}
        async with self.session.post(f"{self.url}/v1/chat/completions", json=body, headers=deadline) as answer:
            expert, waited = answer.headers.get("x-coe-expert", ""), answer.headers.get("x-coe-wait-ms")
            if not stream or answer.status != 200:
                whole = await answer.json()
                if answer.status != 200:
                    return Seen(arrived, self.clock(), "refused", expert, whole["error"]["message"])
                text, tokens = whole["choices"][0]["message"]["content"], whole["usage"]["completion_tokens"]
                return Seen(arrived, self.clock(), "answered", expert, text, tokens, float(waited or 0) / 1e3)
            heard = await _listen(answer, self.clock)
        waited_seconds = float(waited) / 1e3 if waited else heard.first - arrived
        expert = heard.expert or expert
        return Seen(arrived, self.clock(), heard.ending, expert, heard.text, heard.tokens, waited_seconds)


@dataclass(slots=True)
class _Heard:
    ending: Ending = "broken"
    expert: str = ""  # from a comment of the stream, if the headers were sent before the expert was known
    text: str = ""
    tokens: int = 0
    first: float = 0.0


async def _listen(answer: aiohttp.ClientResponse, clock: Callable[[], float]) -> _Heard:
    """A stream with `[DONE]` is answered, one with an error event is refused, any other is broken."""
    heard = _Heard()
    async for line in answer.content:
        if told := _ANSWERING.match(line):
            heard.expert = told[1].decode()
        if not line.startswith(b"data: "):
            continue
        heard.first = heard.first or clock()
        if line.strip() == b"data: [DONE]":
            heard.ending = "answered"
            return heard
        event = json.loads(line[6:])
        if "error" in event:
            heard.ending, heard.text = "refused", event["error"]["message"]
            return heard
        heard.text += "".join(choice["delta"].get("content") or "" for choice in event["choices"])
        heard.tokens = (event.get("usage") or {}).get("completion_tokens", heard.tokens)
    return heard
