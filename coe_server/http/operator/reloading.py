"""Takes a changed artifact, configuration or key file over while requests go on: all of it or nothing."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from coe_server.errors import CoeError, ReloadRefused
from coe_server.http.door.guard import Guard
from coe_server.http.service import Service, Serving
from coe_server.process.allocator import give_back_free_memory
from coe_server.routing.embeddings import Embedder

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Fresh:
    """What was built anew, checked, to take the place of what serves."""

    serving: Serving
    guard: Guard
    log_prompts: bool
    changed: tuple[str, ...]  # keys of the configuration


class Reloader:
    """`build` reads and checks everything, in a thread; what it builds replaces what serves between two requests.

    Requests that were decided before go on with the router that decided them.
    """

    def __init__(self, service: Service, build: Callable[[Serving], Fresh]) -> None:
        self._service = service
        self._build = build
        self._one_at_a_time = asyncio.Lock()
        self._retired: list[Embedder] = []  # somebody's prompt may be on its way through one
        self._tasks: set[asyncio.Task[None]] = set()

    async def reload(self) -> dict[str, Any]:
        """Take over what is on disk now. Raises ReloadRefused with the reason; then nothing has changed."""
        try:
            return await self._take_over()
        finally:
            give_back_free_memory()  # of what was replaced, or built in vain

    async def _take_over(self) -> dict[str, Any]:
        async with self._one_at_a_time:
            serving = self._service.serving
            try:
                fresh = await asyncio.to_thread(self._build, serving)
            except CoeError as error:
                logger.error("nothing was reloaded: %s", error)
                if isinstance(error, ReloadRefused):
                    raise
                raise ReloadRefused(f"nothing was reloaded: {error}") from error
            if serving.embedder is not None and fresh.serving.embedder is not serving.embedder:
                self._retired.append(serving.embedder)
            self._service.serving = fresh.serving
            api_keys = fresh.guard.keyring.since(self._service.guard.keyring)
            self._service.guard = fresh.guard
            self._service.log_prompts = fresh.log_prompts
        version = fresh.serving.router.version
        keys = (f"{word} {', '.join(names)}" for word, names in api_keys.items() if names)
        logger.info(
            "reloaded: router %s; configuration: %s; API keys: %s",
            *(version, ", ".join(fresh.changed) or "as before", "; ".join(keys) or "as before"),
        )
        return {"router_version": version, "changed": list(fresh.changed), "api_keys": api_keys}

    def begin(self) -> None:
        """The same for a signal, which waits for nothing; the log has the outcome."""
        task = asyncio.get_running_loop().create_task(self._reload_quietly())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """End what a signal began, and every embedder that serves or did."""
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for embedder in (*self._retired, self._service.serving.embedder):
            if embedder is not None:
                await embedder.close()

    async def _reload_quietly(self) -> None:
        try:
            await self.reload()
        except ReloadRefused:
            return  # `reload` has said why
