"""Progress bars of a collection: requests by name, done and planned."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import TimeRemainingColumn as TimeLeftColumn

from coe_server.system.visible import visible

EVERYTHING = "everything"


class Bars(Protocol):
    """Receives the number of planned requests and each completed one."""

    def plan(self, steps: Mapping[str, int]) -> None:
        """Set the planned requests under each name; called again when the numbers change."""

    def advance(self, name: str) -> None:
        """Count one completed or failed request under this name."""

    def say(self, sentence: str) -> None:
        """Print a permanent line."""


class SilentBars:
    """Ignores everything, for tests and callers without a terminal."""

    def plan(self, steps: Mapping[str, int]) -> None: ...

    def advance(self, name: str) -> None: ...

    def say(self, sentence: str) -> None: ...


class TerminalBars:
    """Progress bars on a terminal; elsewhere printed lines only. A context manager."""

    def __init__(self, console: Console) -> None:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("requests"),
            TimeElapsedColumn(),
            TextColumn("time left"),
            TimeLeftColumn(),
        )
        self._console = console
        self._progress = Progress(*columns, console=console, disable=not console.is_terminal)
        self._tasks: dict[str, TaskID] = {}
        self._steps: dict[str, int] = {}

    def __enter__(self) -> TerminalBars:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def plan(self, steps: Mapping[str, int]) -> None:
        self._steps.update(steps)
        for name, total in {**self._steps, EVERYTHING: sum(self._steps.values())}.items():
            if name in self._tasks:
                self._progress.update(self._tasks[name], total=total)
            elif total:
                self._tasks[name] = self._progress.add_task(name, total=total, start=False)

    def advance(self, name: str) -> None:
        for task in (self._tasks[name], self._tasks[EVERYTHING]):
            self._progress.start_task(task)
            self._progress.advance(task)

    def say(self, sentence: str) -> None:
        self._console.print(visible(sentence), markup=False)
