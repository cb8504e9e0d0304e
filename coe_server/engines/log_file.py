"""One engine's log: a file per expert, the previous run kept beside it, and its telling last lines."""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import quote

_TAIL_BYTES = 64 << 10
_TAIL_LINES = 6
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_TELLING = re.compile(r"\b(\w*Error|\w*Exception|error|cannot|refused|killed)\b[: ]")
_WARNING = re.compile(r"\b(DEBUG|INFO|WARNING) \d\d-\d\d ")  # as vLLM begins a line
_TRACEBACK = re.compile(r'^\s*(File "|\^+|~|Traceback)|^\s{4,}')


def fresh_log(directory: Path, name: str) -> Path:
    """An empty `<name>.log`; what the run before wrote becomes `<name>.previous.log`."""
    directory.mkdir(parents=True, exist_ok=True)
    log = log_path(directory, name)
    if log.exists():
        os.replace(log, log.with_suffix(".previous.log"))
    log.touch()
    return log


def log_path(directory: Path, name: str) -> Path:
    return directory / f"{quote(name, safe='')}.log"  # a name may hold a slash


def last_lines(log: Path) -> str:
    """The lines that tell what went wrong, if any do, and otherwise the last ones."""
    lines = _tail(log)
    telling = [line for line in lines if _TELLING.search(line) and not _WARNING.search(line)]
    return "\n".join((telling or lines)[-_TAIL_LINES:]) or "(its log is empty)"


def _tail(log: Path) -> list[str]:
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _TAIL_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    lines = (_COLOUR.sub("", line).rstrip() for line in text.splitlines())
    return list(dict.fromkeys(line for line in lines if line and not _is_traceback_body(line)))


def _is_traceback_body(line: str) -> bool:
    message = re.sub(r"^\(\w+ pid=\d+\) ?((INFO|WARNING|ERROR) [\d-]+ [\d:]+ \[[^\]]*\] ?)?", "", line)
    return not message.strip() or _TRACEBACK.match(message) is not None
