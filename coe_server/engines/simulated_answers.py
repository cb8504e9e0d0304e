"""The answers of a simulated engine on each path of the OpenAI API: its name and the question. Pure."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, repeat
from struct import pack
from typing import Any
from zlib import crc32

Fields = Mapping[str, Any]
JSON = "application/json"
EVENTS = "text/event-stream; charset=utf-8"
SURE, UNSURE = -0.01, -3.0  # log-probability of each token: an expert is sure of a question that names it
_DIMENSIONS = 8


@dataclass(frozen=True, slots=True)
class Script:
    """A timed answer: `opening` at once, one of `pieces` per token, `closing` after the last."""

    status: int
    content_type: str
    opening: tuple[bytes, ...]
    pieces: Iterator[bytes]
    closing: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Reply:
    """The text for one question; a token is a word; cut at the client's token limit."""

    model: str
    created: int
    prompt_tokens: int
    tokens: tuple[str, ...]
    cut: bool
    logprob: float = 0.0  # of each token

    @property
    def text(self) -> str:
        return "".join(self.tokens)

    def logprobs(self, tokens: Sequence[str]) -> dict[str, Any]:
        """The log-probabilities of these tokens, as chat has them."""
        return {"content": [self._of_token(token) for token in tokens]}

    def _of_token(self, token: str) -> dict[str, Any]:
        return {
            "token": token,
            "logprob": self.logprob,
            "bytes": list(token.encode("utf-8", "replace")),
            "top_logprobs": [],
        }

    def listed(self, tokens: Sequence[str]) -> dict[str, Any]:
        """The same, as completions have them."""
        starts = accumulate((len(token) for token in tokens[:-1]), initial=0)
        return {
            "text_offset": list(starts),
            "token_logprobs": [self.logprob] * len(tokens),
            "tokens": list(tokens),
            "top_logprobs": [{token: self.logprob} for token in tokens],
        }

    def usage(self, asked: str = "prompt_tokens", answered: str = "completion_tokens") -> dict[str, int]:
        total = self.prompt_tokens + len(self.tokens)
        return {asked: self.prompt_tokens, answered: len(self.tokens), "total_tokens": total}


def script(name: str, path: str, body: bytes, created: int) -> Script:
    """The answer to one POST; an error with status 400 or 404 if it cannot be answered."""
    shape = _SHAPES.get(path)
    if shape is None:
        return _complaint(path, 404, f"a simulated engine does not know POST {path}")
    try:
        fields = json.loads(body)
        return shape(name, fields, created)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        return _complaint(path, 400, f"invalid request for {path}: {type(error).__name__} {error}")


def _chat(name: str, fields: Fields, created: int) -> Script:
    limit = fields.get("max_completion_tokens") or fields.get("max_tokens")
    reply = _reply(name, _last_user_text(fields["messages"]), limit, created)
    head = {"id": "chatcmpl-simulated", "created": created, "model": name}
    finish = "length" if reply.cut else "stop"

    def told(*tokens: str) -> dict[str, Any] | None:
        return reply.logprobs(tokens) if fields.get("logprobs") else None

    def chunk(delta: dict[str, str], finish_reason: str | None = None, logprobs: object = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
        return _event({**head, "object": "chat.completion.chunk", "choices": [choice]})

    if fields.get("stream"):
        closing = [chunk({}, finish)]
        if _is_asked_for_usage(fields):
            closing.append(_event({**head, "object": "chat.completion.chunk", "choices": [], "usage": reply.usage()}))
        pieces = (chunk({"content": token}, logprobs=told(token)) for token in reply.tokens)
        return Script(200, EVENTS, (chunk({"role": "assistant", "content": ""}),), pieces, (*closing, _DONE))
    message = {"role": "assistant", "content": reply.text}
    choice = {"index": 0, "message": message, "logprobs": told(*reply.tokens), "finish_reason": finish}
    return _whole({**head, "object": "chat.completion", "choices": [choice], "usage": reply.usage()}, reply)


def _completion(name: str, fields: Fields, created: int) -> Script:
    prompt = fields["prompt"]
    prompt = prompt[0] if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int) else prompt
    reply = _reply(name, prompt if isinstance(prompt, str) else _words(prompt), fields.get("max_tokens"), created)
    head = {"id": "cmpl-simulated", "object": "text_completion", "created": created, "model": name}
    finish = "length" if reply.cut else "stop"

    def choice(text: str, finish_reason: str | None, *tokens: str) -> dict[str, Any]:
        told = reply.listed(tokens) if tokens and type(fields.get("logprobs")) is int else None
        return {"index": 0, "text": text, "logprobs": told, "finish_reason": finish_reason}

    if fields.get("stream"):
        pieces = (_event({**head, "choices": [choice(token, None, token)]}) for token in reply.tokens)
        closing = [_event({**head, "choices": [choice("", finish)]})]
        if _is_asked_for_usage(fields):
            closing.append(_event({**head, "choices": [], "usage": reply.usage()}))
        return Script(200, EVENTS, (), pieces, (*closing, _DONE))
    return _whole({**head, "choices": [choice(reply.text, finish, *reply.tokens)], "usage": reply.usage()}, reply)


