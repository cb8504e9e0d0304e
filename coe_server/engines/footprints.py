"""Measured footprints in a small private JSON file, so that the next start plans with them. Starts nothing.

One entry for each model, arguments and card. A file that cannot be read counts as none.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from coe_server.engines.engine import Footprint
from coe_server.engines.vllm_command import VllmLaunch
from coe_server.system.files import private_folder, replacing

logger = logging.getLogger(__name__)

_MOST_ENTRIES = 200
_LONGEST_FILE_BYTES = 1 << 20


def footprint_key(launch: VllmLaunch, weights_bytes: int, card: str) -> str:
    """What a measurement holds for: change any of it and it is measured anew."""
    said = [launch.model, weights_bytes, launch.kv_cache_bytes, launch.can_sleep, launch.platform, card]
    said.append(launch.max_concurrency)  # of so many sequences graphs are captured
    told = json.dumps([*said, launch.command, dict(launch.args)], sort_keys=True, default=str)
    return hashlib.sha256(told.encode()).hexdigest()[:32]


def read_footprints(file: Path) -> dict[str, Footprint]:
    """Key -> footprint; empty if there is no file yet. One that makes no sense is ignored with a warning."""
    try:
        with file.open("rb") as there:
            data = there.read(_LONGEST_FILE_BYTES + 1)
        if len(data) > _LONGEST_FILE_BYTES:
            raise ValueError("it is too long")
        return {str(key): _footprint(entry) for key, entry in json.loads(data).items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        logger.warning("%s: measured footprints cannot be read (%s); they are measured anew", file, error)
        return {}


def write_footprints(file: Path, measured: Mapping[str, Footprint]) -> None:
    """Add what was measured and replace the file as a whole; beyond 200 entries the oldest go."""
    private_folder(file.parent)
    known = {key: entry for key, entry in read_footprints(file).items() if key not in measured}
    newest = list((known | dict(measured)).items())[-_MOST_ENTRIES:]
    with replacing(file) as out:
        json.dump({key: footprint._asdict() for key, footprint in newest}, out, indent=1)


def _footprint(entry: Any) -> Footprint:
    found = Footprint(**entry)
    if not all(type(size) is int and size >= 0 for size in found) or found.device_asleep > found.device_awake:
        raise ValueError(f"{entry!r} is no footprint")
    return found
