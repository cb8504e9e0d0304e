"""What the overview remembers between looks is what a fresh one would see."""

from dataclasses import fields
from types import SimpleNamespace
from unittest import mock

from hypothesis import given
from hypothesis import strategies as st

from coe_server.cache.conductor import Conductor
from coe_server.cache.outlooks import Waits
from coe_server.cache.overview import Groups, Overview
from coe_server.cache.policy import OURS, POLICIES, Limits
from coe_server.cache.slot import Expert, new_slot
from coe_server.cache.tiers import Tier
from coe_server.engines.engine import Footprint
from coe_server.simulation.simulator import simulate
from tests.cache.machines import played
from tests.examples import examples


def picture(overview, slots):
    """Everything it can be asked, in no order; strict order is left out, where the order decides between ties."""
    here, away = overview.prospects()
    return {
        "groups": {one.name: set(getattr(overview.groups, one.name)) for one in fields(Groups) if one.init},
        "answers": (overview.groups.starts_on, overview.groups.calm),
        "queues": set(overview.queues()),
        "tiers": {tier: dict(holdings) for tier, holdings in overview.standing.tiers.items()},
        "held": dict(overview.standing.held),
        "prospects": (dict(here), dict(away)),
        "expected": {name: overview.expected_of(name) for name in slots},
    }


def fresh(slots, policy):
    """One that knows nothing yet, and takes no news from the other one."""
    return Overview(slots, dict.fromkeys(slots), policy)


@examples(25)
@given(played(), st.sampled_from([policy for policy in POLICIES.values() if policy.collates]))
def test_what_it_remembers_is_what_a_fresh_look_sees(played, policy):
    scenario, trace = played
    conduct, looks, waits = Conductor._conduct, [], {}

    def watched(conductor):
        def outlooks_of(overview):
            ledger, limits, clock = conductor._ledger, conductor._limits, conductor._clock
            return Waits(conductor._slots, overview, ledger, limits, policy, clock)

        remembering = waits.setdefault(id(conductor), outlooks_of(conductor._overview))
        for step in (lambda: None, lambda: conduct(conductor)):
            step()
            slots, anew = conductor._slots, fresh(conductor._slots, policy)
            looks.append((picture(conductor._overview, slots), picture(anew, slots)))
            looks.append((dict(remembering.outlooks()), dict(outlooks_of(anew).outlooks())))

    with mock.patch.object(Conductor, "_conduct", watched):
        simulate(scenario, trace, policy)
    assert looks
    for remembered, seen in looks:
        assert remembered == seen


def test_an_expert_that_restarts_has_no_turn_although_it_drained_before():
    changes = {}
    slot = new_slot(Expert("a", SimpleNamespace(footprint=Footprint(10, 0, 10))), Limits(), changes)
    overview = Overview({"a": slot}, changes, OURS)
    slot.waiters.join(0.0, "normal", None)
    slot.change(tier=Tier.DEVICE, draining=True)
    assert set(overview.groups.in_turn) == {"a"}
    slot.change(restarting=True)
    assert picture(overview, {"a": slot}) == picture(fresh({"a": slot}, OURS), {"a": slot})
    assert overview.queues() == ()
