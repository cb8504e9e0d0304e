"""Requests a server's /healthz twenty times a second and measures how late its own timer is; a separate process.

python benchmarks/health_probe.py URL     ends when its standard input does, and prints both in milliseconds as JSON
"""

from __future__ import annotations

import http.client
import json
import select
import sys
import time
from urllib.parse import urlsplit

PAUSE_SECONDS = 0.05
TIMEOUT_SECONDS = 60.0


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
    """The time of one request over a new connection; an error or another status counts as the whole timeout."""
    connection = http.client.HTTPConnection(host, timeout=TIMEOUT_SECONDS)
    began = time.monotonic()
    try:
        connection.request("GET", "/healthz")
        response = connection.getresponse()
        response.read()
        seconds = time.monotonic() - began if response.status == 200 else TIMEOUT_SECONDS
    except (OSError, http.client.HTTPException):
        seconds = TIMEOUT_SECONDS
    finally:
        connection.close()
    return seconds * 1000


if __name__ == "__main__":
    main()
