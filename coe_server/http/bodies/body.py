"""A JSON request body, read once: its bytes as they came, its fields, and what routing reads of it. Pure."""

from __future__ import annotations

import json
import re
from codecs import BOM_UTF8
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NoReturn

from coe_server.errors import RequestError
from coe_server.http.apis import Api, api_of, read_fan_out
from coe_server.routing.conversation import Conversation
from coe_server.routing.tokens import TokenCount

MOST_MEMBERS = 256  # OpenAI's own requests have about 40
LARGE_BYTES = 64 * 1024  # reading a body of this size may take milliseconds
MOST_MARKS = 500_000  # commas and opening brackets in a large body: 16 million lists would be seconds and gigabytes
NESTED_TOO_DEEPLY = "the body is nested too deeply"

if TYPE_CHECKING:
    from coe_server.http.bodies.uploads import Upload

_GZIP = b"\x1f\x8b"
_NO_CHANGES: Mapping[str, bytes | None] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Member:
    """One top-level `"key": value` and which bytes it takes; ends are exclusive."""

    key: str
    start: int
    value_start: int
    end: int


@dataclass(frozen=True, slots=True)
class Body:
    """The parsed top-level object together with the bytes it came from."""

    raw: bytes
    fields: Mapping[str, Any]
    members: tuple[Member, ...]

    def for_engine(
        self, model: str, changes: Mapping[str, bytes | None] = _NO_CHANGES
    ) -> tuple[bytes | memoryview, ...]:
        """The same bytes, in pieces, with the value of `model` replaced (or added) and `coe` removed.

        `changes`: further members with their new values, which stand at the end; None drops one.
        """
        raw, name = memoryview(self.raw), json.dumps(model).encode()
        end = self.members[-1].end if self.members else self.raw.index(b"}")
        pieces: list[bytes | memoryview] = [raw[: self.members[0].start if self.members else end]]
        for before, member in zip((None, *self.members), self.members, strict=False):
            if member.key != "coe" and member.key not in changes:
                start = before.end if before and len(pieces) > 1 else member.start  # the comma only between two
                pieces.append(raw[start : member.value_start])
                pieces.append(name if member.key == "model" else raw[member.value_start : member.end])
        added = {} if "model" in self.fields else {"model": name}
        for key, value in (*added.items(), *changes.items()):
            if value is not None:
                pieces += [b", " if len(pieces) > 1 else b"", json.dumps(key).encode(), b": ", value]
        return (*pieces, raw[end:])


def read_body(raw: bytes) -> Body:
    """Parse a request body. Raises RequestError if it is not one JSON object, or has too many members or values.

    The encoding is UTF-8, UTF-16 or UTF-32, with or without a byte order mark. `Body.raw` is UTF-8 without a mark.
    """
    try:
        raw = _in_utf_8(raw)
        if len(raw) > LARGE_BYTES and sum(map(raw.count, (b",", b"[", b"{"))) > MOST_MARKS:
            raise RequestError(
                f"the body has more than {MOST_MARKS:,} values (commas and opening brackets are counted)"
            )
        text = raw.decode()
        members, fields = _scan_object(text)
    except UnicodeDecodeError as error:
        if raw.startswith(_GZIP):
            raise RequestError("the body is compressed; send `content-encoding: gzip`") from error
        raise RequestError(f"the body is not {error.encoding.upper()} (byte {error.start})") from error
    except RecursionError as error:
        raise RequestError(NESTED_TOO_DEEPLY) from error
    except ValueError as error:
        raise RequestError(f"the body is not valid JSON: {error}") from error
    return Body(raw, fields, tuple(members if len(text) == len(raw) else _in_bytes(members, text)))


def _in_utf_8(raw: bytes) -> bytes:
    """The same text in UTF-8 without a byte order mark; the same object where that changes nothing."""
    encoding = json.detect_encoding(raw)
    if encoding.startswith("utf-8"):
        return raw.removeprefix(BOM_UTF8)
    text = raw.decode(encoding, "surrogatepass")
    return text.encode("utf-8", "backslashreplace")  # half of a surrogate pair becomes \\ud800, as JSON writes it


def _scan_object(text: str) -> tuple[list[Member], dict[str, Any]]:
    """The members, with places in characters, and their values. Raises ValueError, RecursionError and RequestError."""
    members: list[Member] = []
    fields: dict[str, Any] = {}
    mark = _OPENING.match(text)
    if mark is None:
        raise RequestError("the body must be a JSON object")
    while mark[1] != "}":
        if len(members) == MOST_MEMBERS:
            raise RequestError(f"the body has more than {MOST_MEMBERS} top-level fields")
        start = mark.end()
        if not text.startswith('"', start):
            raise json.JSONDecodeError("Expecting '\"'", text, start)
        key, end = _DECODER.raw_decode(text, start)
        colon = _COLON.match(text, end)
        if colon is None:
            raise json.JSONDecodeError("Expecting ':'", text, end)
        fields[key], end = _DECODER.raw_decode(text, colon.end())
        members.append(Member(key, start, colon.end(), end))
        mark = _COMMA_OR_END.match(text, end)
        if mark is None:
            raise json.JSONDecodeError("Expecting ',' or '}'", text, end)
    if mark.end() != len(text):
        raise json.JSONDecodeError("Extra data", text, mark.end())
    return members, fields


