"""What the overview remembers between looks is what a fresh one would see."""

from unittest import mock

from hypothesis import given
from hypothesis import strategies as st

from coe_server.cache.conductor import Conductor
from coe_server.cache.overview import Overview
from coe_server.cache.policy import POLICIES
from coe_server.cache.wait_times import Waits
from coe_server.simulation.simulator import simulate
from tests.cache.machines import played
from tests.examples import examples


def picture(overview):
    """Everything it can be asked, in no order; strict order is left out, where the order decides between ties."""
    here, away = overview.prospects()
    return {
        "settled": {slot.name for slot in overview.settled},
        "at hand": {slot.name for slot in overview.at_hand},
        "failed": {slot.name for slot in overview.failed},
        "answers": (overview.anyone_is_below_a_pin, overview.starting, overview.anyone_waits, overview.calm),
        "queues": set(overview.queues()),
        "tiers": {tier: dict(holdings) for tier, holdings in overview.standing.tiers.items()},
        "held": dict(overview.standing.held),
        "prospects": (dict(here), dict(away)),
        "expected": dict(overview.expected()),
    }


def fresh(slots, *others):
    """One that knows nothing yet, and takes no news from the other one."""
    return Overview(slots, dict.fromkeys(slots), *others)


@examples(25)
@given(played(), st.sampled_from([policy for policy in POLICIES.values() if policy.collates]))
def test_what_it_remembers_is_what_a_fresh_look_sees(played, policy):
    scenario, trace = played
    conduct, looks, waits = Conductor._conduct, [], {}

    def watched(conductor):
        def outlooks_of(overview):
            return Waits(conductor._slots, overview, conductor._clock)

        remembering = waits.setdefault(id(conductor), outlooks_of(conductor._overview))
        for step in (lambda: None, lambda: conduct(conductor)):
            step()
            anew = fresh(conductor._slots, policy, conductor._limits, conductor._ledger)
            looks.append((picture(conductor._overview), picture(anew)))
            looks.append((dict(remembering.outlooks()), dict(outlooks_of(anew).outlooks())))

    with mock.patch.object(Conductor, "_conduct", watched):
        simulate(scenario, trace, policy)
    assert looks
    for remembered, seen in looks:
        assert remembered == seen
