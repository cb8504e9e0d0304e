"""A request's body together with what routing reads of it. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace

from coe_server.errors import RequestError
from coe_server.http.apis import Surface, read_fan_out, surface_of
from coe_server.http.body import Body, Member, read_body
from coe_server.routing.conversation import Conversation
from coe_server.routing.token_count import TokenCount

# The fields of a body that are read beside its conversation.
OPTIONS = ("model", "coe", "stream", "previous_response_id")
# With one of these fields an answer may be empty.
_ENDINGS = (
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
class Question:
    """What a request asks, and over which surface. `may_be_silent`: an empty text may be the whole answer.

    `fan_out` is the number of answers it asks for at once.
    """

    surface: Surface
    body: Body
    conversation: Conversation
    may_be_silent: bool = False
    fan_out: int = 1

    def without_bytes(self) -> Question:
        """All that is needed beside the bytes, of bounded size. Raises RequestError for an option that is too long."""
        members, fields = self.body.members, self.body.fields
        for member in members:
            if member.key in OPTIONS and member.end - member.value_start > LONGEST_OPTION_BYTES:
                raise RequestError(f"{member.key} is longer than {LONGEST_OPTION_BYTES} bytes", member.key)
        return Question(
            self.surface,
            Body(b"", {key: fields[key] for key in OPTIONS if key in fields}, tuple(map(_with_short_key, members))),
            _shortened(self.conversation),
            self.may_be_silent,
            self.fan_out,
        )

    def with_bytes(self, raw: bytes) -> Question:
        """The same with the body's bytes again."""
        return replace(self, body=replace(self.body, raw=raw))


def read_question(raw: bytes, surface: Surface | None) -> Question:
    """What the body asks. Without a surface the body's fields tell which it is. Raises RequestError."""
    body = read_body(raw)
    found = surface or surface_of(body.fields)
    conversation = found.conversation(body.fields)
    if conversation.has_tools:
        conversation = replace(conversation, prompt=conversation.prompt + _tokens_of_tools(body))
    may_be_silent = any(body.fields.get(name) is not None for name in _ENDINGS)
    return Question(found, body, conversation, may_be_silent, read_fan_out(found, body.fields))


def _tokens_of_tools(body: Body) -> TokenCount:
    """What the tools' descriptions take of the context. Most chat templates write the JSON as it came; the shortest
    ones write its words without the syntax, about half of it."""
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