def _response(name: str, fields: Fields, created: int) -> Script:
    given = fields["input"]
    question = given if isinstance(given, str) else _last_user_text(given)
    reply = _reply(name, question, fields.get("max_output_tokens"), created)
    part = {"type": "output_text", "text": reply.text, "annotations": []}
    item = {"type": "message", "id": "msg_simulated", "role": "assistant", "status": "completed", "content": [part]}
    made = f"resp_{crc32(f'{name} {question} {created}'.encode('utf-8', 'replace')):08x}"
    usage: dict[str, Any] = reply.usage("input_tokens", "output_tokens")
    usage |= {"input_tokens_details": {"cached_tokens": 0}, "output_tokens_details": {"reasoning_tokens": 0}}
    whole: Fields = {
        **{"id": made, "object": "response", "created_at": created, "model": name, "status": "completed"},
        **{"output": [item], "usage": usage, "parallel_tool_calls": True, "tool_choice": "auto", "tools": []},
    }
    if not fields.get("stream"):
        return _whole(whole, reply)
    begun = {**whole, "status": "in_progress", "output": [], "usage": None}
    place = {"item_id": "msg_simulated", "output_index": 0, "content_index": 0}
    opening = (
        ("response.created", {"response": begun}),
        ("response.in_progress", {"response": begun}),
        ("response.output_item.added", {"output_index": 0, "item": {**item, "content": [], "status": "in_progress"}}),
        ("response.content_part.added", {**place, "part": {**part, "text": ""}}),
    )
    deltas = (("response.output_text.delta", {**place, "delta": token, "logprobs": []}) for token in reply.tokens)
    closing = (
        ("response.output_text.done", {**place, "text": reply.text, "logprobs": []}),
        ("response.content_part.done", {**place, "part": part}),
        ("response.output_item.done", {"output_index": 0, "item": item}),
        ("response.completed", {"response": whole}),
    )
    begin, end = len(opening), len(opening) + len(reply.tokens)
    return Script(200, EVENTS, tuple(_numbered(opening, 0)), _numbered(deltas, begin), tuple(_numbered(closing, end)))


def _message(name: str, fields: Fields, created: int) -> Script:
    reply = _reply(name, _last_user_text(fields["messages"]), fields["max_tokens"], created)
    stop, usage = "max_tokens" if reply.cut else "end_turn", reply.usage("input_tokens", "output_tokens")
    del usage["total_tokens"]
    whole: Fields = {
        **{"id": "msg_simulated", "type": "message", "role": "assistant", "model": name, "stop_sequence": None},
        **{"content": [{"type": "text", "text": reply.text}], "stop_reason": stop, "usage": usage},
    }
    if not fields.get("stream"):
        return _whole(whole, reply)
    begun = {**whole, "content": [], "stop_reason": None, "usage": {**usage, "output_tokens": 0}}
    start = _named("message_start", {"message": begun})
    block = _named("content_block_start", {"index": 0, "content_block": {"type": "text", "text": ""}})
    pieces = (
        _named("content_block_delta", {"index": 0, "delta": {"type": "text_delta", "text": token}})
        for token in reply.tokens
    )
    end = _named("message_delta", {"delta": {"stop_reason": stop, "stop_sequence": None}, "usage": usage})
    closing = (_named("content_block_stop", {"index": 0}), end, _named("message_stop", {}))
    return Script(200, EVENTS, (start, block), pieces, closing)


def _counted(name: str, fields: Fields, created: int) -> Script:
    question = _last_user_text(fields["messages"])
    return _whole({"input_tokens": _reply(name, question, None, created).prompt_tokens})


def _embedding(name: str, fields: Fields, created: int) -> Script:
    del created
    given = fields["input"]
    texts = [given] if isinstance(given, str) else [one if isinstance(one, str) else str(one) for one in given]
    data = [{"object": "embedding", "index": place, "embedding": _vector(text)} for place, text in enumerate(texts)]
    tokens = sum(len(text.split()) for text in texts)
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return _whole({"object": "list", "data": data, "model": name, "usage": usage})


def _relevance(name: str, fields: Fields, created: int) -> Script:
    del created
    texts = [str(one) for one in fields["documents"]]
    rows = [
        {"index": place, "document": {"text": text}, "relevance_score": _vector(fields["query"] + text)[0]}
        for place, text in enumerate(texts)
    ]
    return _whole({"id": "rerank-simulated", "model": name, "usage": {"total_tokens": len(rows)}, "results": rows})


