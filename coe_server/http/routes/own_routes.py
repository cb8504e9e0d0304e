"""The operator's editing of the routes file: its text, an example from a logged decision, and undo.

Each change is written, then loaded like any reload. If the reload refuses it, the file is as before.
"""

from __future__ import annotations

import asyncio
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from coe_server.config.mistakes import Mistake
from coe_server.config.routes_text import with_example
from coe_server.errors import CoeError, ConfigError, ReloadRefused, RequestError, UnknownDecision
from coe_server.http.bodies.body import read_body
from coe_server.http.bodies.reader import read_all
from coe_server.http.routes.admin import Reloader
from coe_server.http.serving import Service
from coe_server.routing.router import Router
from coe_server.system.files import replacing

MOST_BYTES = 2 << 20
BODY_SECONDS = 10.0
LONGEST_EXAMPLE = 20_000  # characters, as in the file
KEPT_CHANGES = 20


class WholeText(BaseModel):
    """The body of `PUT /admin/routes`; `version` is that of the text which was read before."""

    model_config = ConfigDict(extra="forbid", strict=True)

    text: Annotated[str, Field(max_length=MOST_BYTES)]
    version: str


class OneExample(BaseModel):
    """The body of `POST /admin/routes/examples`: the prompt of this decision becomes an example of the route."""

    model_config = ConfigDict(extra="forbid", strict=True)

    decision_id: Annotated[str, Field(max_length=100)]
    route: Annotated[str, Field(max_length=200)]


def build_route_editing(service: Service, reloader: Reloader) -> APIRouter:
    """The routes under `/admin/routes`."""
    routes, editor = APIRouter(prefix="/admin/routes"), _Editor(service, reloader)

    @routes.get("")
    async def text() -> dict[str, Any] | None:
        """The routes file: its text, version and routes; null if the server has none."""
        return await editor.shown()

    @routes.put("")
    async def replace(request: Request) -> dict[str, Any] | None:
        """Replace the text and load it; 409 if the file has changed since, or cannot be loaded."""
        given = WholeText.model_validate(await _body(request, WholeText))
        return await editor.replace(given.text, given.version)

    @routes.post("/examples")
    async def add(request: Request) -> dict[str, Any] | None:
        """Add the prompt of a logged decision to a route's examples and load the file."""
        given = OneExample.model_validate(await _body(request, OneExample))
        return await editor.add(given.decision_id, given.route)

    @routes.post("/undo")
    async def undo() -> dict[str, Any] | None:
        """Undo the last change made here since the start; 409 if there is none or the file has changed since."""
        return await editor.undo()

    return routes


async def _body(request: Request, model: type[BaseModel]) -> dict[str, Any]:
    fields = dict(read_body(await read_all(request, MOST_BYTES, BODY_SECONDS)).fields)
    try:
        model.model_validate(fields)
    except ValidationError as error:
        mistake = Mistake.first(error.errors(include_url=False), known=model.model_fields)
        raise RequestError(str(mistake), mistake.key) from error
    return fields


class _Editor:
    """One change at a time. `_changes`: (text before, text after) of each, the last one undone first."""

    def __init__(self, service: Service, reloader: Reloader) -> None:
        self._service = service
        self._reloader = reloader
        self._changes: list[tuple[str, str]] = []
        self._one_at_a_time = asyncio.Lock()

    async def shown(self) -> dict[str, Any] | None:
        file, router = self._service.serving.routes_file, self._service.serving.router
        if file is None or not isinstance(router, Router):
            return None
        text = await asyncio.to_thread(_read, file)
        return {
            "file": file.name,
            "text": text,
            "version": _version(text),
            "routes": list(router.artifact.manifest.routes or {}),
            "prompts_kept": self._service.journal is not None and self._service.journal.keeps_prompts,
            "can_undo": bool(self._changes) and self._changes[-1][1] == text,
        }

    async def replace(self, text: str, version: str) -> dict[str, Any] | None:
        async with self._one_at_a_time:
            before = await asyncio.to_thread(_read, self._file)
            if _version(before) != version:
                raise ReloadRefused("the routes file has changed since it was read; read it again")
            await self._change(before, text)
        return await self.shown()

    async def add(self, decision_id: str, route: str) -> dict[str, Any] | None:
        async with self._one_at_a_time:
            example = await self._prompt_of(decision_id)
            before = await asyncio.to_thread(_read, self._file)
            try:
                after = with_example(before, route, example)
            except ConfigError as error:
                raise ReloadRefused(f"nothing was changed: {error}") from error
            await self._change(before, after)
        return await self.shown()

    async def undo(self) -> dict[str, Any] | None:
        async with self._one_at_a_time:
            text = await asyncio.to_thread(_read, self._file)
            if not self._changes or self._changes[-1][1] != text:
                raise ReloadRefused("there is no change to undo, or the file has changed since")
            before, _ = self._changes[-1]
            await self._write(text, before)
            self._changes.pop()
        return await self.shown()

    @property
    def _file(self) -> Path:
        file = self._service.serving.routes_file
        if file is None:
            raise ReloadRefused("this server has no routes file (router.routes)")
        return file

    async def _prompt_of(self, decision_id: str) -> str:
        """The newest user turn of a decision. Raises UnknownDecision if it is not kept."""
        journal = self._service.journal
        kept = await journal.one(decision_id) if journal is not None else None
        if kept is None or not kept.messages:
            raise UnknownDecision("this decision's prompt is not kept: log.prompts is false, or was then")
        text = kept.messages[-1]["content"].strip()
        if not text or len(text) > LONGEST_EXAMPLE:
            raise RequestError(f"this prompt has {len(text):,} characters; an example has 1 to {LONGEST_EXAMPLE:,}")
        return text

    async def _change(self, before: str, after: str) -> None:
        await self._write(before, after)
        self._changes = [*self._changes, (before, after)][-KEPT_CHANGES:]

    async def _write(self, before: str, after: str) -> None:
        file = self._file
        await asyncio.to_thread(_replace, file, after)
        try:
            await self._reloader.reload()
        except CoeError:
            await asyncio.to_thread(_replace, file, before)
            raise


def _read(file: Path) -> str:
    try:
        return file.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ReloadRefused(f"{file.name} cannot be read: {error}") from error


def _replace(file: Path, text: str) -> None:
    """Write the file with its mode; a link is followed. Raises ReloadRefused."""
    real = file.resolve()
    try:
        with replacing(real, real.stat().st_mode & 0o777) as out:
            out.write(text)
    except (OSError, UnicodeEncodeError) as error:
        raise ReloadRefused(f"nothing was changed: {file.name} cannot be written ({error})") from error


def _version(text: str) -> str:
    return sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
