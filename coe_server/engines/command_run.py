"""One run of a program that serves an expert: its command line, address, readiness check and end.

The program counts as ready only if it owns the socket at its address; another process might listen there.
"""

from __future__ import annotations

import asyncio
import json
import re
import secrets
import shutil
import signal
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from coe_server.config.environment import FOR_EVERY_ENGINE
from coe_server.engines.cores import Cores
from coe_server.engines.engine import EngineRequest, Seat
from coe_server.engines.http_channel import HttpChannel, Reuse
from coe_server.engines.kept_process import KeptProcess, ending, make_run_directory
from coe_server.engines.listeners import by_owner, free_port
from coe_server.engines.log_file import fresh_log
from coe_server.engines.user import EngineUser, as_user
from coe_server.errors import ConnectionLost, EngineError
from coe_server.system.child import signal_child

STOP_SIGNALS = ("SIGTERM", "SIGINT", "SIGQUIT", "SIGHUP")

_PLACEHOLDER = re.compile(r"\{(socket|port|api_key|model|name)\}")
_POLL_SECONDS = 0.1  # programs do not announce that they are ready
_HEALTH_SECONDS = 30.0
_PULSE_SECONDS = 10.0  # interval of liveness probes
_GRACE_SECONDS = 10.0  # between the stop signal and SIGKILL
_FAILED_GRACE_SECONDS = 1.0
_STOP_PROGRAM_SECONDS = 30.0
_LONGEST_ANSWER_BYTES = 1 << 20
_QUOTED_BYTES = 300
_IDLE_CONNECTIONS = Reuse(4.0, ConnectionLost)  # the program's keep-alive is unknown; 5 s is usual
_INHERITED_PREFIXES = ("LC_", "XDG_", "CUDA", "NVIDIA_", "HF_", "OMP_", "GGML_")


class PortTaken(EngineError):
    """Another process listens on the port chosen for the program."""


@dataclass(frozen=True, slots=True)
class CommandLaunch:
    """All that is needed to start the program."""

    name: str
    command: tuple[str, ...]  # with placeholders
    log_directory: Path
    model: str = ""
    stop: tuple[str, ...] = ("SIGTERM",)  # name of a signal, or the words of a command
    environment: Mapping[str, str] = field(default_factory=dict)  # overrides inherited variables
    inherited: Mapping[str, str] = field(default_factory=dict)  # the server's environment, filtered for the program
    health: str = "/health"
    start_timeout_seconds: float = 600.0
    pulse_timeout_seconds: float = 60.0
    user: EngineUser | None = None  # None: the server's user
    visible_cards: tuple[str, ...] = ()  # UUIDs of the GPUs that it may use; none: all
    cores: tuple[Cores, ...] = ()  # of each card, on a machine whose RAM and cores are divided into cards

    def cores_on(self, seat: Seat) -> Cores:
        """Those that the program may run on; empty: any."""
        return tuple(core for card in seat for core in self.cores[card]) if self.cores else ()

    @property
    def stop_program(self) -> tuple[str, ...]:
        return () if self.stop[0] in STOP_SIGNALS else self.stop

    @property
    def stop_signal(self) -> signal.Signals:
        return signal.SIGTERM if self.stop_program else signal.Signals[self.stop[0]]


def placeholders_in(words: Iterable[str]) -> frozenset[str]:
    """The names of the known placeholders; other braces are plain text."""
    return frozenset(name for word in words for name in _PLACEHOLDER.findall(word))


def filled(words: Iterable[str], values: Mapping[str, str]) -> list[str]:
    """The words with placeholders replaced. Values are neither split nor replaced again."""
    return [_PLACEHOLDER.sub(lambda match: values[match[1]], word) for word in words]


