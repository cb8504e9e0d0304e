"""No owner fills a queue: beyond its half, each has its share of it, by weight, and finds room for one request."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coe_server.cache.policy import Limits
from coe_server.cache.queue import Owner, WaitedFor
from coe_server.errors import Overloaded
from tests.cache.test_expert_cache import run, running, settle, status

ALICE, BOB = Owner("alice", 0.5), Owner("bob", 0.5)


def takes(queue, owner, leases=1, limit=64):
    """Whether the queue takes it; then it waits there."""
    if queue.is_full(leases, limit) or queue.is_over_share(leases, limit, owner):
        return False
    queue.add(leases, owner)
    return True


def filled(queue, owner, leases=1, limit=64):
    """How many requests of one owner find room, one after the other."""
    number = 0
    while takes(queue, owner, leases, limit):
        number += 1
    return number


def test_one_of_two_owners_takes_half_of_the_queue_and_the_other_one_the_other_half():
    queue = WaitedFor()
    assert filled(queue, ALICE) == 32
    assert filled(queue, BOB) == 32


def test_an_owner_alone_may_fill_the_queue():
    assert filled(WaitedFor(), Owner("only", 1.0)) == 64
    assert filled(WaitedFor(), None) == 64


def test_a_share_is_one_of_leases():
    assert filled(WaitedFor(), ALICE, leases=8) == 4


def test_the_first_half_is_for_whatever_comes_first_and_the_rest_is_shared_by_weight():
    queue = WaitedFor()
    assert filled(queue, Owner("light", 0.1)) == 32
    assert filled(queue, Owner("heavy", 0.3)) == 19
    assert filled(queue, Owner("other", 0.1)) == 6


def test_an_owner_with_nothing_waiting_finds_room_whatever_its_share():
    queue = WaitedFor()
    filled(queue, ALICE)
    assert takes(queue, Owner("small", 0.0001), leases=5)


def test_what_has_gone_makes_room_again():
    queue = WaitedFor()
    filled(queue, ALICE)
    queue.add(-1, ALICE)
    assert takes(queue, ALICE)
    assert not takes(queue, ALICE)
    assert queue.by(ALICE) == 32


@given(
    st.integers(1, 40),
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 5)), max_size=60),
    st.lists(st.integers(1, 9), min_size=3, max_size=3),
)
def test_no_queue_is_longer_than_its_limit_and_nothing_is_lost(limit, asked, weights):
    shares = dict(zip("abc", (weight / sum(weights) for weight in weights), strict=True))
    queue, inside = WaitedFor(), []
    for name, leases in asked:
        owner = Owner(name, shares[name])
        if takes(queue, owner, leases, limit):
            inside.append((owner, leases))
        assert queue.leases == sum(leases for _, leases in inside)
        assert queue.leases <= limit or len(inside) == 1
    for owner, leases in inside:
        queue.add(-leases, owner)
    assert (queue.leases, queue.by(ALICE)) == (0, 0)


def asking(cache, owner, number, name="a"):
    return [asyncio.create_task(cache.lease(name, owner=owner)) for _ in range(number)]


@pytest.mark.parametrize("limit", ["queue_limit", "queue_limit_total"])
def test_over_its_share_an_owner_is_refused_and_another_one_is_not(limit):
    async def story():
        async with running(limits=Limits(**{limit: 8})) as (cache, engines):
            engines["a"].gate.clear()
            waiting = asking(cache, ALICE, 4)
            await settle()
            with pytest.raises(
                Overloaded, match=rf"key 'alice' already waits for 4 answers, its share of 8 \(scheduling.{limit}\)"
            ) as refused:
                await cache.lease("a", owner=ALICE)
            assert refused.value.retry_after_seconds > 0
            waiting += asking(cache, BOB, 4)
            await settle()
            assert status(cache, "a").queued == 8
            waiting.pop(0).cancel()
            await settle()
            waiting += asking(cache, ALICE, 1)
            await settle()
            engines["a"].gate.set()
            for lease in await asyncio.gather(*waiting):
                lease.release()

    run(story())


def test_what_need_not_wait_takes_no_share():
    async def story():
        async with running(limits=Limits(queue_limit=2, max_concurrency=8)) as (cache, _):
            leases = [await cache.lease("a", owner=ALICE) for _ in range(8)]
            for lease in leases:
                lease.release()

    run(story())
