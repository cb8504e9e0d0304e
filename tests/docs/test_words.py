"""Plain English: things are not persons, so code and documents do without the words that name an unknown person."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from tests.docs.reader import ROOT

WORDS = re.compile(r"\b(?:whoever|whomever|nobody|somebody|anybody)\b", re.IGNORECASE)
PLACES = (
    "benchmarks",
    "coe_server",
    "router_training",
    "docs",
    "configs",
    "deploy",
    "demo",
    "README.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
)
KINDS = {".py", ".md", ".yaml", ".yml", ".html", ".js", ".css", ".txt", ".sh", ".json", ".service"}
# Names that others chose, as `path: the line, without blanks around it`, each with its reason.
ALLOWED: frozenset[str] = frozenset()
GENERATED = ("demo/experts", "demo/data", "demo/grammars")


def texts() -> Iterator[Path]:
    for place in PLACES:
        path = ROOT / place
        yield from (path,) if path.is_file() else sorted(one for one in path.rglob("*") if one.suffix in KINDS)


def found() -> Iterator[str]:
    for path in texts():
        name = path.relative_to(ROOT).as_posix()
        if name.startswith(GENERATED):
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if WORDS.search(line) and f"{name}: {line.strip()}" not in ALLOWED:
                yield f"{name}:{number}: {line.strip()}"


def test_things_are_not_persons() -> None:
    assert list(found()) == []


def test_the_words_are_found_as_whole_words_in_any_case() -> None:
    assert [bool(WORDS.search(text)) for text in ("Nobody waits", "anybody's wait", "busybody", "bodies")] == [
        True,
        True,
        False,
        False,
    ]