class CommandRun:
    """One run of the process with its channel. `port` is None on a Unix socket."""

    def __init__(
        self, launch: CommandLaunch, values: Mapping[str, str], environment: Mapping[str, str], process: KeptProcess
    ) -> None:
        self.launch = launch
        self.process = process
        self.api_key = values["api_key"]
        self.authorization = (("Authorization", f"Bearer {self.api_key}"),)
        self._values = values
        self._environment = environment
        self._socket = Path(values["socket"]) if "socket" in placeholders_in(launch.command) else None
        self._port = int(values["port"])
        base_url = "http://engine" if self._socket else f"http://127.0.0.1:{self._port}"
        self.http = HttpChannel(launch.name, base_url, self._socket, _IDLE_CONNECTIONS)
        self._one_end = asyncio.Lock()
        self._gone = False
        self._ending = False
        self._moving = False

    @classmethod
    async def start(cls, launch: CommandLaunch, seat: Seat = (0,)) -> CommandRun:
        """Start the process with a new address and key, without waiting until it is ready. Raises `OSError`."""
        run_directory = make_run_directory(launch.user)
        values = {
            "socket": str(run_directory / "engine.sock"),
            "port": str(free_port()),
            "api_key": secrets.token_hex(32),  # without a first `-`, which a program would take for an option
            "model": launch.model,
            "name": launch.name,
        }
        environment = _environment(launch, run_directory, values)
        try:
            await _run_stop_program(launch, values, environment)  # ends what a killed server left running
            process = await KeptProcess.start(
                filled(launch.command, values),
                environment,
                run_directory,
                fresh_log(launch.log_directory, launch.name),
                launch.user,
                launch.cores_on(seat),
            )
        except BaseException:
            shutil.rmtree(run_directory, ignore_errors=True)
            raise
        return cls(launch, values, environment, process)

    @property
    def over(self) -> bool:
        """True if the process has ended or is ending; then no request is sent to it."""
        return self._ending or self.process.over.done()

    async def until_healthy(self) -> None:
        """Wait until it is ready. Raises `PortTaken`, or `EngineError` if it ends or is reachable from other machines.

        The key is sent only to the program's own listener. The caller sets a time limit.
        """
        while not (await asyncio.to_thread(self._listens) and await _is_healthy(self)):
            await asyncio.wait({self.process.over}, timeout=_POLL_SECONDS)
            if self.process.over.done():
                await asyncio.to_thread(self._listens)  # a program that cannot bind its port ends by itself
                raise EngineError(ending(self.process.over.result()))
        await asyncio.to_thread(self._listens)  # it may have opened another socket during its load
        await self.process.noted()

    async def ask(self, method: str, path: str, timeout_seconds: float, payload: Any = None) -> bytes:
        """Make a short control request; returns the body. Raises `EngineError` on a timeout or an error status."""
        body = b"" if payload is None else json.dumps(payload).encode()
        headers = self.authorization if payload is None else (*self.authorization, ("Content-Type", "application/json"))
        request, asked = EngineRequest(method, path, headers, body), f"{method} {path}"
        answer = bytearray()
        try:
            async with asyncio.timeout(timeout_seconds), self.http.send(request) as response:
                async for chunk in response.chunks():
                    answer += chunk
                    if len(answer) > _LONGEST_ANSWER_BYTES:
                        raise EngineError(f"engine '{self.launch.name}' sent an endless answer to {asked}")
        except TimeoutError as error:
            raise EngineError(
                f"engine '{self.launch.name}' did not answer {asked} within {timeout_seconds:.3g} s"
            ) from error
        if not 200 <= response.status < 300:
            quoted = answer[:_QUOTED_BYTES].decode(errors="replace")
            raise EngineError(f"engine '{self.launch.name}' answered {asked} with {response.status}\n{quoted}")
        return bytes(answer)

    @contextmanager
    def on_the_move(self) -> Iterator[None]:
        """Suspend liveness probes in this context: a move keeps the program busy and has its own time limit."""
        self._moving = True
        try:
            yield
        finally:
            self._moving = False

    async def loss(self) -> str:
        """Wait until the process ends or fails a liveness probe. Returns what happened."""
        while not self.process.over.done():
            await asyncio.wait({self.process.over}, timeout=_PULSE_SECONDS)
            if not self.process.over.done() and not self._moving and not await self._is_alive():
                return f"hangs: it did not answer {self.launch.health} within {self.launch.pulse_timeout_seconds:g} s"
        return ending(self.process.over.result())

    async def end(self, at_once: bool) -> None:
        """End it; on return no process is left. After a cancellation it may be called again."""
        self._ending = True
        async with self._one_end:
            if self._gone:
                return
            try:
                await self.http.close()
                await _run_stop_program(self.launch, self._values, self._environment)
            finally:
                grace_seconds = _FAILED_GRACE_SECONDS if at_once else _GRACE_SECONDS
                await self.process.end(grace_seconds, self.launch.stop_signal)
            self._gone = True

    def _listens(self) -> bool:
        """True if the program listens at its address. Raises `PortTaken`, or `EngineError` if others can reach it."""
        own, others = by_owner(self.process.pid)
        if self._socket is None and (thief := next((one for one in others if one.port == self._port), None)):
            if thief not in by_owner(self.process.pid)[1]:  # it was the program's, which has just ended
                return False
            raise PortTaken(f"another process listens on {thief}, the port chosen for it")
        if exposed := next((one for one in own if not one.is_loopback), None):
            raise EngineError(
                f"listens on {exposed}, which other machines can reach; make it listen on 127.0.0.1 (--host 127.0.0.1)"
            )
        if self._socket is not None:
            return self._socket.exists()
        return any(one.port == self._port for one in own)

    async def _is_alive(self) -> bool:
        """Send a liveness probe; any response counts, since a program may report that it is busy."""
        request = EngineRequest("GET", self.launch.health, self.authorization, b"")
        with suppress(EngineError, TimeoutError):
            async with asyncio.timeout(self.launch.pulse_timeout_seconds), self.http.send(request):
                return True
        return self._moving


async def _is_healthy(run: CommandRun) -> bool:
    try:
        await run.ask("GET", run.launch.health, _HEALTH_SECONDS)
    except EngineError:
        return False
    return True


def _environment(launch: CommandLaunch, run_directory: Path, values: Mapping[str, str]) -> dict[str, str]:
    """The variables that the program may inherit, and the configured ones with placeholders replaced."""
    inherited = {
        key: value
        for key, value in launch.inherited.items()
        if key in FOR_EVERY_ENGINE or key.startswith(_INHERITED_PREFIXES)
    }
    given = dict(zip(launch.environment, filled(launch.environment.values(), values), strict=True))
    own = launch.user.environment if launch.user else {}
    cards = {"CUDA_VISIBLE_DEVICES": ",".join(launch.visible_cards)} if launch.visible_cards else {}
    return inherited | own | cards | {"TMPDIR": str(run_directory), "PYTHONUNBUFFERED": "1"} | given


async def _run_stop_program(launch: CommandLaunch, values: Mapping[str, str], environment: Mapping[str, str]) -> None:
    """Run the stop program, if one is configured. Its failure is normal: there may be nothing to stop."""
    if not launch.stop_program:
        return
    nothing = asyncio.subprocess.DEVNULL
    with suppress(OSError):
        program = await asyncio.create_subprocess_exec(
            *as_user(launch.user.name if launch.user else None),
            *filled(launch.stop_program, values),
            stdin=nothing,
            stdout=nothing,
            stderr=nothing,
            env=dict(environment),
            start_new_session=True,
        )
        try:
            await asyncio.wait_for(program.wait(), _STOP_PROGRAM_SECONDS)
        except TimeoutError:
            pass
        finally:
            signal_child(program, signal.SIGKILL)
            await program.wait()
