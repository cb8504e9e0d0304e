"""Seconds that an expert's moves and answers cost on this machine, measured or guessed, and kept in a small JSON file;
and its restart budget. A file that cannot be read counts as no costs."""

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
    """Exponential means of what was measured, and guesses for what was not."""

    _GUESSES: ClassVar = {"start": 30.0, "wake": 1.0, "sleep": 1.0, "stop": 2.0, "service": 5.0}
    _NEWEST_SHARE = 0.3

    def __init__(self, measured: Mapping[str, float] | None = None) -> None:
        self._measured = {kind: value for kind, value in (measured or {}).items() if kind in self._GUESSES}

    @property
    def measured(self) -> dict[str, float]:
        """Kind of cost -> seconds, for keeping; guesses are not among them."""
        return dict(self._measured)

    def learn_move(self, source: Tier, target: Tier, seconds: float) -> None:
        self._learn(_KINDS[source, target], seconds)

    def learn_service(self, seconds: float) -> None:
        """How long a request stayed inside the engine."""
        self._learn("service", seconds)

    def move(self, source: Tier, target: Tier) -> float:
        return self._of(_KINDS[source, target])

    @property
    def start(self) -> float:
        return self._of("start")

    @property
    def service(self) -> float:
        return self._of("service")

    @property
    def moves_are_measured(self) -> bool:
        """Whether it is known what it takes to start it; all else comes with that, or soon."""
        return "start" in self._measured

    @property
    def slowest_way_up(self) -> float:
        """To the device from wherever it may be."""
        return max(self._of("start"), self._of("wake"))

    @property
    def slowest_way_down(self) -> float:
        """To wherever it may have to go."""
        return max(self._of("sleep"), self._of("stop"))

    def patience(self, rests: int) -> float | None:
        """Seconds after which its start is given up, so that others may start; None where no start was measured.

        Four times the usual: a busy machine or cold files take two or three times as long. The machine may have
        become slower for good, so each of the `rests` since its last answer doubles it.
        """
        usual = self._measured.get("start")
        if usual is None:
            return None
        return max(_TIMES_AS_LONG * usual, _LEAST_PATIENCE_SECONDS) * 2.0 ** min(rests, _MOST_DOUBLINGS)

    def _learn(self, kind: str, seconds: float) -> None:
        known = self._measured.get(kind, seconds)
        self._measured[kind] = known + self._NEWEST_SHARE * (seconds - known)

    def _of(self, kind: str) -> float:
        return self._measured.get(kind, self._GUESSES[kind])


_TIMES_AS_LONG = 4.0
_LEAST_PATIENCE_SECONDS = 30.0
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