def _score(name: str, fields: Fields, created: int) -> Script:
    pair = str(fields["text_1"]) + str(fields["text_2"])
    row = {"index": 0, "object": "score", "score": _vector(pair)[0]}
    usage = {"prompt_tokens": 1, "total_tokens": 1}
    return _whole(
        {"id": "score-simulated", "object": "list", "created": created, "model": name, "data": [row], "usage": usage}
    )


def _tokens(name: str, fields: Fields, created: int) -> Script:
    del name, created
    text = fields["prompt"] if "prompt" in fields else _last_user_text(fields["messages"])
    tokens = [crc32(word.encode("utf-8", "replace")) & 0xFFFF for word in text.split()]
    return _whole({"count": len(tokens), "max_model_len": 1 << 20, "tokens": tokens, "token_strs": None})


def _text_of_tokens(name: str, fields: Fields, created: int) -> Script:
    del name, created
    return _whole({"prompt": _words(fields["tokens"])})


def _heard(name: str, fields: Fields, created: int) -> Script:
    del created
    return _whole({"text": f"{name} received a form of {fields['form_bytes']} bytes"})


def _spoken(name: str, fields: Fields, created: int) -> Script:
    """A second of silence as WAV: 8,000 samples of one byte."""
    del name, created
    if not isinstance(fields["input"], str):
        raise TypeError("input is not a text")
    head = pack("<4sI4s4sIHHIIHH4sI", b"RIFF", 8036, b"WAVE", b"fmt ", 16, 1, 1, 8000, 8000, 1, 8, b"data", 8000)
    return Script(200, "audio/wav", (head, b"\x80" * 8000), iter(()), ())


def _drawn(name: str, fields: Fields, created: int) -> Script:
    """A white PNG of one pixel."""
    del name
    if "form_bytes" not in fields:
        fields["prompt"].strip()
    return _whole({"created": created, "data": [{"b64_json": _PIXEL}]})


def _reply(name: str, question: str, limit: int | None, created: int) -> Reply:
    words = f"{name} answers: {question}".split()
    if limit is not None and (type(limit) is not int or limit < 1):
        raise ValueError(f"a limit of {limit!r} tokens")
    kept = words[:limit]
    tokens = tuple(word if place == 0 else f" {word}" for place, word in enumerate(kept))
    logprob = SURE if name in question.split() else UNSURE
    return Reply(name, created, max(1, len(question.split())), tokens, len(kept) < len(words), logprob)


def _last_user_text(messages: Sequence[Fields]) -> str:
    contents = [message["content"] for message in messages if message.get("role") == "user"]
    if not contents or contents[-1] is None:
        return ""
    last = contents[-1]
    return last if isinstance(last, str) else " ".join(part["text"] for part in last if "text" in part)


def _words(tokens: Sequence[int]) -> str:
    return " ".join(str(int(token)) for token in tokens)


def _vector(text: str) -> list[float]:
    return [crc32(f"{place} {text}".encode("utf-8", "replace")) / 2**32 for place in range(_DIMENSIONS)]


def _whole(answer: Fields, reply: Reply | None = None) -> Script:
    """One JSON answer, sent after the time of its tokens."""
    return Script(200, JSON, (), repeat(b"", len(reply.tokens) if reply else 0), (json.dumps(answer).encode(),))


def _is_asked_for_usage(fields: Fields) -> bool:
    return bool((fields.get("stream_options") or {}).get("include_usage"))


def _complaint(path: str, status: int, message: str) -> Script:
    """An error in the format of the called API."""
    told = {"message": message, "type": "invalid_request_error", "param": None, "code": "simulated_refusal"}
    error = {"type": "error", "error": told} if path.startswith("/v1/messages") else {"error": told}
    return Script(status, JSON, (), iter(()), (json.dumps(error).encode(),))


def _event(payload: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(payload).encode() + b"\n\n"


def _named(kind: str, payload: dict[str, Any]) -> bytes:
    return b"event: " + kind.encode() + b"\n" + _event({"type": kind, **payload})


def _numbered(events: Iterable[tuple[str, dict[str, Any]]], first: int) -> Iterator[bytes]:
    return (_named(kind, {**more, "sequence_number": first + place}) for place, (kind, more) in enumerate(events))


_PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGP4DwABAQEAsTj2FAAAAABJRU5ErkJggg=="
_DONE = b"data: [DONE]\n\n"
_SHAPES: dict[str, Callable[[str, Fields, int], Script]] = {
    "/v1/chat/completions": _chat,
    "/v1/completions": _completion,
    "/v1/responses": _response,
    "/v1/messages": _message,
    "/v1/messages/count_tokens": _counted,
    "/v1/embeddings": _embedding,
    "/v1/rerank": _relevance,
    "/v1/score": _score,
    "/v1/audio/transcriptions": _heard,
    "/v1/audio/translations": _heard,
    "/v1/audio/speech": _spoken,
    "/v1/images/generations": _drawn,
    "/v1/images/edits": _drawn,
    "/tokenize": _tokens,
    "/detokenize": _text_of_tokens,
}
