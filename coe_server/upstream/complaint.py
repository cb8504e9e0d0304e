"""Maps an error body of any server, in any format, to its cause; and parses JSON within limits. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from enum import StrEnum
from itertools import islice
from typing import Any, NamedTuple

UNSTATED_STATUS = 502  # of an unclassified error inside a 200
_LONGEST_READ = 4_000  # characters of an error's text
_MOST_READ = 4_000  # values in an error
_CODES = ("code", "type", "status", "error_type")
_DEEPEST = 8  # nesting levels of an error's members
_DEEPEST_PLACE, _MOST_PLACES = 3, 20  # error, its list, its entries
_USUAL = frozenset(("message", "detail", "msg", "error", "code", "type", "status", "param", "object"))
# Members in which an error quotes the request; they are ignored.
_REPEATED = frozenset(("input", "ctx", "loc", "body", "prompt", "messages", "content", "url", "failed_generation"))
# Quotes of the request inside a sentence: a validator's input comes last, names and values are in quotation marks. A
# quoted value after a colon may be another error's message, so it is kept.
_INPUT_WORDS = re.compile(r"""['"]?\binput(_value)?['"]?( was)?\s*[=:]\s*['"\[{(].*""", re.DOTALL)
_QUOTED = re.compile(r"""(?<!\w)(?<!['"]:)(?<!['"]: )(['"`])(?:(?!\1).){1,400}\1(?!\w)""")


class Cause(StrEnum):
    """The cause of an error."""

    CALLER = "caller"  # the client's mistake; all others are failures of the expert
    CONTEXT = "context"  # too long for this expert
    ACCOUNT = "account"  # credit, billing or key of the operator
    LIMITED = "limited"  # rate limit
    BUSY = "busy"  # temporarily overloaded or down
    MODEL = "model"  # the model no longer exists
    PATH = "path"  # this API is not served
    UNSUPPORTED = "unsupported"  # unsupported parameter or feature
    SILENT = "silent"  # no content and no token
    BROKEN = "broken"  # any other failure


class Complaint(NamedTuple):
    """A parsed error. `status`: HTTP's, or for an error inside a 200 the equivalent of its code or type."""

    status: int
    codes: tuple[str, ...]  # code and type, in lower case
    param: str
    message: str
    words: str  # its text without quotes of the request
    places: frozenset[str] = frozenset()  # the members of the request that a validator (pydantic) names


def read_complaint(error: object, status: int | None, unstated: int = UNSTATED_STATUS) -> Complaint:
    """Parse `error`: the value of a member `error`, a complete body without one, or text.

    `status`: HTTP's error status; None for an error inside a 200.
    """
    fields: Mapping[str, Any] = error if isinstance(error, Mapping) else {}
    codes = tuple(str(fields[name]).lower() for name in _CODES if _is_said(fields.get(name)))
    message = next((fields[name] for name in ("message", "detail", "msg") if fields.get(name)), error)
    found = [word for word in islice(_words(error), _MOST_READ) if word is not None]
    words = _INPUT_WORDS.sub("", " ".join(found)[:_LONGEST_READ])
    told = message if isinstance(message, str) else words
    param = fields.get("param")
    return Complaint(
        status or _status_of(codes) or _status_in(words.lower()) or unstated,
        codes,
        param if isinstance(param, str) else "",
        told[:_LONGEST_READ],
        words.lower(),
        frozenset(_places(error)),
    )


def cause_of(complaint: Complaint) -> Cause:
    """The cause of an error."""
    status = complaint.status
    if status in _PLAIN:
        return _PLAIN[status]
    if status == 404:
        return _what_is_not_found(complaint)
    if status in {400, 413, 422}:
        return _what_is_refused(complaint)
    if 400 <= status < 500:
        return Cause.ACCOUNT if speaks_of_account(complaint) else Cause.CALLER
    return Cause.BROKEN


def says_why(complaint: Complaint) -> bool:
    """False for an error without a reason: nothing but its status, the status's name, or codes of a kind of error."""
    return _NO_REASON.sub("", complaint.words).strip() != ""


def names_member(complaint: Complaint, member: re.Pattern[str]) -> bool:
    """True if it names such a member of the request: by place, or in its own words. Longer quotes are not its own."""
    if member.fullmatch(complaint.param) or any(map(member.fullmatch, complaint.places)):
        return True
    own = _QUOTED.sub(lambda quote: quote[0] if member.fullmatch(quote[0][1:-1]) else "", complaint.words)
    return member.search(own) is not None


def speaks_of_account(complaint: Complaint) -> bool:
    """True if it concerns the operator's account at the expert's server: credit, billing, keys or limits."""
    if _speaks_of(complaint, _ACCOUNT_CODES, _ACCOUNT_IDS):
        return True
    return _ACCOUNT_WORDS.search(_QUOTED.sub("", complaint.words)) is not None


def _what_is_not_found(complaint: Complaint) -> Cause:
    """Cause of a 404: an id given by the client, the model, or the path."""
    if complaint.param.endswith("_id") or complaint.param == "conversation":
        return Cause.CALLER
    if _speaks_of(complaint, _MODEL_CODES, _MODEL_WORDS) or _MODEL_ALONE.fullmatch(complaint.message):
        return Cause.MODEL
    is_page = complaint.message.lstrip().startswith("<")
    if not is_page and _ID_WORDS.search(complaint.words):
        return Cause.CALLER
    return Cause.ACCOUNT if speaks_of_account(complaint) else Cause.PATH


def _what_is_refused(complaint: Complaint) -> Cause:
    """Cause of a 400, 413 or 422: mostly the client's mistake, but servers use them for other errors, too."""
    if _speaks_of(complaint, _CONTEXT_CODES, _CONTEXT_WORDS):
        return Cause.CONTEXT
    if speaks_of_account(complaint):
        return Cause.ACCOUNT
    if _speaks_of(complaint, _MODEL_CODES, _MODEL_WORDS):
        return Cause.MODEL
    if _speaks_of(complaint, _UNSUPPORTED_CODES, _UNSUPPORTED_WORDS):
        return Cause.UNSUPPORTED
    return Cause.CONTEXT if complaint.status == 413 else Cause.CALLER


def _speaks_of(complaint: Complaint, codes: frozenset[str], words: re.Pattern[str]) -> bool:
    return not codes.isdisjoint(complaint.codes) or words.search(complaint.words) is not None


def _is_said(value: object) -> bool:
    return isinstance(value, str | int) and not isinstance(value, bool) and value != ""


def _status_of(codes: tuple[str, ...]) -> int | None:
    for code in codes:
        if len(code) == 3 and code.isdecimal() and 400 <= int(code) < 600:
            return int(code)
    return next((_STATUS_OF[code] for code in codes if code in _STATUS_OF), None)


def _status_in(words: str) -> int | None:
    """The status implied by the text of an error inside a 200 without code and type."""
    return next((status for status, pattern in _STATUS_WORDS if pattern.search(words)), None)


def _words(value: object, depth: int = 0) -> Iterator[str | None]:
    """The texts in an error, and the names of unusual members (`user_id`); None for other values."""
    yield value if isinstance(value, str) else None
    if isinstance(value, str):
        return
    if isinstance(value, list) and depth < _DEEPEST:
        for one in value:
            yield from _words(one, depth + 1)
    elif isinstance(value, Mapping) and depth < _DEEPEST:
        for name, one in value.items():
            if name not in _REPEATED:
                yield "" if name in _USUAL else str(name)
                yield from _words(one, depth + 1)
            else:
                yield None


def _places(value: object, depth: int = 0) -> Iterator[str]:
    """The names in each `loc`, as FastAPI writes it: `["body", "logprobs"]`."""
    entries = value if isinstance(value, list) else list(value.values()) if isinstance(value, Mapping) else []
    if isinstance(value, Mapping) and isinstance(found := value.get("loc"), list):
        yield from (one for one in found[:_DEEPEST] if isinstance(one, str))
    for one in entries[:_MOST_PLACES] if depth < _DEEPEST_PLACE else ():
        yield from _places(one, depth + 1)


def _codes(text: str) -> frozenset[str]:
    return frozenset(text.split())


_PLAIN = {
    429: Cause.LIMITED,
    503: Cause.BUSY,
    529: Cause.BUSY,
    410: Cause.MODEL,
    **dict.fromkeys((401, 402, 403, 407), Cause.ACCOUNT),
    **dict.fromkeys((408, 421, 423, 424, 425, 451), Cause.BROKEN),
}
# Codes and types of errors inside a 200, by the status that the same server otherwise uses:
# OpenAI's, Anthropic's (https://docs.anthropic.com/en/api/errors), Google's, vLLM's and OpenRouter's.
_STATUS_OF = {
    code: status
    for status, codes in {
        400: "invalid_request_error invalid_prompt invalid_request badrequesterror bad_request invalid_argument"
        " context_length_exceeded exceed_context_size_error",
        401: "authentication_error invalid_api_key unauthenticated unauthorized",
        402: "billing_error payment_required insufficient_credits insufficient_balance",
        403: "permission_error permission_denied forbidden",
        404: "not_found_error model_not_found not_found notfounderror",
        413: "request_too_large",
        422: "unprocessableentityerror unprocessable_entity",
        429: "rate_limit_error rate_limit_exceeded insufficient_quota too_many_requests resource_exhausted",
        500: "server_error internal_server_error internalservererror internal_error api_error internal",
        503: "service_unavailable unavailable serviceunavailableerror model_overloaded engine_overloaded_error",
        504: "timeout_error gateway_timeout deadline_exceeded",
        529: "overloaded_error overloaded",
    }.items()
    for code in codes.split()
}

_CONTEXT_CODES = _codes("context_length_exceeded exceed_context_size_error string_above_max_length request_too_large")
_CONTEXT_WORDS = re.compile(
    r"context[ _]?(length|size|window|limit)|(maximum|max) (prompt|input|sequence|model) length|max_model_len"
    r"|(prompt|input|request|message|conversation)s? (\(.{0,60}\) )?(is|are|was) too (long|large)"
    r"|max(_completion|_output)?_tokens.{0,60}(too large|maximum allowed)|at most \d+ (completion|output) tokens"
    r"|too many (input |prompt )?tokens|valid range of max_tokens|(request|prompt|input) too (large|long)"
    r"|input validation error: `inputs`"
    r"|token.{0,80}(exceed|longer than|(?<!be )greater than|must be <=).{0,80}(maximum|limit|allowed|context|\d)"
)
_ACCOUNT_CODES = _codes(
    "billing_error billing_hard_limit_reached billing_not_active insufficient_quota insufficient_balance"
    " insufficient_credits insufficient_user_quota payment_required invalid_api_key authentication_error"
    " permission_error permission_denied access_denied access_terminated account_deactivated account_disabled"
    " arrearage organization_restricted quota_exceeded credit_limit_exceeded api_key_invalid unauthenticated"
    " budget_exceeded"
)
_ACCOUNT_WORDS = re.compile(
    r"api[ _-]?(key|token)|access token|credential|credit balance"
    r"|(insufficient|out of|not enough|no|more|remaining|add|buy) (credit|balance|fund)"
    r"|balance (is )?(too low|insufficient|exhausted)"
    r"|\bbilling\b|\bpayment\b|prepaid|unpaid"
    r"|\b(current|your|monthly|daily|usage|token|free|request|exceeded|insufficient)[ _]quota\b|invoice|subscription"
    r"|\bquota (is )?(exceeded|exhausted)|(spend|spending|usage|credit) (limit|cap)s?\b|overdue|arrear"
    r"|budget has been exceeded|good standing|free (tier|plan|trial)"
    r"|(account|organi[sz]ation|workspace|tenant)\b.{0,60}(disabled|restricted|suspended|deactivated|blocked|banned"
    r"|inactive|not active|verified|terminated|limit)|\bin organi[sz]ation\b"
    r"|service tier|余额|欠费|充值|账户|密钥|额度"
)
_ACCOUNT_IDS = re.compile(r"\b(org|proj|acct)[-_](?=[a-z]*\d)[a-z0-9]{6,}")
_MODEL_CODES = _codes(
    "model_not_found model_not_available model_not_supported model_decommissioned model_deprecated model_retired"
    " model_gone invalid_model unknown_model modelnotfound deploymentnotfound deployment_not_found model_unavailable"
)
_MODEL_WORDS = re.compile(
    r"\b(models?|deployment)\b(?:(?![.;,] | (parameter|argument|option|field|file|image|function|tool)).){0,120}"
    r"(not exist|not (be )?found|not loaded|not (a )?valid|not available|no longer|not (currently )?served"
    r"|is unavailable|retired|deprecated|decommission|discontinu|sunset|been removed"
    r"|shut ?down|end[ -]of[ -](its )?life)|\bmodel (identifier|id|name) is invalid"
    r"|\b(model|deployment) ['\"`]?[\w./:@-]+['\"`]? is not supported"
    r"|(unknown|invalid|no such|not a valid|retired|deprecated|nonexistent) (model|deployment)\b"
    r"(?! (length|parameter|argument|option|output))"
)
_NO_REASON = re.compile(
    r"\b(\d{3}|(bad|invalid)[ _]?request|not[ _]?found|unprocessable[ _]?(entity|content)|not[ _]?implemented"
    r"|(\w+[ _]?)?error)\b|[^\w\s]"
)
_MODEL_ALONE = re.compile(r"models?[:/] ?\S+")  # the whole text of Anthropic's 404
_UNSUPPORTED_CODES = _codes(
    "unsupported_parameter unsupported_value unknown_parameter unsupported_feature extra_forbidden"
    " unsupported_content_type not_implemented notimplementederror unsupported_operation unrecognized_argument"
    " operationnotsupported"
)
_UNSUPPORTED_WORDS = re.compile(
    r"unsupported|(not|n['\u2019]t) (currently |yet )?(be )?supported"
    r"|(does not|doesn't|do not|don't|cannot|can't) support"
    r"|(unrecogni[sz]ed|unknown|unexpected|unpermitted) (request )?(argument|parameter|field|key|option)"
    r"|(unrecogni[sz]ed|unknown|unexpected|unpermitted) (name|member|variant)"
    r"|extra (inputs?|fields?) (is |are )?not (permitted|allowed)|additional propert|not implemented"
    r"|requires? (the )?--[a-z]|is not a multimodal model|at most 0 |does not work with the specified model"
    r"|enabled only for"
)
_NOT_THERE = r"(not (be )?found|not exist|no such|expired)"
_ID_WORDS = re.compile(
    r"\b(resp|conv|msg|file|item|thread|asst|vs|run|batch|cmpl|chatcmpl|rs|fc)[-_](?=[a-z-]*\d)[a-z0-9-]{3,}"
    rf"|previous[ _]response|\b(response|conversation|thread|assistant|vector store)\b(?! format).{{0,80}}{_NOT_THERE}"
    rf"|\b(file|message|item)\b.{{0,20}}(\bid\b|['\"`:]).{{0,60}}{_NOT_THERE}"
    r"|no (response|conversation|file|thread|item)\b.{0,40}found"
)
_STATUS_WORDS = ((400, _CONTEXT_WORDS), (404, re.compile(r"unexpected endpoint")))


MOST_PARTS = 32 * 1024  # objects and lists; a megabyte of them takes 0.1 s to parse
MOST_NESTED = 100  # levels; answers have ten, a schema quoted in one about twenty more
TOO_COMPLEX = f"JSON nested more than {MOST_NESTED} levels deep, or of more than {MOST_PARTS:,} objects and lists"
_TEXT = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"?', re.DOTALL)  # an unterminated text extends to the last byte
_OPENING, _BRACKETS = frozenset(b"[{"), b"[]{}"
_ANYTHING_ELSE = bytes(byte for byte in range(256) if byte not in _BRACKETS)


class TooComplex(ValueError):
    """Data nested deeper than MOST_NESTED, or with more objects and lists than MOST_PARTS."""


def json_value(data: bytes) -> Any:
    """Parse JSON. Raises ValueError if invalid, TooComplex beyond the limits."""
    if is_complex(data):
        raise TooComplex(TOO_COMPLEX)
    return json.loads(data)


def is_complex(data: bytes) -> bool:
    """True if there are too many brackets or too deep nesting; takes linear time for any bytes."""
    if data.count(b"[") + data.count(b"{") <= MOST_NESTED:
        return False
    brackets = _TEXT.sub(b"", data).translate(None, _ANYTHING_ELSE)
    if brackets.count(b"[") + brackets.count(b"{") > MOST_PARTS:
        return True
    depth = 0
    for bracket in brackets:
        depth += 1 if bracket in _OPENING else -1
        if depth > MOST_NESTED:
            return True
    return False
