"""Every error the service raises on purpose, as one tree; each knows its HTTP status and OpenAI code.

CoeError
├── ConfigError            the configuration is wrong; the start stops
├── ArtifactError          a router artifact is damaged or does not fit; it is refused
├── DatasetError           training data are wrong; the message names file and row
├── DownloadFailed         a model could not be downloaded
├── RequestError (400)     the caller's mistake
│   ├── UnknownModel (404)     no such model, expert or objective
│   ├── UnknownPath (404)      no endpoint at this path
│   ├── ModelWithheld (403)    the caller's key may not use it
│   ├── UnknownDecision (404)  no such decision in the log
│   ├── NoCapableExpert (400)  no expert can take this request
│   ├── MalformedHttp (400)           malformed HTTP request
│   ├── HeadersTooSlow (408)      request line and headers did not arrive in time
│   ├── HeadersTooLong (431)      request line and headers exceed the limit
│   ├── BodyTooSlow (408)      the body did not arrive in time
│   ├── BodyTooLarge (413)     the body exceeds the limit
│   ├── UnsupportedCoding (415) the body has an unsupported content coding
│   └── UpgradeRequired (426)  a WebSocket was requested; only HTTP/1.1 is served
├── ExpertBusy (409)       an operator's request cannot be carried out while the expert is in use
├── NoRoom (409)           an operator's request would leave too little memory for another expert
├── NothingToUndo (409)    ratings have made no step that could be undone
├── ReloadRefused (409)    the new configuration is wrong or needs a restart; the old one stays
├── InvalidApiKey (401)    no key, or an unknown one
├── Forbidden (403)        not allowed for this key or origin
├── Overloaded (429)       the queue is full; try again later
│   ├── UpstreamLimited (429)  a remote expert's server refuses more requests
│   └── RateLimited (429)      a key has reached one of its limits
├── BadSnapshot (502)      a node's message cannot be understood
├── BodiesFull (503)       the bodies of requests in progress have reached their limit
├── ExpertUnavailable (503)    an expert cannot be loaded now
├── DeadlineExceeded (504)     the client's own deadline has passed
├── GenerationTimeout (504)    an answer exceeded the time limit
├── EmbeddingUnavailable (503) a prompt cannot be embedded now
│   └── EmbeddingNotFinite (503)   an embedding has values that are not numbers
├── JournalUnavailable (503)   the decision log cannot be written or read now
└── EngineError (502)      an engine failed
    ├── EngineStartFailed (503)
    ├── TooLongForExpert (400) the request exceeds the expert's context
    ├── EngineRefused (4xx)    it refused a request with an error in its own format
    ├── ConnectionLost (502)   a reused connection was closed without an answer; the request is not sent again
    └── EngineDied (502)
        └── EngineUnreachable (502)    no connection could be made: it has not seen the request
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

BacksOff = Literal["at once", "in a row", "never"]


def first_line(message: str) -> str:
    """The part of an error's message for clients; further lines (addresses, logs) are for the operator."""
    return message.partition("\n")[0]


class CoeError(Exception):
    """`str(error)` is one sentence for the client; further lines, if any, are for the operator only."""

    status = 500
    type = "server_error"
    code = "internal_error"
    retry_after_seconds: float | None = None  # earliest useful retry
    should_retry = False  # the client may retry at once; the server does not, since the request may then count twice

    @property
    def sentence(self) -> str:
        """The message for clients."""
        return first_line(str(self))


class ConfigError(CoeError):
    """The configuration is wrong; the message names key, value and what is allowed."""

    code = "invalid_configuration"


class ArtifactError(CoeError):
    """A router artifact is damaged, unknown or does not fit this server."""

    code = "invalid_router_artifact"


class DatasetError(CoeError):
    """Training data are invalid; the message names the file and the fault."""

    code = "invalid_dataset"


class DownloadFailed(CoeError):
    """A model could not be downloaded; the message says why."""

    code = "download_failed"


class RequestError(CoeError):
    """The client's request is invalid."""

    status = 400
    type = "invalid_request_error"
    code = "invalid_request"

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param

    @property
    def sentence(self) -> str:
        """The whole message: a line break in it is one that the request has, and no line is for the operator."""
        return str(self).replace("\n", r"\n")


class UnknownModel(RequestError):
    """The requested model, expert or objective does not exist here."""

    status = 404
    code = "model_not_found"


class UnknownPath(RequestError):
    """No endpoint has this path; the message suggests a similar one."""

    status = 404
    code = "unknown_url"  # OpenAI's code


class ModelWithheld(RequestError):
    """The model exists, but the client's key may not use it."""

    status = 403
    code = "model_not_found"  # OpenAI's code


class UnknownDecision(RequestError):
    """The decision log does not contain this decision."""

    status = 404
    code = "decision_not_found"


class NoCapableExpert(RequestError):
    """No expert can take this request; the message names the limits."""

    code = "no_capable_expert"


class MalformedHttp(RequestError):
    """Malformed HTTP request."""

    code = "no_http"


class HeadersTooSlow(RequestError):
    """The request line and headers did not arrive in time."""

    status = 408
    code = "headers_too_slow"


class HeadersTooLong(RequestError):
    """The request line and headers exceed the limit."""

    status = 431
    code = "headers_too_large"


class BodyTooSlow(RequestError):
    """The body did not arrive in time."""

    status = 408
    code = "body_too_slow"


class BodyTooLarge(RequestError):
    """The body exceeds the limit; the message has the limit and its configuration key, if any."""

    status = 413
    code = "body_too_large"


class UnsupportedCoding(RequestError):
    """The body has an unsupported content coding; the message lists the supported ones."""

    status = 415
    code = "unsupported_content_encoding"


