"""The journal: one thread owns the store and writes queued jobs, many per transaction.

The queue is bounded. A decision that finds it full is counted and not logged.
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
from coe_server.journal.entries import Compared, Decided, Entry, Feedback, Kept, Retention
from coe_server.journal.store import Store

logger = logging.getLogger(__name__)

QUEUE_LENGTH = 4096
BATCH = 512  # most jobs per transaction
GATHER_SECONDS = 0.25  # decisions are gathered for so long: each wake-up of the thread delays the event loop
EXPIRE_EVERY = 256  # jobs
IDLE_SECONDS = 600.0  # without jobs, expired decisions are looked for at this interval
LONGEST_TEXT = 32_768  # characters; a longer prompt is logged without its text

Found = TypeVar("Found")
CLOSED = "the decision log is closed"


@dataclass(frozen=True, slots=True)
class _Job:
    """A job for the store; `done` is None if no caller awaits it."""

    act: Callable[[Store], Any]
    done: Future[Any] | None = None
    erases: bool = False  # complete only when deleted text is erased from all files


@dataclass(slots=True)
class Counts:
    """Written and dropped records since the start."""

    written: int = 0
    refused: int = 0  # by a full queue
    failed: int = 0  # by a file that could not be written
    feedback: int = 0
    compared: int = 0

    @property
    def dropped(self) -> int:
        """Decisions and token counts that were not written."""
        return self.refused + self.failed


class Journal:
    """The decision log at `path`, open until `stop`. Raises ConfigError if the file cannot be used."""

    def __init__(
        self, path: Path, keep: Retention, keeps_prompts: bool = False, queue_length: int = QUEUE_LENGTH
    ) -> None:
        self.keeps_prompts = keeps_prompts
        self.counts = Counts()
        self._writer = _Writer(path, keep, self.counts, queue_length)

    def stop(self) -> None:
        """Write all queued jobs and close the file."""
        self._writer.stop()

    def record(
        self, decision: Decided, messages: Sequence[Mapping[str, str]] | None = None, owner: str | None = None
    ) -> None:
        """Queue a decision and return at once. `messages` are stored only if the journal keeps prompts.

        `owner`: name of the API key. With an owner, `rate`, `delete` and `one` see only its own decisions; others raise
        UnknownDecision.
        """
        if not self.keeps_prompts or sum(len(m["content"]) for m in messages or ()) > LONGEST_TEXT:
            messages = None
        entry = Entry(time.time(), decision, messages, owner)
        self._writer.hand_in(lambda store: store.add(entry))

    def took(self, decision_id: str, tokens: Mapping[str, int]) -> None:
        """Queue the token counts of a recorded decision's answer and return at once."""
        self._writer.hand_in(lambda store: store.took(decision_id, tokens))

    def compare(self, found: Compared) -> None:
        """Queue the scores of two answers to a recorded decision's prompt and return at once."""
        self._writer.hand_in(lambda store: store.compare(found))
        self.counts.compared += 1

    async def rate(
        self, decision_id: str, score: float, comment: str | None, owner: str | None = None, source: str = "score"
    ) -> None:
        """Store feedback; returns when it is on disk. Raises UnknownDecision or JournalUnavailable."""
        feedback = Feedback(decision_id, score, comment, time.time(), source)
        await self._writer.done(lambda store: store.rate(feedback, owner))
        self.counts.feedback += 1

    async def delete(self, decision_id: str, owner: str | None = None) -> None:
        """Delete a decision; returns when it is erased from all files. Raises UnknownDecision or JournalUnavailable."""
        await self._writer.done(lambda store: store.delete(decision_id, owner), erases=True)

    async def one(self, decision_id: str, owner: str | None = None) -> Kept:
        """One decision. Raises UnknownDecision or JournalUnavailable."""
        return await self._writer.done(lambda store: store.decisions.one(decision_id, owner))

    async def rated(self) -> list[Kept]:
        """The decisions with ratings or comparisons, oldest first. Raises JournalUnavailable."""
        return await self._writer.done(lambda store: list(store.decisions.rated()))

    async def newest(self, count: int) -> list[Kept]:
        """The last decisions, newest first. Raises JournalUnavailable."""
        return await self._writer.done(lambda store: store.decisions.newest(count))


class _Writer:
    """The thread that owns the store, and its queue."""

    def __init__(self, path: Path, keep: Retention, counts: Counts, queue_length: int) -> None:
        self._store = Store(path)
        self._keep = keep
        self._counts = counts
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()  # None: the end
        self._most_jobs = queue_length
        self._hurry = threading.Event()  # set when a caller waits, or a full batch is queued
        self._ended = False
        self._since_expiry = EXPIRE_EVERY
        self.thread = threading.Thread(target=self._write_until_stopped, name="journal", daemon=True)
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
            raise JournalUnavailable("the queue of the decision log is full; try again later")
        self._jobs.put(job)
        if job.done is not None or queued >= BATCH - 1:
            self._hurry.set()

    def _write_until_stopped(self) -> None:
        jobs: list[_Job] | None = []
        try:
            while jobs is not None:
                self._carry_out(jobs)
                jobs = self._next_batch()
        finally:  # also after an internal error: no caller may wait for an ended thread
            self._ended = True
            self._store.close()
            while not self._jobs.empty():
                jobs = [*(jobs or ()), *filter(None, [self._jobs.get_nowait()])]
            for job in jobs or ():
                _tell(job, JournalUnavailable(CLOSED))

    def _next_batch(self) -> list[_Job] | None:
        """Wait for a job, then briefly for more, and return them; None when the journal stops."""
        jobs: list[_Job] = []
        try:
            job = self._jobs.get(timeout=IDLE_SECONDS)
            self._hurry.wait(GATHER_SECONDS)
            self._hurry.clear()  # before the queue is drained: a later job is drained now or sets it again
            while job is not None:
                jobs.append(job)
                if len(jobs) == BATCH:
                    return jobs
                job = self._jobs.get_nowait()
        except queue.Empty:
            if not jobs:
                self._since_expiry = EXPIRE_EVERY  # idle: expire old decisions
            return jobs
        if jobs:
            self._jobs.put(None)  # stop after these
            return jobs
        return None

    def _carry_out(self, jobs: Sequence[_Job]) -> None:
        """Run the jobs in one transaction. Callers get their results after the commit, or the error."""
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
    """The error if deleted text could not be erased from the files; the next transaction tries again."""
    try:
        store.file.erase_traces()
    except JournalUnavailable as error:
        return error
    except sqlite3.Error as error:
        return JournalUnavailable(f"the decision log cannot be written: {error}")
    return None


def _attempt(job: _Job, store: Store) -> Any:
    """The job's result, or the CoeError that it raised."""
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
