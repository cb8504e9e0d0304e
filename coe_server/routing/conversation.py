"""A request's messages -> what routing reads of them: the user's turns, newest first in weight, and what they need.

Knows nothing of experts or categories. System, assistant and tool turns are not the user's intent, nor are the
reminders that a program writes into a user's turn. They are not read, but they fill the context window.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from coe_server.errors import RequestError
from coe_server.routing.features import Turn

REMEMBERED_TURNS = 4
WEIGHT_PER_STEP_BACK = 0.5
BYTES_PER_TOKEN = 4  # English prose; only used to leave out experts whose context is clearly too small

Endpoint = Literal["chat", "completions", "responses", "messages", "embeddings", "tokenize", "rerank", "score"]
ENDPOINTS: tuple[Endpoint, ...] = get_args(Endpoint)

_IMAGES = ("image_url", "input_image", "image")  # chat, responses, Anthropic's messages
_ASKING = ("user", "system", "developer")  # any other message, or an item of no role, followed an answer
_REMINDERS = ("<system-reminder>", "</system-reminder>")


@dataclass(frozen=True, slots=True)
class Conversation:
    """The user's turns, newest last, and what an expert needs to take the request.

    `opening` is the user's first turn, by which a conversation is known again; `continues` once it was answered.
    """

    turns: tuple[Turn, ...]
    needed_tokens: int = 0
    has_images: bool = False
    has_tools: bool = False
    endpoint: Endpoint = "chat"
    opening: str = ""
    continues: bool = False

    @classmethod
    def of_prompt(cls, prompt: str) -> Conversation:
        """One prompt that stands alone."""
        return cls((Turn(prompt),), len(prompt.encode("utf-8", "replace")) // BYTES_PER_TOKEN)


def read_messages(
    messages: Sequence[Mapping[str, Any]],
    has_tools: bool = False,
    max_tokens: int = 0,
    *,
    beside: str = "",
    field: str = "messages",
) -> Conversation:
    """The conversation in a request. `max_tokens` is what the answer may add to the context, `beside` fills it too.

    Raises RequestError naming the message whose content is neither text nor a list of parts.
    """
    texts: list[str] = []
    length_bytes, has_images, answered = len(beside.encode("utf-8", "replace")), False, False
    for position, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise RequestError(f"{field}[{position}] is not an object", param=field)
        parts = _parts(message.get("content"), position, field)
        answered = answered or message.get("role") not in _ASKING
        is_plain = len(message) == 2 and "content" in message  # a role and this, as most have
        everything = parts if is_plain else [*parts, *_beside_content(message)]
        length_bytes += sum(len(text.encode("utf-8", "replace")) for text in _all_texts(everything))
        has_images = has_images or any(_is_image(part) for part in _with_results(everything))
        text = "\n".join(part["text"] for part in parts if isinstance(part.get("text"), str))
        if message.get("role") == "user" and (own := without_reminders(text)).strip():
            texts.append(own)
    return Conversation(
        _weighted(texts),
        length_bytes // BYTES_PER_TOKEN + max_tokens,
        has_images,
        has_tools,
        opening=texts[0] if texts else "",
        continues=answered or len(texts) > 1,
    )


def without_reminders(text: str) -> str:
    """The text without what an agent wrote between its reminder marks; one that is never closed goes to the end."""
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
    if isinstance(content, list) and all(isinstance(part, Mapping | str) for part in content):  # vLLM takes words, too
        return [{"type": "text", "text": part} if isinstance(part, str) else part for part in content]
    raise RequestError(f"{field}[{position}].content is neither text nor a list of parts", param=field)


def _with_results(parts: Sequence[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """The parts, and those inside a tool's result."""
    for part in parts:
        yield part
        inner = part.get("content")
        if isinstance(inner, list):
            yield from (one for one in inner if isinstance(one, Mapping))


def _beside_content(message: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """What tools were called with and what they said, where an API has that beside the content: chat and responses."""
    for said in (message.get("arguments"), message.get("output")):
        if isinstance(said, str):
            yield {"text": said}
        elif isinstance(said, list):
            yield from (part for part in said if isinstance(part, Mapping))
    calls = message.get("tool_calls")
    for call in calls if isinstance(calls, list) else ():
        function = call.get("function") if isinstance(call, Mapping) else None
        if isinstance(function, Mapping):
            yield {"text": function.get("arguments")}


def _is_image(part: Mapping[str, Any]) -> bool:
    return part.get("type") in _IMAGES or ("type" not in part and "image_url" in part)  # vLLM takes the latter, too


def _all_texts(parts: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for part in _with_results(parts):
        yield from (text for text in (part.get("text"), part.get("content")) if isinstance(text, str))
        given = part.get("input")  # of a tool that Anthropic's messages tell was called
        if isinstance(given, Mapping):
            yield from (text for text in given.values() if isinstance(text, str))


def _weighted(texts: list[str]) -> tuple[Turn, ...]:
    """The last few turns; the newest counts 1, each one before it half as much as the one after."""
    recent = texts[-REMEMBERED_TURNS:] or [""]
    steps_back = range(len(recent) - 1, -1, -1)
    return tuple(Turn(text, WEIGHT_PER_STEP_BACK**steps) for text, steps in zip(recent, steps_back, strict=True))
