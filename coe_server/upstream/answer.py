"""Decides whether a payload of one of the APIs contains any answer. Pure; does not interpret errors."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from enum import Enum
from typing import Any

Payload = Mapping[str, Any]


class Says(Enum):
    """The content of a body or an event."""

    WORD = "word"  # part of an answer, or the reason why there is none
    SILENCE = "silence"  # ended without any content
    NOTHING = "nothing"  # in an event: no content yet; in a body: no answer


# Finish reasons of a broken generation, in the words of several servers.
FAILED_ENDS = frozenset(
    (
        "error",
        "network_error",
        "server_error",
        "internal_error",
        "engine_error",
        "insufficient_system_resource",
        "abort",
    )
)
# Finish reasons of a normal end; any other reason is information for the client.
_ENDED_BY_ITSELF = frozenset((None, "stop", "eos", "eos_token", "end_turn", "completed", "complete"))
_OPENING_ITEMS = frozenset(("message", "reasoning"))  # of OpenAI's responses: their content follows
_OPENING_BLOCKS = frozenset(("text", "thinking"))  # of Anthropic's messages, likewise
_OPENING_EVENTS = frozenset(
    ("response.created", "response.queued", "response.in_progress", "response.content_part.added")
) | frozenset(("message_start", "content_block_stop", "ping", "keepalive"))


_COUNTS = ("completion_tokens", "output_tokens")
_DETAILS = ("completion_tokens_details", "output_tokens_details")  # some servers count thoughts only here
_LABELS = frozenset(("role", "name"))  # of a message: no content


def said_in_body(payload: object, endpoint: str) -> Says:
    """The content of a complete body; `endpoint` is the API's name (`chat`, `embeddings`, ...)."""
    if not isinstance(payload, Mapping):
        return Says.WORD if isinstance(payload, list) and payload and endpoint not in _READ else Says.NOTHING
    read = _READ.get(endpoint)
    return Says.WORD if read is None else read(payload)


def said_in_event(payload: Payload) -> Says:
    """The content of one event of a stream, in any of the four APIs."""
    kind = payload.get("type")
    if isinstance(payload.get("choices"), list):
        return _said_in_choices(payload["choices"], is_event=True)
    if not isinstance(kind, str) or kind in _OPENING_EVENTS:
        return Says.NOTHING
    read = _EVENTS.get(kind)
    if read is not None:
        return read(payload)
    return Says.WORD if payload.get("delta", kind) else Says.NOTHING


def tokens_counted(payload: object) -> bool:
    """True if the usage in a body or event has at least one output token."""
    if not isinstance(payload, Mapping):
        return False
    wrapped = payload.get("response")
    usage = (wrapped if isinstance(wrapped, Mapping) else payload).get("usage")
    if not isinstance(usage, Mapping):
        return False
    details = (usage.get(name) for name in _DETAILS)
    thoughts = (one.get("reasoning_tokens") for one in details if isinstance(one, Mapping))
    return any(isinstance(count, int) and count > 0 for count in (*map(usage.get, _COUNTS), *thoughts))


def has_word_in_choice(payload: Payload) -> bool:
    """True if at least one choice is an answer."""
    choices = payload.get("choices")
    return isinstance(choices, list) and _said_in_choices(choices, is_event=False) is Says.WORD


def failed_choices(payload: Payload) -> Sequence[object]:
    """The choices if all of them ended in an error, else none."""
    choices = payload.get("choices")
    return choices if isinstance(choices, list) and all(map(is_failed, choices)) else ()


def _said_in_choices(choices: list[Any], is_event: bool) -> Says:
    """The strongest content of the choices."""
    most = Says.NOTHING
    for one in choices:
        said = _said_in_choice(one, is_event) if isinstance(one, Mapping) else Says.NOTHING
        if said is Says.WORD:
            return said
        most = said if said is Says.SILENCE else most
    return most


def _said_in_choice(choice: Payload, is_event: bool) -> Says:
    if is_failed(choice):
        return Says.NOTHING
    told = choice.get("delta") or choice.get("message")  # some servers send a complete answer as one event
    words = [_content_of(name, value) for name, value in told.items()] if isinstance(told, Mapping) else []
    if any(words) or choice.get("text"):
        return Says.WORD
    ended = choice.get("finish_reason")
    if ended is None and is_event:
        return Says.NOTHING
    return Says.SILENCE if _is_one_of(ended, _ENDED_BY_ITSELF) else Says.WORD


def _content_of(name: str, value: object) -> object:
    """What a member of a message says: a truth value."""
    if name == "content" and isinstance(value, list):  # parts, of text or thoughts
        return [one for one in value if not isinstance(one, Mapping) or _says_more_than_its_type(one)]
    return None if name in _LABELS else value


