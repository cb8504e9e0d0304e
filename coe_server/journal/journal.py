"""The journal's one owner: a thread that writes what it is handed, many things in one transaction.

Callers put jobs into a bounded queue. A decision that finds it full is counted and not logged.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from coe_server.errors import CoeError, JournalUnavailable
from coe_server.journal.entries import Decided, Entry, Feedback, Kept, Retention
from coe_server.journal.store import Store

logger = logging.getLogger(__name__)

QUEUE_LENGTH = 4096
BATCH = 512  # things written in one transaction, at most
GATHER_SECONDS = 0.25  # decisions that no caller awaits are written together: each wake-up costs event loop time
EXPIRE_EVERY = 256  # jobs written that no caller awaits
IDLE_SECONDS = 600.0  # without any news the owner looks for what has become too old
LONGEST_TEXT = 32_768  # characters of a prompt that is kept; a longer one is logged without its text

Found = TypeVar("Found")
CLOSED = "the decision log is closed"


@dataclass(frozen=True, slots=True)
class _Job:
    """Something to do with the store; `done` is None where no caller awaits it."""

    act: Callable[[Store], Any]
    done: Future[Any] | None = None
    erases: bool = False  # done only when no trace of what was deleted is left


@dataclass(slots=True)
class Counts:
    """What has become of decisions, of the tokens that their answers took, and of feedback since the start."""

    written: int = 0
    refused: int = 0  # by a full queue
    failed: int = 0  # by a file that could not be written
    feedback: int = 0

    @property
    def dropped(self) -> int:
        """Decisions and answers' tokens that are in no file."""
        return self.refused + self.failed


class Journal:
    """The decision log at `path`. `start` it before anything is recorded; `stop` writes what is still queued."""

    def __init__(
        self, path: Path, keep: Retention, keeps_prompts: bool = False, queue_length: int = QUEUE_LENGTH
    ) -> None:
        self.keeps_prompts = keeps_prompts
        self.counts = Counts()
        self._writer = _Writer(path, keep, self.counts, queue_length)

    def start(self) -> None:
        """Opens the file. Raises ConfigError if it cannot be used."""
        self._writer.start()

    def stop(self) -> None:
        """Returns when everything handed in is written and the file is closed."""
        self._writer.stop()

    @property
    def running(self) -> bool:
        return self._writer.thread.is_alive()

    def record(
        self, decision: Decided, messages: Sequence[Mapping[str, str]] | None = None, owner: str | None = None
    ) -> None:
        """Hands a decision in and returns at once. `messages` are kept only where the journal keeps prompts.

        `owner` is the name of the key that asked. Where `rate`, `delete` and `one` are given one, another key's
        decision is as unknown to them as one that was never made.
        """
        if not self.keeps_prompts or sum(len(m["content"]) for m in messages or ()) > LONGEST_TEXT:
            messages = None
        entry = Entry(time.time(), decision, messages, owner)
        self._writer.hand_in(lambda store: store.add(entry))

    def took(self, decision_id: str, tokens: Mapping[str, int]) -> None:
        """Hands in what the answer to a recorded decision took, by kind of token, and returns at once."""
        self._writer.hand_in(lambda store: store.took(decision_id, tokens))

    async def rate(self, decision_id: str, score: float, comment: str | None, owner: str | None = None) -> None:
        """Returns when the feedback is on the disk. Raises UnknownDecision or JournalUnavailable."""
        feedback = Feedback(decision_id, score, comment, time.time())
        await self._writer.done(lambda store: store.rate(feedback, owner))
        self.counts.feedback += 1

    async def delete(self, decision_id: str, owner: str | None = None) -> None:
        """Returns when nothing of the decision is in the files. Raises UnknownDecision or JournalUnavailable."""
        await self._writer.done(lambda store: store.delete(decision_id, owner), erases=True)

    async def one(self, decision_id: str, owner: str | None = None) -> Kept:
        """Raises UnknownDecision or JournalUnavailable."""
        return await self._writer.done(lambda store: store.one(decision_id, owner))

    async def newest(self, count: int) -> list[Kept]:
        """The last decisions, newest first. Raises JournalUnavailable."""
        return await self._writer.done(lambda store: store.newest(count))


