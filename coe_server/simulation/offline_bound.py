"""Pure: the fewest blocked seconds that any schedule could reach, knowing the whole trace.

Blocked are the seconds in which some request is unfinished and none is generating. `lower_bound` holds for every
schedule whatever, also for one that brings experts before they are asked for, serves one request after the other
although an engine could take them together, and lets requests wait. Proof, with

    ready[e]  seconds until expert e can be on the device for the first time (0, a wake or a start, by where it begins)
    k(t)      how many experts that begin on disk can be up at t: engines start one at a time, so the k fastest
              starts must fit into t
    s[r]      how long request r generates once it is let in, a[r] its arrival, e[r] its expert

1. Generating needs an expert that has been up. So all that was generated until t belongs to requests that have
   arrived by t, for experts that are ready by t, at most k(t) of them from disk: at most A(t) seconds, the largest
   such sum. The clock adds at most a second a second, so until T at most G(T) = min over t <= T of A(t) + (T - t).
2. At t some request is certainly unfinished if max(a[r], ready[e[r]]) + s[r] > t >= a[r] for some r, or if more
   experts that begin on disk have been asked for by t than k(t). X is the set of these moments.
3. In [0, T] at least |X up to T| - G(T) seconds are therefore blocked. The bound takes the best T.
4. If no two of the experts asked for fit on the device together, no request generates while one is brought. Each is
   brought at least once (but for one that begins on the device). Moves while no request is unfinished block none;
   request r is unfinished from a[r] for s[r] at least, so until the last arrival at most its moment less the length
   of the union of all [a, a + s] is such time. After it a first move serves an unfinished request. What remains
   of the sum of the first moves is blocked. (The seconds in which their victims leave are not counted.)
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate

Interval = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Job:
    """A request of the trace as the bound sees it."""

    arrived: float
    expert: str
    seconds: float  # of generating


@dataclass(frozen=True, slots=True)
class Bringing:
    """What it takes until an expert is on the device for the first time."""

    seconds: float
    from_disk: bool
    device_bytes: int


def lower_bound(
    jobs: Sequence[Job], experts: dict[str, Bringing], device_bytes: int, running_seconds: float = 0.0
) -> float:
    """Blocked seconds that no schedule can avoid; `jobs` in order of arrival, times from now.

    `experts` are those that this trace asks for, or asked for. `running_seconds`: answers begun before go on for so
    long.
    """
    if not jobs:
        return 0.0
    return max(
        _warm_up_bound(jobs, experts, running_seconds),
        _one_at_a_time_bound(jobs, experts, device_bytes, running_seconds),
    )


def _warm_up_bound(jobs: Sequence[Job], experts: dict[str, Bringing], running_seconds: float) -> float:
    """Steps 1 to 3. All the functions are piecewise linear with slopes 0 and 1: their corners are enough."""
    asked = {job.expert for job in jobs}
    starts = list(accumulate(sorted(experts[name].seconds for name in asked if experts[name].from_disk)))
    ready = {name: experts[name].seconds for name in asked}
    certain = _certainly_unfinished(jobs, experts, starts, ready, running_seconds)
    corners = {0.0, *starts, *ready.values(), *(job.arrived for job in jobs)}
    corners.update(moment for interval in certain for moment in interval)
    return _best_difference(sorted(corners), jobs, experts, starts, ready, certain, running_seconds)


def _best_difference(
    corners: list[float],
    jobs: Sequence[Job],
    experts: dict[str, Bringing],
    starts: list[float],
    ready: dict[str, float],
    certain: list[Interval],
    running_seconds: float,
) -> float:
    best, covered, generated, arrived = 0.0, 0.0, 0.0, 0
    work: defaultdict[str, float] = defaultdict(float)
    last, span = 0.0, 0
    for corner in corners:
        while span < len(certain) and certain[span][1] <= last:
            span += 1
        if span < len(certain):  # no certain interval begins or ends strictly between two corners
            begins, ends = certain[span]
            covered += max(0.0, min(corner, ends) - max(last, begins))
        # A is a step function: until just before this corner it is what it was at the last one
        possible = running_seconds + _possible(work, experts, starts, ready, last)
        generated = min(generated + corner - last, possible)
        best = max(best, covered - generated)
        while arrived < len(jobs) and jobs[arrived].arrived <= corner:
            work[jobs[arrived].expert] += jobs[arrived].seconds
            arrived += 1
        last = corner
    return best


def _possible(
    work: dict[str, float], experts: dict[str, Bringing], starts: list[float], ready: dict[str, float], now: float
) -> float:
    """A(now): the most seconds that can have been generated, counting no clock."""
    up = [(name, seconds) for name, seconds in work.items() if ready[name] <= now]
    from_disk = sorted((seconds for name, seconds in up if experts[name].from_disk), reverse=True)
    others = sum(seconds for name, seconds in up if not experts[name].from_disk)
    return others + sum(from_disk[: bisect_right(starts, now)])


def _certainly_unfinished(
    jobs: Sequence[Job],
    experts: dict[str, Bringing],
    starts: list[float],
    ready: dict[str, float],
    running_seconds: float,
) -> list[Interval]:
    """X as disjoint intervals, in order."""
    intervals = [(0.0, running_seconds)]
    intervals += [(job.arrived, max(job.arrived, ready[job.expert]) + job.seconds) for job in jobs]
    first_asked: dict[str, float] = {}
    for job in jobs:
        if experts[job.expert].from_disk:
            first_asked.setdefault(job.expert, job.arrived)
    for at, up in zip(sorted(first_asked.values()), starts, strict=True):  # the n-th asked for against the n-th up
        intervals.append((at, max(at, up)))
    return _union(intervals)


def _one_at_a_time_bound(
    jobs: Sequence[Job], experts: dict[str, Bringing], device_bytes: int, running_seconds: float
) -> float:
    """Step 4."""
    asked = sorted({job.expert for job in jobs})
    sizes = sorted(expert.device_bytes for expert in experts.values())
    if len(sizes) > 1 and sizes[0] + sizes[1] <= device_bytes:
        return 0.0
    bringing = sum(experts[name].seconds for name in asked)
    last = jobs[-1].arrived
    unfinished = _union([(0.0, running_seconds), *((job.arrived, job.arrived + job.seconds) for job in jobs)])
    busy = sum(max(0.0, min(ends, last) - begins) for begins, ends in unfinished)
    return max(0.0, bringing - (last - busy))


def _union(intervals: Iterable[Interval]) -> list[Interval]:
    merged: list[Interval] = []
    for begins, ends in sorted(intervals):
        if merged and begins <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(ends, merged[-1][1]))
        elif begins < ends:
            merged.append((begins, ends))
    return merged
