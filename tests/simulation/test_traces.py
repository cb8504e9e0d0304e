"""Traces: read as written, and refused with the line that is wrong."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coe_server.errors import DatasetError
from coe_server.simulation.traces import Request, Trace, read_trace, write_trace

amounts = st.integers(0, 10_000)
names = st.sampled_from(["a", "b", "c"])
requests = st.builds(
    Request,
    arrival_seconds=amounts.map(lambda n: n / 8),
    output_tokens=amounts,
    expert=names,
    prompt_tokens=st.none() | amounts,
    priority=st.sampled_from(["high", "normal", "batch"]),
) | st.builds(
    Request,
    arrival_seconds=amounts.map(float),
    output_tokens=amounts,
    scores=st.dictionaries(names, st.floats(0, 1), min_size=1),
)


@given(st.lists(requests, min_size=1, max_size=10))
def test_what_is_written_is_read_in_order_of_arrival(some):
    ordered = tuple(sorted(some, key=lambda request: request.arrival_seconds))
    assert read_trace("t", write_trace(Trace("t", tuple(some)))) == Trace("t", ordered)


def test_the_best_of_scores_is_the_highest_and_then_the_first_by_name():
    assert Request(0, 1, scores={"b": 0.5, "a": 0.5, "c": 0.4}).best == "a"


GOOD = {"arrival_seconds": 0, "expert": "a", "output_tokens": 1}


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("{", "is not JSON"),
        ("[]", "must be an object"),
        (json.dumps(GOOD | {"tokens": 1}), "'tokens' is not one of arrival_seconds, expert"),
        (json.dumps(GOOD | {"scores": {"a": 1}}), "needs either 'expert' or 'scores'"),
        (json.dumps({"arrival_seconds": 0, "output_tokens": 1}), "needs either 'expert' or 'scores'"),
        (json.dumps(GOOD | {"arrival_seconds": -1}), "arrival_seconds must be a number >= 0, not -1"),
        (json.dumps(GOOD | {"output_tokens": "many"}), "output_tokens must be a number >= 0, not 'many'"),
        (json.dumps(GOOD | {"priority": "vip"}), "priority 'vip' is not one of high, normal, batch"),
        (json.dumps({"arrival_seconds": 0, "output_tokens": 1, "scores": {}}), "scores must map at least one expert"),
        (
            json.dumps({"arrival_seconds": 0, "output_tokens": 1, "scores": {"a": "b"}}),
            "scores.a: 'b' is not a number",
        ),
    ],
)
def test_a_wrong_line_is_named(line, complaint):
    with pytest.raises(DatasetError, match=r"^the trace, line 2: ") as caught:
        read_trace("the trace", [json.dumps(GOOD), line])
    assert complaint in str(caught.value)


def test_a_trace_without_requests_is_refused():
    with pytest.raises(DatasetError, match="contains no request"):
        read_trace("empty", ["", " "])
