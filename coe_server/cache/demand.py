"""How much each expert has been asked for lately: counts that halve every few minutes, all at the same pace."""

from __future__ import annotations

from collections.abc import Iterable

HALF_LIFE_SECONDS = 300.0
_COUNTED_ANEW_AFTER = 32  # half-lives; in between a count costs what changes it, not what time does to it


class Demand:
    """Requests, each worth one when it comes and half as much `HALF_LIFE_SECONDS` later."""

    def __init__(self, experts: Iterable[str]) -> None:
        self._counts = dict.fromkeys(experts, 0.0)  # as many as there would have been at `_since`
        self._since = 0.0

    def add(self, expert: str, now: float) -> None:
        """One more request."""
        if now - self._since > _COUNTED_ANEW_AFTER * HALF_LIFE_SECONDS:
            self._counts, self._since = self.lately(now), now
        self._counts[expert] += 1.0 / self._share_left(now)

    def lately(self, now: float) -> dict[str, float]:
        """Expert -> requests."""
        left = self._share_left(now)
        return {name: count * left for name, count in self._counts.items()}

    def of(self, expert: str, now: float) -> float:
        return self._counts[expert] * self._share_left(now)

    def _share_left(self, now: float) -> float:
        return float(0.5 ** ((now - self._since) / HALF_LIFE_SECONDS))
