"""Seconds that an expert's moves and answers take on this machine, measured or estimated; kept in a JSON file.

A file that cannot be read counts as no costs.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from coe_server.cache.tiers import Tier
from coe_server.system.files import private_folder, replacing


class Costs:
    """Exponential means of measured seconds, and estimates where nothing is measured."""

    _GUESSES: ClassVar = {"start": 30.0, "wake": 1.0, "sleep": 1.0, "stop": 2.0, "service": 5.0}
    _NEWEST_SHARE = 0.3

    def __init__(self, measured: Mapping[str, float] | None = None) -> None:
        self._measured = {kind: value for kind, value in (measured or {}).items() if kind in self._GUESSES}
        self._seconds = {**self._GUESSES, **self._measured}

    @property
    def measured(self) -> dict[str, float]:
        """Kind of cost -> measured seconds, to be saved; without estimates."""
        return dict(self._measured)

    def learn_move(self, source: Tier, target: Tier, seconds: float) -> None:
        self._learn(_KINDS[source, target], seconds)

    def learn_service(self, seconds: float) -> None:
        """Learn how long a request was in the engine."""
        self._learn("service", seconds)

    def move(self, source: Tier, target: Tier) -> float:
        """Seconds of a move; 0 to the tier in which it is."""
        return 0.0 if source is target else self._seconds[_KINDS[source, target]]

    @property
    def service(self) -> float:
        return self._seconds["service"]

    @property
    def start(self) -> float:
        return self._seconds["start"]

    def start_timeout(self, backoffs: int) -> float | None:
        """Seconds after which a start is aborted, so that other engines may start; None if no start was measured.

        Four times the usual: a busy machine or cold files take two or three times as long. The machine may have
        become permanently slower, so each of the `backoffs` since the last answer doubles it.
        """
        usual = self._measured.get("start")
        if usual is None:
            return None
        return max(_TIMES_AS_LONG * usual, _SHORTEST_TIMEOUT_SECONDS) * 2.0 ** min(backoffs, _MOST_DOUBLINGS)

    def _learn(self, kind: str, seconds: float) -> None:
        known = self._measured.get(kind, seconds)
        self._measured[kind] = self._seconds[kind] = known + self._NEWEST_SHARE * (seconds - known)


_TIMES_AS_LONG = 4.0
_SHORTEST_TIMEOUT_SECONDS = 30.0
_MOST_DOUBLINGS = 10


def _kind(source: Tier, target: Tier) -> str:
    match source, target:
        case Tier.DISK, _:
            return "start"
        case _, Tier.DEVICE:
            return "wake"
        case _, Tier.HOST:
            return "sleep"
        case _:
            return "stop"


_KINDS = {(source, target): _kind(source, target) for source in Tier for target in Tier}


def slowest_way_up(costs: Costs) -> float:
    """The largest cost of a move to the device."""
    return max(costs.move(source, Tier.DEVICE) for source in (Tier.HOST, Tier.DISK))


def slowest_way_down(costs: Costs) -> float:
    """The largest cost of a move off the device."""
    return max(costs.move(Tier.DEVICE, target) for target in (Tier.HOST, Tier.DISK))


logger = logging.getLogger(__name__)


def read_costs(path: Path) -> dict[str, dict[str, float]]:
    """Expert -> kind of cost -> seconds; empty if the file is missing or invalid."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {
            str(expert): {str(kind): _seconds(value) for kind, value in costs.items()}
            for expert, costs in found.items()
        }
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        logger.warning("%s: cannot read measured costs (%s); starting without them", path, error)
        return {}


def write_costs(path: Path, costs: Mapping[str, Mapping[str, float]]) -> None:
    """Replace the file atomically."""
    private_folder(path.parent)
    with replacing(path) as out:
        json.dump(costs, out, indent=1)


def _seconds(value: object) -> float:
    if not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise ValueError(f"{value!r} is not a number of seconds")
    return float(value)
