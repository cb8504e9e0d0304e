"""Response headers: the decision, what is passed on of an expert's own, and what every answer has. Pure.

An answer has this server's origin. So a browser must not run it as a page, and an expert's headers must not control
browsers, caches or proxies.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from uuid import uuid4

from coe_server.routing.decision import RoutingDecision

REQUEST_ID = "x-request-id"  # OpenAI's clients show it as `_request_id`: the decision's id, or a random one
HARMLESS = {"x-content-type-options": "nosniff", "content-security-policy": "sandbox"}
_ID = REQUEST_ID.encode()
_POLICY = b"content-security-policy"
_HARMLESS = tuple((name.encode(), value.encode()) for name, value in HARMLESS.items())
_PLAIN = re.compile(r"[A-Za-z0-9._:;=@/+-]{1,128}")  # a UUID, a hash, a load balancer's id: safe in a log


Pairs = Iterable[tuple[str, str]]
WAIT = "x-coe-wait-ms"


def decision_headers(decision: RoutingDecision) -> dict[str, str]:
    """The decision as response headers; text that is not ASCII is written as JSON escapes."""
    headers = {
        REQUEST_ID: decision.decision_id,
        "x-coe-decision-id": decision.decision_id,
        "x-coe-expert": decision.expert,
        "x-coe-reason": decision.reason,
        "x-coe-residency": decision.ranking[0].residency or "",
        "x-coe-routing-ms": f"{decision.routing_ms:.3f}",
        "x-coe-router-version": decision.router_version,
    }
    if decision.category is not None and decision.confidence is not None:
        headers["x-coe-category"] = json.dumps(decision.category)[1:-1]
        headers["x-coe-confidence"] = f"{decision.confidence:.4f}"
    cost, saved = decision.cost, decision.saved
    if cost is not None and saved is not None:
        headers["x-coe-cost"] = f"{cost:.6g}"
        headers["x-coe-saved"] = f"{saved:.6g}"
    if decision.handovers:
        last = decision.handovers[-1]
        headers["x-coe-handed-over-from"] = last.first
        headers["x-coe-handed-over-certainty"] = f"{last.certainty:.4f}"
    return headers


def certainty_header(certainty: float) -> dict[str, str]:
    """The probability that the answer is right, by its first tokens."""
    return {"x-coe-certainty": f"{certainty:.4f}"}


def wait_header(waited_seconds: float) -> dict[str, str]:
    """`waited_seconds`: from the request's arrival until a lease of the answering expert, failed ones included."""
    return {WAIT: f"{waited_seconds * 1000:.1f}"}


def node_headers(node: str, waited_ms: float) -> dict[str, str]:
    """The node that answers, and the wait here and there together."""
    return {"x-coe-node": node, WAIT: f"{waited_ms:.1f}"}


def told_wait_ms(headers: Pairs) -> float:
    """The wait that a node states in its answer; 0 if it states none."""
    try:
        return max(0.0, min(float(header(headers, WAIT) or ""), 1e9))
    except ValueError:
        return 0.0


def answering(headers: Mapping[str, str]) -> str:
    """A comment that names the expert and its node, if any, for a stream whose headers left before it was granted."""
    told = {"expert": "x-coe-expert", "reason": "x-coe-reason", "wait_ms": "x-coe-wait-ms", "node": "x-coe-node"}
    return " ".join(("answering", *(f"{word}={headers[name]}" for word, name in told.items() if name in headers)))


_PASSED = frozenset(
    (
        *("cache-control", "content-encoding", "content-language", "content-length"),
        *("retry-after", "retry-after-ms", "x-should-retry"),  # OpenAI's and Anthropic's clients read them
        *("openai-model", "openai-processing-ms", "openai-version", "request-id"),
    )
)
_SHOWN = frozenset(  # no browser runs these; SVG, XML and HTML it would
    (
        *("application/json", "application/problem+json", "application/x-ndjson", "application/jsonl"),
        *("text/event-stream", "text/plain"),
        *("image/png", "image/jpeg", "image/gif", "image/webp", "image/avif", "image/bmp", "image/tiff"),
        *("audio/mpeg", "audio/mp3", "audio/mp4", "audio/aac", "audio/ogg", "audio/opus", "audio/flac", "audio/webm"),
        *("audio/wav", "audio/wave", "audio/x-wav", "audio/vnd.wave", "audio/x-flac", "audio/x-m4a", "audio/basic"),
        *("audio/pcm", "audio/l16", "audio/l24"),
    )
)
_ATTACHED = (("content-type", "application/octet-stream"), ("content-disposition", "attachment"))
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")  # RFC 9110, 5.5; a lenient parser lets an expert's pass
_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_TYPE = re.compile(  # RFC 9110, 8.3.1; of two types in one value browsers take the last, so a comma is none of it
    rf"[ \t]*({_TOKEN}/{_TOKEN})(?:[ \t]*;[ \t]*(?:{_TOKEN}=(?:{_TOKEN}|\"[^\",\\\x00-\x1f\x7f-\uffff]*\"))?)*[ \t]*"
)


def passed_headers(headers: Pairs) -> Iterator[tuple[str, str]]:
    """The expert's headers that are forwarded; types other than `_SHOWN` are sent as downloads.

    A value with a control character is left out: it cannot be sent.
    """
    headers = tuple(headers)
    is_shown = content_type(headers) in _SHOWN
    for name, value in headers:
        lower = name.lower()
        if (lower in _PASSED and not _CONTROL.search(value)) or (is_shown and lower == "content-type"):
            yield name, value
    if not is_shown:
        yield from _ATTACHED


def content_type(headers: Pairs) -> str | None:
    """The one type that the headers name, in lower case and without parameters; None where it is none or unclear."""
    values = [value for name, value in headers if name.lower() == "content-type"]
    return _type_in(values[0]) if len(values) == 1 else None


@lru_cache(maxsize=64)  # an engine has a few
def _type_in(value: str) -> str | None:
    found = _TYPE.fullmatch(value)
    return found and found[1].lower()


def header(headers: Pairs, name: str) -> str | None:
    """The first value of that name, given in lower case; None without one."""
    return next((value for given, value in headers if given.lower() == name), None)


def completed(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """The headers of any answer, with a request id and, unless it has a policy of its own (as the page's files have),
    with the two that keep a browser from running it as a page of this server."""
    names = {name for name, _ in headers}
    own_id = [] if _ID in names else [(_ID, new_request_id().encode())]
    return [*headers, *own_id, *(() if _POLICY in names else _HARMLESS)]


def new_request_id() -> str:
    return uuid4().hex


def callers_id(headers: Mapping[str, str]) -> str | None:
    """The caller's own id for its request, for the log; None unless it is short and plain.

    It is logged and sent to local engines, and not sent back.
    """
    given = headers.get(REQUEST_ID, "")
    return given if _PLAIN.fullmatch(given) else None
