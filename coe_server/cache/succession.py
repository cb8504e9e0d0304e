"""Which expert is likely to be asked for next: how much each was asked for lately, who followed whom, and whether
whoever has just asked asks again. No clock: moments in seconds are given."""

from __future__ import annotations

import math
from collections.abc import Mapping

_COUNTED_AT_MOST = 64.0  # successors of one expert; beyond that all counts are halved, so that old habits fade
_DOUBT = 4.0  # successors that must have been seen before they count as much as what is usual

_UNSEEN = 0.5  # requests that everybody counts as having had, so that nobody is taken to be impossible
_SHORTEST_PAUSE_SECONDS = 1e-6  # below that, requests come at once
_LONGEST_SILENCE = 5  # times `_Pauses.patience`; nothing new comes of waiting longer


class Succession:
    """Counts, for each expert, who was asked for right after it, and how soon."""

    def __init__(self) -> None:
        self._last: str | None = None
        self._last_at = 0.0
        self._followers: dict[str, dict[str, float]] = {}
        self._persistence = _Persistence()
        self._pauses = _Pauses()

    def note(self, expert: str, now: float) -> None:
        """A request for this expert has come."""
        self._persistence.note(expert, self._last)
        if self._last is not None:
            self._pauses.note(now - self._last_at, follow_up=expert == self._last)
            row = self._followers.setdefault(self._last, {})
            row[expert] = row.get(expert, 0.0) + 1.0
            if sum(row.values()) > _COUNTED_AT_MOST:
                self._followers[self._last] = {name: count / 2 for name, count in row.items() if count >= 1.0}
        self._last, self._last_at = expert, now

    def chances(self, demand: Mapping[str, float], now: float) -> dict[str, float]:
        """Expert -> probability that the next request is for it, from `demand` in general and who came last when.

        What is usual and what followed the last one before count by how often that has been seen. Silence counts
        against the last one by Bayes' rule, if follow-ups come sooner than others.
        """
        wanted = sum(demand.values()) + _UNSEEN * len(demand)
        last = self._last
        if last is None or last not in demand:
            return {name: (lately + _UNSEEN) / wanted for name, lately in demand.items()}
        followers, again = self._followers.get(last, {}), self._persistence.share
        followed, usual = sum(followers.values()), demand[last] + _UNSEEN
        seen = followed + _DOUBT
        share = _DOUBT * (1.0 - again) / (seen * wanted)
        for_last = usual * share + (followers.get(last, 0.0) + _DOUBT * again) / seen
        for_others = (wanted - usual) * share + (followed - followers.get(last, 0.0)) / seen
        silence = self._pauses.likelihood_ratio(now - self._last_at)
        if not (total := for_others + silence * for_last):  # there is nobody else
            silence, total = 1.0, for_others + for_last
        chances = {name: (lately + _UNSEEN) * share / total for name, lately in demand.items()}
        for name, count in followers.items():
            if name in chances:
                chances[name] += count / (seen * total)
        chances[last] = silence * for_last / total
        return chances

    def seconds_until_doubt(self, now: float) -> float | None:
        """Until the silence makes a follow-up so much less likely that it is worth looking again; None: never."""
        patience, silent = self._pauses.patience, now - self._last_at
        if self._last is None or patience is None or silent >= _LONGEST_SILENCE * patience:
            return None
        return patience - silent % patience


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


class _Pauses:
    """How long it takes until the next request, if it is a follow-up and if it is not; both taken to be exponential."""

    def __init__(self) -> None:
        self._seconds = {True: 0.0, False: 0.0}
        self._counts = {True: 0.0, False: 0.0}

    @property
    def patience(self) -> float | None:
        """Seconds of silence that make a follow-up e times less likely; None if follow-ups come no sooner."""
        in_all = sum(self._counts.values())
        if not all(self._counts.values()):
            return None
        usual = sum(self._seconds.values()) / in_all
        soon, late = ((self._seconds[which] + usual) / (self._counts[which] + 1.0) for which in (True, False))
        return soon * late / (late - soon) if _SHORTEST_PAUSE_SECONDS < soon < late else None

    def likelihood_ratio(self, silent: float) -> float:
        """Of such a silence, up to what both have in common: before a follow-up to before another; 0 to 1."""
        patience = self.patience
        return 1.0 if patience is None else math.exp(-silent / patience)

    def note(self, seconds: float, follow_up: bool) -> None:
        self._seconds[follow_up] += seconds
        self._counts[follow_up] += 1.0
        if self._counts[follow_up] > _COUNTED_AT_MOST:
            self._seconds[follow_up] /= 2
            self._counts[follow_up] /= 2
