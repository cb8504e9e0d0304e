"""Every error the service raises on purpose, as one tree; each knows its HTTP status and OpenAI code.

CoeError
├── ConfigError            the configuration is wrong; the start stops
├── ArtifactError          a router artifact is damaged or does not fit; it is refused
├── DatasetError           training data are wrong; the message names file and row
├── DownloadFailed         a model could not be downloaded
├── RequestError (400)     the caller's mistake
│   ├── UnknownModel (404)     no such model, expert or objective
│   ├── UnknownPath (404)      no endpoint answers there
│   ├── ModelWithheld (403)    the caller's key may not use it
│   ├── UnknownDecision (404)  no such decision in the log
│   ├── NoCapableExpert (400)  no expert can take this request
│   ├── MalformedHttp (400)           malformed HTTP request
│   ├── HeadersTooSlow (408)      the request line and headers did not come in time
│   ├── HeadersTooLong (431)      they are longer than they may be
│   ├── BodyTooSlow (408)      the body did not come in time
│   ├── BodyTooLarge (413)     the body is longer than it may be
│   ├── UnsupportedCoding (415) the body is compressed in a way that is not read here
│   └── UpgradeRequired (426)  a WebSocket was asked for; there is HTTP/1.1 alone
├── ExpertBusy (409)       an operator's request cannot be met while the expert is in use
├── NoRoom (409)           an operator's request would leave another expert without room
├── ReloadRefused (409)    what was to replace the running configuration is wrong; the old one stays
├── InvalidApiKey (401)    no key, or not one of ours
├── Forbidden (403)        the key, or the place a request comes from, does not allow it
├── Overloaded (429)       the queue is full; try again later
│   ├── UpstreamLimited (429)  an expert's own server takes no more
│   └── RateLimited (429)      a key has used up what it may ask for
├── BodiesFull (503)       requests in progress hold as many bytes of bodies as they may
├── ExpertUnavailable (503)    an expert cannot be brought to the device now
├── DeadlineExceeded (504)     the caller's own deadline passed
├── GenerationTimeout (504)    an answer took longer than one may
├── EmbeddingUnavailable (503) a prompt cannot be embedded now
│   └── EmbeddingNotFinite (503)   an embedding has values that are not numbers
├── JournalUnavailable (503)   the decision log cannot be written or read now
└── EngineError (502)      an engine misbehaved
    ├── EngineStartFailed (503)
    ├── TooLongForExpert (400) the request is longer than it takes
    ├── EngineRefused (4xx)    it answered with an error that no client of OpenAI's could read
    ├── ConnectionLost (502)   a connection used before was closed in place of an answer; the request is not sent again
    └── EngineDied (502)
        └── EngineUnreachable (502)    no connection to it could be made: it has not seen the request
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

BacksOff = Literal["at once", "in a row", "never"]


def first_line(message: str) -> str:
    """What a caller may read of an error's message; further lines (addresses, logs) are for the operator."""
    return message.partition("\n")[0]


class CoeError(Exception):
    """`str(error)` is one sentence for the caller, sometimes with more lines for the operator alone."""

    status = 500
    type = "server_error"
    code = "internal_error"
    retry_after_seconds: float | None = None  # when trying again makes sense
    should_retry = False  # the caller may send the same again at once; here it was not, for it may count twice

    @property
    def sentence(self) -> str:
        """What a caller may read."""
        return first_line(str(self))


class ConfigError(CoeError):
    """The configuration is wrong; the message names key, value and what is allowed."""

    code = "invalid_configuration"


class ArtifactError(CoeError):
    """A router artifact is damaged, unknown or does not fit this server."""

    code = "invalid_router_artifact"


class DatasetError(CoeError):
    """Prompts or outcomes for training are wrong; the message names the file and what is wrong in it."""

    code = "invalid_dataset"


class DownloadFailed(CoeError):
    """A model could not be downloaded; the message says why."""

    code = "download_failed"


class RequestError(CoeError):
    """The caller's request is wrong as it stands."""

    status = 400
    type = "invalid_request_error"
    code = "invalid_request"

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class UnknownModel(RequestError):
    """The requested model, expert or objective does not exist here."""

    status = 404
    code = "model_not_found"


class UnknownPath(RequestError):
    """No endpoint answers there; the message names the path that was probably meant."""

    status = 404
    code = "unknown_url"  # as OpenAI says it


class ModelWithheld(RequestError):
    """The model exists, and the caller's key may not use it."""

    status = 403
    code = "model_not_found"  # as OpenAI says it


class UnknownDecision(RequestError):
    """The decision log has no such decision (any more)."""

    status = 404
    code = "decision_not_found"


class NoCapableExpert(RequestError):
    """No expert can take this request; the message names the limit that ruled them out."""

    code = "no_capable_expert"


class MalformedHttp(RequestError):
    """Malformed HTTP request."""

    code = "no_http"


class HeadersTooSlow(RequestError):
    """The request line and headers did not come in time."""

    status = 408
    code = "headers_too_slow"


class HeadersTooLong(RequestError):
    """The request line and headers are longer than they may be."""

    status = 431
    code = "headers_too_large"


class BodyTooSlow(RequestError):
    """The body did not come in time."""

    status = 408
    code = "body_too_slow"


