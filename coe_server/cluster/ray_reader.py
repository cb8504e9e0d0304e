"""Prints where the nodes of a Ray cluster are, as JSON lines, until its output is closed: ray_reader ADDRESS

A process of its own: Ray's library ends a process that has lost its head for a minute, which must not be the front.
An empty line says that nothing has changed.
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import asdict
from typing import Any

from coe_server.cluster.ray_members import DIRECTORY, NAMESPACE

LOOK_SECONDS = 0.5
ANSWER_SECONDS = 5.0
ABSENCE_SECONDS = 30.0  # a directory that was killed is back before
LONGEST_REASON = 400


def main() -> int:
    """Read until the output is closed; a failure is the last line."""
    try:
        import ray  # noqa: PLC0415  an extra
    except ImportError:
        return _failed("Ray is not installed here: it comes with the extra `ray` (docs/upgrade.md)")
    from ray.exceptions import RayError  # noqa: PLC0415

    try:
        ray.init(address=sys.argv[1], namespace=NAMESPACE, log_to_driver=False, logging_level="error")
        _read(ray)
    except BrokenPipeError:
        os.dup2(
            os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno()
        )  # what is left is not flushed into the closed pipe
    except (RayError, OSError, ValueError, RuntimeError) as error:
        return _failed(str(error))
    return 0


def _read(ray: Any) -> None:
    directory = ray.get_actor(DIRECTORY)
    before = None
    last_answer = time.monotonic()
    while True:
        try:
            found = ray.get(directory.addresses.remote(), timeout=ANSWER_SECONDS)
            last_answer = time.monotonic()
        except ray.exceptions.RayError:
            if time.monotonic() - last_answer > ABSENCE_SECONDS:
                raise
            found = None
        news = found is not None and found != before
        _say(json.dumps({"nodes": [asdict(one) for one in found]}) if news else "")
        before = found if news else before
        time.sleep(LOOK_SECONDS)


def _failed(reason: str) -> int:
    _say(json.dumps({"failed": " ".join(reason.split())[:LONGEST_REASON]}))
    return 1


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
