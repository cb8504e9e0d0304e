"""Log-probabilities of an answer's tokens: asking an engine for them, and taking them out of its answer again. Pure.

An engine that is asked for them answers as without, except for the value of `logprobs`, which is null without. vLLM
also sends a chunk for a token of which nothing is told yet; such chunks are dropped.
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from enum import Enum
from itertools import islice

from coe_server.http.answers.sse import EventCutter
from coe_server.http.apis import Api
from coe_server.http.bodies.body import LONGEST_OPTION_BYTES, Body
from coe_server.http.bodies.presets import Changes
from coe_server.upstream.complaint import Cause, TooComplex, cause_of, names_member, says_why
from coe_server.upstream.verdict import complaint_in, events_in

logger = logging.getLogger(__name__)

MOST_FOUND = 2**16  # log-probabilities that are kept of one answer
LONGEST_BODY_BYTES = 8 * 2**20  # about 60,000 tokens with their log-probabilities
_WORD = "logprobs"
_ASKED = {"chat": b"true", "completions": b"1"}  # other APIs have no log-probabilities, or not of every token
_BESIDE = "top_logprobs"  # is refused without the other
_UNSET = frozenset((b"null", b"false"))
_FREE = {  # the values that force nothing; a preset may ask for several answers
    **{"tool_choice": ("none", "auto"), "response_format": ({"type": "text"},)},
    **dict.fromkeys(("n", "best_of", "n_cmpl"), (1,)),
}
_READ = frozenset(  # with the others the tokens follow a grammar, or are not the answer's
    ("guided_json", "guided_regex", "guided_choice", "guided_grammar", "structured_outputs", "json_schema", "grammar")
) | frozenset(("regex", "ebnf", "echo", "use_beam_search", "prompt_logprobs", _WORD, _BESIDE, *_FREE))
_OPENING = re.compile(r'(?<!\\)"logprobs"\s*:\s*(?=[\[{])')
_EMPTY_DELTA = re.compile(r'"delta"\s*:\s*\{\s*\}')
_UNFINISHED = re.compile(r'"finish_reason"\s*:\s*null')
_DECODER = json.JSONDecoder()
_NAMED = re.compile(r"\b(top_)?logprobs?\b|\blog[ -]?prob(s|abilit(y|ies))?\b", re.IGNORECASE)


def asking(api: Api, body: Body, changes: Changes) -> Changes | None:
    """The members with which an engine tells its log-probabilities; None where they cannot be asked for or say nothing.

    Empty if the caller, or a preset by its `changes`, asks for them: then they are passed on.
    """
    asked = _ASKED.get(api.endpoint)
    if asked is None or not api.routed:
        return None
    said = {member.key: body.raw[member.value_start : member.end] for member in body.members if member.key in _READ}
    said |= {name: value or b"null" for name, value in changes.items() if name in _READ}
    if any(_forces(name, value) for name, value in said.items()):
        return None
    if said.get(_WORD, b"null") not in _UNSET:
        return {}
    return {_WORD: asked} if said.get(_BESIDE, b"null") in _UNSET else None


MOST_UNCLEAR = 3


class Refusal(Enum):
    """What an engine says to a request that asks for log-probabilities."""

    OF_LOGPROBS = "of log-probabilities"  # it names them
    UNCLEAR = "unclear"  # it gives no reason, or speaks of something unsupported without a name
    OF_THE_REQUEST = "of the request"  # another reason


class Tellers:
    """Which experts' engines tell log-probabilities, as they were seen to."""

    def __init__(self) -> None:
        self._told: set[str] = set()
        self._silent: set[str] = set()
        self._unclear: Counter[str] = Counter()  # refusals in a row

    def may_tell(self, expert: str) -> bool:
        return expert in self._told or expert not in self._silent

    def told(self, expert: str) -> None:
        """Its engine told some: a later refusal is about one request."""
        self._told.add(expert)

    def took(self, expert: str) -> None:
        """Its engine took a request for them."""
        self._unclear.pop(expert, None)

    def refused(self, expert: str) -> None:
        """Its engine refused a request unclearly. After MOST_UNCLEAR in a row it is no longer asked."""
        self._unclear[expert] += 1
        if self._unclear[expert] >= MOST_UNCLEAR:
            self._silence(expert)

    def answered_without(self, expert: str) -> None:
        """Its engine refused a request for them by name, and answered the same request without."""
        self._silence(expert)

    def _silence(self, expert: str) -> None:
        if self.may_tell(expert):
            logger.warning("expert '%s' refuses log-probabilities: until a reload, its answers are not judged", expert)
        self._silent.add(expert)


