"""Which expert is likely to be asked for next: how much each was asked for lately, and who followed whom. No clock."""

from __future__ import annotations

from collections.abc import Mapping

_COUNTED_AT_MOST = 64.0  # successors of one expert; beyond that all counts are halved, so that old habits fade
_DOUBT = 4.0  # successors that must have been seen before they count as much as demand in general

_UNSEEN = 0.5  # requests that everybody counts as having had, so that nobody is taken to be impossible


class Succession:
    """Counts, for each expert, who was asked for right after it."""

    def __init__(self) -> None:
        self._last: str | None = None
        self._followers: dict[str, dict[str, float]] = {}

    def note(self, expert: str) -> None:
        """A request for this expert has come."""
        if self._last is not None:
            row = self._followers.setdefault(self._last, {})
            row[expert] = row.get(expert, 0.0) + 1.0
            if sum(row.values()) > _COUNTED_AT_MOST:
                self._followers[self._last] = {name: count / 2 for name, count in row.items() if count >= 1.0}
        self._last = expert

    def chances(self, demand: Mapping[str, float]) -> dict[str, float]:
        """Expert -> probability that the next request is for it, from `demand` in general and who came last."""
        row = self._followers.get(self._last, {}) if self._last is not None else {}
        seen, wanted = sum(row.values()), sum(demand.values()) + _UNSEEN * len(demand)
        return {
            name: (row.get(name, 0.0) + _DOUBT * (lately + _UNSEEN) / wanted) / (seen + _DOUBT)
            for name, lately in demand.items()
        }