class _Writer:
    """The thread that owns the store, and the queue that leads to it."""

    def __init__(self, path: Path, keep: Retention, counts: Counts, queue_length: int) -> None:
        self.thread = threading.Thread(target=self._write_until_stopped, name="journal", daemon=True)
        self._path = path
        self._keep = keep
        self._counts = counts
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()  # None: the end
        self._most_jobs = queue_length
        self._hurry = threading.Event()  # a caller waits, or there is enough for one transaction
        self._ended = False
        self._since_expiry = EXPIRE_EVERY

    def start(self) -> None:
        self._store = Store(self._path)
        self.thread.start()

    def stop(self) -> None:
        self._ended = True
        self._jobs.put(None)
        self._hurry.set()
        self.thread.join()

    def hand_in(self, act: Callable[[Store], None]) -> None:
        try:
            self._put(_Job(act))
        except JournalUnavailable as error:
            self._counts.refused += 1
            if self._counts.refused.bit_count() == 1:  # the 1st, 2nd, 4th, 8th ...
                logger.warning("%d decisions or answers' tokens are not logged: %s", self._counts.refused, error)

    async def done(self, act: Callable[[Store], Found], *, erases: bool = False) -> Found:
        done: Future[Found] = Future()
        self._put(_Job(act, done, erases))
        return await asyncio.wrap_future(done)

    def _put(self, job: _Job) -> None:
        if self._ended:
            raise JournalUnavailable(CLOSED)
        queued = self._jobs.qsize()
        if queued >= self._most_jobs:
            raise JournalUnavailable("the decision log cannot keep up with what is to be written")
        self._jobs.put(job)
        if job.done is not None or queued >= BATCH - 1:
            self._hurry.set()

    def _write_until_stopped(self) -> None:
        jobs: list[_Job] | None = []
        try:
            while jobs is not None:
                self._carry_out(jobs)
                jobs = self._next_batch()
        finally:  # also after a bug of ours: no caller waits for a thread that has ended
            self._ended = True
            self._store.close()
            while not self._jobs.empty():
                jobs = [*(jobs or ()), *filter(None, [self._jobs.get_nowait()])]
            for job in jobs or ():
                _tell(job, JournalUnavailable(CLOSED))

    def _next_batch(self) -> list[_Job] | None:
        """What is queued, after waiting for the first and a moment for more; None at the end."""
        jobs: list[_Job] = []
        try:
            job = self._jobs.get(timeout=IDLE_SECONDS)
            self._hurry.wait(GATHER_SECONDS)
            self._hurry.clear()  # before the remaining jobs are taken: a later job is either seen now or sets it again
            while job is not None:
                jobs.append(job)
                if len(jobs) == BATCH:
                    return jobs
                job = self._jobs.get_nowait()
        except queue.Empty:
            if not jobs:
                self._since_expiry = EXPIRE_EVERY  # a quiet time: look for what has become too old
            return jobs
        if jobs:
            self._jobs.put(None)  # the end, after these
            return jobs
        return None

    def _carry_out(self, jobs: Sequence[_Job]) -> None:
        """One transaction; callers are answered after the commit, or told why there was none."""
        try:
            with self._store.file.transaction():
                answers = [_attempt(job, self._store) for job in jobs]
                if self._since_expiry >= EXPIRE_EVERY:
                    self._store.expire(self._keep, time.time())
                    self._since_expiry = 0
        except sqlite3.Error as error:
            self._give_up(jobs, error)
            return
        written = sum(job.done is None for job in jobs)
        self._counts.written += written
        self._since_expiry += written
        unerased = _unerased(self._store)
        for job, answer in zip(jobs, answers, strict=True):
            _tell(job, unerased if unerased and job.erases else answer)

    def _give_up(self, jobs: Sequence[_Job], error: sqlite3.Error) -> None:
        lost = sum(job.done is None for job in jobs)
        self._counts.failed += lost
        logger.error(
            "the decision log cannot be written (%s); %d decisions or answers' tokens are not logged", error, lost
        )
        for job in jobs:
            _tell(job, JournalUnavailable(f"the decision log cannot be written: {error}"))


def _unerased(store: Store) -> CoeError | None:
    """Why something deleted may still be found in the files; the next transaction tries again."""
    try:
        store.file.erase_traces()
    except JournalUnavailable as error:
        return error
    except sqlite3.Error as error:
        return JournalUnavailable(f"the decision log cannot be written: {error}")
    return None


def _attempt(job: _Job, store: Store) -> Any:
    """What the job answers, or the reason why it cannot be done."""
    try:
        return job.act(store)
    except CoeError as error:
        return error


def _tell(job: _Job, answer: object) -> None:
    if job.done is None or job.done.done() or not job.done.set_running_or_notify_cancel():
        return
    if isinstance(answer, CoeError):
        job.done.set_exception(answer)
    else:
        job.done.set_result(answer)
