"""The planner on several cards, against brute force; on one card that is what `test_planner.py` asks for."""

from itertools import product

from hypothesis import given
from hypothesis import strategies as st

from coe_server.cache.pins import left_out, pinned, seated
from coe_server.cache.planner import Never, NotYet, Plan, no_expert_can_leave, plan, plan_anew
from coe_server.cache.tiers import Bytes, Holding, Standing, Tier, bytes_in
from coe_server.engines.engine import Footprint
from tests.cache.test_planner import footprints
from tests.examples import examples

SMALL = Footprint(device_awake=10, device_asleep=1, host_process=2, host_image=10)


def seats_of(cards, width):
    return tuple(tuple(range(first, first + width)) for first in range(0, cards - width + 1, width))


@st.composite
def machines(draw, most=4):
    """Experts on one to eight cards of mixed sizes, one to `cards` wide; the first of them is the goal."""
    cards = draw(st.integers(1, 8))
    holdings = []
    for index in range(draw(st.integers(1, most))):
        footprint = draw(footprints)
        seats = seats_of(cards, draw(st.integers(1, cards)))
        pin = draw(st.sampled_from(Tier))
        allowed = [t for t in Tier if t.depth <= pin.depth and (t is not Tier.HOST or footprint.can_sleep)]
        tier = draw(st.sampled_from(allowed))
        busy = draw(st.booleans()) and tier is Tier.DEVICE
        more = {"busy": busy, "wanted": draw(st.booleans()), "worth": draw(st.floats(0, 9)), "pin": pin}
        holdings.append(Holding(f"e{index}", tier, footprint, seat=draw(st.sampled_from(seats)), seats=seats, **more))
    used = sum((one.held for one in holdings), Bytes())
    slack = Bytes(draw(st.lists(st.integers(0, 6), min_size=cards, max_size=cards)), draw(st.integers(0, 8)))
    return holdings, used + slack


def held(holdings, tiers, goal_seat):
    total = Bytes()
    for holding, tier in zip(holdings, tiers, strict=True):
        total += bytes_in(holding.footprint, tier, goal_seat if holding is holdings[0] else holding.seat)
    return total


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


def possible(holdings, seats, capacity, ignore_busy):
    """On one of these seats, as far as its cards and host memory go: another card may be one that was lost."""
    choices = [[Tier.DEVICE] if one is holdings[0] else reachable(one, ignore_busy) for one in holdings]
    for seat in seats:
        for tiers in product(*choices):
            total = held(holdings, tiers, seat)
            if total.host <= capacity.host and all(total.on(card) <= capacity.on(card) for card in seat):
                return True
    return False


@examples(300)
@given(machines())
def test_a_plan_is_found_on_some_seat_exactly_when_one_exists(machine):
    holdings, capacity = machine
    goal = holdings[0]
    outcome = plan(Standing.of(holdings), goal, capacity)
    seats = goal.may_come_to
    assert isinstance(outcome, Plan) == possible(holdings, seats, capacity, ignore_busy=False)
    assert isinstance(outcome, Never) == (not possible(holdings, seats, capacity, ignore_busy=True))
    if isinstance(outcome, NotYet):
        assert outcome.seat in seats
        patient = [h._replace(busy=False) if h.name in outcome.leaving else h for h in holdings]
        assert isinstance(plan(Standing.of(patient), patient[0], capacity), Plan)


@examples(300)
@given(machines())
def test_no_step_is_over_any_card_and_nothing_leaves_that_could_have_stayed(machine):
    holdings, capacity = machine
    outcome = plan(Standing.of(holdings), holdings[0], capacity)
    if not isinstance(outcome, Plan):
        return
    standing, named = Standing.of(holdings), {one.name: one for one in holdings}
    for move in outcome.moves:
        before = named[move.expert]
        assert before.tier is move.source
        assert move.expert == "e0" or (not before.busy and before.seat == move.seat)
        assert move.target.depth <= before.pin.depth
        named[move.expert] = before._replace(tier=move.target, seat=move.seat)
        standing = standing.updated([named[move.expert]])
        assert standing.used.fits(capacity)
    seat = outcome.moves[-1].seat
    assert named["e0"].tier is Tier.DEVICE
    assert seat in holdings[0].may_come_to
    for move in outcome.moves[:-1]:
        spared = Standing.of(named.values()).updated([named[move.expert]._replace(tier=move.source)])
        assert not spared.used.fits(capacity)


@examples(300)
@given(machines())
def test_where_nothing_can_leave_any_seat_waiting_is_not_in_vain(machine):
    holdings, capacity = machine
    busy = [holding._replace(busy=holding.tier is Tier.DEVICE) for holding in holdings]
    if no_expert_can_leave(Standing.of(busy), busy[0], capacity):
        assert isinstance(plan(Standing.of(busy), busy[0], capacity), NotYet)


def rank(holdings, outcome, seat, capacity):
    """The rule that chooses among seats, written down a second time."""
    named = {one.name: one for one in holdings}
    now = isinstance(outcome, Plan)
    names = [move.expert for move in outcome.moves[:-1]] if now else outcome.leaving
    worth = max(((not named[name].leaving, named[name].wanted, named[name].worth) for name in names), default=None)
    there = [one for one in holdings if one.tier is not Tier.DISK and not set(one.seat).isdisjoint(seat)]
    used, need = Standing.of(holdings).used, holdings[0].footprint.device_awake
    left_over = sum(capacity.on(card) - used.on(card) - need for card in seat)
    shared = {one.name: len(set(one.seat) & set(seat)) for one in there}
    crowd = sum(shared[one.name] * one.footprint.device_awake for one in there) if now and not names else 0
    return not now, worth is not None, worth or (), len(names), crowd, left_over


