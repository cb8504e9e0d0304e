"""Prompts as they are sent, and the raw file: every answer, verdict and failure as one appended JSON line.

A record survives a kill of this process at any moment, and a power failure a second later. Does not depend on
endpoints or scores.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

from coe_server.errors import DatasetError
from router_training.collect.settings import Message, Target
from router_training.data.rows import conversation_in, read_rows, text_in


@dataclass(frozen=True, slots=True)
class Question:
    """One prompt: `messages` as an OpenAI endpoint takes them; `row` with every column of its file."""

    prompt_id: str
    messages: tuple[Message, ...]
    row: Mapping[str, Any]
    place: str

    @property
    def text(self) -> str:
        """The text for a reader: a single prompt as it is, a conversation turn by turn."""
        if len(self.messages) == 1:
            return _words(self.messages[0])
        return "\n\n".join(f"[{message.get('role')}]\n{_words(message)}" for message in self.messages)


def read_questions(paths: Sequence[Path]) -> tuple[Question, ...]:
    """All prompts of the files, in order. Raises DatasetError naming file and row."""
    questions = tuple(_question(path, number, row) for path in paths for number, row in read_rows(path))
    if not questions:
        raise DatasetError(f"{', '.join(str(path) for path in paths)}: no rows")
    seen: set[str] = set()
    for question in questions:
        if question.prompt_id in seen:
            raise DatasetError(f"{question.place}: prompt_id {question.prompt_id!r} occurs twice")
        seen.add(question.prompt_id)
    return questions


def _question(path: Path, number: int, row: Mapping[str, Any]) -> Question:
    prompt_id, place = text_in(path, number, row, "prompt_id"), f"{path}, row {number}"
    messages = row.get("messages")
    if isinstance(row.get("prompt"), str):
        messages = [{"role": "user", "content": row["prompt"]}]
    if not messages:
        raise DatasetError(f"{place} has neither a text 'prompt' nor a list of 'messages'")
    conversation_in(path, number, row)  # refuses what training would refuse when all has been paid for
    return Question(prompt_id, tuple(_without_nulls(message) for message in messages), row, place)


def _without_nulls(value: Any) -> Any:
    """Drop the null keys that Parquet adds: every message and part has each key of any other."""
    if isinstance(value, list):
        return [_without_nulls(part) for part in value]
    if isinstance(value, Mapping):
        return {key: _without_nulls(part) for key, part in value.items() if part is not None}
    return value


def _words(message: Message) -> str:
    content = message.get("content")
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    return "\n".join(str(part.get("text", f"[{part.get('type')}]")) for part in parts if isinstance(part, Mapping))


SYNC_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Answer:
    """An expert's answer. `asked` is the fingerprint of messages, model and options.

    `certainty` has the columns of `first_tokens`; None where the expert gave no log-probabilities.
    """

    kind: ClassVar[str] = "answer"
    prompt_id: str
    expert: str
    asked: str
    text: str
    output_tokens: int | None
    finish_reason: str | None
    seconds: float
    attempts: int
    certainty: Mapping[str, float] | None = None


@dataclass(frozen=True, slots=True)
class JudgeVerdict:
    """The judge's verdict on an answer. `replies` are its texts; `said` is the parsed verdict, None if unreadable.

    `order` is the order of the answers in the prompt: "expert_first", "reference_first" or "alone". `asked` is the
    fingerprint of its prompt, model and options.
    """

    kind: ClassVar[str] = "verdict"
    prompt_id: str
    expert: str
    order: str
    asked: str
    replies: tuple[str, ...]
    said: str | None
    seconds: float


@dataclass(frozen=True, slots=True)
class Failure:
    """A request that failed after `attempts`. `order` is None for an expert's request, else as in JudgeVerdict."""

    kind: ClassVar[str] = "failure"
    prompt_id: str
    expert: str
    order: str | None
    asked: str
    reason: str
    seconds: float
    attempts: int


Record = Answer | JudgeVerdict | Failure
_START = b'{"kind": "'
_KINDS: Mapping[str, type[Record]] = {kind.kind: kind for kind in (Answer, JudgeVerdict, Failure)}


