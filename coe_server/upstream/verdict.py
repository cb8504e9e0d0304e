"""Judges an expert's response: an answer, the client's mistake, or the expert's failure. All APIs, streamed or not."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from coe_server.errors import BacksOff
from coe_server.upstream.answer import (
    FAILED_ENDS,
    Says,
    failed_choices,
    has_word_in_choice,
    said_in_body,
    said_in_event,
    tokens_counted,
)
from coe_server.upstream.complaint import (
    TOO_COMPLEX,
    Cause,
    Complaint,
    TooComplex,
    cause_of,
    is_complex,
    json_value,
    read_complaint,
    speaks_of_account,
)
from coe_server.upstream.cut_json import last_member, members_at_beginning

LOOKED_AT_BYTES = 64 * 1024  # from each end of a long body; shorter ones are read completely

_AT_ONCE = frozenset((401, 402, 407, 429, 503, 529))
# Causes that depend on the request, not on the expert's state.
_NEVER = frozenset((Cause.CALLER, Cause.CONTEXT, Cause.PATH, Cause.UNSUPPORTED, Cause.SILENT))
_CALLERS_OWN = frozenset(("invalid_prompt", "invalid_image", "image_parse_error"))  # codes of a failed response
END_OF_EVENT = re.compile(rb"\r?\n\r?\n|\r\r")
_FIELD = re.compile(rb"(?:^|[\r\n])(data|event):([^\r\n]*)")
_BOM = b"\xef\xbb\xbf"
_CODES_BESIDE = ("code", "error_type", "status_code")


@dataclass(frozen=True, slots=True)
class Verdict:
    """A judged response. `cause`: None for an answer. `status`: HTTP's, or the equivalent of an error under HTTP 200.

    `message`: the expert's error text, for the operator's log only, since it may quote the request.
    """

    cause: Cause | None
    status: int = 200
    message: str = ""
    about_account: bool = False  # independent of the cause; the text is not for clients
    is_ours: bool = False  # a fault detected here, not reported by the expert

    @property
    def is_failure(self) -> bool:
        """True if the expert failed, so that another one may be tried."""
        return self.cause not in {None, Cause.CALLER}

    @property
    def backs_off(self) -> BacksOff:
        """When this failure begins a backoff: at once, as the third in a row, or never."""
        if self.cause in _NEVER:
            return "never"
        return "at once" if self.status in _AT_ONCE else "in a row"


ANSWER = Verdict(None)


@dataclass(frozen=True, slots=True)
class Event:
    """One event of a stream. `counted`: its usage has an output token. `is_of_choice`: an error of one choice only."""

    says: Says
    verdict: Verdict | None = None  # if it is an error
    counted: bool = False
    is_of_choice: bool = False


def judge_status(status: int, body: bytes) -> Verdict:
    """Judge a response with an error status by its body, of which the beginning is enough."""
    try:
        return _judged(complaint_in(status, body))
    except TooComplex:
        verdict = _judged(read_complaint(TOO_COMPLEX, status))
        return verdict if verdict.is_failure else replace(_COMPLEX, status=status)


def complaint_in(status: int, body: bytes) -> Complaint:
    """The error in the body of a response with an error status. Raises TooComplex."""
    payload = _json_of(body)
    told = payload[0] if isinstance(payload, list) and payload else payload
    error = _error_beside(told) or told if isinstance(told, Mapping) else body.decode("utf-8", "replace")
    return read_complaint(error, status)


def judge_body(body: bytes, endpoint: str, may_be_silent: bool) -> Verdict:
    """Judge the complete body of an unstreamed 200.

    `may_be_silent`: an empty text is valid, because the client set a stop, a length or zero tokens.
    """
    if not body.strip():
        return _broken("an empty body")
    try:
        payload = _json_of(body)
    except TooComplex:
        return _COMPLEX
    return _judge_text(body, endpoint) if payload is None else _judge_value(payload, endpoint, may_be_silent)


def judge_beginning(body: bytes) -> Verdict:
    """Judge the beginning of a long body: a failure if it is not JSON, an error, or too complex; else undecided."""
    if is_complex(body):
        return _COMPLEX
    body = body.removeprefix(_BOM)
    start = body.lstrip()[:1]
    if start not in {b"{", b"["}:
        return _judge_text(body, "")
    members = members_at_beginning(body.lstrip(b"[ \t\r\n").decode("utf-8", "replace"))
    return _error_in_body(members) or ANSWER


def judge_end(end: bytes) -> Verdict:
    """Judge the end of a long body: a failure if it has an error, or choices that all ended in an error."""
    payload = last_member(end, b'"error"')
    reasons = re.findall(rb'(?<!\\)"finish_reason"\s*:\s*"(\w+)"', end)
    if reasons and {reason.decode().lower() for reason in reasons} <= FAILED_ENDS:
        return _judged(read_complaint(payload or "a choice that ended in an error", None))
    return ANSWER if payload is None or reasons else _judged(read_complaint(payload, None))


def judge_event(event: bytes) -> Event:
    """Judge one complete event. Comments, `[DONE]`, and anything else that is no JSON object have no content."""
    name, data = _fields_of(event)
    is_bare = data is None  # some servers write an error as it is, without a field
    data = event.removeprefix(_BOM).strip() if data is None else data
    if is_bare and not data.startswith((b"{", b"[")):
        return Event(Says.NOTHING)
    try:
        payload = _json_of(data)
    except TooComplex:
        return Event(Says.NOTHING, _COMPLEX)
    if not isinstance(payload, Mapping):
        if name == "error":
            return Event(Says.NOTHING, _judged(read_complaint(_text_of(payload, data), None)))
        is_broken_object = data.lstrip().startswith(b"{") and not is_bare  # cut, or not UTF-8: for the client to judge
        return Event(Says.WORD if is_broken_object else Says.NOTHING)
    says = Says.NOTHING if is_bare else said_in_event(payload)
    verdict = _error_in_event(name, payload, says)
    if verdict is not None:
        return Event(Says.NOTHING, verdict, is_of_choice=bool(failed_choices(payload)) and not payload.get("error"))
    return Event(says, counted=tokens_counted(payload))


def is_events(body: bytes) -> bool:
    """True if a body is a stream of events, independent of its content type."""
    return body.removeprefix(_BOM).lstrip().startswith((b"data:", b"event:", b":", b"id:", b"retry:"))


def events_in(events: bytes) -> Iterator[bytes]:
    """Split events; an incomplete rest counts as one more."""
    start = 0
    for match in END_OF_EVENT.finditer(events):
        yield events[start : match.end()]
        start = match.end()
    if start < len(events):
        yield events[start:]


def _judge_value(payload: Any, endpoint: str, may_be_silent: bool) -> Verdict:
    if isinstance(payload, Mapping) and (error := _error_in_body(payload)) is not None:
        return error
    match said_in_body(payload, endpoint):
        case Says.WORD:
            return ANSWER
        case Says.NOTHING:
            return _broken("no answer in its body")
    return ANSWER if may_be_silent or tokens_counted(payload) else SILENT


def _judged(complaint: Complaint) -> Verdict:
    cause = cause_of(complaint)
    about_account = cause is Cause.ACCOUNT or speaks_of_account(complaint)
    return Verdict(cause, complaint.status, complaint.message, about_account)


def _broken(what: str) -> Verdict:
    return Verdict(Cause.BROKEN, 502, what, is_ours=True)


SILENT = Verdict(Cause.SILENT, 502, "no word and no token", is_ours=True)
NO_EVENTS = _broken("a stream without an answer")
NO_STREAM = _broken("a body where a stream was asked for")
_COMPLEX = _broken(TOO_COMPLEX)


def _is_error(payload: Mapping[str, Any]) -> bool:
    """True for an error that is the whole payload: `error`, `api_error`, `response.error`, an `exception`."""
    kinds = (payload.get("object"), payload.get("type"))
    return any(isinstance(kind, str) and kind.lower().endswith(("error", "exception")) for kind in kinds)


def _error_in_body(payload: Mapping[str, Any]) -> Verdict | None:
    """The error in a body without an answer; an error next to a choice with content is ignored."""
    if has_word_in_choice(payload):
        return None
    error = _error_beside(payload) or (payload if _is_error(payload) else _error_of_choices(payload))
    if not error:
        return None
    return _judged(read_complaint(error, None, _unstated(error) if payload.get("status") == "failed" else 502))


def _error_in_event(name: str, payload: Mapping[str, Any], says: Says) -> Verdict | None:
    """The error in an event that ends a stream, in any of the four APIs."""
    if payload.get("type") == "response.failed":
        response = payload.get("response")
        error = response.get("error") if isinstance(response, Mapping) else None
        return _judged(read_complaint(error or "a response that failed", None, _unstated(error)))
    is_error = name == "error" or _is_error(payload)
    if not is_error and says is Says.WORD and isinstance(payload.get("choices"), list):
        return None
    named = payload or "an error event without a reason"
    error = _error_beside(payload) or (named if is_error else _error_of_choices(payload))
    return _judged(read_complaint(error, None)) if error else None


def _error_beside(payload: Mapping[str, Any]) -> object:
    """The member `error`, together with a code that stands beside it."""
    error = payload.get("error")
    if not error or not isinstance(error, str | Mapping):
        return error
    beside = {name: payload[name] for name in _CODES_BESIDE if name in payload}
    return {**beside, "message": error} if isinstance(error, str) else {**beside, **error}


def _error_of_choices(payload: Mapping[str, Any]) -> object:
    """The error of choices that all failed; None otherwise."""
    failed = failed_choices(payload)
    own = (one.get("error") for one in failed if isinstance(one, Mapping))
    return next((one for one in own if one), "a choice that ended in an error") if failed else None


def _unstated(error: object) -> int:
    """The status for an error without one."""
    code = error.get("code") if isinstance(error, Mapping) else None
    return 400 if isinstance(code, str) and (code in _CALLERS_OWN or "image" in code) else 502


def _judge_text(body: bytes, endpoint: str) -> Verdict:
    """Judge a body that is not JSON: events or JSON lines with another content type, a web page, or text."""
    start = body.lstrip()
    if is_events(body):
        found = [judge_event(event) for event in events_in(body)]
        failure = next((one.verdict for one in found if one.verdict is not None), None)
        return failure or (ANSWER if any(one.says is Says.WORD for one in found) else NO_EVENTS)
    first = _json_of(start.splitlines()[0]) if start else None
    if isinstance(first, Mapping):
        return judge_body(start.splitlines()[0], "" if "error" not in first else endpoint, may_be_silent=True)
    return _broken("a web page" if start.startswith(b"<") else "no JSON")


def _fields_of(event: bytes) -> tuple[str, bytes | None]:
    """(name, data) of an event; data is None if absent (WHATWG, server-sent events, 9.2.6)."""
    name, lines = "", []
    for field, value in _FIELD.findall(event.removeprefix(_BOM)):
        if field == b"data":
            lines.append(value.removeprefix(b" "))
        else:
            name = value.strip().decode("utf-8", "replace")
    return name, b"\n".join(lines) if lines else None


def _text_of(payload: object, data: bytes) -> str:
    return payload if isinstance(payload, str) else data.decode("utf-8", "replace")


def _json_of(data: bytes) -> Any:
    """The JSON value, of a list of errors the first; None if invalid or `null`. Raises TooComplex."""
    try:
        value = json_value(data)
    except TooComplex:
        raise
    except ValueError:
        return None
    first = value[0] if isinstance(value, list) and value else None
    return first if isinstance(first, Mapping) and ("error" in first or _is_error(first)) else value
