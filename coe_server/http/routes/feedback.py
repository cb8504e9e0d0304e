"""Ratings of answers, and the logged decisions: `/v1/feedback` and `/v1/decisions`.

A decision belongs to the key of its request; other keys except admin keys get 404 for it. Without configured keys the
id suffices: it is random, and only the caller has it.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.responses import Response

from coe_server.config.mistakes import Mistake
from coe_server.errors import RequestError, UnknownDecision
from coe_server.http.auth import CALLER, Reach
from coe_server.http.bodies.body import read_body
from coe_server.http.bodies.reader import read_all
from coe_server.journal.journal import Journal
from coe_server.keys import Key

MOST_BYTES = 65_536
BODY_SECONDS = 10.0
SAFE_ID = r"^[\x20-\x7e]{1,100}$"
AT_A_TIME = 16  # of one key's requests in the decision log's queue; further ones wait


class FeedbackBody(BaseModel):
    """The body of `POST /v1/feedback`."""

    model_config = ConfigDict(extra="forbid", strict=True)

    decision_id: str = Field(pattern=SAFE_ID)
    score: Annotated[float, Field(ge=0.0, le=1.0, allow_inf_nan=False)]
    comment: str | None = Field(default=None, max_length=10_000)
    source: Literal["score", "thumbs", "exact", "judge"] = "score"


def build_feedback(
    journal: Journal | None, reach: Callable[[Key | None], Reach], rated: Callable[[], None] | None = None
) -> APIRouter:
    """The routes over `journal`; without one, responses say how to configure it.

    `reach`: the names a key may see. `rated` is called after each rating.
    """
    routes = APIRouter(prefix="/v1")
    turns: dict[str | None, asyncio.Semaphore] = defaultdict(lambda: asyncio.Semaphore(AT_A_TIME))

    @routes.post("/feedback")
    async def rate(request: Request) -> dict[str, Any]:
        """Rate the answer to a decision, from 0 to 1; a later rating of the same source replaces it. Answered once it
        is on disk."""
        given = _read_feedback(await read_all(request, MOST_BYTES, BODY_SECONDS))
        key = request.scope[CALLER]
        async with turns[_name(key)]:
            await _there(journal).rate(given.decision_id, given.score, given.comment, _owner(key), given.source)
        if rated is not None:
            rated()
        return {"decision_id": given.decision_id, "score": given.score}

    @routes.get("/decisions/{decision_id}")
    async def decision(decision_id: str, request: Request) -> dict[str, Any]:
        """A decision with its reason and the feedback on it, without the prompt."""
        key = request.scope[CALLER]
        async with turns[_name(key)]:
            kept = await _there(journal).one(decision_id, _owner(key))
        return reach(key).seen(kept.as_json())

    @routes.delete("/decisions/{decision_id}", status_code=204)
    async def delete(decision_id: str, request: Request) -> Response:
        """Erase a decision with its text and feedback. Answered once no file holds any of it."""
        key = request.scope[CALLER]
        async with turns[_name(key)]:
            await _there(journal).delete(decision_id, _owner(key))
        return Response(status_code=204)

    return routes


def _name(key: Key | None) -> str | None:
    return None if key is None else key.name


def _owner(key: Key | None) -> str | None:
    """The key that a decision must belong to; None for all of them."""
    return None if key is None or key.admin else key.name


def _there(journal: Journal | None) -> Journal:
    if journal is None:
        raise UnknownDecision("decisions are not logged: log.decisions is false")
    return journal


def _read_feedback(raw: bytes) -> FeedbackBody:
    try:
        return FeedbackBody.model_validate(dict(read_body(raw).fields))
    except ValidationError as error:
        mistake = Mistake.first(error.errors(include_url=False), known=FeedbackBody.model_fields)
        raise RequestError(str(mistake), mistake.key) from error
