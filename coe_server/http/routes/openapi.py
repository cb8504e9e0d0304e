"""The OpenAPI document: the bodies that are read for routing, and every status that an endpoint may answer with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.openapi.utils import get_openapi
from starlette.responses import JSONResponse, Response

from coe_server.http.apis import CoeOptions

PATH = "/openapi.json"
_STRING, _NUMBER, _FLAG = {"type": "string"}, {"type": "number"}, {"type": "boolean"}
_COUNT = {"type": "integer", "minimum": 1}
_PART = {
    "type": "object",
    "required": ["type"],
    "properties": {"type": _STRING, "text": _STRING, "image_url": {"type": "object"}},
}
_CONTENT = {"anyOf": [_STRING, {"type": "array", "items": _PART}]}
_MESSAGE = {
    "type": "object",
    "required": ["role", "content"],
    "properties": {
        "role": {"type": "string", "enum": ["system", "developer", "user", "assistant", "tool"]},
        "content": {"anyOf": [_STRING, {"type": "array", "items": _PART}, {"type": "null"}]},
    },
}
_MESSAGES = {"type": "array", "minItems": 1, "items": _MESSAGE}
_TOKENS = {"type": "array", "minItems": 1, "items": {"type": "integer", "minimum": 0}}
_TOOLS = {"type": "array", "items": {"type": "object"}}
_SAMPLING = {"temperature": _NUMBER, "top_p": _NUMBER, "seed": {"type": "integer"}, "stream": _FLAG}

_FILE = {"type": "string", "format": "binary"}
_HEARD = {"file": _FILE, "language": _STRING, "prompt": _STRING, "response_format": _STRING}

# For each path the required fields, and others that this server or the engines know; unknown fields are passed on.
_BODIES: dict[str, tuple[Sequence[str], Mapping[str, Any]]] = {
    "/v1/chat/completions": (
        ("messages",),
        {
            "messages": _MESSAGES,
            **_SAMPLING,
            **{"max_tokens": _COUNT, "max_completion_tokens": _COUNT, "n": _COUNT, "tools": _TOOLS, "logprobs": _FLAG},
            "stop": {"anyOf": [_STRING, {"type": "array", "items": _STRING}]},
            "stream_options": {"type": "object", "properties": {"include_usage": _FLAG}},
            "response_format": {"type": "object"},
        },
    ),
    "/v1/completions": (
        ("prompt",),
        {
            "prompt": {"anyOf": [_STRING, {"type": "array", "minItems": 1, "items": _STRING}, _TOKENS]},
            **_SAMPLING,
            **{"max_tokens": _COUNT, "echo": _FLAG},
        },
    ),
    "/v1/responses": (
        ("input",),
        {
            "input": {"anyOf": [_STRING, _MESSAGES]},
            **_SAMPLING,
            **{"instructions": _STRING, "max_output_tokens": _COUNT, "tools": _TOOLS},
        },
    ),
    "/v1/messages": (
        ("messages", "max_tokens"),
        {"messages": _MESSAGES, **_SAMPLING, "max_tokens": _COUNT, "system": _CONTENT, "tools": _TOOLS},
    ),
    "/v1/messages/count_tokens": (("model", "messages"), {"messages": _MESSAGES}),
    "/v1/embeddings": (
        ("model", "input"),
        {"input": {"anyOf": [_STRING, {"type": "array", "items": _STRING}, _TOKENS]}, "encoding_format": _STRING},
    ),
    "/v1/rerank": (
        ("model", "query", "documents"),
        {"query": _STRING, "documents": {"type": "array", "items": _STRING}},
    ),
    "/v1/score": (("model", "text_1", "text_2"), {"text_1": _STRING, "text_2": _STRING}),
    "/v1/audio/speech": (("input",), {"input": _STRING, "voice": _STRING, "response_format": _STRING}),
    "/v1/images/generations": (("prompt",), {"prompt": _STRING, "n": _COUNT, "size": _STRING}),
    "/tokenize": (("model", "prompt"), {"prompt": _STRING}),
    "/detokenize": (("model", "tokens"), {"tokens": _TOKENS}),
    "/v1/audio/transcriptions": (("file",), _HEARD),
    "/v1/audio/translations": (("file",), _HEARD),
    "/v1/images/edits": (("image", "prompt"), {"image": _FILE, "prompt": _STRING, "mask": _FILE}),
    "/v1/route": ((), {"messages": _MESSAGES, "prompt": _STRING, "input": _STRING}),
}
_MEDIA = ("/v1/audio/", "/v1/images/")
_TYPES = ("application/json", "text/event-stream", "text/plain", "audio/*", "image/*")
_ERRORS = {
    "400": "The request is wrong as it stands, or no expert can take it.",
    "401": "No API key, or an unknown one.",
    "403": "This key may not do that.",
    "404": "Unknown path, model, expert or objective.",
    "408": "The headers or the body did not arrive in time.",
    "409": "This cannot be done now.",
    "413": "The body is too large (http.max_body; http.max_upload for a form; 64 KiB for feedback).",
    "415": "The body's content-encoding is not supported; Accept-Encoding lists those that are.",
    "422": "The expert's engine cannot process what was asked.",
    "426": "WebSockets are not supported.",
    "429": "A queue is full here or at a remote expert's own server, or the key's limit is reached; see Retry-After.",
    "431": "The request line and headers are longer than 64 KiB.",
    "500": "Internal server error.",
    "502": "An expert's engine failed, and no other expert could answer.",
    "503": "No expert that could answer is available now; see Retry-After.",
    "504": "The answer took too long.",
}
_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "code"],
            "properties": {
                "message": _STRING,
                "type": {"type": ["string", "null"]},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "integer", "null"]},
            },
        }
    },
}


def describe(app: FastAPI, models: Callable[[Request], Sequence[str]]) -> None:
    """Have `app` describe itself at PATH; `models` are the names that the caller may use as `model`."""

    def document(known: Sequence[str]) -> dict[str, Any]:
        found = get_openapi(title=app.title, version=app.version, routes=app.routes)
        found["components"] = {"schemas": {"Error": _ERROR, **found.get("components", {}).get("schemas", {})}}
        for path, operations in found["paths"].items():
            for operation in operations.values():
                operation["responses"] = _responses(path, operation["responses"])
                if path in _BODIES:
                    operation["requestBody"] = _body(path, known)
        return found

    async def told(request: Request) -> Response:
        return JSONResponse(document(models(request)))

    app.add_route(PATH, told, include_in_schema=False)


def _body(path: str, models: Sequence[str]) -> dict[str, Any]:
    required, properties = _BODIES[path]
    if any(_FILE is one for one in properties.values()):
        form = {"model": {"type": "string", "enum": list(models)}, **properties}
        schema = {"type": "object", "required": list(required), "properties": form}
        return {"required": True, "content": {"multipart/form-data": {"schema": schema}}}
    options = {**CoeOptions.model_json_schema(), "type": ["object", "null"]}
    known = {"model": {"type": "string", "enum": list(models)}, **properties, "coe": options}
    schema = {"type": "object", "required": list(required), "properties": known}
    return {"required": True, "content": {"application/json": {"schema": schema}}}


def _responses(path: str, own: Mapping[str, Any]) -> dict[str, Any]:
    """What an endpoint declares, 200 in its shapes, and every error in OpenAI's shape."""
    answered = dict(own.get("200", {"description": "Done."}))
    if path.startswith(_MEDIA):
        answered = {"description": "The expert's answer.", "content": {kind: {"schema": {}} for kind in _TYPES}}
    elif path in _BODIES and path != "/v1/route":
        content = {"application/json": {"schema": {"type": "object"}}, "text/event-stream": {"schema": _STRING}}
        answered = {"description": "The expert's answer, whole or as events.", "content": content}
    elif path == "/admin/events":
        answered = {"description": "Events without end.", "content": {"text/event-stream": {"schema": _STRING}}}
    reference = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    errors = {status: {"description": why, "content": reference} for status, why in _ERRORS.items()}
    if path == "/readyz":  # not an error
        errors["503"] = {
            "description": "Not ready yet.",
            "content": {"application/json": {"schema": {"type": "object"}}},
        }
    return {"200": answered, **errors}
