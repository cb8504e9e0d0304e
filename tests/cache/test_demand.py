"""How much each expert has been asked for lately, against the same sum worked out by hand."""

from hypothesis import given
from hypothesis import strategies as st

from coe_server.cache.demand import HALF_LIFE_SECONDS, Demand

PAUSES = st.sampled_from([0.0, 1.0, HALF_LIFE_SECONDS, 100.5 * HALF_LIFE_SECONDS])


@given(st.lists(st.tuples(PAUSES, st.sampled_from("ab")), max_size=20), PAUSES)
def test_every_request_counts_half_as_much_every_half_life(requests, silence):
    demand, now, came = Demand("abc"), 0.0, {name: [] for name in "abc"}
    for pause, name in requests:
        now += pause
        demand.add(name, now)
        came[name].append(now)
    now += silence
    lately = demand.lately(now)
    for name, moments in came.items():
        by_hand = sum(0.5 ** ((now - moment) / HALF_LIFE_SECONDS) for moment in moments)
        assert abs(lately[name] - by_hand) < 1e-9
        assert demand.of(name, now) == lately[name]
