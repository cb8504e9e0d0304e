"""One engine's log: a file per expert, bounded, the previous run kept beside it, and its telling last lines."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

LONGEST_BYTES = 16 << 20
KEPT_BYTES = 4 << 20

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


def bound_log(log: Path, longest_bytes: int = LONGEST_BYTES, kept_bytes: int = KEPT_BYTES) -> None:
    """Shorten a log that has grown too long to its newest lines, while the engine goes on appending to it.

    The file stays the same one, and its writers append (O_APPEND) after what is left. What they write between our
    reading and our cut is lost.
    """
    with suppress(OSError), open(os.open(log, os.O_RDWR | os.O_APPEND), "r+b", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        if size <= longest_bytes:
            return
        file.seek(size - kept_bytes)
        newest = file.read(kept_bytes).partition(b"\n")[2]  # from the first whole line on
        file.truncate(0)
        file.write(b"(earlier lines were dropped)\n" + newest)


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
