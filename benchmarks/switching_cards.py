"""Machines with several cards for `benchmarks.switching`: ours beside partitions by hand, one cache a card, LRU."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from statistics import fmean, stdev

from coe_server.cache.policy import LRU, OURS, Limits, Policy
from coe_server.cache.seats import Card, candidate_seats
from coe_server.cache.tiers import Bytes, Tier
from coe_server.engines.engine import Footprint, Seat
from coe_server.simulation.comparison import Measures, measure
from coe_server.simulation.scenario import expert_names
from coe_server.simulation.simulator import Scenario, SimulatedExpert, Timing, simulate
from coe_server.simulation.traces import PROFILES, Profile, Trace, make_trace

SEEDS = range(8)
GIB = 2**30
ASLEEP_BYTES = 1 * GIB  # that a sleeping process keeps on each of its cards
LEVEL = 0.0005  # of the share: the tables show no less


@dataclass(frozen=True, slots=True)
class Model:
    """A size of expert: GiB on each of its cards, how many cards, tokens a second."""

    gib: int
    width: int = 1
    speed: float = 50.0

    @property
    def timing(self) -> Timing:
        """Weights come from disk at 1 GiB/s after 25 s, each card is filled from host memory at 37.5 GiB/s."""
        start_seconds = 25.0 + self.gib * self.width
        return Timing(start_seconds, self.gib / 37.5, self.gib / 50, tokens_per_second=self.speed)


@dataclass(frozen=True, slots=True)
class CardMachine:
    """Equal cards, and the experts on them: the most popular first."""

    name: str
    cards: int
    card_gib: int
    models: tuple[Model, ...]
    in_host: int
    key: str
    requests: int = 200

    def __str__(self) -> str:
        return f"{self.name}, {self.in_host} of {len(self.models)} experts in host memory"


PAIR, LARGE = Model(20, 2, 30.0), Model(70, 2, 25.0)
SMALL = tuple(Model(gib) for gib in (15, 28, 15, 20))  # 7B to 14B
MIXED = (SMALL[0], LARGE, *(SMALL * 5)[1:5], LARGE, *(SMALL * 5)[5:])
SIX = (Model(10), Model(10), PAIR, *[Model(10)] * 4)
MACHINES = (
    CardMachine("2 x 24 GiB: a pair of 40 GiB among six of 10 GiB", 2, 24, SIX, 7, "2 x 24"),
    CardMachine("4 x 80 GiB: two pairs of 140 GiB among twenty of 15 to 28 GiB", 4, 80, MIXED, 22, "4 x 80"),
    CardMachine("8 x 80 GiB: the same", 8, 80, MIXED, 22, "8 x 80"),
    CardMachine("4 x 80 GiB: the same", 4, 80, MIXED, 11, "4 x 80, half in host memory"),
    CardMachine("8 x 80 GiB: 150 of 15 GiB", 8, 80, (Model(15),) * 150, 75, "8 x 80, 150 experts", 400),
)


def stage(machine: CardMachine, profile: Profile, seed: int) -> tuple[Scenario, Trace]:
    """As many requests a card and second as on the machines with one card."""
    names = expert_names(len(machine.models))
    cards = [Card(index, machine.card_gib * GIB) for index in range(machine.cards)]
    experts = tuple(
        SimulatedExpert(
            name,
            Footprint(model.gib * GIB, ASLEEP_BYTES, host_image=model.gib * model.width * GIB),
            model.timing,
            preload=Tier.HOST if place < machine.in_host else Tier.DISK,
            width=model.width,
            seats=candidate_seats(cards, model.width),
        )
        for place, (name, model) in enumerate(zip(names, machine.models, strict=True))
    )
    host = sum(one.footprint.host for one in experts[: machine.in_host])
    trace = make_trace(profile, names, machine.requests, seed)
    requests = tuple(replace(one, arrival_seconds=one.arrival_seconds / machine.cards) for one in trace.requests)
    return Scenario(experts, Bytes([machine.card_gib * GIB] * machine.cards, host), Limits()), Trace(profile, requests)


def fixed(scenario: Scenario, seat_of: Callable[[SimulatedExpert], Seat]) -> Scenario:
    """Each expert has one seat."""
    return replace(scenario, experts=tuple(replace(one, seats=(seat_of(one),)) for one in scenario.experts))


def hashed(scenario: Scenario) -> Scenario:
    """A cache for each card: an expert is where its name says, a wide one on the block that its name says."""
    return fixed(scenario, lambda one: one.seats[int(sha256(one.name.encode()).hexdigest(), 16) % len(one.seats)])


def partitions(scenario: Scenario, trace: Trace) -> Iterator[Scenario]:
    """By hand and in hindsight: the most requested first, each to the cards with the fewest requests so far. Wide
    experts share their cards, or have them for themselves where enough are left."""
    asked = Counter(request.best for request in trace.requests)
    for apart in (False, True):
        load = dict.fromkeys(range(len(scenario.capacity.cards)), 0)
        chosen: dict[str, Seat] = {}
        closed: set[int] = set()
        for one in sorted(scenario.experts, key=lambda one: (-one.width, -asked[one.name], one.name)):
            open_seats = [seat for seat in one.seats if closed.isdisjoint(seat)] or list(one.seats)
            seat = min(open_seats, key=lambda seat: (sum(load[card] for card in seat), seat))
            chosen[one.name] = seat
            for card in seat:
                load[card] += asked[one.name]
            if apart and one.width > 1 and len(closed) + 2 * one.width <= len(load):
                closed.update(seat)
        yield fixed(scenario, lambda one, chosen=chosen: chosen[one.name])  # type: ignore[misc]  # bound now


def played(scenario: Scenario, trace: Trace, policy: Policy = OURS) -> Measures:
    limits = scenario.limits if policy is OURS else replace(scenario.limits, prefetch=False)
    return measure(simulate(replace(scenario, limits=limits), trace, policy))


def all_ways(machine: CardMachine, profile: Profile, seed: int) -> dict[str, Measures]:
    scenario, trace = stage(machine, profile, seed)
    by_hand = [played(one, trace) for one in partitions(scenario, trace)]
    return {
        "coe": played(scenario, trace),
        "by hand": max(by_hand, key=lambda one: (one.serving_share, -one.wait_mean)),
        "hashed": played(hashed(scenario), trace),
        "lru": played(scenario, trace, LRU),
    }


COLUMNS = ("profile", "coe", "by hand", "hashed", "lru", "wait s: coe", "by hand", "hashed", "lru", "longest, of bound")
OTHERS = ("by hand", "hashed", "lru")


def section(machine: CardMachine) -> Iterator[str]:
    yield f"#### {machine}"
    yield ""
    yield f"| {' | '.join(COLUMNS)} |"
    yield "|" + "---|" * len(COLUMNS)
    missed = []
    for profile in PROFILES:
        print(f"{machine}: {profile}", file=sys.stderr, flush=True)
        runs = [all_ways(machine, profile, seed) for seed in SEEDS]
        shares = {way: [run[way].serving_share for run in runs] for way in runs[0]}
        waits = {way: fmean(run[way].wait_mean for run in runs) for way in runs[0]}
        of_bound = max(run["coe"].wait_max / run["coe"].wait_bound_seconds for run in runs)
        cells = (profile, f"{fmean(shares['coe']):.3f}", *(_beside(shares["coe"], shares[way]) for way in OTHERS))
        yield f"| {' | '.join((*cells, *(f'{waits[way]:,.1f}' for way in waits), f'{of_bound:.3f}'))} |"
        missed += [f"{profile}: {told}" for told in _verdicts(runs, shares)]
    yield ""
    yield "Ours misses a goal here: " + "; ".join(missed) + "." if missed else "Ours meets every goal here."
    yield ""


def _verdicts(runs: Sequence[dict[str, Measures]], shares: dict[str, list[float]]) -> Iterator[str]:
    if not all(run["coe"].bound_kept for run in runs):
        yield "breaks its wait bound"
    if refused := sum(run["coe"].refused for run in runs):
        yield f"{refused} refused"
    for way in OTHERS:
        more = fmean(shares[way]) - fmean(shares["coe"])
        if more >= LEVEL:
            yield f"{way} serves {more:.4f} more"


def _beside(ours: list[float], other: list[float]) -> str:
    differences = [mine - theirs for mine, theirs in zip(ours, other, strict=True)]
    error = stdev(differences) / len(differences) ** 0.5
    return f"{fmean(other):.3f} (ours {fmean(differences):+.3f} ± {error:.3f})"


INTRODUCTION = """
### Switching: several cards

`python -m benchmarks.switching cards`. As many requests a card and second as above; the mean of eight traces. Starts
take 25 s and a second a GiB, wakes a second for 37.5 GiB on a card; a sleeper keeps 1 GiB of each of its cards.

- by hand: each expert has its own cards, chosen from the requests of this very trace; of two partitions (wide experts
  beside single ones, and apart) the better one in each trace. The same cache and scheduler.
- hashed: each expert has the cards that its name says, as with one cache a card. The same cache and scheduler.
- lru: any cards; LRU that collates, as above.
"""


def texts() -> dict[str, Callable[[], str]]:
    """Key -> the text of one machine."""
    return {machine.key: _text_of(machine, is_first=place == 0) for place, machine in enumerate(MACHINES)}


def _text_of(machine: CardMachine, is_first: bool) -> Callable[[], str]:
    return lambda: "\n".join((INTRODUCTION if is_first else "", *section(machine)))
