"""Which expert is likely to be asked for next: how much each was asked for lately, who followed whom, and whether
whoever asked asks again. No clock."""

from __future__ import annotations

from collections.abc import Mapping

_COUNTED_AT_MOST = 64.0  # successors of one expert; beyond that all counts are halved, so that old habits fade
_DOUBT = 4.0  # successors that must have been seen before they count as much as what is usual

_UNSEEN = 0.5  # requests that everybody counts as having had, so that nobody is taken to be impossible


class Succession:
    """Counts, for each expert, who was asked for right after it."""

    def __init__(self) -> None:
        self._last: str | None = None
        self._followers: dict[str, dict[str, float]] = {}
        self._persistence = _Persistence()

    def note(self, expert: str) -> None:
        """A request for this expert has come."""
        self._persistence.note(expert, self._last)
        if self._last is not None:
            row = self._followers.setdefault(self._last, {})
            row[expert] = row.get(expert, 0.0) + 1.0
            if sum(row.values()) > _COUNTED_AT_MOST:
                self._followers[self._last] = {name: count / 2 for name, count in row.items() if count >= 1.0}
        self._last = expert

    def chances(self, demand: Mapping[str, float]) -> dict[str, float]:
        """Expert -> probability that the next request is for it, from `demand` in general and who came last."""
        last = self._last if self._last in demand else None
        row = self._followers.get(last, {}) if last is not None else {}
        again = self._persistence.share if last is not None else 0.0
        seen, wanted = sum(row.values()), sum(demand.values()) + _UNSEEN * len(demand)
        usual = {name: (1.0 - again) * (lately + _UNSEEN) / wanted for name, lately in demand.items()}
        if last is not None:
            usual[last] += again
        return {name: (row.get(name, 0.0) + _DOUBT * chance) / (seen + _DOUBT) for name, chance in usual.items()}


class _Persistence:
    """How often the next request is a follow-up: for the same expert, and not only because that is in demand anyway.

    The mixture q' = s + (1 - s) q for the chance of the same expert again, where q is its share of all requests; s by
    moments, (repeats - sum of q) / (sum of 1 - q), from an even start: until it is known better, one request in two is
    a follow-up, as in a conversation.
    """

    def __init__(self) -> None:
        self._requests: dict[str, float] = {}
        self._in_all = 0.0
        self._follow_ups = _DOUBT / 2
        self._chances_for_one = _DOUBT

    @property
    def share(self) -> float:
        return max(0.0, self._follow_ups / self._chances_for_one)

    def note(self, expert: str, last: str | None) -> None:
        if last is not None:
            expected = self._requests[last] / (self._in_all + _DOUBT)
            self._follow_ups += (expert == last) - expected
            self._chances_for_one += 1.0 - expected
            if self._chances_for_one > _COUNTED_AT_MOST:
                self._follow_ups, self._chances_for_one = self._follow_ups / 2, self._chances_for_one / 2
        self._requests[expert] = self._requests.get(expert, 0.0) + 1.0
        self._in_all += 1.0
        if self._in_all > _COUNTED_AT_MOST:
            self._requests = {name: count / 2 for name, count in self._requests.items()}
            self._in_all /= 2
