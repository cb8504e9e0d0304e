"""Options of a request beside the conversation: `model`, `coe` and `stream` in the body. Knows no endpoints."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from coe_server.config.file import Mistake
from coe_server.errors import RequestError, UnknownModel
from coe_server.routing.decision import Priority, RouteOptions

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
    """Will an engine stream? `stream` is read as vLLM reads it, 1 and "yes" included; an engine rejects other
    values."""
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
    fields: Mapping[str, Any], objectives: Collection[str], experts: Collection[str], default_objective: str
) -> RouteOptions:
    """The options in a body. Raises RequestError or UnknownModel naming the field and what is allowed."""
    coe = _coe_options(fields.get("coe"))
    expert, objective = _read_model(fields.get("model", AUTO), model_names(objectives, experts), experts)
    if unknown := sorted(set(coe.allow or ()) - set(experts)):
        raise RequestError(
            f"coe.allow: unknown expert '{unknown[0]}'; the experts are {', '.join(experts)}", "coe.allow"
        )
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


def _read_model(model: object, names: Collection[str], experts: Collection[str]) -> tuple[str | None, str | None]:
    """(expert, objective) that a model name stands for."""
    if not isinstance(model, str):
        raise RequestError("model must be a string", "model")
    if model in experts:
        return model, None
    if model not in names and (model != AUTO or len(names) > len(experts)):
        raise UnknownModel(f"there is no model '{model}'; there are {', '.join(names)}", "model")
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
