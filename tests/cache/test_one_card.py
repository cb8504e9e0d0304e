"""On one card the cache decides as it did before it knew several: recorded decisions on thousands of random machines.

`python -m tests.cache.test_one_card` records them again, for a change of the rule that is meant.
"""

from hashlib import sha256
from pathlib import Path
from random import Random

import pytest

from coe_server.cache.claims import Claim
from coe_server.cache.pins import left_out, pinned
from coe_server.cache.policy import FIFO, LFU, LRU, OURS, Limits
from coe_server.cache.prefetch import Prospect, prefetch
from coe_server.cache.scheduler import Queue, conduct
from coe_server.cache.tiers import Bytes, Holding, Standing, Tier
from coe_server.engines.engine import Footprint

RECORDED = Path(__file__).with_name("one_card_decisions.txt")
MACHINES = 4000
ON_A_LINE = 20
NOW = 100.0


class Dice:
    """Draws that are the same in every version of Python."""

    def __init__(self, seed):
        self._random = Random(seed)

    def up_to(self, most, least=0):
        return least + int(self._random.random() * (most - least + 1))

    def one_of(self, choices):
        return choices[self.up_to(len(choices) - 1)]

    def happens(self, chance):
        return self._random.random() < chance


def footprint(dice):
    return Footprint(dice.up_to(6, 1), dice.up_to(1), dice.up_to(3), dice.one_of([0, dice.up_to(4, 1)]))


def holding(dice, name, footprint):
    pin = dice.one_of([Tier.DISK] * 8 + [Tier.HOST, Tier.DEVICE])
    tiers = [one for one in Tier if one.depth <= pin.depth and (one is not Tier.HOST or footprint.can_sleep)]
    tier = dice.one_of(tiers)
    return Holding(
        name,
        tier,
        footprint,
        busy=tier is Tier.DEVICE and dice.happens(0.4),
        wanted=dice.happens(0.5),
        leaving=tier is Tier.DEVICE and dice.happens(0.2),
        since=float(dice.up_to(99)),
        worth=float(dice.up_to(9)),
        pin=pin,
    )


def machine(dice):
    kinds = [footprint(dice) for _ in range(dice.up_to(4, 1))]
    holdings = [holding(dice, f"e{at}", dice.one_of(kinds)) for at in range(dice.up_to(12, 1))]
    used = sum((one.held for one in holdings), Bytes())
    return holdings, used + Bytes(dice.up_to(8), dice.up_to(8))


def orders(dice, holdings, capacity):
    """One pass of the scheduler, in words."""
    limits = Limits(max_wait_seconds=float(dice.one_of([5, 50])), min_tenure_seconds=float(dice.one_of([0, 0, 30])))
    starting, queues = dice.happens(0.3), []
    for one in holdings:
        could_come = not (starting and one.tier is Tier.DISK)
        if one.wanted and could_come and (one.tier is not Tier.DEVICE or one.leaving):
            arrivals = tuple(sorted(float(dice.up_to(99)) for _ in range(dice.up_to(4, 1))))
            queues.append(Queue(one.name, arrivals, float(dice.one_of([0, 1, 20])), dice.one_of([0.25, 1.0, 4.0])))
    claims = [Claim(one.name, float(dice.up_to(99)), (0,), dice.up_to(4)) for one in holdings if dice.happens(0.1)]
    policy = dice.one_of([OURS, OURS, OURS, LRU, LFU, FIFO])
    if not policy.collates:
        queues = queues[:1]
    starts_on = (0,) if starting else None
    found = conduct(Standing.of(holdings), queues, capacity, NOW, limits, policy, starts_on, claims)
    plans = [[(*move[:3], move.seat) for move in plan.moves] for plan in found.plans]
    return [plans, sorted(found.draining), sorted(found.staying), sorted(found.never.items()), sorted(found.claims)]


def guess(dice, holdings, capacity):
    """What is moved before it is asked for, in words."""
    prospects = [Prospect(one, dice.up_to(40) / 4, dice.up_to(8) / 4, dice.happens(0.7)) for one in holdings]
    here = [one for one in prospects if one.holding.tier is Tier.DEVICE]
    away = {one.holding.name: one for one in prospects if one.holding.tier is not Tier.DEVICE}
    chances = {one.name: dice.up_to(100) / 400 for one in holdings}
    found = prefetch(here, away, chances, capacity - Standing.of(holdings).used)
    return None if found is None else [tuple(move) for move in found.moves]


def decision(number):
    dice = Dice(number)
    holdings, capacity = machine(dice)
    never = left_out([pinned(one.name, one.footprint, one.pin) for one in holdings], capacity)
    return repr([orders(dice, holdings, capacity), guess(dice, holdings, capacity), sorted(never.items())])


def told(number):
    return sha256(decision(number).encode()).hexdigest()[:6]


def recorded():
    return RECORDED.read_text().split()


@pytest.mark.parametrize("part", range(4))
def test_what_is_decided_on_one_card_is_what_was_recorded(part):
    known = recorded()
    assert len(known) == MACHINES
    for number in range(part, MACHINES, 4):
        assert told(number) == known[number], f"machine {number}: {decision(number)}"


def test_the_recorded_machines_take_every_kind_of_decision():
    kinds = {"plans": 0, "draining": 0, "never": 0, "claims": 0, "victims": 0, "guesses": 0}
    for number in range(0, MACHINES, 10):
        dice = Dice(number)
        holdings, capacity = machine(dice)
        plans, draining, _, never, claims = orders(dice, holdings, capacity)
        guessed = guess(dice, holdings, capacity)
        seen = [plans, draining, never, claims, any(len(plan) > 1 for plan in plans), guessed]
        for kind, one in zip(kinds, seen, strict=True):
            kinds[kind] += bool(one)
    assert min(kinds.values()) >= 10, kinds


if __name__ == "__main__":
    found = [told(number) for number in range(MACHINES)]
    lines = [" ".join(found[first : first + ON_A_LINE]) for first in range(0, MACHINES, ON_A_LINE)]
    RECORDED.write_text("\n".join(lines) + "\n")