class UpgradeRequired(RequestError):
    """A WebSocket was requested; at this status some clients fall back to HTTP/1.1."""

    status = 426
    code = "upgrade_required"


class Forbidden(CoeError):
    """The client may not do this."""

    status = 403
    type = "permission_error"
    code = "forbidden"


class InvalidApiKey(CoeError):
    """No key, or an unknown one."""

    status = 401
    type = "invalid_request_error"
    code = "invalid_api_key"


class ExpertBusy(CoeError):
    """An operator's request cannot be carried out while the expert is in use."""

    status = 409
    type = "invalid_request_error"
    code = "expert_busy"


class NoRoom(CoeError):
    """An operator's request would take memory that other experts need; the message has the figures."""

    status = 409
    type = "invalid_request_error"
    code = "no_room"


class NothingToUndo(CoeError):
    """Ratings have made no step, or all were undone."""

    status = 409
    type = "invalid_request_error"
    code = "nothing_to_undo"


class ReloadRefused(CoeError):
    """The new configuration is invalid or needs a restart; the running one stays."""

    status = 409
    type = "invalid_request_error"
    code = "reload_refused"


class Overloaded(CoeError):
    """A queue is full. `retry_after_seconds`: time after which the present queue should have been admitted."""

    status = 429
    type = "rate_limit_error"
    code = "queue_full"

    def __init__(self, message: str, retry_after_seconds: float) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class UpstreamLimited(Overloaded):
    """A remote expert's server refuses more requests for now; no queue of this server is full.

    `asked_seconds`: its Retry-After; None without one.
    """

    code = "upstream_rate_limited"
    cause = "429"
    backs_off: BacksOff = "at once"

    def __init__(self, message: str, asked_seconds: float | None) -> None:
        super().__init__(message, 1.0 if asked_seconds is None else asked_seconds)
        self.asked_seconds = asked_seconds


class RateLimited(Overloaded):
    """A key has reached one of its limits; the message names it."""

    code = "rate_limit_exceeded"


class BadSnapshot(CoeError):
    """What a node says of itself cannot be understood; the message names the first mistake."""

    status = 502
    code = "bad_snapshot"


class BodiesFull(CoeError):
    """The bodies of requests in progress have reached their memory limit; the message names it."""

    status = 503
    code = "bodies_full"
    retry_after_seconds = 1.0


class ExpertUnavailable(CoeError):
    """An expert cannot be loaded now; the message has the reason."""

    status = 503
    code = "expert_unavailable"

    def __init__(self, message: str, retry_after_seconds: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class DeadlineExceeded(CoeError):
    """The client's time limit (`x-request-timeout`) has passed."""

    status = 504
    code = "deadline_exceeded"


class GenerationTimeout(CoeError):
    """An answer exceeded scheduling.max_generation_seconds. Not a failure of the engine, which still runs."""

    status = 504
    code = "generation_timeout"


class EmbeddingUnavailable(CoeError):
    """The embedder of prompts failed; the message names the endpoint and the reason."""

    status = 503
    code = "embedding_unavailable"
    retry_after_seconds = 1.0


class EmbeddingNotFinite(EmbeddingUnavailable):
    """An embedding has NaN or an infinite value. `places`: the 0-based positions of the texts in the input."""

    def __init__(self, message: str, places: Sequence[int] = ()) -> None:
        super().__init__(message)
        self.places = tuple(places)


class JournalUnavailable(CoeError):
    """The decision log cannot be written or read now; the message has the reason."""

    status = 503
    code = "journal_unavailable"
    retry_after_seconds = 1.0


class EngineError(CoeError):
    """An engine failed to carry out a request.

    For a remote expert: `cause` is a word or a status, and `backs_off` says when a backoff begins: at once, after the
    third such failure in a row, or never.
    """

    status = 502
    code = "engine_error"
    cause = "no answer"
    backs_off: BacksOff = "in a row"
    asked_seconds: float | None = None  # its server's Retry-After


class EngineStartFailed(EngineError):
    """An engine did not start; the message ends with the last lines of its log."""

    status = 503
    code = "engine_start_failed"
    retry_after_seconds = 1.0


class CardLost(EngineStartFailed):
    """The driver reports that a GPU is gone: its experts can start on other cards only."""

    def __init__(self, message: str, card: str = "") -> None:
        """`card`: its UUID."""
        super().__init__(message)
        self.card = card
        self.index: int | None = None  # among the visible cards; None if the seat is unknown


class TooLongForExpert(EngineError):
    """A request exceeds this expert's context; an expert with a longer one may take it."""

    status = 400
    type = "invalid_request_error"
    code = "context_length_exceeded"  # OpenAI's code
    backs_off = "never"


class EngineRefused(EngineError):
    """An engine refused a request with an error in its own format; its status is kept.

    `said`, its text, may quote the request, so it is only for the client, not for any log.
    """

    type = "invalid_request_error"
    code = "engine_refused"

    def __init__(self, message: str, status: int, said: str) -> None:
        super().__init__(message)
        self.status = status
        self._said = said

    @property
    def sentence(self) -> str:
        return f"{self}: {self._said}"


class EngineDied(EngineError):
    """An engine's process ended, or its connection broke, during a request."""

    code = "engine_died"


class EngineUnreachable(EngineDied):
    """No connection to an engine could be made, so it has not seen the request."""

    code = "engine_unreachable"
    cause = "unreachable"
    backs_off = "at once"


class ConnectionLost(EngineError):
    """A reused connection was closed before the first byte of a response.

    Not a failure of the engine: servers close idle connections, which may coincide with a request. The request may
    have been read, and charged for, so it is not sent again automatically.
    """

    code = "connection_lost"
    should_retry = True
    backs_off = "never"
