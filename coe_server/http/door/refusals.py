"""What is turned away at the door: counted, and told in the log, though no more often than somebody can read.

No line has a key, nor a path that a client made up; a wrong or missing key has no name.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from coe_server.errors import CoeError
from coe_server.http.door.paths import Paths
from coe_server.keys import Key
from coe_server.metrics import ERRORS, KEY_REQUESTS, REQUESTS, Telemetry

logger = logging.getLogger(__name__)

MOST_LINES = 60  # in a window; who guesses keys shall not fill a disk
WINDOW_SECONDS = 60.0
LONGEST_SENTENCE = 200  # characters; it may quote a header


class Refusals:
    """One for the server's life."""

    def __init__(self, telemetry: Telemetry, paths: Paths, clock: Callable[[], float] = time.monotonic) -> None:
        self._telemetry = telemetry
        self._paths = paths
        self._clock = clock
        self._since = clock()
        self._told = 0
        self._untold = 0

    def count(self, error: CoeError, path: str | None = None, key: Key | None = None) -> None:
        """A request that nothing but the door has seen; `path` and `key` (its caller's) where they are known."""
        self._telemetry.count(ERRORS, error.code)
        self._telemetry.count(REQUESTS, "refused", str(error.status))
        if key is not None:
            self._telemetry.count(KEY_REQUESTS, key.name, str(error.status))
        self.tell(error, path, key)

    def tell(self, error: CoeError, path: str | None, key: Key | None) -> None:
        """A line in the log, or one more that had none."""
        self._begin_window()
        if self._told == MOST_LINES:
            self._untold += 1
            return
        self._told += 1
        fields = {"status": error.status, "code": error.code}
        if path is not None:
            fields["path"] = self._paths.declared(path) or "other"
        if key is not None:
            fields["key"] = key.name
        logger.warning("refused: %s", str(error)[:LONGEST_SENTENCE], extra={"fields": fields})

    def _begin_window(self) -> None:
        now = self._clock()
        if now < self._since + WINDOW_SECONDS:
            return
        if self._untold:
            logger.warning("%d more requests were refused after these, without a line each", self._untold)
        self._since, self._told, self._untold = now, 0, 0
