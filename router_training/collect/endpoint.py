"""One OpenAI-compatible chat endpoint: takes a request, returns an answer or a failure. Retries transient failures.

Does not depend on prompts, scores or files.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

import aiohttp

from coe_server.config.addresses import ApiBase, shown_address
from coe_server.config.proxies import Detour, Proxy
from coe_server.upstream.answer import is_failed
from coe_server.upstream.complaint import Cause
from coe_server.upstream.reply import (
    UNPACKED,
    backoff_seconds,
    bounded_session,
    plain_body,
    repeated,
    retry_after_seconds,
    user_agent,
    why_not_connected,
)
from coe_server.upstream.verdict import Verdict, judge_body, judge_status
from router_training.collect.settings import RequestSettings, Target, api_key, proxy_for

FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 30.0
LARGEST_LOGPROB = 1e-3  # engines round
LONGEST_BODY_BYTES = 32 * 2**20
# Transient: the same request may succeed later.
_PASSING = frozenset((Cause.LIMITED, Cause.BUSY, Cause.BROKEN, Cause.SILENT))
# No other request to this endpoint and model will succeed either.
_HOPELESS = frozenset((Cause.ACCOUNT, Cause.MODEL, Cause.PATH))
# Said of one prompt, under 403 as well: another prompt may be answered.
_OF_THE_PROMPT = re.compile(r"\bflagged\b|moderation|violat\w+ .{0,40}(polic|guideline)|safety (system|check)", re.I)
_UNKNOWN_PARAMETER = frozenset((400, 404, 422, 501))  # what services answer to a parameter that they refuse
_ENDINGS = ("max_tokens", "max_completion_tokens", "stop")  # with one of these set, an empty answer may be valid
UNREACHED_RETRIES = 2  # before the first connection, about a second: a wrong address must be reported quickly


@dataclass(frozen=True, slots=True)
class Reply:
    """A model's answer. `seconds` is the duration of the last attempt, without pauses."""

    completion: Completion
    seconds: float
    attempts: int


@dataclass(frozen=True, slots=True)
class Refusal:
    """The reason for a missing answer. `hopeless`: every other request will fail as well."""

    reason: str
    hopeless: bool
    seconds: float
    attempts: int


@dataclass(frozen=True, slots=True)
class _Problem:
    """One failed attempt. `wait_seconds` is the endpoint's Retry-After."""

    reason: str
    passing: bool
    hopeless: bool = False
    wait_seconds: float = 0.0
    about_logprobs: bool = False


