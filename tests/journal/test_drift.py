"""Drift: what has changed is flagged soon, what has not is left alone, and false alarms keep to their bound."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coe_server.journal.drift import OUTSIDE, Detectors, DriftWatch, Reference
from tests.examples import examples

MIX = {"code": 0.3, "french": 0.25, "maths": 0.2, "sql": 0.15, "units": 0.05, OUTSIDE: 0.05}


def confidences(draw, mean, count):
    return draw.beta(mean * 8, (1 - mean) * 8, count)


REFERENCE = Reference(MIX, 0.8, float(confidences(np.random.default_rng(0), 0.8, 100_000).std()), prompts=1000)


def flagged_at(mix, confidence, requests, seed, watch=None):
    """Reading -> the request that raised its flag; how many requests it took."""
    draw = np.random.default_rng(seed)
    watch = watch or DriftWatch(REFERENCE)
    names = draw.choice(list(mix), requests, p=list(mix.values()))
    found = {}
    for number, (name, sure) in enumerate(zip(names, confidences(draw, confidence, requests), strict=True), 1):
        watch.see(None if name == OUTSIDE else str(name), float(sure))
        for reading, left in watch.left_band.items():
            if left:
                found.setdefault(reading, number)
    return found


@pytest.mark.parametrize("seed", range(3))
def test_steady_traffic_is_not_flagged_in_20_000_requests(seed):
    assert flagged_at(MIX, 0.8, 20_000, seed) == {}


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("mix", "confidence", "reading"),
    [
        ({"french": 0.95, OUTSIDE: 0.05}, 0.8, "categories"),  # one topic only
        ({**MIX, "code": 0.05, "units": 0.3}, 0.8, "categories"),  # two trade places
        ({**{name: share / 2 for name, share in MIX.items()}, OUTSIDE: 0.525}, 0.8, "out_of_domain"),
        (MIX, 0.6, "confidence"),  # the same topics, asked so that the classifier is less sure
        (MIX, 0.95, "confidence"),
    ],
)
def test_traffic_that_switched_is_flagged_within_500_requests(mix, confidence, reading, seed):
    assert flagged_at(mix, confidence, 500, seed).get(reading, 501) <= 500


def test_a_change_after_a_long_steady_time_is_seen_as_soon_and_its_end_too():
    watch = DriftWatch(REFERENCE)
    flagged_at(MIX, 0.8, 5000, 1, watch)
    assert flagged_at({"french": 0.95, OUTSIDE: 0.05}, 0.8, 500, 2, watch)["categories"] <= 200
    assert watch.now.mix_distance > 0.6
    flagged_at(MIX, 0.8, 500, 3, watch)
    assert not any(watch.left_band.values())
    assert watch.now.mix_distance < 0.25


def test_what_changed_by_less_than_the_band_is_none_of_our_business():
    assert flagged_at({**MIX, "code": 0.33, "french": 0.22}, 0.78, 20_000, 1) == {}


def test_little_training_data_widens_the_band():
    few = Reference(MIX, REFERENCE.confidence, REFERENCE.confidence_deviation, prompts=40)
    other = {"code": 0.5, "french": 0.05, "maths": 0.2, "sql": 0.15, "units": 0.05, OUTSIDE: 0.05}
    assert flagged_at(other, 0.8, 3000, 1, DriftWatch(few)) == {}
    assert "categories" in flagged_at(other, 0.8, 3000, 1)


@examples(100)
@given(edge=st.floats(0.01, 0.99), history=st.lists(st.floats(0, 1), max_size=60))
def test_a_bet_is_fair_at_best_whatever_was_seen_before(edge, history):
    """E[factor] <= 1 for values whose mean is the edge: this is what bounds the false alarms."""
    expected = 0.0
    for value, share in ((0.0, 1.0 - edge), (1.0, edge)):
        detectors = Detectors(np.array([edge]), np.array([edge / 2]), np.array([0.2]))
        for before in history:
            detectors.see(np.array([before]))
        detectors.evidence[:] = 0.0
        detectors.see(np.array([value]))
        expected += share * float(np.exp(detectors.evidence[0]))
    assert expected <= 1.0 + 1e-9


def test_false_alarms_on_the_very_edge_of_the_band_keep_to_their_bound():
    """A thousand detectors, each betting against a mean that lies on its edge, over as many requests as one can pay."""
    count, edge = 1000, 0.3
    detectors = Detectors(np.full(count, edge), np.full(count, edge), np.full(count, 0.45))
    draw, ever = np.random.default_rng(0), np.zeros(count, dtype=bool)
    for _ in range(2000):
        detectors.see((draw.random(count) < edge).astype(float))
        ever |= detectors.evidence >= np.log(2000 / 0.2)  # so that 20 % may be wrong
    assert ever.mean() <= 0.2


def test_many_small_categories_are_watched_as_well():
    names = [str(number) for number in range(50)]
    reference = Reference(dict.fromkeys(names, 0.02), 0.8, 0.1, 5000)
    draw, watch = np.random.default_rng(1), DriftWatch(reference)
    for number in range(10_000):
        watch.see(str(draw.choice(names)), 0.8)
        assert not watch.left_band["categories"], number
    for _ in range(500):
        watch.see(str(draw.choice(names[:5])), 0.8)
    assert watch.left_band["categories"]
