"""An expert served by any program with the OpenAI API: started by a command, on a private socket or a loopback port.

Contains its settings and its engine.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shlex
import shutil
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field

from coe_server.config.types import ByteCount, Settings, filled_in, variables_in
from coe_server.engines.canary import canary_answer
from coe_server.engines.cards import Cards
from coe_server.engines.command_run import STOP_SIGNALS, CommandLaunch, CommandRun, PortTaken, placeholders_in
from coe_server.engines.engine import Engine, EngineRequest, EngineResponse, Footprint, Seat
from coe_server.engines.memory import resident_bytes
from coe_server.engines.process_engine import ProcessEngine
from coe_server.engines.remote import PASSED_ON, UNCOMPRESSED
from coe_server.engines.settings import EndpointName, ExpertSettings, Surroundings, never_in_host
from coe_server.errors import CardLost, EngineError

logger = logging.getLogger(__name__)

_MOVE_SECONDS = 60.0  # time limit of a sleep or wake request
_CANARY_SECONDS = 60.0
_CONTAINERS = ("docker", "podman")
_CANARY: dict[str, object] = {"prompt": "1 2 3 4", "max_tokens": 4, "temperature": 0}


def _words(value: object) -> object:
    """Split into words as a shell does, without a shell and before placeholders are replaced."""
    if not isinstance(value, str):
        return value
    try:
        return shlex.split(value)
    except ValueError as error:
        raise ValueError(f"'{value}' cannot be split into words: {error}") from error


def _variables(value: object) -> object:
    """Check the variables. Values may be secrets, so no message shows one."""
    for name, content in value.items() if isinstance(value, dict) else ():
        if not isinstance(content, str):
            raise ValueError(f"'{name}' must have a text as its value; put the value in quotes")
    return value


def _off(value: object) -> object:
    return "off" if value is False else value  # YAML reads off as false


Words = Annotated[list[str], BeforeValidator(_words), Field(min_length=1)]
Variables = Annotated[dict[str, str], BeforeValidator(_variables)]
MoveRequest = Annotated[str, Field(pattern=r"^(POST|GET|PUT) /\S*$")]


class CanaryRequest(Settings):
    path: str = Field(pattern="^/")
    body: dict[str, Any]


class CommandExpert(ExpertSettings):
    weights_here = True

    engine: Literal["command"]
    command: Words
    model: str = ""  # the value of {model}
    environment: Variables = Field(default={})
    health: str = Field(default="/health", pattern="^/")
    stop: Words = Field(default=["SIGTERM"])
    width: int = Field(default=1, ge=1)
    device_bytes: ByteCount | None = None  # on each of its cards
    host_bytes: ByteCount | None = None
    sleep: MoveRequest | None = None
    wake: MoveRequest | None = None
    canary: Annotated[Literal["off", "completion"] | CanaryRequest, BeforeValidator(_off)] = "off"

    def build(self, surroundings: Surroundings) -> Engine:
        """Build the engine with the values of the present environment."""
        secret = surroundings.environment.secret
        given = filled_in(self.environment, lambda key, name: secret(f"experts.{self.name}.environment.{key}", name))
        launch = CommandLaunch(
            name=self.name,
            model=self.model,
            command=tuple(self.command),
            stop=tuple(self.stop),
            environment=given,
            inherited=surroundings.inherited,
            health=self.health,
            log_directory=surroundings.log_directory,
            start_timeout_seconds=surroundings.vllm.start_timeout_seconds,
            user=surroundings.user,
            pulse_timeout_seconds=surroundings.longest_answer_seconds,
            cores=surroundings.cores,
        )
        footprint = Footprint(
            device_awake=self.device_bytes or surroundings.whole_device_bytes(),
            host_process=self.host_bytes or 0,
            host_image=self.width * (self.device_bytes or 1) if self.sleep and self.wake else 0,
        )
        on_gpu = surroundings.platform == "cuda"
        is_measured = self.device_bytes is None and not on_gpu
        cards = surroundings.cards if on_gpu else None
        return CommandEngine(launch, footprint, is_measured, self._moves, self._canary, cards, self.width)

    @property
    def cards_taken(self) -> int:
        return self.width

    @property
    def _moves(self) -> tuple[str, str] | None:
        return (self.sleep, self.wake) if self.sleep and self.wake else None

    @property
    def _canary(self) -> tuple[str, dict[str, Any]] | None:
        if isinstance(self.canary, CanaryRequest):
            return self.canary.path, self.canary.body
        return ("/v1/completions", {"model": self.name, **_CANARY}) if self.canary == "completion" else None

    @property
    def served_endpoints(self) -> tuple[EndpointName, ...]:
        """The configured endpoints; by default the two that most programs serve."""
        return super().served_endpoints or ("chat", "completions")

    def contradictions(self) -> Iterator[str]:
        yield from super().contradictions()
        named = placeholders_in(self.command)
        if not named & {"socket", "port"}:
            yield "command: needs {socket} or {port}, the address to listen on"
        if "model" in named and not self.model:
            yield "model: is missing; the command uses {model}"
        for key, words in (("command", self.command), ("stop", self.stop)):
            if any(variables_in(word) for word in words):
                yield f"{key}: {{env.NAME}} would be readable by every user of this machine; set it in environment"
        if (self.sleep is None) != (self.wake is None):
            yield f"{'wake' if self.wake is None else 'sleep'}: is missing; set both sleep and wake"
        if self.sleep is None:
            yield from never_in_host(self, "`sleep` and `wake`")
        if len(self.stop) == 1 and self.stop[0].startswith("SIG") and self.stop[0] not in STOP_SIGNALS:
            yield f"stop: '{self.stop[0]}' is not one of {', '.join(STOP_SIGNALS)}, and not the name of a program"

    def without_effect(self) -> Iterator[str]:
        for key, words in (("command", self.command), ("stop", self.stop)):
            if words[0] not in STOP_SIGNALS and shutil.which(words[0]) is None:
                yield f"{key}: there is no program '{words[0]}' on PATH"
        if Path(self.command[0]).name in _CONTAINERS:  # paths are those of the container
            return
        if self.model.startswith("/") or self.model.endswith(".gguf"):
            yield from _missing("model", self.model)
        for word in self.command[1:]:
            if word.startswith(("/", "./", "../")) and word.endswith(".gguf"):
                yield from _missing("command", word)

    def in_folder(self, folder: Path) -> Self:
        """The settings with paths of programs and models made absolute; other words are unchanged."""
        return self.model_copy(
            update={
                "command": [_path(self.command[0], folder), *self.command[1:]],
                "stop": [_path(self.stop[0], folder), *self.stop[1:]],
                "model": _path(self.model, folder),
            }
        )


class CommandEngine(ProcessEngine[CommandRun]):
    """An `Engine` (see `engine.py`) that runs the program as its child.

    `moves` are the requests that put it to sleep and wake it, `canary` path and body of a request that it must answer.
    `cards` are the GPUs, of which it sees those of its seat; None on a CPU.
    """

    def __init__(
        self,
        launch: CommandLaunch,
        footprint: Footprint,
        is_measured: bool = False,
        moves: tuple[str, str] | None = None,
        canary: tuple[str, dict[str, Any]] | None = None,
        cards: Cards | None = None,
        width: int = 1,
    ) -> None:
        super().__init__(launch.name, launch.log_directory, launch.start_timeout_seconds)
        self.footprint = footprint
        self._launch = launch
        self._is_measured = is_measured
        self._moves = moves
        self._canary = canary
        self._cards = cards
        self._width = width
        self._answer: str | None = None  # of the canary, since the last start

    async def sleep(self) -> None:
        """Send the sleep request. Status 200 counts as freed: the memory it keeps cannot be measured."""
        await self._move(0)

    async def wake(self) -> None:
        await self._move(1)
        async with self._log_quoted():
            await self._check_canary()

    @asynccontextmanager
    async def send(self, request: EngineRequest) -> AsyncIterator[EngineResponse]:
        passed_on = tuple(pair for pair in request.headers if pair[0].lower() in PASSED_ON)
        run = self.running()
        headers = (*passed_on, UNCOMPRESSED, *run.authorization)
        asked = EngineRequest(request.method, request.path, headers, request.body)
        async with run.http.send(asked) as response:
            yield response

    def _secrets(self) -> Iterable[str]:
        own = () if self._run is None else (self._run.api_key,)
        return (*self._launch.environment.values(), *own)

    async def _bring_up(self) -> None:
        try:
            await self._begin()
        except PortTaken:
            if self._run is not None:
                await self._run.end(at_once=True)
            await self._begin()
        if self._is_measured:
            held_bytes = resident_bytes(self.running().process.pid)
            image_bytes = held_bytes if self._moves else 0
            on_each = -(-held_bytes // self._width)
            self.footprint = self.footprint._replace(device_awake=on_each, host_image=image_bytes)
        self._answer = None
        await self._check_canary()

    async def _begin(self) -> None:
        self._run = await CommandRun.start(replace(self._launch, visible_cards=await self._visible_cards()), self._seat)
        await self._run.until_healthy()

    async def _visible_cards(self) -> tuple[str, ...]:
        """UUIDs of its seat; none where there is one card, or none to choose from.

        Raises `CardLost` if one of them is gone, else `EngineError`.
        """
        return () if self._cards is None else await asyncio.to_thread(_seen, self._cards, self._seat)

    async def _move(self, number: int) -> None:
        if self._moves is None:
            raise EngineError(f"engine '{self._name}' has no sleep and wake requests and cannot sleep")
        method, path = self._moves[number].split(" ", 1)
        run = self.running()
        async with self._log_quoted():
            with run.on_the_move():
                await run.ask(method, path, _MOVE_SECONDS)

    async def _check_canary(self) -> None:
        """Compare the canary's answer after a wake with that of the start, if both have text or an embedding."""
        if self._canary is None:
            return
        path, question = self._canary
        answer = _told(await self.running().ask("POST", path, _CANARY_SECONDS, question))
        if answer != (self._answer or answer):
            raise EngineError(
                f"engine '{self._name}' answers its canary wrongly: {answer!r} now, {self._answer!r} at first"
            )
        self._answer = answer


def _seen(cards: Cards, seat: Seat) -> tuple[str, ...]:
    visible = cards.visible()
    try:
        cards.readings(seat if visible else ())
    except CardLost:
        raise
    except EngineError as error:  # a driver that does not report memory may still run programs
        logger.debug("%s", error)
    return tuple(visible[index] for index in seat) if len(visible) > 1 else ()


def _told(answer: bytes) -> str:
    """The compared part of an answer: without ids and times."""
    try:
        return canary_answer(json.loads(answer))
    except (LookupError, TypeError, AttributeError, ValueError, RecursionError):
        return ""


def _missing(key: str, path: str) -> Iterator[str]:
    if "{" not in path and not Path(path).exists():
        yield f"{key}: there is no file or folder '{path}'"


def _path(word: str, folder: Path) -> str:
    """`./x`, `../x` and `~/x` as absolute paths."""
    if not word.startswith(("./", "../", "~/")):
        return word
    return os.path.normpath(folder / Path(word).expanduser())