def _says_more_than_its_type(part: Payload) -> bool:
    return any(value for name, value in part.items() if name != "type")


def is_failed(choice: object) -> bool:
    """True for a choice whose generation broke, whatever it says."""
    return not isinstance(choice, Mapping) or _is_one_of(choice.get("finish_reason") or "", FAILED_ENDS)


def _said_in_completion(payload: Payload) -> Says:
    choices = payload.get("choices")
    return _said_in_choices(choices, is_event=False) if isinstance(choices, list) else Says.NOTHING


def _said_in_response(payload: Payload) -> Says:
    """OpenAI's responses: `incomplete`, `queued` and similar states count as answers."""
    output, status = payload.get("output"), payload.get("status")
    if isinstance(output, list) and any(map(_item_says, output)):
        return Says.WORD
    if _is_one_of(status, _ENDED_BY_ITSELF):
        return Says.SILENCE if isinstance(output, list) else Says.NOTHING
    return Says.NOTHING if status == "failed" else Says.WORD


def _item_says(item: object) -> bool:
    if not isinstance(item, Mapping) or item.get("type") != "message":
        return bool(item)
    content = item.get("content")
    if not isinstance(content, list):
        return bool(content)
    return any(map(_part_says, content))


def _part_says(part: object) -> bool:
    return not isinstance(part, Mapping) or bool(part.get("text") or part.get("refusal"))


def _said_in_message(payload: Payload) -> Says:
    """Anthropic's messages."""
    content, ended = payload.get("content"), payload.get("stop_reason")
    if isinstance(content, list) and any(map(_block_says, content)):
        return Says.WORD
    if _is_one_of(ended, _ENDED_BY_ITSELF):
        return Says.SILENCE if isinstance(content, list) else Says.NOTHING
    return Says.WORD


def _block_says(block: object) -> bool:
    if not isinstance(block, Mapping) or not _is_one_of(block.get("type"), _OPENING_BLOCKS):
        return bool(block)
    return bool(block.get("text") or block.get("thinking"))


def _said_in_embeddings(payload: Payload) -> Says:
    data = payload.get("data", payload.get("embeddings"))
    is_list = isinstance(data, list) and (not data or not all(map(_has_no_embedding, data)))
    return Says.WORD if is_list else Says.NOTHING  # an empty input has no embeddings


def _has_no_embedding(entry: object) -> bool:
    return entry is None or (isinstance(entry, Mapping) and "embedding" in entry and not entry["embedding"])


def _item_opens(payload: Payload) -> Says:
    item = payload.get("item")
    opens = isinstance(item, Mapping) and _is_one_of(item.get("type"), _OPENING_ITEMS)
    return Says.NOTHING if opens else Says.WORD


def _block_opens(payload: Payload) -> Says:
    return Says.WORD if _block_says(payload.get("content_block")) else Says.NOTHING


def _block_goes_on(payload: Payload) -> Says:
    delta = payload.get("delta")
    words = [value for name, value in delta.items() if name != "type"] if isinstance(delta, Mapping) else []
    return Says.WORD if any(words) else Says.NOTHING


def _text_ends(payload: Payload) -> Says:
    return Says.WORD if payload.get("text") else Says.NOTHING


def _part_ends(payload: Payload) -> Says:
    return Says.WORD if _part_says(payload.get("part")) else Says.NOTHING


def _item_ends(payload: Payload) -> Says:
    return Says.WORD if _item_says(payload.get("item")) else Says.NOTHING


def _message_ends(payload: Payload) -> Says:
    delta = payload.get("delta")
    ended = delta.get("stop_reason") if isinstance(delta, Mapping) else None
    return Says.SILENCE if _is_one_of(ended, _ENDED_BY_ITSELF) else Says.WORD


def _response_ends(payload: Payload) -> Says:
    response = payload.get("response")
    return _said_in_response(response) if isinstance(response, Mapping) else Says.SILENCE


def _is_one_of(value: object, names: Collection[str | None]) -> bool:
    """True if the value, which may be any JSON, is one of the names, in lower or upper case."""
    return value in names if value is None else isinstance(value, str) and value.lower() in names


def _is_silence(_: Payload) -> Says:
    return Says.SILENCE


_READ = {
    "chat": _said_in_completion,
    "completions": _said_in_completion,
    "responses": _said_in_response,
    "messages": _said_in_message,
    "embeddings": _said_in_embeddings,
}
_EVENTS = {
    "response.output_item.added": _item_opens,
    "response.output_text.done": _text_ends,
    "response.content_part.done": _part_ends,
    "response.output_item.done": _item_ends,
    "response.completed": _response_ends,
    "content_block_start": _block_opens,
    "content_block_delta": _block_goes_on,
    "message_delta": _message_ends,
    "message_stop": _is_silence,
}
