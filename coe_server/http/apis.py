"""The APIs that experts serve: each path, the conversation in its body, and how many answers one body asks for. Pure.

Only what routing needs is read here; bodies are passed on unchanged. An engine works on each answer of a request, so
each counts. A request without a generated answer (embeddings, ranks, scores, tokens) is one unit of work, however many
inputs it has.

Beside the conversation a body has options: `model`, `coe` and `stream`. This module does not depend on the endpoints.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil, inf, isnan
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from coe_server.config.mistakes import Mistake
from coe_server.errors import RequestError
from coe_server.http.model_names import unknown_model
from coe_server.routing.conversation import Conversation, Endpoint, read_messages
from coe_server.routing.decision import Priority, RouteOptions
from coe_server.routing.features import Turn
from coe_server.routing.tokens import TokenCount

MOST_MESSAGES = 10_000

Fields = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Api:
    """One engine path that clients may use.

    `routed`: false if answers of different models are not interchangeable, as for embeddings and tokens. `form`: the
    body is a multipart form. `media`: an answer may have any content type.
    """

    path: str
    endpoint: Endpoint
    read: Callable[[Fields], Conversation]
    routed: bool = True
    form: bool = False
    media: bool = False

    @property
    def answered_as(self) -> str:
        """The API that defines a valid answer; for counted tokens, ranks and scores any JSON is valid."""
        return self.endpoint if self.routed or self.endpoint == "embeddings" else "any"

    def conversation(self, fields: Fields) -> Conversation:
        """The conversation in a body. Raises RequestError naming the field that is wrong."""
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


def read_speech(fields: Fields) -> Conversation:
    """`input` of a request for speech, which rules may look at."""
    return Conversation((Turn(_text(fields.get("input"))),))


def read_described(fields: Fields) -> Conversation:
    """`prompt` of a request for images, or beside audio."""
    return Conversation((Turn(_text(fields.get("prompt"))),))


def read_nothing(fields: Fields) -> Conversation:
    """For requests that are not routed: an empty conversation."""
    del fields
    return Conversation((Turn(""),))


APIS = (
    Api("/v1/chat/completions", "chat", read_chat),
    Api("/v1/completions", "completions", read_completion),
    Api("/v1/responses", "responses", read_response),
    Api("/v1/messages", "messages", read_anthropic),
    Api("/v1/messages/count_tokens", "messages", read_nothing, routed=False),
    Api("/v1/embeddings", "embeddings", read_nothing, routed=False),
    Api("/v1/rerank", "rerank", read_nothing, routed=False),
    Api("/v1/score", "score", read_nothing, routed=False),
    Api("/tokenize", "tokenize", read_nothing, routed=False),
    Api("/detokenize", "tokenize", read_nothing, routed=False),
    Api("/v1/audio/transcriptions", "audio.transcriptions", read_described, routed=False, form=True, media=True),
    Api("/v1/audio/translations", "audio.translations", read_described, routed=False, form=True, media=True),
    Api("/v1/audio/speech", "audio.speech", read_speech, routed=False, media=True),
    Api("/v1/images/generations", "images.generations", read_described, routed=False, media=True),
    Api("/v1/images/edits", "images.edits", read_described, routed=False, form=True, media=True),
)


def api_of(fields: Fields) -> Api:
    """The API that a body's fields belong to; for a dry run, which takes any."""
    chat, completions, responses = APIS[:3]
    return completions if "prompt" in fields else responses if "input" in fields else chat


def _messages(fields: Fields) -> list[Any]:
    messages = fields.get("messages")
    if not isinstance(messages, list) or not messages:
        raise RequestError("messages must be a list with at least one message", "messages")
    _require_few(messages, "messages")
    return messages


def _require_few(entries: list[Any], field: str) -> None:
    if len(entries) > MOST_MESSAGES:
        raise RequestError(f"{field} has {len(entries)} entries; the limit is {MOST_MESSAGES}", field)


def _longest(prompts: list[Any]) -> TokenCount:
    """The largest of several prompts, which are answered one by one."""
    counts = [TokenCount.of(one) if isinstance(one, str) else TokenCount(len(one), len(one)) for one in prompts]
    return TokenCount(max(one.least for one in counts), max(one.likely for one in counts))


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _count(limit: object) -> int:
    return limit if isinstance(limit, int) and limit > 0 else 0


def is_tokens(value: object) -> bool:
    """True if the value is a text given as tokens."""
    return isinstance(value, list) and bool(value) and all(type(one) is int for one in value)


MOST_INPUTS = 2048  # what OpenAI's API takes in one request for embeddings

# `n` as OpenAI has it, `best_of` of completions, and what llama.cpp calls the same.
_TIMES = ("n", "best_of", "n_cmpl")
_PROMPTS = ("prompt", "prompt_embeds")
_INPUTS = ("input", "documents", "queries", "items", "text_1", "text_2", "data_1", "data_2")


def read_fan_out(api: Api, fields: Mapping[str, Any]) -> int:
    """The number of answers that a body asks for, mostly 1. Raises RequestError for too many inputs."""
    if not api.routed:
        _require_few_inputs(fields)
        return 1
    prompts = _entries_of(fields, _PROMPTS) if api.endpoint == "completions" else 1
    return max(1, prompts) * max(_number(fields.get(name)) for name in _TIMES)


