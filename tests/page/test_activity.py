"""The page's list of decisions, filled by hand in a real browser."""

import pytest

TELL = """async ({ past, events }) => {
    const { Activity } = await import("/page/activity.js");
    const [decisions, moves] = [document.createElement("tbody"), document.createElement("tbody")];
    const activity = new Activity(decisions, moves);
    activity.start(past);
    for (const event of events) activity.add(event);
    return [...decisions.rows].map((row) => [...row.cells].slice(1, 4).map((cell) => cell.textContent));
}"""


@pytest.fixture
def tell(visit):
    page = visit().page
    return lambda past=(), events=(): page.evaluate(TELL, {"past": list(past), "events": list(events)})


def decision(number, expert="poet", reason="mapped", time=None):
    return {
        "kind": "decision",
        "decision_id": f"id{number}",
        "time": 1_764_000_000.5 + number if time is None else time,
        "category": f"c{number}",
        "confidence": None,
        "expert": expert,
        "reason": reason,
        "residency": "device",
    }


def logged(event):
    """The same as the decision log tells it: written a moment later."""
    return {**event, "time": event["time"] + 0.001, "ranking": [{"residency": "device"}]}


def test_events_of_the_past_push_out_nothing_that_is_newer(tell):
    everything = [decision(number) for number in range(134)]
    shown = tell(past=[logged(one) for one in reversed(everything[-100:])], events=everything)
    assert [category for category, _, _ in shown] == [f"c{number}" for number in reversed(range(34, 134))]


def test_what_only_events_know_stands_where_its_time_puts_it(tell):
    everything = [decision(number) for number in range(5)]
    shown = tell(past=[logged(everything[3]), logged(everything[1])], events=everything)
    assert [category for category, _, _ in shown] == ["c4", "c3", "c2", "c1", "c0"]


def test_a_row_follows_its_decision_to_the_expert_that_answers(tell):
    first, other = decision(1), decision(2)
    second = decision(1, "coder", "fallback", time=first["time"] + 2.0)
    assert tell(events=[first, other, second]) == [["c2", "poet", "mapped"], ["c1", "coder", "fallback"]]
    past = [logged(other), {**logged(second), "time": first["time"] + 0.001}]  # the log keeps when it began
    assert tell(past, events=[first, other]) == [["c2", "poet", "mapped"], ["c1", "coder", "fallback"]]
    assert tell(past, events=[first, other, second])[1] == ["c1", "coder", "fallback"]


FILL = """async (name) => {
    const { Activity } = await import("/page/activity.js");
    const activity = new Activity(document.querySelector("#decisions"), document.querySelector("#moves"));
    const move = { kind: "move", from: "disk", to: "device", seconds: 0.9998, bytes: 300 * 2 ** 20 };
    activity.add({ ...move, time: 1764000000, expert: name });
    return [...document.querySelectorAll(".scroll")].map((box) => box.scrollWidth - box.clientWidth);
}"""


def test_the_longest_name_leaves_room_for_the_columns_beside_it(visit):
    page = visit().page
    assert set(page.evaluate(FILL, "x" * 64)) == {0}
    assert page.locator("#moves .number").first.inner_text() == "1.0 s"
