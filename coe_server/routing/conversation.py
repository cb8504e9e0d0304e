"""A request's messages -> the user's turns and the request's needs; and the memory of each conversation's expert.

Routing reads only the user's turns: no system, assistant or tool messages, and no reminders that a program inserts into
a user's turn. All of them count for the context window.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from coe_server.config.types import Modality
from coe_server.errors import RequestError
from coe_server.routing.decision import Kept, RouteOptions, RoutingDecision
from coe_server.routing.features import Turn
from coe_server.routing.tokens import NOTHING, TokenCount

REMEMBERED_TURNS = 4
WEIGHT_PER_STEP_BACK = 0.5
DEEPEST_PART = 3  # levels: a message's part, a document in a tool result, its source, a part of that

Media = Literal["audio.transcriptions", "audio.translations", "audio.speech", "images.generations", "images.edits"]
Endpoint = Literal["chat", "completions", "responses", "messages", "embeddings", "tokenize", "rerank", "score"] | Media
MEDIA: tuple[Media, ...] = get_args(Media)
ENDPOINTS: tuple[Endpoint, ...] = (*get_args(get_args(Endpoint)[0]), *MEDIA)
PATHS: Mapping[Endpoint, str] = {
    **{name: f"/v1/{name.replace('.', '/')}" for name in ENDPOINTS},
    "chat": "/v1/chat/completions",
    "tokenize": "/tokenize",
}
LONGEST_SYSTEM_PROMPT = 8_000  # characters that rules read

# Parts of chat, responses and Anthropic's messages, and vLLM's additional ones.
_MODALITIES: dict[str, Modality] = {
    **dict.fromkeys(("image_url", "input_image", "image", "image_embeds", "computer_screenshot"), "image"),
    **dict.fromkeys(("input_audio", "audio_url", "audio", "audio_embeds"), "audio"),
    **dict.fromkeys(("video_url", "input_video", "video", "video_embeds"), "video"),
    **dict.fromkeys(("file", "input_file", "document", "container_upload"), "file"),
}
_ASKING = ("user", "system", "developer")  # any other message, or an item without a role, comes after an answer
_SAYING = ("system", "developer")
_REMINDERS = ("<system-reminder>", "</system-reminder>")


@dataclass(frozen=True, slots=True)
class Conversation:
    """The user's turns, newest last, and the request's needs.

    `prompt`: estimated tokens before the answer, which may have `answer_tokens`. `opening`: the user's first turn,
    which identifies the conversation. `continues`: the first turn has been answered. `system_prompt`: the beginning of
    the system prompt.
    """

    turns: tuple[Turn, ...]
    prompt: TokenCount = NOTHING
    answer_tokens: int = 0
    modalities: frozenset[Modality] = frozenset()
    has_tools: bool = False
    endpoint: Endpoint = "chat"
    opening: str = ""
    continues: bool = False
    system_prompt: str = ""

    @classmethod
    def of_prompt(cls, prompt: str) -> Conversation:
        """A conversation of one prompt."""
        return cls((Turn(prompt),), TokenCount.of(prompt))

    @property
    def path(self) -> str:
        """The request's path."""
        return PATHS[self.endpoint]

    @property
    def is_media(self) -> bool:
        """True for audio and images, which only a route's rules may route: their content is not text."""
        return self.endpoint in MEDIA

    @property
    def likely_tokens(self) -> int:
        """Estimated context tokens of the prompt and the longest allowed answer."""
        return self.prompt.likely + self.answer_tokens

    @property
    def least_tokens(self) -> int:
        """Lower bound on the context that the request needs.

        vLLM ends an answer at the end of the context (`get_max_tokens`), and refuses `answer_tokens` above the context.
        """
        return max(self.prompt.least, self.answer_tokens)

    def of_any_length(self) -> Conversation:
        """The same without a length check, for an expert requested by name: its engine counts tokens exactly."""
        return replace(self, prompt=NOTHING, answer_tokens=0)


def read_messages(
    messages: Sequence[Mapping[str, Any]],
    has_tools: bool = False,
    max_tokens: int = 0,
    *,
    beside: str = "",
    field: str = "messages",
) -> Conversation:
    """The conversation in a request. `max_tokens`: limit of the answer. `beside`: further text in the context.

    Raises RequestError for a message whose content is neither text nor a list of parts.
    """
    texts: list[str] = []
    all_texts, answered = [beside], False
    said = [beside] if beside else []
    modalities: set[Modality] = set()
    for position, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise RequestError(f"{field}[{position}] is not an object", param=field)
        parts = _parts(message.get("content"), position, field)
        answered = answered or message.get("role") not in _ASKING
        is_plain = len(message) == 2 and "content" in message  # only role and content, as in most messages
        everything = tuple(_with_inner(parts if is_plain else [*parts, *_beside_content(message)]))
        all_texts.extend(_all_texts(everything))
        modalities.update(_all_modalities(everything))
        text = "\n".join(part["text"] for part in parts if isinstance(part.get("text"), str))
        if message.get("role") in _SAYING and sum(map(len, said)) < LONGEST_SYSTEM_PROMPT:
            said.append(text)
        if message.get("role") == "user" and (own := without_reminders(text)).strip():
            texts.append(own)
    return Conversation(
        _weighted(texts),
        TokenCount.of("".join(all_texts)),
        max_tokens,
        frozenset(modalities),
        has_tools,
        opening=texts[0] if texts else "",
        continues=answered or len(texts) > 1,
        system_prompt="\n".join(said)[:LONGEST_SYSTEM_PROMPT],
    )


