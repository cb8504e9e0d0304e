"""The planner against brute force: it finds a plan exactly if one exists, and no plan moves a busy or pinned expert."""

from itertools import product

from hypothesis import given
from hypothesis import strategies as st

from coe_server.cache.planner import Never, NotYet, Plan, no_expert_can_leave, plan
from coe_server.cache.tiers import Bytes, Holding, Standing, Tier, bytes_in
from coe_server.engines.engine import Footprint

footprints = st.builds(
    Footprint,
    device_awake=st.integers(1, 6),
    device_asleep=st.integers(0, 1),
    host_process=st.integers(0, 4),
    host_image=st.integers(0, 4),
)


@st.composite
def worlds(draw):
    holdings = []
    for index in range(draw(st.integers(1, 5))):
        footprint = draw(footprints)
        pin = draw(st.sampled_from(Tier))
        allowed = [t for t in Tier if t.depth <= pin.depth and (t is not Tier.HOST or footprint.can_sleep)]
        tier = draw(st.sampled_from(allowed))
        busy = draw(st.booleans()) and tier is Tier.DEVICE
        worth = draw(st.floats(0, 9))
        leaving, wanted = draw(st.booleans()), draw(st.booleans())
        holdings.append(
            Holding(f"e{index}", tier, footprint, busy=busy, wanted=wanted, leaving=leaving, pin=pin, worth=worth)
        )
    used = sum((bytes_in(h.footprint, h.tier) for h in holdings), Bytes())
    slack = Bytes(draw(st.integers(0, 8)), draw(st.integers(0, 8)))
    return holdings, used + slack


@st.composite
def tight_worlds(draw):
    """The smallest leave first and one of the larger ones gives room enough: the demotions before it were in vain."""
    goal = Holding("e0", Tier.DISK, draw(footprints))
    sizes = sorted(draw(st.lists(st.integers(1, 6), min_size=2, max_size=5)))
    image = draw(st.integers(0, 4))
    there = [
        Holding(f"e{at}", Tier.DEVICE, Footprint(size, 0, draw(st.integers(0, 2)), image), worth=at)
        for at, size in enumerate(sizes, start=1)
    ]
    used = sum((bytes_in(h.footprint, h.tier) for h in there), Bytes())
    need = bytes_in(goal.footprint, Tier.DEVICE)
    slack = Bytes(max(need.device, draw(st.integers(0, 6))), draw(st.integers(0, 8))) - Bytes(need.device, 0)
    return [goal, *there], (used + slack).at_least(need)


def way(holdings, capacity, **limits):
    """To bring the first of them to the device."""
    return plan(Standing.of(holdings), holdings[0], capacity, **limits)


def fits(holdings, tiers, capacity):
    return sum((bytes_in(h.footprint, t) for h, t in zip(holdings, tiers, strict=True)), Bytes()).fits(capacity)


def reachable(holding, ignore_busy):
    if holding.busy and not ignore_busy:
        return [holding.tier]
    return [
        t
        for t in Tier
        if holding.tier.depth <= t.depth
        and (t is holding.tier or t.depth <= holding.pin.depth)
        and (t is not Tier.HOST or holding.footprint.can_sleep)
    ]


def possible(holdings, goal, capacity, ignore_busy):
    choices = [[Tier.DEVICE] if h is goal else reachable(h, ignore_busy) for h in holdings]
    return any(fits(holdings, tiers, capacity) for tiers in product(*choices))


@given(worlds())
def test_a_plan_is_found_exactly_when_one_exists(world):
    holdings, capacity = world
    goal = holdings[0]
    outcome = way(holdings, capacity)
    assert isinstance(outcome, Plan) == possible(holdings, goal, capacity, ignore_busy=False)
    assert isinstance(outcome, Never) == (not possible(holdings, goal, capacity, ignore_busy=True))
    if isinstance(outcome, NotYet):
        leaving = set(outcome.leaving)
        assert leaving & {h.name for h in holdings if h.busy}
        patient = [h._replace(busy=False) if h.name in leaving else h for h in holdings]
        assert isinstance(way(patient, capacity), Plan)


