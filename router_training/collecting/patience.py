"""Whether it still makes sense to ask: a wrong key or an endpoint that is down must not cost hours of retries."""

from __future__ import annotations

from router_training.collecting.endpoint import Refusal

GIVE_UP_AFTER = 20  # failures in a row, each after all its retries: the endpoint is down, not busy


class Patience:
    """Kept for one endpoint and one run."""

    def __init__(self) -> None:
        self._failures_in_a_row = 0
        self.lost_because: str | None = None

    def note(self, refusal: Refusal | None) -> None:
        """How the last request ended: None for well."""
        self._failures_in_a_row = 0 if refusal is None else self._failures_in_a_row + 1
        if refusal is not None and (refusal.hopeless or self._failures_in_a_row >= GIVE_UP_AFTER):
            self.lost_because = refusal.reason
