"""The names of the nodes that an operator has drained at this front, kept in a file over its restarts."""

from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path

from coe_server.errors import ConfigError
from coe_server.system.files import private_folder, replacing

logger = logging.getLogger(__name__)


class Drained:
    """Reads the file when it is made. Raises ConfigError if that is damaged; without a file no node is drained."""

    def __init__(self, file: Path | None = None) -> None:
        """Without `file` the names are kept in memory alone."""
        self._file = file
        self._names = frozenset() if file is None else _read(file)
        self._writing = asyncio.Lock()

    def __contains__(self, node: str) -> bool:
        return node in self._names

    def add(self, node: str) -> None:
        self._names |= {node}

    def discard(self, node: str) -> None:
        self._names -= {node}

    async def keep(self) -> None:
        """Write the names as they are now. Where that fails they still hold, until the front restarts."""
        async with self._writing:  # the last one to write writes the latest names
            try:
                await asyncio.to_thread(self._write)
            except OSError as error:
                logger.warning("%s cannot be written: %s; a restart of the front forgets the change", self._file, error)

    def _write(self) -> None:
        if self._file is not None:
            private_folder(self._file.parent)
            with replacing(self._file) as out:
                out.write(json.dumps({"drained": sorted(self._names)}) + "\n")


def _read(file: Path) -> frozenset[str]:
    try:
        told = json.loads(file.read_bytes())
        names = told["drained"]
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise TypeError("`drained` is not a list of names")
    except FileNotFoundError:
        return frozenset()
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConfigError(
            f"{file}: the drained nodes cannot be read ({error!r}); remove the file, and drain nodes again where needed"
        ) from error
    return frozenset(names)
