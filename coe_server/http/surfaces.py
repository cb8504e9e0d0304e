"""What goes through to an expert: each path, how a conversation is read from its body, and whether it may be routed.

Pure. The bodies themselves are passed on untouched; only what routing needs is read here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from coe_server.errors import RequestError
from coe_server.routing.conversation import Conversation, Endpoint, read_messages
from coe_server.routing.features import Turn
from coe_server.routing.tokens import TokenCount

MOST_MESSAGES = 10_000

Fields = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Surface:
    """One path of an engine that is open to callers. `routed` is false where an answer means nothing without knowing
    whose it is: embeddings of two models do not compare, nor do their tokens."""

    path: str
    endpoint: Endpoint
    read: Callable[[Fields], Conversation]
    routed: bool = True

    @property
    def answered_as(self) -> str:
        """The API that says what an answer is; of counted tokens, ranks and scores any JSON is one."""
        return self.endpoint if self.routed or self.endpoint == "embeddings" else "any"

    def conversation(self, fields: Fields) -> Conversation:
        """What routing reads of a body. Raises RequestError naming the field that cannot be read."""
        read = self.read(fields)
        return read if read.endpoint == self.endpoint else replace(read, endpoint=self.endpoint)


def read_chat(fields: Fields) -> Conversation:
    """`messages` of a chat request."""
    limit = fields.get("max_completion_tokens") or fields.get("max_tokens")
    return read_messages(_messages(fields), bool(fields.get("tools")), _count(limit))


def read_completion(fields: Fields) -> Conversation:
    """`prompt`: text, tokens, or a list of either."""
    prompt = fields.get("prompt")
    prompts = prompt if isinstance(prompt, list) and prompt and not is_tokens(prompt) else [prompt]
    if any(not isinstance(one, str) and not is_tokens(one) for one in prompts):
        raise RequestError("prompt must be text, a list of tokens, or a list of either", "prompt")
    text = "\n".join(one for one in prompts if isinstance(one, str))
    return Conversation((Turn(text),), _longest(prompts), _count(fields.get("max_tokens")))


def read_response(fields: Fields) -> Conversation:
    """`input` of a request to `/v1/responses`: text, or a list of items of which the user's messages are read."""
    given = fields.get("input")
    items = [{"role": "user", "content": given}] if isinstance(given, str) else given
    if not isinstance(items, list) or not items:
        raise RequestError("input must be text or a list with at least one item", "input")
    _require_few(items, "input")
    limit, beside = fields.get("max_output_tokens"), fields.get("instructions")
    return read_messages(
        items, bool(fields.get("tools")), _count(limit), beside=beside if isinstance(beside, str) else "", field="input"
    )


def read_anthropic(fields: Fields) -> Conversation:
    """`messages` of a request in Anthropic's shape; `system` stands beside them, a tool's result inside them."""
    system = fields.get("system")
    blocks = system if isinstance(system, list) else [{"text": system}]
    texts = (block.get("text") for block in blocks if isinstance(block, Mapping))
    beside = "".join(text for text in texts if isinstance(text, str))
    return read_messages(_messages(fields), bool(fields.get("tools")), _count(fields.get("max_tokens")), beside=beside)


def read_nothing(fields: Fields) -> Conversation:
    """For requests to a named expert whose text nobody routes."""
    del fields
    return Conversation((Turn(""),))


SURFACES = (
    Surface("/v1/chat/completions", "chat", read_chat),
    Surface("/v1/completions", "completions", read_completion),
    Surface("/v1/responses", "responses", read_response),
    Surface("/v1/messages", "messages", read_anthropic),
    Surface("/v1/messages/count_tokens", "messages", read_nothing, routed=False),
    Surface("/v1/embeddings", "embeddings", read_nothing, routed=False),
    Surface("/v1/rerank", "rerank", read_nothing, routed=False),
    Surface("/v1/score", "score", read_nothing, routed=False),
    Surface("/tokenize", "tokenize", read_nothing, routed=False),
    Surface("/detokenize", "tokenize", read_nothing, routed=False),
)


def surface_of(fields: Fields) -> Surface:
    """The surface a body is meant for, told by its fields; for a dry run, which takes any."""
    chat, completions, responses = SURFACES[:3]
    return completions if "prompt" in fields else responses if "input" in fields else chat


def _messages(fields: Fields) -> list[Any]:
    messages = fields.get("messages")
    if not isinstance(messages, list) or not messages:
        raise RequestError("messages must be a list with at least one message", "messages")
    _require_few(messages, "messages")
    return messages


def _require_few(entries: list[Any], field: str) -> None:
    if len(entries) > MOST_MESSAGES:
        raise RequestError(f"{field} has {len(entries)} entries; {MOST_MESSAGES} are allowed", field)


def _longest(prompts: list[Any]) -> TokenCount:
    """Each of several prompts is answered by itself."""
    counts = [TokenCount.of(one) if isinstance(one, str) else TokenCount(len(one), len(one)) for one in prompts]
    return TokenCount(max(one.least for one in counts), max(one.likely for one in counts))


def _count(limit: object) -> int:
    return limit if isinstance(limit, int) and limit > 0 else 0


def is_tokens(value: object) -> bool:
    """A text that is given as its tokens."""
    return isinstance(value, list) and bool(value) and all(type(one) is int for one in value)
