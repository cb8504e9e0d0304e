"""An engine's log: a bounded file per expert, the previous run's log, its last lines, and those with errors."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote

from coe_server.engines.keeper import LONGEST_BYTES, shorten
from coe_server.system.files import open_private, private_folder

_TAIL_BYTES = 64 << 10
_TAIL_LINES = 6
_LOOKS = 3
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_TELLING = re.compile(r"\b(\w*Error|\w*Exception|error|cannot|refused|killed)\b[: ]")
_WARNING = re.compile(r"\b(DEBUG|INFO|WARNING) \d\d-\d\d ")  # as vLLM begins a line
BLANK = "[left out]"
_LEAST_SECRET = 6  # characters; a shorter value of a variable may be a word of the log
_KEY = re.compile(
    r"\b(?:coe-|sk-|hf_)[\w-]{16,}|(?<=Bearer )[^\s'\"]+"
    r"|(?i:(?<=api[-_]key)|(?<=token)|(?<=password)|(?<=secret))(?P<between>['\"]?\s*[:=]\s*\[?['\"]?|\s(?=\S{16}))[^\s'\",\]]{8,}"
)
_PROMPT = re.compile(r"""(\b(?:prompt|prompt_token_ids|messages|content)['"]?\s*[:=]).*""")
_TRACEBACK = re.compile(r'^\s*(File "|\^+|~|Traceback)|^\s{4,}')


def fresh_log(directory: Path, name: str) -> Path:
    """Create an empty `<name>.log`; the end of the previous run's log becomes `<name>.previous.log`."""
    private_folder(directory)
    log = log_path(directory, name)
    if log.is_symlink():
        log.unlink()
    if log.exists():
        with open_log(log) as file:
            if log.stat().st_size > LONGEST_BYTES // 2:
                shorten(file.fileno(), LONGEST_BYTES // 2)
        os.replace(log, previous_log(log))
    open_log(log).close()
    return log


def log_path(directory: Path, name: str) -> Path:
    return directory / f"{quote(name, safe='')}.log"  # a name may contain a slash


def previous_log(log: Path) -> Path:
    """The log of the previous run. It is deleted when the new log grows: together they have at most `LONGEST_BYTES`."""
    return log.with_suffix(".previous.log")


def open_log(log: Path) -> BinaryIO:
    """Open for appending. A new file is readable by its owner only, since it may quote prompts."""
    return open(open_private(log, os.O_RDWR), "r+b", buffering=0)


def last_lines(log: Path) -> str:
    """The last lines that look like errors, or else the last lines."""
    lines = _tail(log)
    telling = [line for line in lines if _TELLING.search(line) and not _WARNING.search(line)]
    return "\n".join((telling or lines)[-_TAIL_LINES:]) or "(its log is empty)"


def log_end(log: Path, count: int, secrets: Iterable[str] = ()) -> list[str]:
    """The last `count` lines, of at most 64 KiB: for an operator's eyes.

    `secrets`, and what looks like a key or like a logged prompt, are left out. A program may print others.
    """
    known = sorted((one for one in secrets if len(one) >= _LEAST_SECRET), key=len, reverse=True)
    lines = list(_lines(log))[-count:]
    return [_without_texts(line, known) for line in lines]


def _without_texts(line: str, secrets: Iterable[str]) -> str:
    for secret in secrets:
        line = line.replace(secret, BLANK)
    line = _KEY.sub(lambda match: (match["between"] or "") + BLANK, line)
    return _PROMPT.sub(rf"\1 {BLANK}", line)


def _lines(log: Path) -> Iterable[str]:
    """The lines in the last 64 KiB, without colours."""
    try:
        with log.open("rb") as file:
            text = _whole_lines(_newest(file)).decode(errors="replace")
    except OSError:
        return ()
    return (_COLOUR.sub("", line).rstrip() for line in text.splitlines())


def _whole_lines(newest: bytes) -> bytes:
    """Without the beginning of the first line, if that is cut off: half a secret is not told from other text."""
    return newest if len(newest) < _TAIL_BYTES else newest.partition(b"\n")[2] or newest


def _tail(log: Path) -> list[str]:
    lines = _lines(log)
    return list(dict.fromkeys(line for line in lines if line and not _is_traceback_body(line)))


def _newest(file: BinaryIO) -> bytes:
    """The end of a file that the keeper may shorten meanwhile, which moves the last lines to the front."""
    for _ in range(_LOOKS):
        file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
        if newest := file.read():
            return newest
    return b""


def _is_traceback_body(line: str) -> bool:
    message = re.sub(r"^\(\w+ pid=\d+\) ?((INFO|WARNING|ERROR) [\d-]+ [\d:]+ \[[^\]]*\] ?)?", "", line)
    return not message.strip() or _TRACEBACK.match(message) is not None
