"""The requests to both sides through the usual client libraries. Each case returns values that can be compared."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import openai

Ask = Callable[["Side"], Any]
MESSAGES = [{"role": "user", "content": "What is the weather?"}]
TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Say good day"},
    {"role": "assistant", "content": "good day"},
    {"role": "user", "content": "Again"},
]
TOOL = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Adds two numbers.",
        "parameters": {
            "type": "object",
            "properties": {"a": {"enum": [1, 2]}, "b": {"enum": [3, 4]}},  # an untrained model would never end a number
            "required": ["a", "b"],
            "additionalProperties": False,
        },
    },
}
ADD, SUBTRACT = ({"type": "function", "function": {"name": name}} for name in ("add", "subtract"))
CALL = {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1, "b": 3}'}}
CALLED = [
    {"role": "user", "content": "Add"},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "call_1", "content": "4"},
]
PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
SCHEMA = {
    "type": "json_schema",
    "json_schema": {
        "name": "answer",
        "schema": {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]},
    },
}
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 12}


@dataclass(frozen=True)
class Side:
    """One of the two servers."""

    url: str
    model: str
    embedder: str
    openai: openai.OpenAI


def plain(answer: Any) -> Any:
    return answer.model_dump() if hasattr(answer, "model_dump") else answer


def chat(messages: list[Any] = MESSAGES, **options: Any) -> Ask:
    def ask(side: Side) -> Any:
        return plain(side.openai.chat.completions.create(model=side.model, messages=messages, **{**GREEDY, **options}))

    return ask


def chat_stream(messages: list[Any] = MESSAGES, **options: Any) -> Ask:
    def ask(side: Side) -> Any:
        options_ = {**GREEDY, **options}
        return [
            plain(one)
            for one in side.openai.chat.completions.create(model=side.model, messages=messages, stream=True, **options_)
        ]

    return ask


def completion(**options: Any) -> Ask:
    def ask(side: Side) -> Any:
        answer = side.openai.completions.create(model=side.model, **{**GREEDY, "prompt": "good day", **options})
        return [plain(one) for one in answer] if options.get("stream") else plain(answer)

    return ask


def response(**options: Any) -> Ask:
    def ask(side: Side) -> Any:
        fields = {"input": "Say good day", "temperature": 0, "max_output_tokens": 12, **options}
        answer = side.openai.responses.create(model=side.model, **fields)
        return [plain(one) for one in answer] if options.get("stream") else plain(answer)

    return ask


def embedding(**options: Any) -> Ask:
    def ask(side: Side) -> Any:
        return plain(side.openai.embeddings.create(model=side.embedder, **{"input": "good day", **options}))

    return ask


def raw(path: str, embedder: bool = False, encoding: str = "utf-8", **fields: Any) -> Ask:
    """The status and JSON of a request without a client library."""

    def ask(side: Side) -> Any:
        body = json.dumps({"model": side.embedder if embedder else side.model, **fields}).encode(encoding)
        request = urllib.request.Request(side.url + path, body, {"content-type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    return ask


def anthropic(stream: bool = False, temperature: float = 0.0, **options: Any) -> Ask:
    def ask(side: Side) -> Any:
        from anthropic import Anthropic  # noqa: PLC0415  two seconds, which no test needs that only knows the cases

        fields = {"model": side.model, "max_tokens": 12, "messages": MESSAGES, **options}
        fields["extra_body"] = {"temperature": temperature}  # the library has no argument for it any more
        with Anthropic(base_url=side.url, api_key="none", max_retries=0) as client:
            if not stream:
                return plain(client.messages.create(**fields))
            return [plain(one) for one in client.messages.create(**fields, stream=True)]

    return ask


CASES: dict[str, dict[str, Ask]] = {
    "chat": {
        "whole": chat(),
        "streamed": chat_stream(),
        "several turns, a system message": chat(TALK),
        "content parts": chat([{"role": "user", "content": [{"type": "text", "text": "good day"}]}]),
        "`max_completion_tokens`": chat(max_tokens=None, max_completion_tokens=3),
        "`stop`": chat(stop=["a", "e"], extra_body={"include_stop_str_in_output": True}),
        "`seed`, sampled": chat(seed=7, temperature=1.0),
        "`n`": chat(n=3, seed=7, temperature=1.0),
        "`n`, streamed": chat_stream(n=2, seed=7, temperature=1.0),
        "`n`, streamed, not sampled": chat_stream(n=2),
        "`logprobs`": chat(logprobs=True, top_logprobs=3),
        "`logprobs`, streamed": chat_stream(logprobs=True, top_logprobs=2),
        "usage in the stream": chat_stream(stream_options={"include_usage": True}),
        "usage in every chunk": chat_stream(stream_options={"include_usage": True, "continuous_usage_stats": True}),
        "structured output (JSON schema)": chat(response_format=SCHEMA, max_tokens=24),
        "structured output (choice)": chat(extra_body={"structured_outputs": {"choice": ["yes", "no"]}}),
        "structured output, streamed": chat_stream(response_format=SCHEMA, max_tokens=24),
        "a named tool": chat(tools=[TOOL], tool_choice=ADD, max_tokens=100),
        "a named tool, streamed": chat_stream(tools=[TOOL], tool_choice=ADD, max_tokens=100),
        "some tool is required": chat(tools=[TOOL], tool_choice="required", max_tokens=120),
        "some tool is required, streamed": chat_stream(tools=[TOOL], tool_choice="required", max_tokens=120),
        "tools left to the model": chat(tools=[TOOL], tool_choice="auto"),
        "a tool's answer": chat(CALLED, tools=[TOOL]),
        "a tool's answer, streamed": chat_stream(CALLED, tools=[TOOL]),
        "an unknown field": chat(extra_body={"x_of_next_year": {"a": [1.50, None]}}),
        "a byte order mark": raw("/v1/chat/completions", encoding="utf-8-sig", messages=MESSAGES, **GREEDY),
        "UTF-16": raw("/v1/chat/completions", encoding="utf-16", messages=MESSAGES, **GREEDY),
        "UTF-16 without a mark": raw("/v1/chat/completions", encoding="utf-16-le", messages=MESSAGES, **GREEDY),
        "vLLM's own fields": chat(extra_body={"min_tokens": 5, "ignore_eos": True, "return_token_ids": True}),
    },
    "chat, refused": {
        "an unknown tool": chat(tools=[TOOL], tool_choice=SUBTRACT),
        "an image, a model without vision": chat(
            [{"role": "user", "content": [PICTURE, {"type": "text", "text": "what?"}]}]
        ),
        "a temperature below 0": chat(temperature=-1),
        "more tokens than fit": chat(max_tokens=100_000),
        "a prompt longer than the context": chat([{"role": "user", "content": "good day " * 2_000}]),
        "an unknown role": chat([{"role": "narrator", "content": "x"}]),
        "a refusal, streamed": chat_stream(temperature=-1),
        "an unknown model": raw("/v1/chat/completions", model="gpt-5", messages=MESSAGES),
        "no messages": raw("/v1/chat/completions", messages=[]),
    },
    "completions": {
        "whole": completion(),
        "streamed": completion(stream=True),
        "`echo`, `logprobs`": completion(echo=True, logprobs=2),
        "several prompts": completion(prompt=["good day", "good night"]),
        "tokens": completion(prompt=[10, 11, 12]),
        "usage in the stream": completion(stream=True, stream_options={"include_usage": True}),
    },
    "responses": {
        "whole": response(),
        "streamed": response(stream=True),
        "instructions, items": response(
            instructions="Be brief.", input=[{"role": "user", "content": [{"type": "input_text", "text": "good day"}]}]
        ),
    },
    "embeddings": {
        "one": embedding(),
        "several, as numbers": embedding(input=["good day", "good night"], encoding_format="float"),
        "base64": embedding(encoding_format="base64"),
        "tokens": embedding(input=[[10, 11], [12]]),
        "score": raw("/v1/score", embedder=True, text_1="good day", text_2=["good night", "x"]),
    },
    "tokens": {
        "tokenize a prompt": raw("/tokenize", prompt="good day"),
        "tokenize messages": raw("/tokenize", messages=MESSAGES, return_token_strs=True),
        "detokenize": raw("/detokenize", tokens=[10, 11, 12]),
        "count for Anthropic's clients": raw("/v1/messages/count_tokens", messages=MESSAGES),
    },
    "messages (Anthropic's client)": {
        "whole": anthropic(),
        "streamed": anthropic(stream=True),
        "system, several turns": anthropic(system="Be brief.", messages=TALK[1:]),
        "content blocks": anthropic(messages=[{"role": "user", "content": [{"type": "text", "text": "good day"}]}]),
        "a refusal": anthropic(temperature=-1.0),
    },
}
