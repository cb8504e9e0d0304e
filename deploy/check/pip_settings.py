"""Writes pip's own settings of this machine as one file, for a build: pip_settings.py FILE

Prints every path the settings name (a folder of wheels, an index on disk, a certificate): a build needs them too.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def main() -> None:
    settings = machine_settings()
    lines = [f"{name} = {value}" for name, value in settings.items()]
    Path(sys.argv[1]).write_text("\n".join(["[global]", *lines, ""]))
    paths = (path_of(word) for value in settings.values() for word in value.split())
    print(*sorted({str(path) for path in paths if path and path.exists()}), sep="\n")


def path_of(word: str) -> Path | None:
    """The path in a setting; for an index on disk (file://...) the folder around it, which has the linked files."""
    if word.startswith("file:///"):
        return Path(word.removeprefix("file://")).parent
    return Path(word) if word.startswith("/") else None


def machine_settings() -> dict[str, str]:
    """Name -> value, as `pip config list` shows them; the environment wins, as it does for pip."""
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True
    ).stdout
    found: dict[str, dict[str, str]] = {"global": {}, ":env:": {}}
    for line in listed.splitlines():
        name, _, value = line.partition("=")
        section, _, key = name.partition(".")
        if section in found:
            found[section][key] = value.strip("'\"")
    return found["global"] | found[":env:"]


if __name__ == "__main__":
    main()
