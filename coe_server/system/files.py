"""Private files and folders, independent of the umask, and checks that a destination is writable.

Files are created or replaced as a whole, never through a symbolic link.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from coe_server.errors import ConfigError

PRIVATE_FILE, PRIVATE_FOLDER = 0o600, 0o700


def private_folder(folder: Path) -> None:
    """Create the folder and its parents if missing. An existing folder keeps its mode."""
    missing = [one for one in (folder, *folder.parents) if not one.exists()]
    for one in reversed(missing):
        one.mkdir(PRIVATE_FOLDER, exist_ok=True)


@contextmanager
def replacing(file: Path, mode: int = PRIVATE_FILE) -> Iterator[TextIO]:
    """Write a temporary file that replaces `file` at the end, synced to disk. After an error `file` is unchanged.

    The temporary file is created with O_EXCL. If `file` is a symbolic link, the link is replaced, not followed.
    """
    descriptor, draft = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)
    try:
        with _named(file), os.fdopen(descriptor, "w", encoding="utf-8") as out:
            os.fchmod(out.fileno(), mode)
            yield out
            out.flush()
            os.fsync(out.fileno())
        os.replace(draft, file)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(draft)
        raise


def create_private(file: Path, text: str) -> None:
    """A new file with this text. Raises FileExistsError where anything is there, a link included."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(file, flags, PRIVATE_FILE)
    try:
        with _named(file), os.fdopen(descriptor, "w", encoding="utf-8") as out:
            out.write(text)
            out.flush()
            os.fsync(out.fileno())
    except BaseException:
        os.unlink(file)
        raise


@contextmanager
def _named(file: Path) -> Iterator[None]:
    """An error of writing, on a full disk say, names the file; the system names it only where it is opened."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(file)
        raise


def open_private(file: Path, flags: int) -> int:
    """Open the file, creating it if missing. If this user owns it, other users lose access to it.

    Raises OSError (ELOOP) if it is a symbolic link.
    """
    descriptor = os.open(file, flags | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, PRIVATE_FILE)
    with suppress(PermissionError):  # another user's file: its mode stays
        os.fchmod(descriptor, PRIVATE_FILE)
    return descriptor


def require_writable_file(option: str, path: Path) -> None:
    """Raise ConfigError naming the option unless a file can be written at `path`. An existing file is unchanged."""
    if path.is_dir():
        raise ConfigError(f"{option}: {path} is a folder; give a file")
    if not path.parent.is_dir():
        raise ConfigError(f"{option}: {path} cannot be written: there is no folder {path.parent}")
    try:
        if path.is_file():
            path.open("ab").close()
        elif not path.exists():  # not for a pipe or device, which would notice
            _write_in(path.parent)
    except OSError as error:
        raise ConfigError(f"{option}: {path} cannot be written ({error.strerror})") from error


def require_writable_folder(option: str, path: Path) -> None:
    """Raise ConfigError naming the option unless files can be written in the folder `path`, existing or new."""
    nearest = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    if not nearest.is_dir():
        raise ConfigError(f"{option}: {nearest} is a file; give a folder")
    try:
        _write_in(nearest)
    except OSError as error:
        raise ConfigError(f"{option}: {path} cannot be written ({error.strerror})") from error


def _write_in(folder: Path) -> None:
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(b"\0")
        file.flush()
