"""Pure: the expert for which the next request is, predicted from those before. Moments are given in seconds.

It is predicted from recent demand, from which expert follows which, and from how often any expert is asked for again at
once. Measured (docs/decisions.md): modelling pauses in more detail gains nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

HALF_LIFE_SECONDS = 300.0
_MOST_SUCCESSORS = 64.0  # of one expert; above it all its counts are halved, so that old patterns fade
_DOUBT = 4.0  # successors that weigh as much as demand
_UNSEEN = 0.5  # pseudo-requests of every expert, so that none has probability 0
_ROUNDING = 1e-9  # of sums
_MOST_PAIRS = 256.0  # of one request and the next; above it they and the follow-ups among them are halved


class Demand:
    """Counts requests per expert, with a half-life of five minutes, the successors of each expert, and follow-ups.

    A follow-up is a second request in a row for an expert beyond those that demand alone brings. How often there is
    one is counted over all experts, so that it is known of an expert that was asked for the first time.
    """

    def __init__(self, experts: Iterable[str]) -> None:
        self._counts = dict.fromkeys(experts, 0.0)
        self._counted_at = 0.0
        self._last: str | None = None
        self._successors: dict[str, Counter[str]] = {}
        self._pairs, self._follow_ups = 2.0, 1.0  # even odds at first
        self._foreseen: dict[str, float] = {}

    def add(self, expert: str) -> None:
        """Count requests for one more expert."""
        self._counts.setdefault(expert, 0.0)

    def forget(self, expert: str) -> None:
        """Drop an expert that was removed."""
        self._counts.pop(expert, None)
        self._successors.pop(expert, None)
        for seen in self._successors.values():
            seen.pop(expert, None)
        self._last = None if self._last == expert else self._last

    def note(self, expert: str, now: float) -> None:
        """Count a request for this expert."""
        self._counts, self._counted_at = self.lately(now), now
        self._note_pair(expert)
        self._counts[expert] += 1.0
        if self._last is not None:
            seen = self._successors.setdefault(self._last, Counter())
            seen[expert] += 1.0  # type: ignore[assignment]  # a Counter counts halves as well
            if seen.total() > _MOST_SUCCESSORS:
                self._successors[self._last] = Counter({name: count / 2 for name, count in seen.items() if count >= 1})
        self._last = expert

    def foresee(self, expert: str, requests: float) -> None:
        """Add to the expected number of requests that come soon, beside the usual ones; a negative number withdraws."""
        expected = self._foreseen.pop(expert, 0.0) + requests
        if expected > _ROUNDING:
            self._foreseen[expert] = expected

    def lately(self, now: float) -> dict[str, float]:
        """Expert -> decayed number of requests."""
        left = 0.5 ** ((now - self._counted_at) / HALF_LIFE_SECONDS)
        return {name: count * left for name, count in self._counts.items()}

    def chances(self, now: float) -> dict[str, float]:
        """Expert -> probability that the next request is for it: a mixture of demand, a follow-up, and the last one's
        successors."""
        lately = self.lately(now)
        if not lately:  # a front whose experts are all on nodes
            return {}
        successors: Mapping[str, float] = {} if self._last is None else self._successors.get(self._last, {})
        seen = sum(successors.values()) + _DOUBT
        again = 0.0 if self._last is None else self._again
        share = _DOUBT * (1 - again) / (seen * (sum(lately.values()) + _UNSEEN * len(lately)))
        found = {name: (count + _UNSEEN) * share + successors.get(name, 0.0) / seen for name, count in lately.items()}
        if self._last is not None:
            found[self._last] += _DOUBT * again / seen
        for name in self._foreseen.keys() & found.keys():  # one may have been forgotten meanwhile
            chance = min(self._foreseen[name], 1.0)
            found = {other: (1.0 - chance) * usual for other, usual in found.items()}
            found[name] += chance
        return found

    @property
    def _again(self) -> float:
        """Probability of a follow-up."""
        return self._follow_ups / self._pairs

    def _note_pair(self, expert: str) -> None:
        """Count this request and the last one. Of a second one in a row only the part that demand does not explain."""
        if self._last is None:
            return
        if self._pairs > _MOST_PAIRS:
            self._pairs, self._follow_ups = self._pairs / 2, self._follow_ups / 2
        if expert == self._last:
            all_counts = sum(self._counts.values()) + _UNSEEN * len(self._counts)
            by_demand = (1 - self._again) * (self._counts[expert] + _UNSEEN) / all_counts
            self._follow_ups += self._again / (self._again + by_demand)
        self._pairs += 1.0