def require_fan_out(asked: int, server_limit: int, key_name: str | None, key_limit: int | None) -> None:
    """Raises RequestError for more answers than the server or the key allows."""
    meant = f"the request asks for {asked:,} answers at once (n or best_of, times the prompts)"
    if asked > server_limit:
        raise RequestError(f"{meant}; {server_limit:,} are allowed (scheduling.max_fan_out)", "n")
    if key_limit is not None and asked > key_limit:
        raise RequestError(f"{meant}; key '{key_name}' may ask for {key_limit:,}", "n")


def _require_few_inputs(fields: Mapping[str, Any]) -> None:
    for name in _INPUTS:
        number = _entries(fields.get(name))
        if number > MOST_INPUTS:
            raise RequestError(f"{name} has {number:,} entries; {MOST_INPUTS:,} are allowed in one request", name)


def _entries_of(fields: Mapping[str, Any], names: tuple[str, ...]) -> int:
    return sum(_entries(fields[name]) for name in names if fields.get(name) is not None)


def _entries(value: object) -> int:
    """The number of inputs; a list of tokens is one, like a text."""
    if isinstance(value, Mapping):  # parts of several kinds, as vLLM takes them for scores
        value = value.get("content")
    return len(value) if isinstance(value, list) and not is_tokens(value) else 1


def _number(value: object) -> int:
    """A count as the most lenient engine reads it: `"4"`, 4.0 and 3.5 are 4; what no engine accepts is 1."""
    if isinstance(value, int):
        return max(1, value)
    try:
        number = float(value) if isinstance(value, float | str) else 1.0
    except ValueError:
        return 1
    if isnan(number):
        return 1
    return sys.maxsize if number == inf else max(1, ceil(max(number, 1.0)))


AUTO = "auto"


class CoeOptions(BaseModel):
    """The members of `coe` in the body."""

    model_config = ConfigDict(extra="forbid", strict=True)

    allow: list[str] | None = Field(default=None, min_length=1)
    objective: str | None = None
    max_active_params_b: float | None = Field(default=None, gt=0)
    session: str | None = Field(default=None, min_length=1, max_length=256)
    min_confidence: float | None = Field(default=None, ge=0, le=1)
    priority: Priority | None = None  # normal


def wants_stream(fields: Mapping[str, Any]) -> bool:
    """True if an engine will stream.

    `stream` is parsed as in vLLM, 1 and "yes" included; engines reject other values.
    """
    given = fields.get("stream")
    if given is None or isinstance(given, bool):
        return bool(given)
    try:
        return _FLAG.validate_python(given)
    except ValidationError:
        return False


def model_names(objectives: Collection[str], experts: Collection[str]) -> tuple[str, ...]:
    """Every name that `model` may have, aliases apart."""
    return ((AUTO,) if objectives else ()) + tuple(f"{AUTO}:{name}" for name in objectives) + tuple(experts)


def read_options(
    fields: Mapping[str, Any],
    objectives: Collection[str],
    experts: Collection[str],
    default_objective: str,
    aliases: Sequence[str] = (),
) -> RouteOptions:
    """The options in a body. Raises RequestError or UnknownModel naming the field and what is allowed.

    `aliases` are shown in that error alone: an alias in `fields` has been replaced before.
    """
    coe = _coe_options(fields.get("coe"))
    names = model_names(objectives, experts)
    expert, objective = _read_model(fields.get("model", AUTO), names, experts, aliases)
    if unknown := sorted(set(coe.allow or ()) - set(experts)):
        raise RequestError(f"coe.allow: unknown expert '{unknown[0]}'; known: {', '.join(experts)}", "coe.allow")
    return RouteOptions(
        expert=expert,
        objective=coe.objective or objective or default_objective,
        allow=frozenset(coe.allow) if coe.allow else None,
        max_active_params_b=coe.max_active_params_b,
        session=coe.session,
        min_confidence=coe.min_confidence,
        priority=coe.priority or "normal",
    )


def require_expert(options: RouteOptions, path: str, experts: Collection[str]) -> None:
    """Raises RequestError if no expert is named."""
    if options.expert is None:
        raise RequestError(
            f"{path} is not routed; set `model` to an expert: " + ", ".join(experts),
            "model",
        )


def _read_model(
    model: object, names: Collection[str], experts: Collection[str], aliases: Sequence[str]
) -> tuple[str | None, str | None]:
    """(expert, objective) that a model name stands for."""
    if not isinstance(model, str):
        raise RequestError("model must be a string", "model")
    if model in experts:
        return model, None
    if model not in names and (model != AUTO or len(names) > len(experts)):
        raise unknown_model(model, [*names, *aliases])
    return None, model.partition(":")[2] or None


def _coe_options(given: object) -> CoeOptions:
    if given is None or given == {}:
        return _NOTHING_ASKED
    try:
        return CoeOptions.model_validate(given)
    except ValidationError as error:
        mistake = Mistake.first(error.errors(include_url=False), "coe", CoeOptions.model_fields)
        raise RequestError(str(mistake), mistake.key) from error


_NOTHING_ASKED = CoeOptions()
_FLAG = TypeAdapter(bool)
