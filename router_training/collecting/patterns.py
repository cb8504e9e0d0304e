"""The regular-expression scorer: 1 if the pattern is found in the answer, within a time limit.

Python's engine backtracks, and some patterns take exponential time on some answers. So it runs in a worker process
that is killed when the limit is over; the outcome is missing then, and the next search gets a new worker.
"""

from __future__ import annotations

import json
import re
import select
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

from coe_server.errors import DatasetError
from router_training.collecting import pattern_worker
from router_training.collecting.questions import Question
from router_training.collecting.scorers import Unscored
from router_training.collecting.settings import RegexSettings

_STARTING_SECONDS = 60.0


class PatternWorker:
    """One worker process at a time, started when needed; a context manager that ends it."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> PatternWorker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def found(self, pattern: str, text: str, time_limit_seconds: float) -> bool | Unscored:
        """Whether the pattern occurs in the text; `Unscored` if that cannot be told within the limit."""
        try:
            reply = _exchange(self._running(), {"pattern": pattern, "text": text}, time_limit_seconds)
        except TimeoutError:
            self._end()
            return Unscored(f"the pattern took longer than {time_limit_seconds:g} s")
        except (BrokenPipeError, EOFError):
            self._end()
            return Unscored("the pattern's process ended")
        if "error" in reply:
            return Unscored(f"the pattern failed: {reply['error']}")
        return bool(reply["found"])

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            command = [sys.executable, "-I", str(Path(pattern_worker.__file__))]
            self._process = subprocess.Popen(
                command,
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                start_new_session=True,  # Ctrl-C is ours to handle
            )
            _exchange(self._process, {"pattern": "", "text": ""}, _STARTING_SECONDS)  # not the pattern's own time
        return self._process

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            with process:  # closes its pipes and waits
                pass


class RegexScorer:
    """1 if the prompt's pattern (or the one of all prompts) is found anywhere in the answer."""

    def __init__(self, settings: RegexSettings, worker: PatternWorker) -> None:
        self._settings = settings
        self._worker = worker

    def check(self, question: Question) -> None:
        pattern = self._pattern(question)
        try:
            re.compile(pattern)
        except (re.error, RecursionError, OverflowError) as error:
            raise DatasetError(f"{question.place}: {pattern!r} is no regular expression: {error}") from error

    def score(self, question: Question, expert: str, answer: str) -> float | Unscored:
        del expert
        found = self._worker.found(self._pattern(question), answer, self._settings.time_limit_seconds)
        return found if isinstance(found, Unscored) else float(found)

    def _pattern(self, question: Question) -> str:
        pattern = self._settings.pattern or question.row.get(self._settings.column)
        if not isinstance(pattern, str) or not pattern:
            raise DatasetError(f"{question.place} has no {self._settings.column!r}, and scorer.pattern is not set")
        return pattern


def _exchange(process: subprocess.Popen[bytes], asked: dict[str, str], seconds: float) -> Any:
    """The worker's reply. Raises TimeoutError, and BrokenPipeError or EOFError if it is gone."""
    assert process.stdin is not None
    assert process.stdout is not None
    unsent = memoryview(json.dumps(asked).encode() + b"\n")
    while unsent:
        unsent = unsent[process.stdin.write(unsent) :]
    readable, _, _ = select.select([process.stdout], [], [], seconds)
    if not readable:
        raise TimeoutError
    line = process.stdout.readline()
    if not line:
        raise EOFError
    return json.loads(line)
