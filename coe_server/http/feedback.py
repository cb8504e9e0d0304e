"""What somebody thought of an answer, and what was decided about it: `/v1/feedback` and `/v1/decisions`.

A decision's id is told to the caller alone and cannot be guessed: who knows it may rate, read and delete it.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.responses import Response

from coe_server.errors import RequestError, UnknownDecision
from coe_server.http.body import read_body
from coe_server.http.door.incoming import read_all
from coe_server.journal.journal import Journal

MOST_BYTES = 65_536
BODY_SECONDS = 10.0
SAFE_ID = r"^[\x20-\x7e]{1,100}$"


class FeedbackBody(BaseModel):
    """The body of `POST /v1/feedback`."""

    model_config = ConfigDict(extra="forbid", strict=True)

    decision_id: str = Field(pattern=SAFE_ID)
    score: Annotated[float, Field(ge=0.0, le=1.0, allow_inf_nan=False)]
    comment: str | None = Field(default=None, max_length=10_000)


def build_feedback(journal: Journal | None) -> APIRouter:
    """The routes over `journal`; without one they say how to get one."""
    routes = APIRouter(prefix="/v1")

    @routes.post("/feedback")
    async def rate(request: Request) -> dict[str, Any]:
        """Rate the answer to a decision, from 0 to 1; the last word counts. Answered when it is on the disk."""
        given = _read_feedback(await read_all(request, MOST_BYTES, BODY_SECONDS))
        await _there(journal).rate(given.decision_id, given.score, given.comment)
        return {"decision_id": given.decision_id, "score": given.score}

    @routes.get("/decisions/{decision_id}")
    async def decision(decision_id: str) -> dict[str, Any]:
        """What was decided and why, and the feedback on it; the prompt is no part of it."""
        return (await _there(journal).one(decision_id)).as_json()

    @routes.delete("/decisions/{decision_id}", status_code=204)
    async def delete(decision_id: str) -> Response:
        """Erase a decision with its text and feedback: answered when no file holds any of it."""
        await _there(journal).delete(decision_id)
        return Response(status_code=204)

    return routes


def _there(journal: Journal | None) -> Journal:
    if journal is None:
        raise UnknownDecision("this server keeps no decisions (log.decisions: false)")
    return journal


def _read_feedback(raw: bytes) -> FeedbackBody:
    try:
        return FeedbackBody.model_validate(dict(read_body(raw).fields))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"]))
        if first["type"] == "extra_forbidden":
            known = ", ".join(FeedbackBody.model_fields)
            raise RequestError(f"{key}: there is no such field ({known})", key) from error
        raise RequestError(f"{key}: {first['msg'][0].lower()}{first['msg'][1:]}", key) from error
