"""The process of one engine: a command under a keeper, and one run of vLLM with its channel and its liveness."""

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
from coe_server.engines.seat_memory import RankReport, forget_reports, read_reports
from coe_server.engines.user import EngineUser, python_of
from coe_server.engines.vllm_command import Place, VllmLaunch, engine_environment, serve_command
from coe_server.errors import EngineError

CONTROL_SECONDS = 30.0

_HEALTH_POLL_SECONDS = 0.1  # vLLM does not announce that it is ready, and asking costs it nothing
_LAST_BREATH_SECONDS = 5.0  # from the loss of its core to the end of vLLM's process
_FAILED_GRACE_SECONDS = 1.0  # vLLM without its core does not end on SIGTERM; others may wait for its memory
_SIGNALLED = 128  # added to a signal's number in an exit status


class VllmRun:
    """One run of `vllm serve`, from the start of the process to its end, with a channel for its requests."""

    def __init__(self, launch: VllmLaunch, process: KeptProcess, http: HttpChannel, run_directory: Path) -> None:
        self.launch = launch
        self.process = process
        self.http = http
        self.longest_tokens: int | None = None  # a request with its answer, once the engine has told
        self._run_directory = run_directory
        self.watch: asyncio.Task[None] | None = None
        self.one_end = asyncio.Lock()
        self.gone = False  # ended, and its memory given back
        self._ending = False
        self._moving = False
        self._moves = 0  # begun so far

    @classmethod
    async def start(cls, launch: VllmLaunch, place: Place) -> VllmRun:
        """Starts the process and opens the channel; it answers later. Raises `OSError`."""
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
        """Whether the process has ended, or its end has begun; then no request is sent to it."""
        return self._ending or self.process.over.done()

    async def until_healthy(self) -> None:
        """Raises `EngineError` if the process ends before it is ready. The caller sets a time limit."""
        while not await _is_healthy(self.http):
            await asyncio.wait({self.process.over}, timeout=_HEALTH_POLL_SECONDS)
            if self.process.over.done():
                raise EngineError(ending(self.process.over.result()))

    async def ask_worker(self, method: str, timeout_seconds: float = CONTROL_SECONDS) -> Any:
        """Call a method of the workers, the processes with the weights. Returns the first one's result."""
        return (await self.ask_ranks(method, timeout_seconds))[0]

    async def ask_ranks(self, method: str, timeout_seconds: float = CONTROL_SECONDS) -> list[Any]:
        """The same with the results of all ranks, of the first copy alone where there are several."""
        answer = await self.http.ask("POST", "/collective_rpc", timeout_seconds, {"method": method})
        results: list[Any] = answer["results"]
        return results

    async def memory_reports(self, seat: Sequence[str]) -> tuple[RankReport, ...]:
        """What each rank holds now, in the order of the cards. Raises `EngineError`."""
        await asyncio.to_thread(forget_reports, self._run_directory)
        await self.ask_worker("coe_report_memory")
        return await asyncio.to_thread(read_reports, self._run_directory, seat)

    @contextmanager
    def on_the_move(self) -> Iterator[None]:
        """No liveness probes meanwhile: a move may keep the worker busy, and has a time limit of its own."""
        self._moves += 1
        self._moving = True
        try:
            yield
        finally:
            self._moving = False

    async def loss(self) -> str:
        """Wait until the process ends, or its worker stops answering liveness probes. Returns what happened."""
        while not self.process.over.done():
            await asyncio.wait({self.process.over}, timeout=self.launch.pulse_seconds)
            if not self.process.over.done() and not await self._is_alive():
                await asyncio.wait({self.process.over}, timeout=_LAST_BREATH_SECONDS)
                if not self.process.over.done():
                    return f"hangs: its worker did not answer within {self.launch.pulse_timeout_seconds:g} s"
        return ending(self.process.over.result())

    async def end(self, at_once: bool) -> None:
        """No process is left when this returns. It may be called again if it was cancelled."""
        grace_seconds = self.launch.stop_timeout_seconds
        self._ending = True
        if self.watch is not None:
            self.watch.cancel()
        try:
            await self.http.close()
        finally:
            await self.process.end(min(grace_seconds, _FAILED_GRACE_SECONDS) if at_once else grace_seconds)

    async def _is_alive(self) -> bool:
        """Ask the worker itself: vLLM answers `/health` even while the process with the weights stands still."""
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


_KEEPER = Path(__file__).with_name("keeper.py")
_KILL_SECONDS = 10.0
_POLL_SECONDS = 0.02
_CATCH_UP_SECONDS = 10.0  # a keeper that does not answer was stopped (SIGSTOP), or waits for its disk
_LONGEST_SOCKET_PATH = 107  # sockaddr_un holds 108 bytes with the final zero
_ROOM_FOR_NAMES = 60  # vLLM puts sockets with names of 36 characters beside ours


def make_run_directory(user: EngineUser | None = None) -> Path:
    """A short private folder (mode 0700) for sockets and temporary files; the keeper removes it."""
    system = tempfile.gettempdir()
    if len(system) + _ROOM_FOR_NAMES > _LONGEST_SOCKET_PATH:
        system = "/tmp"
    folder = Path(tempfile.mkdtemp(prefix="coe-", dir=system))
    if user is not None:
        user.owns(folder)
    return folder


class KeptProcess:
    """Started with `start`, ended when `over` is done. No process of it stays behind, whatever happens."""

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
        self.over: asyncio.Task[int] = asyncio.create_task(self._watch())  # its result: the exit status

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
        """The keeper's process id, root of the tree and id of the session."""
        return self._keeper.pid

    async def written(self) -> None:
        """Wait until all output of the command so far is in its log."""
        async with self._one_question:
            if self._connection.is_closing():  # the keeper has ended, and its log is whole
                return
            with suppress(OSError, TimeoutError):
                async with asyncio.timeout(_CATCH_UP_SECONDS):
                    self._connection.write(b"?")
                    await self._answers.read(512)  # nothing comes from a keeper that has ended, and all is written then

    async def end(self, grace_seconds: float, first: signal.Signals = signal.SIGTERM) -> None:
        """Send `first`, and after the grace SIGKILL to everything. Returns when no process is left."""
        try:
            self._signal(first)
            await self._over_within(grace_seconds)
        finally:
            self._connection.close()  # from here the keeper kills, even if we are cancelled
        if not await self._over_within(_KILL_SECONDS):
            self._signal(signal.SIGKILL)
        await asyncio.shield(self.over)

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            self._keeper.send_signal(number)

    async def _over_within(self, seconds: float) -> bool:
        done, _ = await asyncio.wait({self.over}, timeout=seconds)
        return bool(done)

    async def _watch(self) -> int:
        try:
            status = await self._keeper.wait()
            await self._end_session()  # empty, unless the keeper itself was killed
            shutil.rmtree(self._run_directory, ignore_errors=True)
        finally:
            self._connection.close()  # when we are cancelled our loop ends: so does the engine
        return status

    async def _end_session(self) -> None:
        """Do what the keeper does, after it was killed: end all but the resource trackers, which clean up and end."""
        now = asyncio.get_running_loop().time
        trackers_deadline, deadline = now() + TRACKER_SECONDS, now() + _KILL_SECONDS
        while (members := session_members(self.pid)) and now() < deadline:
            for pid in members:
                if now() > trackers_deadline or not is_resource_tracker(pid):
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            await asyncio.sleep(_POLL_SECONDS)  # not our children: their end is not reported to us
