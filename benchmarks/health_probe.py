"""Asks a server's /healthz twenty times a second, and how late its own timer is meanwhile; a process of its own.

python benchmarks/health_probe.py URL     ends with its standard input, and prints both in milliseconds as JSON
"""

from __future__ import annotations

import http.client
import json
import select
import sys
import time
from urllib.parse import urlsplit

PAUSE_SECONDS = 0.05
PATIENCE_SECONDS = 60.0


def main() -> None:
    host = urlsplit(sys.argv[1]).netloc
    answers_ms: list[float] = []
    late_ms: list[float] = []
    while not select.select([sys.stdin], [], [], 0.0)[0]:
        began = time.monotonic()
        time.sleep(PAUSE_SECONDS)
        late_ms.append((time.monotonic() - began - PAUSE_SECONDS) * 1000)
        answers_ms.append(asked_ms(host))
    print(json.dumps({"answers_ms": answers_ms, "late_ms": late_ms}))


def asked_ms(host: str) -> float:
    """One question over a connection of its own; an error, or another status, counts as the whole patience."""
    connection = http.client.HTTPConnection(host, timeout=PATIENCE_SECONDS)
    began = time.monotonic()
    try:
        connection.request("GET", "/healthz")
        response = connection.getresponse()
        response.read()
        seconds = time.monotonic() - began if response.status == 200 else PATIENCE_SECONDS
    except (OSError, http.client.HTTPException):
        seconds = PATIENCE_SECONDS
    finally:
        connection.close()
    return seconds * 1000


if __name__ == "__main__":
    main()
