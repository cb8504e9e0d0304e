"""Pure: a played trace as the figures by which policies are compared."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import ceil
from typing import Any

from coe_server.cache.tiers import Tier
from coe_server.simulation.simulator import Run

Interval = tuple[float, float]  # from, to


@dataclass(frozen=True, slots=True)
class Measures:
    """How one policy did on one trace. Seconds, bytes, counts."""

    switches: int
    serving_share: float
    blocked_seconds: float
    makespan_seconds: float
    wait_mean: float
    wait_p95: float
    wait_max: float
    wait_bound_seconds: float
    bytes_moved: int
    refused: int
    resident_choices: int
    score_lost: float
    wait_saved_seconds: float

    @property
    def bound_kept(self) -> bool:
        return self.wait_max <= self.wait_bound_seconds

    def as_json(self) -> dict[str, Any]:
        return {
            "switches": self.switches,
            "serving_share": self.serving_share,
            "blocked_seconds": self.blocked_seconds,
            "makespan_seconds": self.makespan_seconds,
            "wait_seconds": {"mean": self.wait_mean, "p95": self.wait_p95, "max": self.wait_max},
            "wait_bound_seconds": self.wait_bound_seconds,
            "wait_bound_kept": self.bound_kept,
            "bytes_moved": self.bytes_moved,
            "refused": self.refused,
            "resident": {
                "choices": self.resident_choices,
                "score_lost": self.score_lost,
                "wait_saved_seconds": self.wait_saved_seconds,
            },
        }


def measure(run: Run) -> Measures:
    """The figures of one run.

    `serving_share` is W / (W + blocked): W the solo service seconds of all requests of the trace, blocked the seconds
    in which some request is unfinished and none is generating. Bytes count once, on the way to the device. The wait
    at p95 is that of the nearest rank.
    """
    blocked = blocked_seconds(run)
    waits = sorted(answer.waited for answer in run.answers) or [0.0]
    return Measures(
        switches=run.switches,
        serving_share=serving_share(run.work_seconds, blocked),
        blocked_seconds=blocked,
        makespan_seconds=max((answer.finished for answer in run.answers), default=0.0),
        wait_mean=sum(waits) / len(waits),
        wait_p95=waits[ceil(0.95 * len(waits)) - 1],
        wait_max=waits[-1],
        wait_bound_seconds=run.wait_bound_seconds,
        bytes_moved=sum(move.size_bytes for move in run.moves if move.target is Tier.DEVICE),
        refused=run.refused,
        resident_choices=sum(answer.resident for answer in run.answers),
        score_lost=sum(answer.score_lost for answer in run.answers),
        wait_saved_seconds=sum(answer.wait_saved_seconds for answer in run.answers),
    )


def blocked_seconds(run: Run) -> float:
    """Seconds in which some request is unfinished and none is generating."""
    unfinished = covered_seconds((answer.arrived, answer.finished) for answer in run.answers)
    generating = covered_seconds((answer.granted, answer.finished) for answer in run.answers)
    return max(0.0, unfinished - generating)


def serving_share(work_seconds: float, blocked: float) -> float:
    return work_seconds / (work_seconds + blocked) if work_seconds else 1.0


def covered_seconds(intervals: Iterable[Interval]) -> float:
    """The length of the intervals' union."""
    covered, end = 0.0, float("-inf")
    for begins, ends in sorted(intervals):
        covered += max(0.0, ends - max(begins, end))
        end = max(end, ends)
    return covered