class Recording:
    """The records of a raw file; empty if it does not exist. Of repeated requests the last record counts.

    Raises DatasetError if the file is damaged before its end.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd: int | None = None
        self._read()

    def __len__(self) -> int:
        """The number of answers and verdicts."""
        return len(self._answers) + len(self._verdicts)

    @contextmanager
    def open(self) -> Iterator[None]:
        """A context in which records can be appended. A truncated last line is removed.

        Raises DatasetError if another run has the file open.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise DatasetError(f"{self.path}: another `coe-train collect` is writing to it") from error
            os.ftruncate(fd, self._read())
            self._fd = fd
            yield
            os.fsync(fd)
        finally:
            self._fd = None
            os.close(fd)

    def answer(self, prompt_id: str, expert: str, asked: str) -> Answer | None:
        """The expert's answer to exactly this request, if there is one."""
        return self._answers.get((prompt_id, expert, asked))

    def verdict(self, prompt_id: str, expert: str, order: str, asked: str) -> JudgeVerdict | None:
        """The judge's reply to exactly this request, if there is one."""
        return self._verdicts.get((prompt_id, expert, order, asked))

    def failure(self, prompt_id: str, expert: str, order: str | None, asked: str) -> Failure | None:
        """The failure of exactly this request, unless it succeeded later."""
        return self._failures.get((prompt_id, expert, order, asked))

    def append(self, record: Record) -> None:
        """Append a record to the file, then to memory.

        Raises DatasetError if the write fails; memory is then unchanged.
        """
        assert self._fd is not None, "only an open recording takes records"
        line = json.dumps({"kind": record.kind, **asdict(record)}, ensure_ascii=False) + "\n"
        try:
            _write_whole(self._fd, line.encode("utf-8", "surrogatepass"))
        except OSError as error:
            raise DatasetError(f"{self.path}: write failed: {error.strerror}; earlier records are kept") from error
        self._keep(record)

    @asynccontextmanager
    async def kept_synced(self) -> AsyncIterator[None]:
        """A context in which the file is synced to disk every second."""
        assert self._fd is not None, "only an open recording can be synced"
        syncing = asyncio.create_task(_sync_for_ever(self._fd))
        try:
            yield
        finally:
            syncing.cancel()
            with suppress(asyncio.CancelledError):
                await syncing

    def _read(self) -> int:
        """Load every record of the file. Returns the number of bytes in complete lines."""
        self._answers: dict[tuple[str, str, str], Answer] = {}
        self._verdicts: dict[tuple[str, str, str, str], JudgeVerdict] = {}
        self._failures: dict[tuple[str, str, str | None, str], Failure] = {}
        if not self.path.exists():
            return 0
        whole_bytes = 0
        with self.path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if _is_cut_short(line) and not file.peek(1):
                    break
                try:
                    self._keep(_record(line))
                except (ValueError, TypeError, KeyError, RecursionError) as error:
                    raise DatasetError(
                        f"{self.path}, row {number}: not a record of `coe-train collect`: {error}"
                    ) from error
                whole_bytes += len(line)
        return whole_bytes

    def _keep(self, record: Record) -> None:
        match record:
            case Answer():
                self._answers[record.prompt_id, record.expert, record.asked] = record
                self._failures.pop((record.prompt_id, record.expert, None, record.asked), None)
            case JudgeVerdict():
                self._verdicts[record.prompt_id, record.expert, record.order, record.asked] = record
                self._failures.pop((record.prompt_id, record.expert, record.order, record.asked), None)
            case Failure():
                self._failures[record.prompt_id, record.expert, record.order, record.asked] = record


async def _sync_for_ever(fd: int) -> None:
    while True:
        await asyncio.sleep(SYNC_SECONDS)
        await asyncio.to_thread(os.fsync, fd)


def _record(line: bytes) -> Record:
    row: dict[str, Any] = json.loads(line)
    kind = _KINDS[row["kind"]]
    names = [field.name for field in fields(kind) if field.name in row or field.default is MISSING]
    values: dict[str, Any] = {name: tuple(row[name]) if isinstance(row[name], list) else row[name] for name in names}
    return kind(**values)


def _is_cut_short(line: bytes) -> bool:
    """True for a truncated record, or for what a power failure may leave in its place; false for any other text."""
    start = line[: len(_START)]
    return (_START.startswith(start) or start.startswith(b"\0")) and not line.endswith(b"}\n")


def _write_whole(fd: int, line: bytes) -> None:
    """Write the whole line; on failure remove the part that was written."""
    before = os.fstat(fd).st_size
    try:
        written = 0
        while written < len(line):
            written += os.write(fd, line[written:])
    except OSError:
        os.ftruncate(fd, before)
        raise


class Answers:
    """Looks answers up in a recording."""

    def __init__(self, recording: Recording, targets: Sequence[Target], answer_after: str | None) -> None:
        self._recording = recording
        self._targets: Mapping[str, Target] = {target.name: target for target in targets}
        self._answer_after = answer_after

    def of(self, expert: str, question: Question) -> Answer | None:
        """The expert's answer; None without a request or after a failure."""
        asked = self._targets[expert].asked(question.messages)
        return self._recording.answer(question.prompt_id, expert, asked)

    def failure_of(self, expert: str, question: Question) -> Failure | None:
        """The expert's failure; None if there is an answer or no request."""
        asked = self._targets[expert].asked(question.messages)
        return self._recording.failure(question.prompt_id, expert, None, asked)

    def words(self, answer: Answer) -> str:
        """The text to score: everything after the last `answer_after`, or the whole text if that does not occur."""
        return answer.text.rpartition(self._answer_after)[2] if self._answer_after else answer.text
