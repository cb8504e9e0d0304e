"""Can a place be written? Asked before the work whose result goes there; knows nothing of what is written."""

from __future__ import annotations

import tempfile
from pathlib import Path

from coe_server.errors import ConfigError


def require_writable_file(option: str, path: Path) -> None:
    """Raises ConfigError, which names the option, unless a file can be written at `path`. What is there stays."""
    if path.is_dir():
        raise ConfigError(f"{option}: {path} is a folder, where a file is due")
    if not path.parent.is_dir():
        raise ConfigError(f"{option}: {path} cannot be written, there is no folder {path.parent}")
    try:
        if path.is_file():
            path.open("ab").close()
        elif not path.exists():  # what is neither, a pipe say, would notice
            _write_in(path.parent)
    except OSError as error:
        raise ConfigError(f"{option}: {path} cannot be written ({error.strerror})") from error


def require_writable_folder(option: str, path: Path) -> None:
    """Raises ConfigError, which names the option, unless files can be written in a folder at `path`, made or there."""
    nearest = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    if not nearest.is_dir():
        raise ConfigError(f"{option}: {nearest} is a file, where a folder is due")
    try:
        _write_in(nearest)
    except OSError as error:
        raise ConfigError(f"{option}: {path} cannot be written ({error.strerror})") from error


def _write_in(folder: Path) -> None:
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(b"\0")
        file.flush()
