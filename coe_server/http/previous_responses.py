"""The expert of each response, by key: `previous_response_id` refers to state that only its engine has."""

from __future__ import annotations

import re
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from dataclasses import replace

from coe_server.errors import RequestError
from coe_server.routing.decision import RouteOptions

MOST_RESPONSES = 10_000  # of each key: one key cannot push out another's
FIELD = "previous_response_id"
_BEGINNING_BYTES = 64 * 1024  # of an answer, which contain its id
_ID = re.compile(rb'"id"\s*:\s*"(resp_[\x21\x23-\x5b\x5d-\x7e]{1,200})"')  # quoted inside a text it has backslashes


class MadeResponses:
    """The owner's key -> response id -> the expert that made it. Of each key the oldest are forgotten first."""

    def __init__(self, most: int = MOST_RESPONSES) -> None:
        self._most = most
        self._makers: defaultdict[str | None, OrderedDict[str, str]] = defaultdict(OrderedDict)

    def remember(self, response_id: str, expert: str, owner: str | None) -> None:
        own = self._makers[owner]
        own[response_id] = expert
        if len(own) > self._most:
            own.popitem(last=False)

    def continued(self, previous: object, options: RouteOptions, owner: str | None) -> RouteOptions:
        """The options with the expert that made `previous`. Raises RequestError if it is unknown, or another one is
        named.

        A named expert may have a response that is unknown here; otherwise it returns an error itself. Responses of
        other keys are unknown.
        """
        if not isinstance(previous, str):
            return options
        maker = self._makers[owner].get(previous)
        if maker is None:
            if options.expert is not None and not self._is_known(previous):
                return options
            raise RequestError(
                f"unknown {FIELD} {previous!r}; set `model` to the expert that created it, or send the whole"
                " conversation",
                FIELD,
            )
        if options.expert not in {None, maker}:
            raise RequestError(
                f"response {previous!r} was created by expert '{maker}', not by '{options.expert}'", FIELD
            )
        return replace(options, expert=maker)

    def _is_known(self, response_id: str) -> bool:
        return any(response_id in made for made in self._makers.values())


class ResponseId:
    """Reads the pieces of an answer until its id is found, and reports it once."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell
        self._beginning: bytes | None = b""

    def __call__(self, piece: bytes) -> None:
        if self._beginning is None:
            return
        self._beginning += piece
        found = _ID.search(self._beginning)
        if found is not None:
            self._tell(found[1].decode("ascii"))
        if found is not None or len(self._beginning) > _BEGINNING_BYTES:
            self._beginning = None
