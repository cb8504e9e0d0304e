"""One command under a keeper, and the server's side of it. Knows nothing of what the command does."""

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

from coe_server.engines.engine_user import EngineUser, python_of
from coe_server.engines.keeper import TRACKER_SECONDS, is_resource_tracker
from coe_server.engines.log_file import open_log, previous_log
from coe_server.engines.process_memory import session_members

_KEEPER = Path(__file__).with_name("keeper.py")
_KILL_SECONDS = 10.0
_POLL_SECONDS = 0.02
_CATCH_UP_SECONDS = 10.0  # a keeper that does not answer is stopped, or its disk is
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
    """Started with `start`, over when `over` is done; whatever happens, no process of it stays behind."""

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
    ) -> KeptProcess:
        """The command in a session of its own, its output kept in `log`, bounded. Raises `OSError`."""
        ours, theirs = socket.socketpair()
        with theirs:
            answers, connection = await asyncio.open_unix_connection(sock=ours)
            try:
                with open_log(log) as output:
                    keeper = await asyncio.create_subprocess_exec(
                        *python_of(user),
                        *(str(_KEEPER), str(theirs.fileno()), str(run_directory), str(previous_log(log))),
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
        """Returns when all that the command has written is in its log."""
        async with self._one_question:
            if self._connection.is_closing():  # the keeper has ended, and its log is whole
                return
            with suppress(OSError, TimeoutError):
                async with asyncio.timeout(_CATCH_UP_SECONDS):
                    self._connection.write(b"?")
                    await self._answers.read(512)  # nothing comes from a keeper that has ended, and all is written then

    async def end(self, grace_seconds: float) -> None:
        """SIGTERM; after the grace SIGKILL for everything. Returns when nobody is left."""
        try:
            self._signal(signal.SIGTERM)
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
        """What the keeper does, for a keeper that was killed: all but the resource trackers, they clean up and end."""
        now = asyncio.get_running_loop().time
        patience_ends, deadline = now() + TRACKER_SECONDS, now() + _KILL_SECONDS
        while (members := session_members(self.pid)) and now() < deadline:
            for pid in members:
                if now() > patience_ends or not is_resource_tracker(pid):
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            await asyncio.sleep(_POLL_SECONDS)  # not our children: nobody tells us when they are gone
