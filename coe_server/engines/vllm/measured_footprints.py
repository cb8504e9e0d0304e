"""Measured footprints in a small private JSON file, for the next start.

One entry per model, arguments and card. An unreadable file counts as empty.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from coe_server.engines.engine import Footprint
from coe_server.engines.vllm.command import VllmLaunch
from coe_server.system.files import private_folder, replacing

logger = logging.getLogger(__name__)

_MOST_ENTRIES = 200
_LONGEST_FILE_BYTES = 1 << 20


def footprint_key(launch: VllmLaunch, weights_bytes: int, card: str) -> str:
    """The key of a measurement: if any part changes, the footprint is measured again."""
    said = [launch.model, weights_bytes, launch.kv_cache_bytes, launch.can_sleep, launch.platform, card]
    said.append(launch.max_concurrency)  # of so many sequences graphs are captured
    if launch.adapters:
        said.append([(one.rank, one.size_bytes) for one in launch.adapters])
    told = json.dumps([*said, launch.command, dict(launch.args)], sort_keys=True, default=str)
    return hashlib.sha256(told.encode()).hexdigest()[:32]


def read_footprints(file: Path) -> dict[str, Footprint]:
    """Key -> footprint; empty without a file. An invalid file is ignored with a warning."""
    try:
        with file.open("rb") as there:
            data = there.read(_LONGEST_FILE_BYTES + 1)
        if len(data) > _LONGEST_FILE_BYTES:
            raise ValueError("too long")
        return {str(key): _footprint(entry) for key, entry in json.loads(data).items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        logger.warning("%s: cannot read measured footprints (%s); they will be measured again", file, error)
        return {}


def write_footprints(file: Path, measured: Mapping[str, Footprint]) -> None:
    """Add the measured entries and replace the file atomically; beyond 200 entries the oldest are dropped."""
    private_folder(file.parent)
    known = {key: entry for key, entry in read_footprints(file).items() if key not in measured}
    newest = list((known | dict(measured)).items())[-_MOST_ENTRIES:]
    with replacing(file) as out:
        json.dump({key: footprint._asdict() for key, footprint in newest}, out, indent=1)


def _footprint(entry: Any) -> Footprint:
    found = Footprint(**entry)
    if not all(type(size) is int and size >= 0 for size in found) or found.device_asleep > found.device_awake:
        raise ValueError(f"{entry!r} is not a footprint")
    return found