@examples(400)
@given(machines(most=7))
def test_of_several_seats_the_best_is_taken_as_a_search_of_each_by_itself_finds_it(machine):
    holdings, capacity = machine
    holdings[0] = holdings[0]._replace(tier=Tier.DISK, busy=False)
    goal, standing = holdings[0], Standing.of(holdings)
    alone = {seat: plan(standing, goal._replace(seats=(seat,)), capacity) for seat in goal.seats}
    possible_ones = {seat: one for seat, one in alone.items() if not isinstance(one, Never)}
    chosen = plan(standing, goal, capacity)
    if not possible_ones:
        assert isinstance(chosen, Never)
        return
    best = min(possible_ones, key=lambda seat: (rank(holdings, alone[seat], seat, capacity), goal.seats.index(seat)))
    assert chosen == alone[best]


def expert(name, tier=Tier.DEVICE, seat=(0,), seats=((0,), (1,)), footprint=SMALL, **more):
    return Holding(name, tier, footprint, seat=seat, seats=seats, **more)


def test_a_start_takes_the_free_card_and_of_two_the_tighter():
    new, other = expert("new", Tier.DISK), expert("other")
    (move,) = plan(Standing.of([new, other]), new, Bytes((10, 10), 99)).moves
    assert move.seat == (1,)
    (move,) = plan(Standing.of([new]), new, Bytes((30, 20), 99)).moves
    assert move.seat == (1,)


def test_the_expert_of_least_worth_leaves_on_whichever_card_it_is():
    new, dear, cheap = expert("new", Tier.DISK), expert("dear", worth=9.0), expert("cheap", seat=(1,), worth=1.0)
    outcome = plan(Standing.of([new, dear, cheap]), new, Bytes((10, 11), 99))
    assert [(move.expert, move.target, move.seat) for move in outcome.moves] == [
        ("cheap", Tier.HOST, (1,)),
        ("new", Tier.DEVICE, (1,)),
    ]


def test_a_sleeper_comes_back_to_its_own_cards_unless_it_is_started_anew():
    asleep, busy = expert("asleep", Tier.HOST), expert("busy", busy=True)
    standing = Standing.of([asleep, busy])
    assert plan(standing, asleep, Bytes((11, 10), 99)) == NotYet(("busy",), (0,))
    (move,) = plan_anew(standing, asleep, Bytes((11, 10), 99)).moves
    assert (move.source, move.target, move.seat) == (Tier.DISK, Tier.DEVICE, (1,))
    assert move.is_start


def test_a_wide_expert_makes_room_on_each_of_its_cards_and_on_no_other():
    wide = expert("wide", Tier.DISK, seats=((0, 1),))
    there = [expert(name, seat=(card,)) for card, name in enumerate("abc")]
    outcome = plan(Standing.of([wide, *there]), wide, Bytes((11, 11, 10), 99))
    assert sorted(outcome.victims) == ["a", "b"]
    assert outcome.moves[-1].seat == (0, 1)


def test_host_memory_may_come_from_an_expert_on_another_card():
    new = expert("new", Tier.DISK, seats=((0,),))
    elsewhere = expert("elsewhere", Tier.HOST, seat=(1,))
    outcome = plan(Standing.of([new, elsewhere]), new, Bytes((10, 10), 13))
    assert [(move.expert, move.target) for move in outcome.moves[:-1]] == [("elsewhere", Tier.DISK)]


def test_never_says_on_how_many_cards():
    wide = expert("wide", Tier.DISK, seats=((0, 1), (2, 3)), seat=(0, 1), footprint=Footprint(3 << 30))
    outcome = plan(Standing.of([wide]), wide, Bytes((1 << 30, 4 << 30, 2 << 30, 2 << 30), 0))
    assert outcome == Never("expert 'wide' needs 3,072 MiB of device memory on each of 2 cards; the limit is 2,048 MiB")


def test_pinned_experts_are_placed_widest_and_largest_first():
    pairs, singles = ((0, 1), (2, 3)), ((0,), (1,), (2,), (3,))
    experts = [
        *(pinned(f"single {at}", SMALL, Tier.DEVICE, singles) for at in range(2)),
        pinned("wide", SMALL, Tier.DEVICE, pairs),
    ]
    capacity = Bytes((10, 10, 10, 10), 99)
    placed = {one.name: one.seat for one in seated(experts, capacity)}
    assert placed == {"wide": (0, 1), "single 0": (2,), "single 1": (3,)}
    assert left_out(experts, capacity) == {}
    assert set(left_out([*experts, pinned("other", SMALL, Tier.DISK, pairs)], capacity)) == {"other"}


@examples(150)
@given(machines())
def test_pinned_experts_that_fit_are_never_over_any_card(machine):
    holdings, capacity = machine
    experts = [pinned(one.name, one.footprint, one.pin, one.seats) for one in holdings]
    if not left_out(experts, capacity):
        assert Standing.of(seated(experts, capacity)).used.fits(capacity)
