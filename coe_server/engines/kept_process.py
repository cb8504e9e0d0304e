"""The process of one engine: a command under a keeper, which leaves none of its processes behind."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from coe_server.engines.cores import Cores
from coe_server.engines.keeper import TRACKER_SECONDS, is_resource_tracker
from coe_server.engines.log_file import open_log, previous_log
from coe_server.engines.memory import session_members
from coe_server.engines.user import EngineUser, python_of
from coe_server.system.child import signal_child

_KEEPER = Path(__file__).with_name("keeper.py")
_KILL_SECONDS = 10.0
_POLL_SECONDS = 0.02
_CATCH_UP_SECONDS = 10.0  # time limit for a keeper that is stopped (SIGSTOP) or waits for its disk
_LONGEST_SOCKET_PATH = 107  # sockaddr_un has 108 bytes, including the final zero
_ROOM_FOR_NAMES = 60  # vLLM creates sockets with names of 36 characters in the same folder
_SIGNALLED = 128  # added to a signal's number in an exit status


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


def make_run_directory(user: EngineUser | None = None) -> Path:
    """Create a private folder (mode 0700) with a short path, for sockets and temporary files; the keeper removes it."""
    system = tempfile.gettempdir()
    if len(system) + _ROOM_FOR_NAMES > _LONGEST_SOCKET_PATH:
        system = "/tmp"
    folder = Path(tempfile.mkdtemp(prefix="coe-", dir=system))
    if user is not None:
        user.owns(folder)
    return folder


def ending(status: int) -> str:
    """How a process ended, from its exit status."""
    if status > _SIGNALLED:
        return f"was killed by signal {status - _SIGNALLED}"
    return f"ended with status {status}"
