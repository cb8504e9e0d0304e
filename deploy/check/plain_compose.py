"""Writes compose files as plain JSON for a schema check: plain_compose.py FILE... FOLDER

Compose's tag !reset is not plain YAML: values with it are left out.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import yaml

_RESET = object()


class _Loader(yaml.SafeLoader):
    """YAML with Compose's !reset."""


_Loader.add_constructor("!reset", lambda loader, node: _RESET)


def plain(file: Path) -> Any:
    """The file's content without the values with !reset."""
    return _without_resets(yaml.load(file.read_text(), _Loader))


def _without_resets(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_resets(inner) for key, inner in value.items() if inner is not _RESET}
    return value


def main() -> None:
    *files, folder = sys.argv[1:]
    for name in files:
        file = Path(name)
        (Path(folder) / f"plain-{file.stem}.json").write_text(json.dumps(plain(file)))


if __name__ == "__main__":
    main()
