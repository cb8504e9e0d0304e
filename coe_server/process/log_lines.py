"""How the log is written: JSON lines for machines, plain lines for a person. Knows nothing of what is logged.

A message may quote what a server elsewhere said: no line has a character that a terminal obeys or that begins a line.
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any, Literal

from coe_server.visible import visible, visible_lines

Format = Literal["auto", "json", "text"]
_INDENT = "    "


def write_log_to_stderr(form: Format) -> None:
    """From now on every record goes to standard error; `auto` is text on a terminal and JSON anywhere else."""
    as_text = form == "text" or (form == "auto" and sys.stderr.isatty())
    handler = logging.StreamHandler()
    handler.setFormatter(TextLines() if as_text else JsonLines())
    for unused in ("logThreads", "logProcesses", "logMultiprocessing", "logAsyncioTasks"):  # no line tells of these
        setattr(logging, unused, False)
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)


class JsonLines(logging.Formatter):
    """One object a line: time (UTC), level, logger, message, and the record's `fields`."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=True).replace("\x7f", r"\u007f")  # the only control that JSON leaves


class TextLines(logging.Formatter):
    """`time LEVEL logger: message key=value ...` on one line, a value written as JSON; a traceback stands below it,
    indented, so that nothing in it looks like a line of the log."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  the name is the standard library's
        fields = getattr(record, "fields", {})
        pairs = (f" {key}={json.dumps(value)}" for key, value in fields.items() if value is not None)
        return visible(super().formatMessage(record) + "".join(pairs))

    def formatException(self, ei: Any) -> str:  # noqa: N802  as above
        return "\n".join(_INDENT + line for line in visible_lines(super().formatException(ei)).split("\n"))
