"""On several cards an overdue expert claims a seat: nothing behind it takes that, and other cards go on."""

from hypothesis import given
from hypothesis import strategies as st

from coe_server.cache.claims import Claim
from coe_server.cache.policy import Limits
from coe_server.cache.scheduler import Queue, conduct
from coe_server.cache.tiers import Bytes, Holding, Standing, Tier
from coe_server.engines.engine import Footprint
from tests.cache.test_planner_cards import machines
from tests.examples import examples

SMALL = Footprint(device_awake=10, host_image=10)
SINGLES = ((0,), (1,))
WAIT = Limits(max_wait_seconds=10)


def expert(name, tier=Tier.DISK, seat=(0,), seats=SINGLES, footprint=SMALL, **more):
    return Holding(name, tier, footprint, seat=seat, seats=seats, **more)


def order(holdings, waiting, capacity, now=100.0, **more):
    """`waiting`: expert -> when its request came."""
    queues = [Queue(name, (float(at),), 1.0) for name, at in waiting.items()]
    return conduct(Standing.of(holdings), queues, capacity, now, WAIT, **more)


def coming(orders):
    return [(ready.moves[-1].expert, ready.moves[-1].seat) for ready in orders.plans]


WIDE = expert("wide", seats=((0, 1),), seat=(0, 1), wanted=True)
BUSY = expert("busy", Tier.DEVICE, (0,), busy=True)
THIRD = ((0,), (1,), (2,))


def test_an_overdue_wide_expert_claims_both_cards_and_nothing_behind_it_takes_the_free_one():
    single = expert("single", wanted=True)
    orders = order([WIDE, BUSY, single], {"wide": 0, "single": 1}, Bytes((10, 10), 99))
    assert coming(orders) == []
    assert orders.draining == {"busy"}
    assert orders.claims == (Claim("wide", 0.0, (0, 1), 10),)


def test_cards_without_a_claim_go_on():
    single = expert("single", seats=THIRD, wanted=True)
    asleep = expert("asleep", Tier.HOST, (1,), seats=THIRD, wanted=True)
    orders = order([WIDE, BUSY, single, asleep], {"wide": 0, "single": 1, "asleep": 95}, Bytes((10, 10, 10), 99))
    assert coming(orders) == [("single", (2,))]
    assert [claim.expert for claim in orders.claims] == ["wide"]


def test_host_memory_that_a_claim_lacks_is_taken_by_nothing_behind_it():
    single = expert("single", seats=THIRD, wanted=True)
    scarce = order([WIDE, BUSY, single], {"wide": 0, "single": 1}, Bytes((10, 10, 10), 29))
    enough = order([WIDE, BUSY, single], {"wide": 0, "single": 1}, Bytes((10, 10, 10), 30))
    assert coming(scarce) == []
    assert scarce.never == {}
    assert coming(enough) == [("single", (2,))]


def test_a_claim_is_kept_while_an_engine_starts_elsewhere():
    third = expert("third", Tier.DEVICE, (2,), seats=THIRD, busy=True)  # on its way there
    asleep = expert("asleep", Tier.HOST, (1,), seats=((1,),), wanted=True)
    claim = Claim("wide", 0.0, (0, 1), 10)
    how = {"claims": (claim,)}
    machine = [WIDE, BUSY, third, asleep], {"asleep": 1}, Bytes((10, 10, 10), 99)
    elsewhere, on_its_own = order(*machine, **how, starts_on=(2,)), order(*machine, **how, starts_on=(1,))
    assert (coming(elsewhere), elsewhere.claims) == ([], (claim,))
    assert (coming(on_its_own), on_its_own.claims) == ([("asleep", (1,))], (claim,))


def test_a_claim_is_chosen_anew_when_its_card_is_lost_and_dropped_when_no_request_waits():
    goal, other = expert("goal", wanted=True), expert("other", Tier.DEVICE, (1,), busy=True, worth=9.0)
    claim = Claim("goal", 0.0, (0,), 10)
    how = {"claims": (claim,)}
    assert order([goal, BUSY, other], {"goal": 0}, Bytes((10, 10), 99), **how).claims == (claim,)
    anew = order([goal, other], {"goal": 0}, Bytes((0, 10), 99), **how)
    assert anew.claims == (Claim("goal", 0.0, (1,), 10),)
    assert anew.draining == {"other"}
    gone = goal._replace(wanted=False)
    assert order([gone, BUSY, other], {}, Bytes((10, 10), 99), **how).claims == ()


def test_a_claim_stays_where_it_is_though_another_expert_is_worth_less_by_now():
    goal = expert("goal", wanted=True)
    here, there = BUSY._replace(worth=5.0), expert("there", Tier.DEVICE, (1,), busy=True, worth=1.0)
    orders = order([goal, here, there], {"goal": 0}, Bytes((10, 10), 99), claims=(Claim("goal", 0.0, (0,), 10),))
    assert (orders.claims[0].seat, orders.draining) == ((0,), {"busy"})
    free = order([goal, here], {"goal": 0}, Bytes((10, 10), 99), claims=orders.claims)
    assert (coming(free), free.claims) == ([("goal", (1,))], ())


