"""Large bodies are read in a process of their own: json's decoder lets nobody else run, in a thread as well.

    python -m coe_server.http.aside        that process: a question from its input, the answer to its output

It ends with its input, so with the server, however that ends.
"""

from __future__ import annotations

import logging
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress

from coe_server.errors import RequestError
from coe_server.http.apis import Surface
from coe_server.http.question import Question, read_question

logger = logging.getLogger(__name__)

NICENESS = 5  # on a core that both share, the server goes first
PATIENCE_SECONDS = 20.0  # the worst body that may come takes a second


class Aside:
    """The server's side. The process is started with the first body; one thread at a time may `read`."""

    def __init__(self) -> None:
        self._patience_seconds = PATIENCE_SECONDS
        self._process: subprocess.Popen[bytes] | None = None

    def read(self, pieces: Sequence[bytes], surface: Surface | None) -> Question:
        """What `read_question` gives, with the ends of long texts alone. Waits; raises RequestError."""
        raw = b"".join(pieces)
        try:
            found = self._asked(raw, surface)
        except (OSError, EOFError, pickle.UnpicklingError) as error:
            self.close()
            logger.warning("the process that reads large bodies is gone (%r): one is read without it", error)
            return read_question(raw, surface)
        if isinstance(found, RequestError):
            raise found
        return found if found.body.raw else found.with_bytes(raw)

    def close(self) -> None:
        """End the process; the next body starts another one."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            with suppress(OSError):  # a part of a body may be left to write, and nobody to read it
                process.communicate()

    def _asked(self, raw: bytes, surface: Surface | None) -> Question | RequestError:
        process = self._process
        if process is None:
            process = self._process = subprocess.Popen(
                (sys.executable, "-m", __name__),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                start_new_session=True,  # the terminal's Ctrl-C is for the server alone
            )
        assert process.stdin is not None, "it is a pipe"
        assert process.stdout is not None, "it is a pipe"
        impatience = threading.Timer(self._patience_seconds, process.kill)
        impatience.start()
        try:
            pickle.dump((raw, surface), process.stdin, pickle.HIGHEST_PROTOCOL)
            process.stdin.flush()
            answer: Question | RequestError = pickle.load(process.stdout)
        finally:
            impatience.cancel()
        return answer


def main() -> None:
    """Answer until the input ends."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a whole group may be told to end: the server does so in order
    os.nice(NICENESS)
    with suppress(EOFError, BrokenPipeError):
        while True:
            answer = _answer(*pickle.load(sys.stdin.buffer))  # the body has no name here: nothing keeps it
            pickle.dump(answer, sys.stdout.buffer, pickle.HIGHEST_PROTOCOL)
            sys.stdout.buffer.flush()


def _answer(raw: bytes, surface: Surface | None) -> Question | RequestError:
    """Without the bytes, unless they came in another encoding than they go on in."""
    try:
        question = read_question(raw, surface)
        bare = question.without_bytes()
        return bare if question.body.raw is raw else bare.with_bytes(question.body.raw)
    except RequestError as error:
        return error.with_traceback(None)


if __name__ == "__main__":
    main()
