"""Large bodies are read in a process of their own: json's decoder blocks every thread of the process it runs in.

    python -m coe_server.http.bodies.parser_process        that process: requests on its input, answers on its output

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
from coe_server.http.apis import Api
from coe_server.http.bodies.body import NESTED_TOO_DEEPLY, ParsedRequest, parse_request

logger = logging.getLogger(__name__)

NICENESS = 5  # on a core that both share, the server goes first
TIMEOUT_SECONDS = 20.0  # the worst body that is allowed takes a second


class ParserProcess:
    """The server's end of the parser process, which starts with the first body. One thread at a time may `read`."""

    def __init__(self) -> None:
        self._timeout_seconds = TIMEOUT_SECONDS
        self._process: subprocess.Popen[bytes] | None = None

    def read(self, pieces: Sequence[bytes], api: Api | None) -> ParsedRequest:
        """The result of `parse_request` with only the ends of long texts. Blocks; raises RequestError."""
        raw = b"".join(pieces)
        if self._process is None:
            pipe, command = subprocess.PIPE, (sys.executable, "-m", __name__)
            # in a session of its own: Ctrl-C in a terminal is for the server only
            self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, start_new_session=True)
        timer = threading.Timer(self._timeout_seconds, self._process.kill)
        timer.start()
        try:
            found = _asked(self._process, raw, api)
        except (OSError, EOFError, pickle.UnpicklingError) as error:
            self.close()
            logger.warning("the parser process has ended (%r): a large body is parsed in the server process", error)
            return parse_request(raw, api)
        finally:
            timer.cancel()
        if isinstance(found, RequestError):
            raise found
        return found if found.body.raw else found.with_bytes(raw)

    def close(self) -> None:
        """End the process; the next body starts another one."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            with suppress(OSError):  # part of a body may still wait to be written
                process.communicate()


def _asked(process: subprocess.Popen[bytes], raw: bytes, api: Api | None) -> ParsedRequest | RequestError:
    assert process.stdin is not None, "it is a pipe"
    assert process.stdout is not None, "it is a pipe"
    pickle.dump((raw, api), process.stdin, pickle.HIGHEST_PROTOCOL)
    process.stdin.flush()
    answer: ParsedRequest | RequestError = pickle.load(process.stdout)
    return answer


def main() -> None:
    """Answer until the input ends."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # sent to a whole process group, it is for the server to handle
    os.nice(NICENESS)
    with suppress(EOFError, BrokenPipeError):
        while True:
            sys.stdout.buffer.write(_answer(*pickle.load(sys.stdin.buffer)))
            sys.stdout.buffer.flush()


def _answer(raw: bytes, api: Api | None) -> bytes:
    """A pickled ParsedRequest or RequestError. The body's bytes are in it only where its encoding was changed."""
    try:
        parsed = parse_request(raw, api)
        bare = parsed.without_bytes()
        answer = bare if parsed.body.raw is raw else bare.with_bytes(parsed.body.raw)
        return pickle.dumps(answer)
    except RequestError as error:
        return pickle.dumps(error.with_traceback(None))
    except RecursionError:  # pickle goes less deep than json
        return pickle.dumps(RequestError(NESTED_TOO_DEEPLY))


if __name__ == "__main__":
    main()