def test_a_claimed_seat_is_taken_as_soon_as_it_can_be_had_though_sleepers_must_stop_there():
    small = Footprint(device_awake=10, device_asleep=1, host_image=10)
    goal, other = expert("goal", wanted=True, footprint=small), expert("other", Tier.DEVICE, (1,), busy=True)
    idle = expert("idle", Tier.DEVICE, (0,), footprint=small)
    asleep = expert("asleep", Tier.HOST, (0,), footprint=small)
    how = {"claims": (Claim("goal", 0.0, (0,), 10),)}
    orders = order([goal, other, idle, asleep], {"goal": 0}, Bytes((11, 11), 99), **how)
    assert coming(orders) == [("goal", (0,))]
    assert {move.expert: move.target for move in orders.plans[0].moves} == {
        "idle": Tier.HOST,
        "asleep": Tier.DISK,
        "goal": Tier.DEVICE,
    }


def test_a_sleeper_is_not_stopped_for_what_it_keeps_on_a_card_where_waiting_makes_room():
    small = Footprint(device_awake=10, device_asleep=2, host_image=10)
    goal = expert("goal", wanted=True, footprint=small)
    busy = expert("busy", Tier.DEVICE, (0,), busy=True, footprint=small)
    sleepers = [expert(f"asleep {at}", Tier.HOST, (0,), footprint=small) for at in range(2)]
    on_one = [one._replace(seats=((0,),)) for one in (goal, busy, *sleepers)]
    assert coming(order(on_one, {"goal": 95}, Bytes((22, 1), 99))) == []
    overdue = order(on_one, {"goal": 0}, Bytes((22, 1), 99))
    assert (coming(overdue), overdue.draining) == ([], {"busy"})
    too_many = [*on_one, *(on_one[2]._replace(name=f"more {at}") for at in range(4))]
    assert coming(order(too_many, {"goal": 0}, Bytes((22, 1), 99))) == [("goal", (0,))]


def test_an_overdue_sleeper_starts_on_another_card_when_its_own_is_busy():
    asleep = expert("asleep", Tier.HOST, (0,), wanted=True)
    machine = [asleep, BUSY], {"asleep": 0}, Bytes((10, 10), 99)
    assert coming(order(*machine)) == [("asleep", (1,))]
    assert order(*machine).plans[0].moves[-1].is_start
    assert coming(order(*machine, starts_on=(1,))) == []
    assert coming(order(*machine, now=5.0)) == []


@st.composite
def passes(draw):
    """Random machines and what was claimed in the pass before."""
    holdings, capacity = draw(machines(most=6))
    waiting = {one.name: draw(st.integers(0, 99)) for one in holdings if one.wanted and one.tier is not Tier.DEVICE}
    claims = []
    for one in holdings:
        if draw(st.booleans()):
            claims.append(Claim(one.name, float(draw(st.integers(0, 99))), draw(st.sampled_from(one.seats)), 3))
    starts_on = draw(st.none() | st.sampled_from(holdings[0].seats))
    if starts_on is not None:
        waiting = {name: at for name, at in waiting.items() if Standing.of(holdings).holding(name).tier is Tier.HOST}
    return holdings, waiting, capacity, {"claims": tuple(claims), "starts_on": starts_on}


@examples(400)
@given(passes())
def test_what_a_pass_orders_is_never_over_any_card_and_never_on_what_is_claimed_before(drawn):
    holdings, waiting, capacity, how = drawn
    orders = order(holdings, waiting, capacity, **how)
    standing, starts, starting = Standing.of(holdings), 0, how["starts_on"] is not None
    moved = [move.expert for ready in orders.plans for move in ready.moves]
    assert len(moved) == len(set(moved))
    for ready in orders.plans:
        goal, starts = ready.moves[-1], starts + ready.moves[-1].is_start
        for claim in orders.claims:  # of an earlier deadline
            overdue = 100.0 - waiting[goal.expert] >= WAIT.max_wait_seconds
            suspended = starts + starting and standing.holding(claim.expert).tier is Tier.DISK
            if not suspended and (not overdue or claim.arrived < waiting[goal.expert]):
                assert set(claim.seat).isdisjoint(goal.seat)
        for move in ready.moves:
            before = standing.holding(move.expert)
            standing = standing.updated([before._replace(tier=move.target, seat=move.seat)])
            assert standing.used.fits(capacity)
    assert starts <= (not starting)


@examples(300)
@given(passes())
def test_the_first_overdue_expert_claims_or_comes_whatever_else_waits(drawn):
    holdings, waiting, capacity, how = drawn
    if not waiting:
        return
    first = min(waiting, key=lambda name: (waiting[name], list(waiting).index(name)))
    if 100.0 - waiting[first] < WAIT.max_wait_seconds:
        return
    how["claims"] = tuple(claim for claim in how["claims"] if claim.expert in waiting)
    orders = order(holdings, waiting, capacity, **how)
    came = {ready.moves[-1].expert for ready in orders.plans}
    assert first in came or first in orders.never or first in {claim.expert for claim in orders.claims}
