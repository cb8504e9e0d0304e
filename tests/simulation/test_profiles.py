"""Made-up traffic has the shape that its name says."""

from collections import Counter
from itertools import groupby

import pytest

from coe_server.simulation.traces import MEAN_GAP_SECONDS, MEAN_OUTPUT_TOKENS, PROFILES, make_trace

EXPERTS = [f"e{n}" for n in range(10)]


def experts_of(profile, requests=3000, seed=1):
    return [request.expert for request in make_trace(profile, EXPERTS, requests, seed).requests]


@pytest.mark.parametrize("profile", PROFILES)
def test_a_seed_makes_one_trace_that_begins_at_zero_and_keeps_its_pace(profile):
    trace = make_trace(profile, EXPERTS, 3000, 1)
    assert trace == make_trace(profile, EXPERTS, 3000, 1)
    assert trace != make_trace(profile, EXPERTS, 3000, 2)
    arrivals = [request.arrival_seconds for request in trace.requests]
    assert (arrivals[0], arrivals) == (0.0, sorted(arrivals))
    assert 0.8 < arrivals[-1] / 3000 / MEAN_GAP_SECONDS < 1.2
    assert 0.9 < sum(request.output_tokens for request in trace.requests) / 3000 / MEAN_OUTPUT_TOKENS < 1.1


@pytest.mark.parametrize("profile", PROFILES)
def test_one_expert_and_one_request_are_enough(profile):
    assert [request.expert for request in make_trace(profile, ["only"], 1, 0).requests] == ["only"]


def test_the_shapes_are_what_their_names_say():
    shares = {profile: Counter(experts_of(profile)) for profile in PROFILES}
    assert max(shares["balanced"].values()) < 1.3 * min(shares["balanced"].values())
    assert 0.77 < shares["dominant"]["e0"] / 3000 < 0.83
    assert set(shares["interleaved"].values()) == {300}
    assert 1.8 < shares["zipf"]["e0"] / shares["zipf"]["e1"] < 2.5  # 2 to the 1.1
    runs = [len(list(run)) for _, run in groupby(experts_of("bursty"))]
    assert 10 < sum(runs) / len(runs) < 17
    before, after = Counter(experts_of("shift")[:1500]), Counter(experts_of("shift")[1500:])
    assert before.most_common(1)[0][0] != after.most_common(1)[0][0]