class BodyTooLarge(RequestError):
    """The body is longer than it may be; the message names the limit, and its key where it has one."""

    status = 413
    code = "body_too_large"


class UnsupportedCoding(RequestError):
    """The body's content-encoding is not read here; the message names it, and those that are."""

    status = 415
    code = "unsupported_content_encoding"


class UpgradeRequired(RequestError):
    """A WebSocket was asked for; clients that can do without one go over to HTTP/1.1 at this status."""

    status = 426
    code = "upgrade_required"


class Forbidden(CoeError):
    """The caller may not do this."""

    status = 403
    type = "permission_error"
    code = "forbidden"


class InvalidApiKey(CoeError):
    """No key, or one that is not known here."""

    status = 401
    type = "invalid_request_error"
    code = "invalid_api_key"


class ExpertBusy(CoeError):
    """An operator's request cannot be met while the expert is in use."""

    status = 409
    type = "invalid_request_error"
    code = "expert_busy"


class NoRoom(CoeError):
    """An operator's request would take memory that other experts need; the message has the figures."""

    status = 409
    type = "invalid_request_error"
    code = "no_room"


class ReloadRefused(CoeError):
    """What was to be loaded is wrong or needs a restart; what runs goes on as it is."""

    status = 409
    type = "invalid_request_error"
    code = "reload_refused"


class Overloaded(CoeError):
    """A queue is full. `retry_after_seconds`: by then the requests that wait now should have been admitted."""

    status = 429
    type = "rate_limit_error"
    code = "queue_full"

    def __init__(self, message: str, retry_after_seconds: float) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class UpstreamLimited(Overloaded):
    """An expert that is answered elsewhere takes no more requests there for now: no queue of ours is full.

    `asked_seconds`: what its server asked to wait; None where it did not say.
    """

    code = "upstream_rate_limited"
    cause = "429"
    backs_off: BacksOff = "at once"

    def __init__(self, message: str, asked_seconds: float | None) -> None:
        super().__init__(message, 1.0 if asked_seconds is None else asked_seconds)
        self.asked_seconds = asked_seconds


class RateLimited(Overloaded):
    """A key has used up what it may ask for; the message names the limit."""

    code = "rate_limit_exceeded"


class BodiesFull(CoeError):
    """The bodies of requests in progress take all the memory they may; the message names the limit."""

    status = 503
    code = "bodies_full"
    retry_after_seconds = 1.0


class ExpertUnavailable(CoeError):
    """An expert cannot be brought to the device now; the message says why."""

    status = 503
    code = "expert_unavailable"

    def __init__(self, message: str, retry_after_seconds: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class DeadlineExceeded(CoeError):
    """The time that the caller gave (`x-request-timeout`) is over."""

    status = 504
    code = "deadline_exceeded"


class GenerationTimeout(CoeError):
    """An answer took longer than scheduling.max_generation_seconds allows. No failure of its engine, which is alive."""

    status = 504
    code = "generation_timeout"


class EmbeddingUnavailable(CoeError):
    """What embeds prompts does not answer as it should; the message names the endpoint and the reason."""

    status = 503
    code = "embedding_unavailable"
    retry_after_seconds = 1.0


class EmbeddingNotFinite(EmbeddingUnavailable):
    """An embedding has NaN or an infinite value; `places` are those of the texts, from 0, among all that were given."""

    def __init__(self, message: str, places: Sequence[int] = ()) -> None:
        super().__init__(message)
        self.places = tuple(places)


class JournalUnavailable(CoeError):
    """The decision log cannot be written or read now; the message says why."""

    status = 503
    code = "journal_unavailable"
    retry_after_seconds = 1.0


class EngineError(CoeError):
    """An engine did not do what was asked of it.

    `cause`, a word or a status, and `backs_off` say what follows for an expert that is answered elsewhere: requests are
    kept away from it at once, after the third such failure in a row, or never.
    """

    status = 502
    code = "engine_error"
    cause = "no answer"
    backs_off: BacksOff = "in a row"
    asked_seconds: float | None = None  # what its server asked to wait


class EngineStartFailed(EngineError):
    """An engine did not come up; the message ends with the last lines of its log."""

    status = 503
    code = "engine_start_failed"
    retry_after_seconds = 1.0


class TooLongForExpert(EngineError):
    """A request is too long for this expert; one that holds more may take it."""

    status = 400
    type = "invalid_request_error"
    code = "context_length_exceeded"  # as OpenAI says it
    backs_off = "never"


class EngineRefused(EngineError):
    """An engine refused a request in a shape of its own; its status is kept.

    What it `said` may repeat the request: that is for its caller alone, neither for the log nor for the decision log.
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
    """An engine's process ended, or its connection broke, while it was needed."""

    code = "engine_died"


class EngineUnreachable(EngineDied):
    """No connection to an engine could be made, so it has not seen the request."""

    code = "engine_unreachable"
    cause = "unreachable"
    backs_off = "at once"


class ConnectionLost(EngineError):
    """A connection used before was closed before a byte of the answer came.

    That says nothing of the engine: servers close what has been idle for long, and this request crossed that. Whether
    it was read is not known, so it is not sent again by itself: the answer may have been paid for.
    """

    code = "connection_lost"
    should_retry = True
    backs_off = "never"