def refusal_in(status: int, body: bytes) -> Refusal:
    """What the error in the body of a response with this status refuses."""
    try:
        complaint = complaint_in(status, body)
    except TooComplex:
        return Refusal.OF_THE_REQUEST
    if names_member(complaint, _NAMED):
        return Refusal.OF_LOGPROBS
    is_unclear = not says_why(complaint) or cause_of(complaint) is Cause.UNSUPPORTED
    return Refusal.UNCLEAR if is_unclear else Refusal.OF_THE_REQUEST


def _forces(name: str, value: bytes) -> bool:
    if value in _UNSET or name in {_WORD, _BESIDE}:
        return False
    if name not in _FREE or len(value) > LONGEST_OPTION_BYTES:
        return True
    return json.loads(value) not in _FREE[name]


class TakenFromEvents:
    """Reads a stream of events and returns it without its log-probabilities, or as it is if they are `kept`."""

    def __init__(self, kept: bool) -> None:
        self.found: list[float] = []
        self._cutter = EventCutter()
        self._kept = kept

    def hear(self, piece: bytes) -> bytes:
        """The whole events up to here."""
        events = self._cutter.whole_events(piece)
        if b'"logprobs"' not in events:
            return events
        return b"".join(self._passed(event) for event in events_in(events))

    def end(self) -> bytes:
        """What is left of an incomplete event, once."""
        rest, self._cutter = self._cutter.rest, EventCutter()
        return rest

    def _passed(self, event: bytes) -> bytes:
        passed, found = without_logprobs(event)
        if passed is event:
            return event
        self.found += found[: MOST_FOUND - len(self.found)]
        if self._kept:
            return event
        return b"" if _says_nothing(passed) else passed


class TakenFromBody:
    """The same for a body that is one JSON value; nothing is returned before its end, unless it is very long."""

    def __init__(self, kept: bool) -> None:
        self.found: list[float] = []
        self._body = bytearray()
        self._kept = kept
        self._is_too_long = False

    def hear(self, piece: bytes) -> bytes:
        """Keep this part. A body that grows above LONGEST_BODY_BYTES is returned as it is, and not read."""
        if self._is_too_long:
            return piece
        self._body += piece
        if len(self._body) <= LONGEST_BODY_BYTES:
            return b""
        self._is_too_long, body = True, bytes(self._body)
        self._body.clear()
        return body

    def end(self) -> bytes:
        """The whole body, once."""
        body = bytes(self._body)
        self._body.clear()
        passed, self.found = without_logprobs(body)
        return body if self._kept else passed


def _says_nothing(event: bytes) -> bool:
    """True for a chunk with an empty delta that is not the last one. Each search goes over the text once."""
    text = event.decode(errors="replace")
    delta = _EMPTY_DELTA.search(text)
    return delta is not None and _UNFINISHED.search(text, delta.end()) is not None


def without_logprobs(raw: bytes) -> tuple[bytes, list[float]]:
    """An event or a body with null for its log-probabilities, and what they were; unchanged where there are none.

    A text that mentions them is not mistaken for them: in it, the quotes are escaped.
    """
    text, start, pieces, found = raw.decode("utf-8", "surrogateescape"), 0, [], []
    while mark := _OPENING.search(text, start):
        try:
            value, end = _DECODER.raw_decode(text, mark.end())
        except (ValueError, RecursionError):
            break
        pieces += [text[start : mark.end()], "null"]
        found += _logprobs(value)
        start = end
    if not pieces:
        return raw, []
    return "".join((*pieces, text[start:])).encode("utf-8", "surrogateescape"), found


def _logprobs(value: object) -> list[float]:
    """The numbers in the form of chat (`content`), or of completions (`token_logprobs`)."""
    if not isinstance(value, Mapping):
        return []
    listed = value.get("token_logprobs")
    if not isinstance(listed, list):
        entries = value.get("content") or value.get("refusal")
        listed = (
            [one.get("logprob") for one in entries if isinstance(one, Mapping)] if isinstance(entries, list) else []
        )
    return list(islice(_numbers(listed), MOST_FOUND))


def _numbers(listed: list[object]) -> Iterator[float]:
    """Without NaN, which an engine's JSON may have; an integer beyond all floats is infinite."""
    for one in listed:
        if not isinstance(one, int | float) or isinstance(one, bool):
            continue
        try:
            number = float(one)
        except OverflowError:
            number = math.inf if one > 0 else -math.inf
        if not math.isnan(number):
            yield number
