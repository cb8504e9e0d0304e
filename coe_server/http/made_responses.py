"""Which expert made which response: `previous_response_id` means state that its engine alone holds."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace

from coe_server.errors import RequestError
from coe_server.routing.decision import RouteOptions

MOST_RESPONSES = 10_000
FIELD = "previous_response_id"
_BEGINNING_BYTES = 64 * 1024  # of an answer, in which its id stands
_ID = re.compile(rb'"id"\s*:\s*"(resp_[\x21\x23-\x5b\x5d-\x7e]{1,200})"')  # quoted inside a text it has backslashes


@dataclass(frozen=True, slots=True)
class Maker:
    """Who made a response, and whose key asked for it."""

    expert: str
    owner: str | None


class MadeResponses:
    """Response id -> its maker. The oldest are forgotten first."""

    def __init__(self, most: int = MOST_RESPONSES) -> None:
        self._most = most
        self._makers: OrderedDict[str, Maker] = OrderedDict()

    def remember(self, response_id: str, expert: str, owner: str | None) -> None:
        self._makers[response_id] = Maker(expert, owner)
        if len(self._makers) > self._most:
            self._makers.popitem(last=False)

    def continued(self, previous: object, options: RouteOptions, owner: str | None) -> RouteOptions:
        """The options with the expert that made `previous`. Raises RequestError where that is unknown, or another one.

        An expert asked for by name may know a response that we do not: it says so itself if not.
        """
        if not isinstance(previous, str):
            return options
        maker = self._makers.get(previous)
        if maker is None or maker.owner != owner:
            if options.expert is not None:
                return options
            raise RequestError(
                f"nobody here remembers who made the response {previous!r}; name its expert under model", FIELD
            )
        if options.expert not in {None, maker.expert}:
            raise RequestError(
                f"the response {previous!r} was made by expert '{maker.expert}', not by '{options.expert}'",
                FIELD,
            )
        return replace(options, expert=maker.expert)


class ResponseId:
    """Listens to the pieces of an answer until its id is in them, and tells it once."""

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