def without_reminders(text: str) -> str:
    """The text without an agent's reminders between their marks; an unclosed one extends to the end."""
    opening, closing = _REMINDERS
    if opening not in text:
        return text
    kept, position = [], 0
    while (start := text.find(opening, position)) >= 0:
        kept.append(text[position:start])
        end = text.find(closing, start)
        position = len(text) if end < 0 else end + len(closing)
    return "".join((*kept, text[position:]))


def _parts(content: object, position: int, field: str) -> list[Mapping[str, Any]]:
    if content is None:
        return []
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if isinstance(content, list) and all(isinstance(part, Mapping) for part in content):
        return content
    if isinstance(content, list) and all(isinstance(part, Mapping | str) for part in content):  # strings: for vLLM
        return [{"type": "text", "text": part} if isinstance(part, str) else part for part in content]
    raise RequestError(f"{field}[{position}].content is neither text nor a list of parts", param=field)


def _with_inner(parts: Iterable[Mapping[str, Any]], levels: int = DEEPEST_PART) -> Iterator[Mapping[str, Any]]:
    """The parts, and those nested in tool results and documents."""
    for part in parts:
        yield part
        inner = part.get("content")
        if levels and isinstance(inner, list):
            yield from _with_inner((one for one in inner if isinstance(one, Mapping)), levels - 1)
        elif levels and isinstance(source := part.get("source"), Mapping):
            yield from _with_inner([_readable(source)], levels - 1)


def _readable(source: Mapping[str, Any]) -> Mapping[str, Any]:
    """The text or parts of a document's source, without bytes and addresses."""
    return {"text": source.get("data") if source.get("type") == "text" else None, "content": source.get("content")}


def _beside_content(message: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Tool calls and results that are outside the content, in chat and responses."""
    for said in (message.get("arguments"), message.get("output")):
        if isinstance(said, str):
            yield {"text": said}
        elif isinstance(said, Mapping):
            yield said
        elif isinstance(said, list):
            yield from (part for part in said if isinstance(part, Mapping))
    calls = message.get("tool_calls")
    for call in calls if isinstance(calls, list) else ():
        function = call.get("function") if isinstance(call, Mapping) else None
        if isinstance(function, Mapping):
            yield {"text": function.get("arguments")}


def _all_modalities(parts: Sequence[Mapping[str, Any]]) -> Iterator[Modality]:
    for part in parts:
        kind = part.get("type")
        if kind is None:  # vLLM accepts a part without a type
            yield from (modality for name, modality in _MODALITIES.items() if part.get(name) is not None)
        elif isinstance(kind, str) and kind in _MODALITIES:
            yield _MODALITIES[kind]


def _all_texts(parts: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for part in parts:
        said = (part.get("text"), part.get("content"), part.get("refusal"))
        yield from (text for text in said if isinstance(text, str))
        given = part.get("input")  # of a tool call in Anthropic's messages
        if isinstance(given, Mapping):
            yield from (text for text in given.values() if isinstance(text, str))


def _weighted(texts: list[str]) -> tuple[Turn, ...]:
    """The last few turns; the newest has weight 1, each earlier one half of the next."""
    recent = texts[-REMEMBERED_TURNS:] or [""]
    steps_back = range(len(recent) - 1, -1, -1)
    return tuple(Turn(text, WEIGHT_PER_STEP_BACK**steps) for text, steps in zip(recent, steps_back, strict=True))


MOST_SESSIONS = 10_000
_OPENING_CHARACTERS = 2_000
_NOT_KEPT = frozenset(("requested", "fallback"))  # chosen by the client or after a failure


class Sessions:
    """Conversation -> `Kept`, bounded; the least recently answered one is dropped first."""

    def __init__(self, most: int = MOST_SESSIONS) -> None:
        self._most = most
        self._kept: OrderedDict[bytes, Kept] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def last(self, key: bytes | None, conversation: Conversation, options: RouteOptions) -> Kept | None:
        """The expert that answered last; None for the first turn of a conversation without a named session."""
        if key is None or not (conversation.continues or options.session is not None):
            return None
        return self._kept.get(key)

    def remember(self, key: bytes | None, decision: RoutingDecision) -> None:
        """Note an answered decision. A sticky expert keeps the topic for which it was first chosen."""
        if key is None or decision.reason in _NOT_KEPT:
            return
        before = self._kept.pop(key, None)
        stays = decision.reason == "sticky" and before is not None and before.expert == decision.expert
        draw = decision.exploration
        mine = draw if draw is not None and draw.drawn == decision.expert else None
        self._kept[key] = before if stays and before else Kept(decision.expert, decision.category, mine)
        if len(self._kept) > self._most:
            self._kept.popitem(last=False)


def session_key(conversation: Conversation, options: RouteOptions, owner: str | None) -> bytes | None:
    """A hash of the session's name, else of the conversation's first turn; None without either.

    `owner`, the name of the client's key, is part of the hash, so that keys do not share conversations.
    """
    if options.expert is not None:
        return None
    told = options.session if options.session is not None else conversation.opening[:_OPENING_CHARACTERS]
    if not told:
        return None
    kind = "session" if options.session is not None else "opening"
    digest = hashlib.blake2b(digest_size=16)
    for part in (owner or "", options.objective or "", kind, told):
        encoded = part.encode("utf-8", "replace")
        digest.update(len(encoded).to_bytes(4, "big") + encoded)
    return digest.digest()