class Endpoint:
    """A model behind `base_url`/chat/completions. An async context manager that closes its connections.

    With `logprobs` it is asked for log-probabilities until it refuses them.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        api_key: str | None,
        options: Mapping[str, Any],
        *,
        timeout_seconds: float,
        retries: int,
        proxy: Proxy | None = None,
        logprobs: bool = False,
    ) -> None:
        self._address = ApiBase.of(base_url).url("/chat/completions")
        self.url = shown_address(self._address)
        self.model = model
        self.options = {key: value for key, value in options.items() if value is not None}
        self._detour = Detour.of(proxy, base_url)
        self._headers = {"User-Agent": user_agent(), **UNPACKED, **self._detour.headers}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._timeout_seconds = timeout_seconds
        self._retries = retries
        self._not_before = 0.0
        self._wanted: Mapping[str, Any] = {"logprobs": True} if logprobs and "logprobs" not in options else {}
        self._reached = False  # in this run; an endpoint that was reached once may be restarting
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Endpoint:
        self._session = bounded_session(self._timeout_seconds)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._session is not None
        await self._session.close()

    async def ask(self, messages: Sequence[Mapping[str, Any]]) -> Reply | Refusal:
        """One answer; retries while the failure is transient."""
        body = {**self.options, "model": self.model, "messages": list(messages)}
        (result, seconds), attempts = await repeated(lambda: self._timed(body), self._pause_seconds)
        if isinstance(result, Completion):
            return Reply(result, seconds, attempts)
        return Refusal(result.reason, result.hopeless, seconds, attempts)

    async def _timed(self, body: Mapping[str, Any]) -> tuple[Completion | _Problem, float]:
        """One attempt after any pause the endpoint demanded, and its duration in seconds."""
        await self._until_accepted()
        began = time.monotonic()
        wanted = self._wanted
        result = await self._attempt({**body, **wanted})
        if wanted and isinstance(result, _Problem) and result.about_logprobs:
            began = time.monotonic()
            result = await self._attempt(body)
            if isinstance(result, Completion):
                self._wanted = {}  # it answers without log-probabilities: no other request asks for them
        return result, time.monotonic() - began

    async def _until_accepted(self) -> None:
        while True:
            wait_seconds = self._not_before - time.monotonic()
            if wait_seconds <= 0.0:
                return
            # jitter: requests must not resume at the same instant
            await asyncio.sleep(wait_seconds * random.uniform(1.0, 1.1))

    def _pause_seconds(self, attempt: tuple[Completion | _Problem, float], attempts: int) -> float | None:
        problem, _ = attempt
        if isinstance(problem, Completion):
            return None
        too_long = problem.wait_seconds > self._timeout_seconds
        if not too_long:  # the pause applies to every request to this endpoint
            self._not_before = max(self._not_before, time.monotonic() + problem.wait_seconds)
        retries = min(self._retries, UNREACHED_RETRIES) if problem.hopeless else self._retries
        if not problem.passing or too_long or attempts > retries:
            return None
        if problem.wait_seconds:
            return 0.0
        return backoff_seconds(attempts, FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS) * random.uniform(0.5, 1.0)

    async def _attempt(self, body: Mapping[str, Any]) -> Completion | _Problem:
        assert self._session is not None, "an endpoint must be entered with `async with`"
        try:
            async with self._session.post(
                self._address, json=body, headers=self._headers, allow_redirects=False, **self._detour.arguments
            ) as response:
                self._reached = True
                raw = await plain_body(response, LONGEST_BODY_BYTES)
        except TimeoutError:
            return _Problem(f"no answer within {self._timeout_seconds:g} s", passing=True)
        except aiohttp.ClientConnectorError as error:
            why = f"{self.url}: cannot connect, {why_not_connected(error.os_error)}"
            return _Problem(why, passing=True, hopeless=not self._reached)
        except (ValueError, TypeError):  # from aiohttp; its text may contain a secret
            why = f"{self.url}: the address or its key has characters that cannot be sent"
            return _Problem(why, passing=False, hopeless=True)
        except (aiohttp.ClientError, OSError) as error:
            return _Problem(f"{self.url}: {error or type(error).__name__}", passing=True)
        return self._read(response.status, response.headers.get("Retry-After"), raw)

    def _read(self, status: int, retry_after: str | None, raw: bytes) -> Completion | _Problem:
        wait_seconds = retry_after_seconds(retry_after, datetime.now(UTC)) or 0.0
        if status != 200:
            problem = _problem(judge_status(status, raw), f"HTTP {status}: {complaint(raw)}", status, wait_seconds)
            return replace(problem, about_logprobs=status in _UNKNOWN_PARAMETER and b"logprob" in raw.lower())
        verdict = judge_body(raw, "chat", may_be_silent=any(name in self.options for name in _ENDINGS))
        if verdict.cause is not None:
            return _problem(verdict, f"no answer: {complaint(raw)}", status, wait_seconds)
        return read_completion(raw) or _Problem(f"not a chat completion: {complaint(raw)}", passing=True)


def _problem(verdict: Verdict, reason: str, status: int, wait_seconds: float) -> _Problem:
    """The failure in an error response. It is never scored."""
    is_elsewhere = 300 <= status < 400
    passing = (verdict.cause in _PASSING and not is_elsewhere) or status == 409
    hopeless = verdict.cause in _HOPELESS and _OF_THE_PROMPT.search(verdict.message) is None
    return _Problem(reason, passing, hopeless, wait_seconds)


_QUOTED_CHARACTERS = 300


@dataclass(frozen=True, slots=True)
class Completion:
    """A chat completion's first choice without an error; `output_tokens` is None if the endpoint reports none.

    `logprobs`: one for each token, none if the endpoint gives none.
    """

    text: str
    output_tokens: int | None
    finish_reason: str | None
    logprobs: tuple[float, ...] = ()


def read_completion(raw: bytes) -> Completion | None:
    """The answer in the body of a 200; None if the body is no chat completion. Missing content is an empty text."""
    try:
        body: Any = json.loads(raw)
        choice = next(one for one in body["choices"] if not is_failed(one))
        text = _text_of(choice["message"]["content"])
        usage, finish_reason = body.get("usage"), choice.get("finish_reason")
    except (ValueError, LookupError, TypeError, AttributeError, StopIteration, RecursionError):
        return None
    if text is not None and not isinstance(text, str):
        return None
    tokens = usage.get("completion_tokens") if isinstance(usage, dict) else None
    counted = isinstance(tokens, int) and not isinstance(tokens, bool) and tokens >= 0
    reason = str(finish_reason) if finish_reason else None
    return Completion(text or "", tokens if counted else None, reason, _logprobs(choice.get("logprobs")))


def _text_of(content: Any) -> Any:
    """The content. Of a list of parts the texts, without the thoughts that some reasoning models put beside them."""
    if not isinstance(content, list):
        return content
    return "".join(part["text"] for part in content if part["type"] == "text")


def _logprobs(found: Any) -> tuple[float, ...]:
    """The tokens' log-probabilities; none if one of them is missing or is no number up to 0."""
    try:
        values = tuple(float(token["logprob"]) for token in found["content"])
    except (LookupError, TypeError, ValueError, OverflowError):
        return ()
    return values if all(value <= LARGEST_LOGPROB for value in values) else ()


def complaint(raw: bytes) -> str:
    """The message of an OpenAI error body, or the beginning of the body."""
    try:
        message = json.loads(raw)["error"]["message"]
    except (ValueError, LookupError, TypeError, RecursionError):
        message = raw.decode("utf-8", "replace")
    return " ".join(str(message).split())[:_QUOTED_CHARACTERS]


GIVE_UP_AFTER = 20  # consecutive failures, each after all retries: the endpoint is down, not busy


class CircuitBreaker:
    """Stops a run's requests to one endpoint after a hopeless failure or many consecutive ones."""

    def __init__(self) -> None:
        self._failures_in_a_row = 0
        self.tripped_by: str | None = None

    def note(self, refusal: Refusal | None) -> None:
        """Count a request's result; `None` means success."""
        self._failures_in_a_row = 0 if refusal is None else self._failures_in_a_row + 1
        if refusal is not None and (refusal.hopeless or self._failures_in_a_row >= GIVE_UP_AFTER):
            self.tripped_by = refusal.reason


def endpoint_to(target: Target, request: RequestSettings, *, logprobs: bool = False) -> Endpoint:
    """The target's endpoint.

    Raises ConfigError if the key's environment variable is not set, or it or the proxy cannot be used.
    """
    return Endpoint(
        target.base_url,
        target.model,
        api_key(target.api_key_env, target.key_setting),
        target.options,
        timeout_seconds=request.timeout_seconds,
        retries=request.retries,
        proxy=proxy_for(target.base_url),
        logprobs=logprobs,
    )
