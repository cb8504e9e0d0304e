"""The error for an expert's failed answer: its first line is for callers, the rest for the operator."""

from __future__ import annotations

from datetime import UTC, datetime

from coe_server.engines.engine import EngineResponse
from coe_server.errors import CoeError, EngineDied, EngineError, EngineRefused, TooLongForExpert, UpstreamLimited
from coe_server.http.headers import header
from coe_server.upstream.complaint import Cause
from coe_server.upstream.reply import retry_after_seconds
from coe_server.upstream.verdict import Verdict

_QUOTED_CHARACTERS = 300
_MAY_REPEAT_THE_PROMPT = frozenset((400, 404, 413, 422))


def broken_off(expert: str, answer: EngineResponse, verdict: Verdict, has_spoken: bool) -> CoeError:
    """An error in a stream: an engine of this machine may be dead."""
    if has_spoken or verdict.cause in {Cause.BROKEN, Cause.BUSY}:
        return _with_cause(EngineDied(_told(expert, "broke off its answer", verdict)), answer, verdict)
    return failure(expert, answer, verdict)


def failure(expert: str, answer: EngineResponse, verdict: Verdict) -> CoeError:
    """The error for a failed answer. Its first line may be shown to every caller."""
    status = verdict.status
    match verdict.cause:
        case Cause.LIMITED:
            told = _told(expert, "is at the request limit of its own server", verdict)
            return UpstreamLimited(told, _asked_seconds(answer))
        case Cause.CONTEXT if not verdict.about_account:
            return TooLongForExpert(f"the request is longer than the context of expert '{expert}'")
        case Cause.ACCOUNT:
            error = EngineError(_told(expert, "did not accept this server's own account or credentials", verdict))
        case _ if 300 <= answer.status < 400:
            where = header(answer.headers, "location")
            error = EngineError(f"expert '{expert}' answered with status {status}, a redirect\n{where}")
        case _:
            error = EngineError(_told(expert, _what_happened(answer, verdict), verdict))
    return _with_cause(error, answer, verdict)


def refusal(expert: str, answer: EngineResponse, verdict: Verdict, body: bytes) -> EngineError:
    """An error in an engine's own format, converted to OpenAI's."""
    told = f"expert '{expert}' answered with status {answer.status}"
    if answer.status >= 500:  # about the expert itself, so for the operator
        error = _with_cause(EngineError(f"{told}\n{_quoted(verdict)}"), answer, verdict)
        error.status, error.retry_after_seconds = answer.status, error.asked_seconds
        return error
    refused = EngineRefused(told, answer.status, body[:_QUOTED_CHARACTERS].decode(errors="replace"))
    return _with_cause(refused, answer, verdict)


def _with_cause(error: EngineError, answer: EngineResponse, verdict: Verdict) -> EngineError:
    error.cause, error.backs_off = str(verdict.status), verdict.backs_off
    error.asked_seconds = _asked_seconds(answer)
    return error


def _told(expert: str, what: str, verdict: Verdict) -> str:
    return f"expert '{expert}' {what}\n{_quoted(verdict)}"


def _what_happened(answer: EngineResponse, verdict: Verdict) -> str:
    if answer.status >= 400:
        return f"answered with status {answer.status}"
    return f"gave no answer: {verdict.message}" if verdict.is_ours else "answered with an error"


def _quoted(verdict: Verdict) -> str:
    """The expert's own message for the log, unless it may repeat the prompt."""
    told = verdict.message[:_QUOTED_CHARACTERS]
    return f"status {verdict.status}" if verdict.status in _MAY_REPEAT_THE_PROMPT else f"{verdict.status}: {told}"


def _asked_seconds(answer: EngineResponse) -> float | None:
    """The seconds in the response's Retry-After; None without one."""
    return retry_after_seconds(header(answer.headers, "retry-after"), datetime.now(UTC))
