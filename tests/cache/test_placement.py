"""What is loaded together: promises for any experts and cards, and a few telling machines."""

from hypothesis import given
from hypothesis import strategies as st

from coe_server.cache.placement import Demand, kept_by_sleepers, place, used_by_loaded
from coe_server.cache.seats import Card
from coe_server.cache.tiers import Tier

demands = st.lists(
    st.builds(
        Demand,
        name=st.text("abcdefgh", min_size=1, max_size=3),
        awake=st.integers(5, 40),
        asleep=st.integers(0, 5),
        host=st.integers(0, 30),
        can_sleep=st.booleans(),
        width=st.sampled_from([1, 1, 1, 2, 4]),
        pin=st.sampled_from([Tier.DISK, Tier.DISK, Tier.HOST, Tier.DEVICE]),
    ),
    max_size=7,
    unique_by=lambda one: one.name,
)
rooms = st.lists(st.sampled_from([20, 20, 40]), min_size=1, max_size=4)


def cards(*sizes):
    return [Card(index, size) for index, size in enumerate(sizes)]


@given(demands, rooms, st.integers(0, 100))
def test_no_card_and_no_host_is_over_its_room(found_demands, sizes, host_room):
    found = place(found_demands, cards(*sizes), host_room)
    used, kept = used_by_loaded(found, found_demands), kept_by_sleepers(found, found_demands)
    assert all(used[card] + kept[card] <= size for card, size in enumerate(sizes))
    alive = {*found.loaded, *found.asleep}
    assert sum(one.host for one in found_demands if one.name in alive) <= host_room
    assert not set(found.loaded) & set(found.asleep)
    assert not alive & set(found.left_out)


@given(demands, rooms, st.integers(0, 100))
def test_where_an_expert_can_be_loaded_something_is(found_demands, sizes, host_room):
    found = place(found_demands, cards(*sizes), host_room)
    assert bool(found.loaded) == bool({one.name for one in found_demands} - set(found.left_out))


def small(name, awake=8, **more):
    return Demand(name, awake, 2, 10, True, **more)


def test_what_sleepers_keep_is_counted():
    found = place([small("a"), small("b"), small("c")], cards(20), 100)
    assert set(found.loaded) == {"a", "b"}, "8 + 8, and 2 that c keeps"
    found = place([small("a"), small("b"), small("c"), small("d"), small("e")], cards(20), 100)
    assert set(found.loaded) == {"a"}, "8 of one, and 8 that four keep"


def test_a_wide_expert_and_small_ones_share_four_cards():
    wide = Demand("wide", 40, 3, 50, True, width=2)
    found = place([wide, *(small(name, 30) for name in "abcd")], cards(80, 80, 80, 80), 200)
    assert found.loaded["wide"] in {(0, 1), (2, 3)}
    assert set(found.loaded) == {"wide", "a", "b", "c", "d"}


def test_why_an_expert_can_never_be_loaded():
    found = place([small("a", 30), small("b", width=2), Demand("c", 1, 0, 500, True)], cards(20), 100)
    assert found.left_out == {
        "a": "expert 'a' needs 0 MiB of device memory; the limit is 0 MiB",
        "b": "expert 'b' needs 2 equal cards; there are 1",
        "c": "expert 'c' needs 0 MiB of host memory; the limit is 0 MiB",
    }
