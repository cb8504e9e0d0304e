"""Keeps measured costs from one server to the next, in a small JSON file. A file that cannot be read is no costs."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path

from coe_server.system.files import private_folder, replacing

logger = logging.getLogger(__name__)


def read_costs(path: Path) -> dict[str, dict[str, float]]:
    """Expert -> kind of cost -> seconds; empty if there is no file yet, or none that makes sense."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {
            str(expert): {str(kind): _seconds(value) for kind, value in costs.items()}
            for expert, costs in found.items()
        }
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        logger.warning("%s: measured costs cannot be read (%s); they are measured anew", path, error)
        return {}


def write_costs(path: Path, costs: Mapping[str, Mapping[str, float]]) -> None:
    """Replace the file as a whole, so that a reader never sees half of it."""
    private_folder(path.parent)
    with replacing(path) as out:
        json.dump(costs, out, indent=1)


def _seconds(value: object) -> float:
    if not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise ValueError(f"{value!r} is no number of seconds")
    return float(value)
