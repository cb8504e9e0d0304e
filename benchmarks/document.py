"""Keeps each benchmark's last table in docs/benchmarks.md, between markers of its own."""

from __future__ import annotations

import re
from pathlib import Path

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "benchmarks.md"

HEAD = """# Benchmarks

What was measured, and with which command.
"""


def document(name: str, text: str, file: Path = DOCUMENT) -> None:
    """Put `text` between the markers of `name`; markers that are missing are added at the end."""
    section = f"<!-- {name}: begin -->\n{text.strip()}\n<!-- {name}: end -->\n"
    before = file.read_text() if file.exists() else HEAD
    pattern = re.compile(rf"<!-- {re.escape(name)}: begin -->\n.*?<!-- {re.escape(name)}: end -->\n", re.DOTALL)
    after, count = pattern.subn(lambda _: section, before)
    file.write_text(after if count else f"{before.rstrip()}\n\n{section}")
