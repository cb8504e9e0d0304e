"""Pure: what was done before anybody asked for it, and whether it turned out to be useful. Decides nothing."""

from __future__ import annotations

from collections import Counter
from enum import StrEnum


class Guess(StrEnum):
    """What may be done on a guess, and when that was useful."""

    DEVICE = "device"  # an expert was brought to the device; useful if it was asked for before it left
    ROOM = "room"  # an idle one left; useful if somebody else came before it was asked for again
    PAGE_CACHE = "page_cache"  # weight files were read; useful if their expert started soon after


class Guesses:
    """Every guess is open until it has turned out right or wrong."""

    def __init__(self) -> None:
        self.begun: Counter[Guess] = Counter()
        self.useful: Counter[Guess] = Counter()
        self.wasted: Counter[Guess] = Counter()
        self._open: dict[Guess, set[str]] = {guess: set() for guess in Guess}

    def begin(self, guess: Guess, expert: str) -> None:
        self.begun[guess] += 1
        self._open[guess].add(expert)

    def open(self, guess: Guess) -> tuple[str, ...]:
        """The experts that such a guess concerns."""
        return tuple(self._open[guess])

    def right(self, guess: Guess, expert: str) -> None:
        """It was useful, if there was one."""
        self._close(guess, expert, self.useful)

    def wrong(self, guess: Guess, expert: str) -> None:
        """It was wasted, if there was one."""
        self._close(guess, expert, self.wasted)

    def _close(self, guess: Guess, expert: str, outcome: Counter[Guess]) -> None:
        if expert in self._open[guess]:
            self._open[guess].discard(expert)
            outcome[guess] += 1
