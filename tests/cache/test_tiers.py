"""The ledger is never over capacity and forgets nothing."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coe_server.cache.tiers import Bytes, Ledger, Tier, bytes_in
from coe_server.engines.engine import Footprint


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans(), st.integers(0, 9), st.integers(0, 9))))
def test_the_ledger_is_never_over_capacity_and_its_sum_is_exact(steps):
    ledger = Ledger(Bytes(10, 12))
    held = {}
    for name, reserve, device, host in steps:
        amount = Bytes(device, host)
        wanted = held.get(name, Bytes()).at_least(amount) if reserve else amount
        others = sum((v for k, v in held.items() if k != name), Bytes())
        has_room = (others + wanted).fits(ledger.capacity)
        if reserve:
            assert ledger.reserve(name, amount) is has_room
        elif has_room:
            ledger.settle(name, amount)
        else:
            with pytest.raises(AssertionError, match="over capacity"):
                ledger.settle(name, amount)
        if has_room:
            held[name] = wanted
        assert {one: ledger.held(one) for one in held} == held
        assert ledger.used == sum(held.values(), Bytes())
        assert ledger.free + ledger.used == ledger.capacity


def test_room_is_judged_without_counting_an_expert_twice():
    ledger = Ledger(Bytes(10, 10))
    assert ledger.reserve("a", Bytes(6, 6))
    assert not ledger.reserve("b", Bytes(5, 0))
    assert ledger.reserve("a", Bytes(10, 10))


def test_sleeping_frees_the_device_but_no_host_memory():
    footprint = Footprint(device_awake=10, device_asleep=1, host_process=3, host_image=8)
    assert bytes_in(footprint, Tier.DEVICE) == Bytes(10, 11)
    assert bytes_in(footprint, Tier.HOST) == Bytes(1, 11)
    assert bytes_in(footprint, Tier.DISK) == Bytes(0, 0)


def test_tiers_are_ordered_from_the_device_down():
    assert sorted(Tier, key=lambda tier: tier.depth) == [Tier.DEVICE, Tier.HOST, Tier.DISK]
