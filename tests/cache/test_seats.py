"""Candidate seats: every card alone, wider ones as aligned blocks of equal cards, NVLink neighbours first."""

from hypothesis import given
from hypothesis import strategies as st

from coe_server.cache.seats import Card, candidate_seats
from tests.examples import examples

GIB = 1 << 30


def cards(*sizes, model="A"):
    return [Card(index, size * GIB, model) for index, size in enumerate(sizes)]


def linked(pairs, count):
    links = {index: set() for index in range(count)}
    for one, other in pairs:
        links[one].add(other)
        links[other].add(one)
    return [Card(index, 80 * GIB, "A", frozenset(links[index])) for index in range(count)]


def test_width_one_may_lie_on_each_card():
    assert candidate_seats(cards(24, 24, 80), 1) == ((0,), (1,), (2,))


def test_wide_ones_lie_on_aligned_blocks():
    assert candidate_seats(cards(80, 80, 80, 80), 2) == ((0, 1), (2, 3))
    assert candidate_seats(cards(*[80] * 8), 4) == ((0, 1, 2, 3), (4, 5, 6, 7))
    assert candidate_seats(cards(80, 80, 80), 2) == ((0, 1),)


def test_only_equal_cards_make_a_block():
    assert candidate_seats(cards(24, 80, 24, 80), 2) == ((0, 2), (1, 3))
    mixed = [Card(0, 80 * GIB, "A"), Card(1, 80 * GIB, "B")]
    assert candidate_seats(mixed, 2) == ()


def test_neighbours_by_nvlink_come_first_and_stand_together():
    assert candidate_seats(linked([(0, 2), (1, 3)], 4), 2) == ((0, 2), (1, 3))
    assert candidate_seats(linked([(2, 3)], 4), 2) == ((2, 3), (0, 1))


def test_a_configuration_narrows_the_cards():
    assert candidate_seats(cards(80, 80, 80, 80), 2, allowed={1, 2}) == ((1, 2),)
    assert candidate_seats(cards(80, 80, 80, 80), 1, allowed={3}) == ((3,),)
    assert candidate_seats(cards(80, 80), 4) == ()


def test_an_instance_of_a_card_is_a_card_of_width_one():
    split = [Card(0, 40 * GIB, "A", instance=True), Card(1, 40 * GIB, "A", instance=True)]
    assert candidate_seats(split, 1) == ((0,), (1,))
    assert candidate_seats(split, 2) == ()


@examples(200)
@given(st.lists(st.tuples(st.sampled_from([24, 80]), st.sampled_from("AB")), min_size=1, max_size=8), st.data())
def test_seats_of_one_width_are_the_same_or_apart(described, data):
    count = len(described)
    pairs = data.draw(st.lists(st.tuples(st.integers(0, count - 1), st.integers(0, count - 1)), max_size=8))
    links = {index: frozenset(b if a == index else a for a, b in pairs if index in (a, b)) for index in range(count)}
    machine = [Card(index, size * GIB, model, links[index]) for index, (size, model) in enumerate(described)]
    for width in (1, 2, 4, 8):
        seats = candidate_seats(machine, width)
        taken = [card for seat in seats for card in seat]
        assert len(taken) == len(set(taken)), "no two seats share a card"
        assert all(len(seat) == width for seat in seats)
        alike = [{(machine[card].model, machine[card].total_bytes) for card in seat} for seat in seats]
        assert all(len(kinds) == 1 for kinds in alike)
        most = {}
        for card in machine:
            most[card.model, card.total_bytes] = most.get((card.model, card.total_bytes), 0) + 1
        assert len(seats) == sum(number // width for number in most.values())
