"""How much an expert has been asked for lately: a count that halves every few minutes. Knows no experts."""

from __future__ import annotations

HALF_LIFE_SECONDS = 300.0


class Demand:
    """Requests, each worth one when it comes and half as much `HALF_LIFE_SECONDS` later."""

    def __init__(self) -> None:
        self._count = 0.0
        self._counted_at = 0.0

    def add(self, now: float, share: float = 1.0) -> None:
        """One more request, or the chance of one."""
        self._count = self.at(now) + share
        self._counted_at = now

    def at(self, now: float) -> float:
        return float(self._count * 0.5 ** ((now - self._counted_at) / HALF_LIFE_SECONDS))
