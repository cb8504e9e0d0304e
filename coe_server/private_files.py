"""Files for their owner alone, whatever the umask: made new or replaced as a whole, never through a symbolic link.

Knows nothing of what is in them.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

PRIVATE_FILE, PRIVATE_FOLDER = 0o600, 0o700


def private_folder(folder: Path) -> None:
    """Makes the folder, and those above it, where there is none; one that is there keeps its mode."""
    missing = [one for one in (folder, *folder.parents) if not one.exists()]
    for one in reversed(missing):
        one.mkdir(PRIVATE_FOLDER, exist_ok=True)


@contextmanager
def replacing(file: Path, mode: int = PRIVATE_FILE) -> Iterator[TextIO]:
    """What is written becomes `file` at the end, on the disk and as a whole; after an error `file` stays as it is.

    It is written under a name that did not exist (O_EXCL), and a link in the place of `file` is replaced, not followed.
    """
    descriptor, draft = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as out:
            os.fchmod(out.fileno(), mode)
            yield out
            out.flush()
            os.fsync(out.fileno())
        os.replace(draft, file)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(draft)
        raise


def open_private(file: Path, flags: int) -> int:
    """A descriptor of the file, made where there is none; one of ours that others could read no longer is.

    Raises OSError (ELOOP) where a symbolic link stands in its place.
    """
    descriptor = os.open(file, flags | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, PRIVATE_FILE)
    with suppress(PermissionError):  # another user's file: its mode is that user's
        os.fchmod(descriptor, PRIVATE_FILE)
    return descriptor
