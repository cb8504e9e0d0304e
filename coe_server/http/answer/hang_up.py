"""Ends what is done for a client when the client leaves, as `asyncio.timeout` does when the time is up."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType

from starlette.types import Receive


class HangUp:
    """A context whose content is cancelled when the client has left, unless `is_answered` says that it may go.

    `happened` tells so afterwards; nothing is raised. The request's body must have been read already.
    """

    def __init__(self, receive: Receive, is_answered: Callable[[], bool]) -> None:
        self.happened = False
        self._receive = receive
        self._is_answered = is_answered

    async def __aenter__(self) -> HangUp:
        task = asyncio.current_task()
        assert task is not None, "a request is answered inside a task"
        self._answering = task
        self._listening: asyncio.Task[None] | None = asyncio.create_task(self._listen())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        listening, self._listening = self._listening, None  # its last words know us: a circle would be left behind
        assert listening is not None, "it was entered"
        listening.cancel()
        if not self.happened:
            return False
        self._answering.uncancel()
        return kind is asyncio.CancelledError

    async def _listen(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        if not self._is_answered():
            self.happened = True
            self._answering.cancel()
