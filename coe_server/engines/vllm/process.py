"""The process of one engine: a command under a keeper, and one run of vLLM with its channel and liveness probes."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from coe_server.engines.cores import Cores
from coe_server.engines.http_channel import HttpChannel
from coe_server.engines.keeper import TRACKER_SECONDS, is_resource_tracker
from coe_server.engines.log_file import fresh_log, open_log, previous_log
from coe_server.engines.memory import session_members
from coe_server.engines.user import EngineUser, python_of
from coe_server.engines.vllm.command import Place, VllmLaunch, engine_environment, serve_command
from coe_server.errors import EngineError
from coe_server.system.child import signal_child

CONTROL_SECONDS = 30.0

_HEALTH_POLL_SECONDS = 0.1  # vLLM does not announce that it is ready; polling is cheap
_LAST_BREATH_SECONDS = 5.0  # from the death of its core to the end of vLLM's process
_FAILED_GRACE_SECONDS = 1.0  # vLLM without its core ignores SIGTERM, and other experts may wait for its memory
_SIGNALLED = 128  # added to a signal's number in an exit status


class VllmRun:
    """One run of `vllm serve`, from the start of the process to its end, with a channel for its requests."""

    def __init__(self, launch: VllmLaunch, process: KeptProcess, http: HttpChannel, run_directory: Path) -> None:
        self.launch = launch
        self.process = process
        self.http = http
        self.longest_tokens: int | None = None  # request and answer together, once reported by the engine
        self.run_directory = run_directory
        self.one_end = asyncio.Lock()
        self.gone = False  # ended, and its memory released
        self._ending = False
        self._moving = False
        self._moves = 0  # number begun

    @classmethod
    async def start(cls, launch: VllmLaunch, place: Place) -> VllmRun:
        """Start the process and open the channel, without waiting until it is ready. Raises `OSError`."""
        run_directory = make_run_directory(launch.user)
        socket = run_directory / "engine.sock"
        try:
            process = await KeptProcess.start(
                serve_command(launch, socket, place),
                engine_environment(launch, run_directory, place),
                run_directory,
                fresh_log(launch.log_directory, launch.name),
                launch.user,
                place.all_cores,
            )
        except BaseException:
            shutil.rmtree(run_directory, ignore_errors=True)
            raise
        return cls(launch, process, HttpChannel(launch.name, "http://engine", socket), run_directory)

    @property
    def over(self) -> bool:
        """True if the process has ended or is ending; then no request is sent to it."""
        return self._ending or self.process.over.done()

    async def until_healthy(self) -> None:
        """Wait until it is ready. Raises `EngineError` if it ends before. The caller sets a time limit."""
        while not await _is_healthy(self.http):
            await asyncio.wait({self.process.over}, timeout=_HEALTH_POLL_SECONDS)
            if self.process.over.done():
                raise EngineError(ending(self.process.over.result()))
        await self.process.noted()

    async def ask_worker(self, method: str, timeout_seconds: float = CONTROL_SECONDS) -> Any:
        """Call a method of the workers, the processes with the weights. Returns the first one's result."""
        return (await self.ask_ranks(method, timeout_seconds))[0]

    async def ask_ranks(self, method: str, timeout_seconds: float = CONTROL_SECONDS) -> list[Any]:
        """The same with the results of all ranks, of the first copy alone where there are several."""
        answer = await self.http.ask("POST", "/collective_rpc", timeout_seconds, {"method": method})
        results: list[Any] = answer["results"]
        return results

    @contextmanager
    def on_the_move(self) -> Iterator[None]:
        """Suspend liveness probes in this context: a move keeps the worker busy and has its own time limit."""
        self._moves += 1
        self._moving = True
        try:
            yield
        finally:
            self._moving = False

    async def loss(self) -> str:
        """Wait until the process ends or its worker fails a liveness probe. Returns what happened."""
        while not self.process.over.done():
            await asyncio.wait({self.process.over}, timeout=self.launch.pulse_seconds)
            if not self.process.over.done() and not await self._is_alive():
                await asyncio.wait({self.process.over}, timeout=_LAST_BREATH_SECONDS)
                if not self.process.over.done():
                    return f"hangs: its worker did not answer within {self.launch.pulse_timeout_seconds:g} s"
        return ending(self.process.over.result())

    async def end(self, at_once: bool) -> None:
        """End it; on return no process is left. After a cancellation it may be called again."""
        grace_seconds = self.launch.stop_timeout_seconds
        self._ending = True
        try:
            await self.http.close()
        finally:
            await self.process.end(min(grace_seconds, _FAILED_GRACE_SECONDS) if at_once else grace_seconds)

    async def _is_alive(self) -> bool:
        """Probe the worker itself: vLLM answers `/health` even if the process with the weights hangs."""
        moves = self._moves
        if self._moving:
            return True
        try:
            await self.ask_worker("check_health", self.launch.pulse_timeout_seconds)
        except EngineError:
            return self._moves != moves
        return True