def _in_bytes(members: Iterable[Member], text: str) -> Iterator[Member]:
    """The same members with places in the UTF-8 bytes of the text."""
    at, passed = 0, 0
    for member in members:
        places = []
        for place in (member.start, member.value_start, member.end):
            passed += len(text[at:place].encode())
            at = place
            places.append(passed)
        yield Member(member.key, *places)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


_BLANKS = r"[ \t\n\r]*"
_OPENING = re.compile(rf"{_BLANKS}{{{_BLANKS}(?:(}}){_BLANKS})?")
_COLON = re.compile(rf"{_BLANKS}:{_BLANKS}")
_COMMA_OR_END = re.compile(rf"{_BLANKS}([,}}]){_BLANKS}")
_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)


# The fields of a body that are read beside its conversation.
OPTIONS = ("model", "coe", "stream", "previous_response_id")
# With one of these fields an answer may be empty.
ENDINGS = (
    "stop",
    "stop_sequences",
    "stop_token_ids",
    "max_tokens",
    "max_completion_tokens",
    "max_output_tokens",
    "echo",
)
LONGEST_OPTION_BYTES = 64 * 1024
KEPT_CHARACTERS = 20_000  # of each end of a text: more than routing reads, and too long for the decision log
_LONGEST_KEY = 64  # longer than any key that is read


@dataclass(frozen=True, slots=True)
class ParsedRequest:
    """One request to an API. `may_be_silent`: an empty text may be the whole answer. `fan_out`: the answers it asks
    for."""

    api: Api
    body: Body
    conversation: Conversation
    may_be_silent: bool = False
    fan_out: int = 1
    upload: Upload | None = None  # a form, whose bytes are not in `body`

    def without_bytes(self) -> ParsedRequest:
        """All that is needed beside the bytes, of bounded size. Raises RequestError for an option that is too long."""
        members, fields = self.body.members, self.body.fields
        for member in members:
            if member.key in OPTIONS and member.end - member.value_start > LONGEST_OPTION_BYTES:
                raise RequestError(f"{member.key} is longer than {LONGEST_OPTION_BYTES} bytes", member.key)
        return ParsedRequest(
            self.api,
            Body(b"", {key: fields[key] for key in OPTIONS if key in fields}, tuple(map(_with_short_key, members))),
            _shortened(self.conversation),
            self.may_be_silent,
            self.fan_out,
        )

    def with_bytes(self, raw: bytes) -> ParsedRequest:
        """The same with the body's bytes again."""
        return replace(self, body=replace(self.body, raw=raw))


def parse_request(raw: bytes, api: Api | None) -> ParsedRequest:
    """The parsed request. Without an API, the body's fields determine it. Raises RequestError."""
    body = read_body(raw)
    found = api or api_of(body.fields)
    conversation = found.conversation(body.fields)
    if conversation.has_tools:
        conversation = replace(conversation, prompt=conversation.prompt + _tokens_of_tools(body))
    may_be_silent = any(body.fields.get(name) is not None for name in ENDINGS)
    return ParsedRequest(found, body, conversation, may_be_silent, read_fan_out(found, body.fields))


def parse_form(upload: Upload, api: Api) -> ParsedRequest:
    """The parsed request of a form. Raises RequestError for options under `coe`, which are for JSON bodies."""
    fields = upload.form.fields
    if "coe" in fields:
        raise RequestError("coe: a form has no options; name an expert, or a route's rule decides", "coe")
    return ParsedRequest(api, Body(b"", fields, ()), api.conversation(fields), upload=upload)


def _tokens_of_tools(body: Body) -> TokenCount:
    """Estimated characters of the tools in the context.

    Most chat templates insert the JSON unchanged; the shortest ones write it without syntax, about half of it.
    """
    written = b"".join(body.raw[member.value_start : member.end] for member in body.members if member.key == "tools")
    whole = TokenCount.of(written.decode("utf-8", "replace"))
    return TokenCount(whole.least // 2, whole.likely)


def _with_short_key(member: Member) -> Member:
    return replace(member, key=member.key[:_LONGEST_KEY])


def _shortened(conversation: Conversation) -> Conversation:
    turns = tuple(replace(turn, text=_ends_of(turn.text)) for turn in conversation.turns)
    return replace(conversation, turns=turns, opening=_ends_of(conversation.opening))


def _ends_of(text: str) -> str:
    if len(text) <= 2 * KEPT_CHARACTERS:
        return text
    return text[:KEPT_CHARACTERS] + text[-KEPT_CHARACTERS:]
