"""OpenAI `messages` -> what routing reads of them: the user's turns, newest first in weight, and what they need.

Knows nothing of experts or categories. System, assistant and tool turns are not the user's intent and are
ignored, but they fill the context window and are counted there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from coe_server.errors import RequestError
from coe_server.routing.features import Turn

REMEMBERED_TURNS = 4
WEIGHT_PER_STEP_BACK = 0.5
BYTES_PER_TOKEN = 4  # English prose; only used to leave out experts whose context is clearly too small


@dataclass(frozen=True, slots=True)
class Conversation:
    """The user's turns, newest last, and what an expert needs to take the request."""

    turns: tuple[Turn, ...]
    needed_tokens: int = 0
    has_images: bool = False
    has_tools: bool = False

    @classmethod
    def of_prompt(cls, prompt: str) -> Conversation:
        """One prompt that stands alone."""
        return cls((Turn(prompt),), len(prompt.encode("utf-8", "replace")) // BYTES_PER_TOKEN)


def read_messages(messages: Sequence[Mapping[str, Any]], has_tools: bool = False, max_tokens: int = 0) -> Conversation:
    """The conversation in a chat request; `max_tokens` is what the answer may add to the context.

    Raises RequestError naming the message whose content is neither text nor a list of parts.
    """
    texts: list[str] = []
    length_bytes, has_images = 0, False
    for position, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise RequestError(f"messages[{position}] is not an object", param="messages")
        parts = _parts(message.get("content"), position)
        text = "\n".join(part["text"] for part in parts if isinstance(part.get("text"), str))
        length_bytes += len(text.encode("utf-8", "replace"))
        has_images = has_images or any(part.get("type") == "image_url" for part in parts)
        if message.get("role") == "user" and text.strip():
            texts.append(text)
    return Conversation(_weighted(texts), length_bytes // BYTES_PER_TOKEN + max_tokens, has_images, has_tools)


def _parts(content: object, position: int) -> list[Mapping[str, Any]]:
    if content is None:
        return []
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if isinstance(content, list) and all(isinstance(part, Mapping) for part in content):
        return content
    raise RequestError(f"messages[{position}].content is neither text nor a list of parts", param="messages")


def _weighted(texts: list[str]) -> tuple[Turn, ...]:
    """The last few turns; the newest counts 1, each one before it half as much as the one after."""
    recent = texts[-REMEMBERED_TURNS:] or [""]
    steps_back = range(len(recent) - 1, -1, -1)
    return tuple(Turn(text, WEIGHT_PER_STEP_BACK**steps) for text, steps in zip(recent, steps_back, strict=True))
