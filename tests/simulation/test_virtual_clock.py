"""Hours pass at once, in the right order."""

import asyncio
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coe_server.simulation.simulator import run_virtually


@given(st.lists(st.integers(0, 10**6).map(lambda n: n / 8), max_size=20))
def test_everybody_wakes_in_order_and_on_time(seconds):
    async def story():
        clock, woke = asyncio.get_running_loop().time, []

        async def nap(one):
            await asyncio.sleep(one)
            woke.append((one, clock()))

        await asyncio.gather(*map(nap, seconds))
        return woke

    woke = run_virtually(story())
    assert [one for one, _ in woke] == sorted(seconds)
    assert all(abs(at - one) < 1e-6 for one, at in woke)


def test_a_day_takes_no_day():
    began = time.monotonic()
    run_virtually(asyncio.sleep(86_400))
    assert time.monotonic() - began < 3_600


def test_waiting_for_what_cannot_come_is_a_fault_and_not_a_hang():
    with pytest.raises(AssertionError, match="deadlock: every task waits"):
        run_virtually(asyncio.Event().wait())