async def _is_healthy(http: HttpChannel) -> bool:
    try:
        await http.ask("GET", "/health", CONTROL_SECONDS)
    except EngineError:
        return False
    return True


def ending(status: int) -> str:
    """How a process ended, from its exit status."""
    if status > _SIGNALLED:
        return f"was killed by signal {status - _SIGNALLED}"
    return f"ended with status {status}"


_KEEPER = Path(__file__).parents[1] / "keeper.py"
_KILL_SECONDS = 10.0
_POLL_SECONDS = 0.02
_CATCH_UP_SECONDS = 10.0  # time limit for a keeper that is stopped (SIGSTOP) or waits for its disk
_LONGEST_SOCKET_PATH = 107  # sockaddr_un has 108 bytes, including the final zero
_ROOM_FOR_NAMES = 60  # vLLM creates sockets with names of 36 characters in the same folder


def make_run_directory(user: EngineUser | None = None) -> Path:
    """Create a private folder (mode 0700) with a short path, for sockets and temporary files; the keeper removes it."""
    system = tempfile.gettempdir()
    if len(system) + _ROOM_FOR_NAMES > _LONGEST_SOCKET_PATH:
        system = "/tmp"
    folder = Path(tempfile.mkdtemp(prefix="coe-", dir=system))
    if user is not None:
        user.owns(folder)
    return folder


class KeptProcess:
    """A command under a keeper, which leaves none of its processes behind. `over` completes when it has ended."""

    def __init__(
        self,
        keeper: asyncio.subprocess.Process,
        answers: asyncio.StreamReader,
        connection: asyncio.StreamWriter,
        run_directory: Path,
    ) -> None:
        self._keeper = keeper
        self._answers = answers
        self._connection = connection
        self._one_question = asyncio.Lock()
        self._run_directory = run_directory
        self.over: asyncio.Task[int] = asyncio.create_task(self._watch())  # result: exit status

    @classmethod
    async def start(
        cls,
        command: Sequence[str],
        environment: Mapping[str, str],
        run_directory: Path,
        log: Path,
        user: EngineUser | None = None,
        cores: Cores = (),
    ) -> KeptProcess:
        """Run the command in a session of its own, on these cores or any, with its output in `log`, bounded.

        Raises `OSError`.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            answers, connection = await asyncio.open_unix_connection(sock=ours)
            try:
                with open_log(log) as output:
                    keeper = await asyncio.create_subprocess_exec(
                        *python_of(user),
                        *(str(_KEEPER), str(theirs.fileno()), str(run_directory), str(previous_log(log))),
                        ",".join(map(str, cores)),
                        *command,
                        stdin=asyncio.subprocess.DEVNULL,
                        stdout=output,
                        stderr=output,
                        env=dict(environment),
                        start_new_session=True,
                        pass_fds=(theirs.fileno(),),
                    )
            except BaseException:
                connection.close()
                raise
        return cls(keeper, answers, connection, run_directory)

    @property
    def pid(self) -> int:
        """The keeper's process id: the root of the process tree and the session id."""
        return self._keeper.pid

    async def noted(self) -> None:
        """Let the keeper write all output so far to the log and note the shared memory to remove at the end."""
        async with self._one_question:
            if self._connection.is_closing():  # the keeper has ended; the log is complete
                return
            with suppress(OSError, TimeoutError):
                async with asyncio.timeout(_CATCH_UP_SECONDS):
                    self._connection.write(b"?")
                    await self._answers.read(512)  # end of file: the keeper has ended; the log is complete

    async def end(self, grace_seconds: float, first: signal.Signals = signal.SIGTERM) -> None:
        """Send `first`, then after the grace period SIGKILL to all processes. Returns when none is left."""
        try:
            signal_child(self._keeper, first)
            await self._over_within(grace_seconds)
        finally:
            self._connection.close()  # now the keeper kills, even after a cancellation here
        if not await self._over_within(_KILL_SECONDS):
            signal_child(self._keeper, signal.SIGKILL)
        await asyncio.shield(self.over)

    async def _over_within(self, seconds: float) -> bool:
        done, _ = await asyncio.wait({self.over}, timeout=seconds)
        return bool(done)

    async def _watch(self) -> int:
        try:
            status = await self._keeper.wait()
            await self._end_session()  # has members only if the keeper was killed
            shutil.rmtree(self._run_directory, ignore_errors=True)
        finally:
            self._connection.close()  # cancelled: the loop ends, and the engine with it
        return status

    async def _end_session(self) -> None:
        """Clean up after a killed keeper: end all processes but the resource trackers, which end by themselves."""
        now = asyncio.get_running_loop().time
        trackers_deadline, deadline = now() + TRACKER_SECONDS, now() + _KILL_SECONDS
        while (members := session_members(self.pid)) and now() < deadline:
            for pid in members:
                if now() > trackers_deadline or not is_resource_tracker(pid):
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            await asyncio.sleep(_POLL_SECONDS)  # not child processes: their end is not reported
