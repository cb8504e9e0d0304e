"""Maps an error body of any server, in any format, to its cause; and parses JSON within limits. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from itertools import islice
from typing import Any, NamedTuple

from coe_server.upstream.wording import (
    ACCOUNT_CODES,
    ACCOUNT_IDS,
    ACCOUNT_WORDS,
    BUSY_WORDS,
    CONTEXT_CODES,
    CONTEXT_WORDS,
    ID_WORDS,
    MODEL_ALONE,
    MODEL_CODES,
    MODEL_WORDS,
    NO_REASON,
    PATH_WORDS,
    POLICY_CODES,
    REQUEST_IN_500,
    STATUS_OF,
    STATUS_WORDS,
    UNSUPPORTED_CODES,
    UNSUPPORTED_WORDS,
    folded,
)

UNSTATED_STATUS = 502  # of an unclassified error inside a 200
_LONGEST_READ = 4_000  # characters of an error's text
_MOST_READ = 4_000  # values in an error
_CODES = ("code", "type", "status", "error_type", "status_code", "reason")
_DEEPEST = 8  # nesting levels of an error's members
_DEEPEST_PLACE, _MOST_PLACES = 3, 20  # error, its list, its entries
_USUAL = frozenset(("message", "detail", "msg", "error", "code", "type", "status", "param", "object"))
# Members in which an error quotes the request; they are ignored.
_REPEATED = frozenset(("input", "ctx", "loc", "body", "prompt", "messages", "content", "url", "failed_generation"))
# Quotes of the request inside a sentence: a validator's input comes last, names and values are in quotation marks. A
# quoted value after a colon may be another error's message, so it is kept.
_INPUT_WORDS = re.compile(r"""['"]?\binput(_value)?['"]?( was)?\s*[=:]\s*['"\[{(].*""", re.DOTALL)
_QUOTED = re.compile(r"""(?<!\w)(?<!['"]:)(?<!['"]: )(['"`])(?:(?!\1).){1,400}\1(?!\w)""")

_ADDRESS = re.compile(r"https?://\S+")  # one that the client gave, or of a page to read


class Cause(StrEnum):
    """The cause of an error."""

    CALLER = "caller"  # the client's mistake; all others are failures of the expert
    CONTEXT = "context"  # too long for this expert
    ACCOUNT = "account"  # credit, billing or key of the operator
    LIMITED = "limited"  # rate limit
    BUSY = "busy"  # temporarily overloaded or down
    MODEL = "model"  # the model no longer exists
    PATH = "path"  # this API is not served
    UNSUPPORTED = "unsupported"  # parameter, feature, or a length that its server answers with 500
    SILENT = "silent"  # no content and no token
    BROKEN = "broken"  # any other failure


class Complaint(NamedTuple):
    """A parsed error. `status`: HTTP's, or for an error inside a 200 the equivalent of its code or type."""

    status: int
    codes: tuple[str, ...]  # code and type, folded: the error's own, then those inside it
    param: str
    message: str
    words: str  # its text without quotes of the request
    places: frozenset[str] = frozenset()  # the members of the request that a validator (pydantic) names


# Causes that need no words.
_PLAIN = {
    429: Cause.LIMITED,
    503: Cause.BUSY,
    529: Cause.BUSY,
    410: Cause.MODEL,
    **dict.fromkeys((401, 402, 403, 407), Cause.ACCOUNT),
    **dict.fromkeys((408, 421, 423, 424, 425, 451), Cause.BROKEN),
}


def read_complaint(error: object, status: int | None, unstated: int = UNSTATED_STATUS) -> Complaint:
    """Parse `error`: the value of a member `error`, a complete body without one, or text.

    `status`: HTTP's error status; None for an error inside a 200.
    """
    fields: Mapping[str, Any] = error if isinstance(error, Mapping) else {}
    own_codes = tuple(_codes_of(fields))
    codes = own_codes + tuple(islice(_codes_inside(error), _MOST_PLACES))
    message = next((fields[name] for name in ("message", "detail", "msg") if fields.get(name)), error)
    found = [word for word in islice(_words(error), _MOST_READ) if word is not None]
    words = _INPUT_WORDS.sub("", " ".join(found)[:_LONGEST_READ])
    told = message if isinstance(message, str) else words
    param = fields.get("param")
    return Complaint(
        status or _status_of(own_codes) or _status_of(codes) or _status_in(words.lower()) or unstated,
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
        return _what_another_4xx_is(complaint)
    return _what_broke(complaint)


def says_why(complaint: Complaint) -> bool:
    """False for an error without a reason: nothing but its status, the status's name, or codes of a kind of error."""
    return NO_REASON.sub("", complaint.words).strip() != ""


def names_member(complaint: Complaint, member: re.Pattern[str]) -> bool:
    """True if it names such a member of the request: by place, or in its own words. Longer quotes are not its own."""
    if member.fullmatch(complaint.param) or any(map(member.fullmatch, complaint.places)):
        return True
    own = _QUOTED.sub(lambda quote: quote[0] if member.fullmatch(quote[0][1:-1]) else "", complaint.words)
    return member.search(own) is not None


def speaks_of_account(complaint: Complaint) -> bool:
    """True if it concerns the operator's account at the expert's server: credit, billing, keys or limits."""
    if _speaks_of(complaint, ACCOUNT_CODES, ACCOUNT_IDS):
        return True
    if not POLICY_CODES.isdisjoint(complaint.codes):
        return False
    return ACCOUNT_WORDS.search(_own_words(complaint)) is not None


def _what_is_not_found(complaint: Complaint) -> Cause:
    """Cause of a 404: an id given by the client, the model, or the path."""
    if complaint.param.endswith("_id") or complaint.param == "conversation":
        return Cause.CALLER
    if _speaks_of(complaint, MODEL_CODES, MODEL_WORDS) or MODEL_ALONE.fullmatch(complaint.message):
        return Cause.MODEL
    if not _is_page(complaint) and ID_WORDS.search(complaint.words):
        return Cause.CALLER
    return Cause.ACCOUNT if speaks_of_account(complaint) else Cause.PATH


def _what_is_refused(complaint: Complaint) -> Cause:
    """Cause of a 400, 413 or 422: mostly the client's mistake, but servers use them for other errors, too."""
    if not POLICY_CODES.isdisjoint(complaint.codes):
        return Cause.ACCOUNT if speaks_of_account(complaint) else Cause.CALLER
    if _speaks_of(complaint, CONTEXT_CODES, CONTEXT_WORDS):
        return Cause.CONTEXT
    if speaks_of_account(complaint):
        return Cause.ACCOUNT
    if _speaks_of(complaint, MODEL_CODES, MODEL_WORDS):
        return Cause.MODEL
    if _speaks_of(complaint, UNSUPPORTED_CODES, UNSUPPORTED_WORDS):
        return Cause.UNSUPPORTED
    return Cause.CONTEXT if complaint.status == 413 else _what_another_4xx_is(complaint)


def _what_another_4xx_is(complaint: Complaint) -> Cause:
    """Cause of any other 4xx. An API answers a client's mistake with no web page: that is of a server before it."""
    if speaks_of_account(complaint):
        return Cause.ACCOUNT
    if PATH_WORDS.search(_own_words(complaint)):
        return Cause.PATH
    if BUSY_WORDS.search(_own_words(complaint)):
        return Cause.BUSY
    return Cause.BROKEN if _is_page(complaint) else Cause.CALLER


def _what_broke(complaint: Complaint) -> Cause:
    """Cause of a 5xx. Some servers use 500 and 501 where others use 400: for what depends on the request."""
    is_of_request = complaint.status == 500 and _speaks_of(complaint, CONTEXT_CODES, REQUEST_IN_500)
    return Cause.UNSUPPORTED if is_of_request or complaint.status == 501 else Cause.BROKEN


def _own_words(complaint: Complaint) -> str:
    """Its words without quotes and addresses, which may be the client's."""
    return _ADDRESS.sub("", _QUOTED.sub("", complaint.words))


def _is_page(complaint: Complaint) -> bool:
    return complaint.message.lstrip().startswith("<")


def _speaks_of(complaint: Complaint, codes: frozenset[str], words: re.Pattern[str]) -> bool:
    return not codes.isdisjoint(complaint.codes) or words.search(complaint.words) is not None


def _is_said(value: object) -> bool:
    return isinstance(value, str | int) and not isinstance(value, bool) and value != ""


def _codes_of(fields: Mapping[str, Any]) -> Iterator[str]:
    """Each code as a whole, then its parts: `Model.AccessDenied`."""
    for code in (str(fields[name]) for name in _CODES if _is_said(fields.get(name))):
        yield folded(code)
        yield from map(folded, code.split(".")[1:])


def _codes_inside(value: object, depth: int = 0) -> Iterator[str]:
    """The codes of the errors inside an error."""
    entries: Sequence[object] = value if isinstance(value, list) else ()
    if isinstance(value, Mapping):
        entries = [one for name, one in value.items() if name not in _REPEATED]
    for one in entries[:_MOST_PLACES] if depth < _DEEPEST_PLACE else ():
        yield from _codes_of(one) if isinstance(one, Mapping) else ()
        yield from _codes_inside(one, depth + 1)


def _status_of(codes: tuple[str, ...]) -> int | None:
    for code in codes:
        if len(code) == 3 and code.isdecimal() and 400 <= int(code) < 600:
            return int(code)
    return next((STATUS_OF[code] for code in codes if code in STATUS_OF), None)


def _status_in(words: str) -> int | None:
    """The status implied by the text of an error inside a 200 without code and type."""
    own = _QUOTED.sub("", words)
    return next((status for status, pattern in STATUS_WORDS if pattern.search(own)), None)


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