@given(worlds())
def test_no_step_of_a_plan_is_over_capacity_or_moves_a_busy_or_pinned_expert(world):
    holdings, capacity = world
    outcome = way(holdings, capacity)
    if not isinstance(outcome, Plan):
        return
    named = {h.name: h for h in holdings}
    tiers = {h.name: h.tier for h in holdings}
    for move in outcome.moves:
        holding = named[move.expert]
        assert tiers[move.expert] is move.source
        assert move.expert == "e0" or not holding.busy
        assert move.target.depth <= holding.pin.depth
        tiers[move.expert] = move.target
        assert fits(holdings, tiers.values(), capacity)
    assert tiers["e0"] is Tier.DEVICE
    assert outcome.moves[-1].expert == "e0"


@given(st.one_of(worlds(), tight_worlds()))
def test_no_expert_is_evicted_that_could_have_stayed(world):
    holdings, capacity = world
    outcome = way(holdings, capacity)
    if not isinstance(outcome, Plan):
        return
    after = {h.name: h.tier for h in holdings} | {m.expert: m.target for m in outcome.moves}
    for move in outcome.moves[:-1]:
        spared = after | {move.expert: move.source}
        assert not fits(holdings, spared.values(), capacity)


def holding(name, tier=Tier.DEVICE, **more):
    return Holding(name, tier, Footprint(device_awake=10, host_process=10, host_image=5), **more)


def test_the_expert_of_least_worth_is_evicted_first_and_one_with_a_queue_last():
    world = [
        holding("new", Tier.DISK),
        holding("dear", worth=9.0),
        holding("queued", worth=0.0, wanted=True),
        holding("cheap", worth=1.0),
    ]
    outcome = way(world, Bytes(30, 100))
    assert isinstance(outcome, Plan)
    assert outcome.victims == ("cheap",)


def test_what_drains_already_leaves_before_anything_else_is_asked_to():
    world = [
        holding("new", Tier.DISK),
        holding("cheap", worth=0.0),
        holding("draining", worth=9.0, wanted=True, leaving=True),
    ]
    outcome = way(world, Bytes(20, 100))
    assert isinstance(outcome, Plan)
    assert outcome.victims == ("draining",)


def test_a_demotion_that_a_larger_one_makes_needless_is_undone():
    small, large = Footprint(2, host_image=2), Footprint(6, host_image=6)
    world = [
        Holding("new", Tier.DISK, Footprint(6, host_image=6)),
        Holding("small", Tier.DEVICE, small, worth=1.0),
        Holding("large", Tier.DEVICE, large, worth=2.0),
    ]
    outcome = way(world, Bytes(8, 99))
    assert isinstance(outcome, Plan)
    assert outcome.victims == ("large",)


def test_an_expert_goes_to_sleep_where_host_memory_allows_and_stops_where_not():
    world = [holding("new", Tier.DISK), holding("old")]
    roomy, tight = way(world, Bytes(10, 30)), way(world, Bytes(10, 29))
    assert isinstance(roomy, Plan)
    assert isinstance(tight, Plan)
    assert roomy.moves[0].target is Tier.HOST
    assert tight.moves[0].target is Tier.DISK


def test_a_sleeper_is_stopped_before_an_expert_that_is_awake_when_only_host_memory_is_short():
    world = [holding("new", Tier.DISK), holding("asleep", Tier.HOST, worth=5.0), holding("awake", worth=1.0)]
    outcome = way(world, Bytes(20, 30))
    assert isinstance(outcome, Plan)
    assert [(m.expert, m.source, m.target) for m in outcome.moves[:-1]] == [("asleep", Tier.HOST, Tier.DISK)]


def test_of_two_sleepers_the_one_of_less_worth_leaves_host_memory():
    old, recent = holding("old", Tier.HOST, worth=1.0), holding("recent", Tier.HOST, worth=9.0)
    outcome = way([holding("new", Tier.DISK), recent, old], Bytes(20, 30))
    assert isinstance(outcome, Plan)
    assert [(m.expert, m.target) for m in outcome.moves[:-1]] == [("old", Tier.DISK)]


def test_never_says_what_is_needed_and_what_there_is():
    big = Holding("big", Tier.DISK, Footprint(device_awake=3 << 30, host_process=1 << 30))
    outcome = way([big], Bytes(1 << 30, 8 << 30))
    assert outcome == Never("expert 'big' needs 3,072 MiB of device memory; the limit is 1,024 MiB")


@given(worlds())
def test_where_no_expert_can_leave_waiting_is_not_in_vain(world):
    holdings, capacity = world
    busy = [holding._replace(busy=holding.tier is Tier.DEVICE) for holding in holdings]
    if no_expert_can_leave(Standing.of(busy), busy[0], capacity):
        assert isinstance(way(busy, capacity), NotYet)
