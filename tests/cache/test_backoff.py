"""How long requests are kept away from a remote expert that fails."""

from hypothesis import given
from hypothesis import strategies as st

from coe_server.cache.backoff import LONGEST_SECONDS, REMOTE_FAILURES_IN_A_ROW, SHORTEST_SECONDS, Backoff


def test_one_failure_alone_keeps_nothing_away_and_the_third_in_a_row_does():
    backoff = Backoff()
    assert [backoff.fail(float(n), "500", at_once=False) for n in range(3)] == [None, None, SHORTEST_SECONDS]
    assert backoff.refusal(2.0) == "backing off 1 s: 500"


def test_an_answer_ends_the_row():
    backoff = Backoff()
    backoff.fail(0.0, "500", at_once=False)
    backoff.fail(1.0, "500", at_once=False)
    backoff.answer(asked=2.0)
    assert backoff.fail(3.0, "500", at_once=False) is None


def test_what_says_that_the_next_request_fails_too_backs_off_at_once_and_for_as_long_as_it_asks():
    backoff = Backoff()
    assert backoff.fail(10.0, "429", at_once=True, asked_seconds=42.0) == 42.0
    assert backoff.refusal(10.0) == "backing off 42 s: 429"
    assert backoff.refusal(51.5) == "backing off 1 s: 429"
    assert backoff.refusal(52.0) is None


def test_without_a_word_it_grows_from_a_second_to_five_minutes():
    backoff, now, seconds = Backoff(), 0.0, []
    for _ in range(12):
        seconds.append(backoff.fail(now, "503", at_once=True))
        now += seconds[-1]
        assert backoff.begin_try()
    assert seconds == [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300]
    assert LONGEST_SECONDS == 300


def test_a_retry_after_of_nothing_is_a_second():
    assert Backoff().fail(0.0, "429", at_once=True, asked_seconds=0.0) == SHORTEST_SECONDS


def test_when_the_time_is_over_one_request_tries_and_the_others_are_kept_away():
    backoff = Backoff()
    backoff.fail(0.0, "429", at_once=True)
    assert backoff.refusal(1.0) is None
    assert backoff.begin_try()
    assert backoff.refusal(1.0) == "backing off: 429; one request tries it now"
    backoff.end_try()  # it left
    assert backoff.refusal(1.0) is None
    assert backoff.begin_try()
    backoff.answer(asked=1.0)
    assert backoff.refusal(1.0) is None
    assert not backoff.begin_try()
    assert backoff.fail(2.0, "429", at_once=True) == SHORTEST_SECONDS, "the answer began everything anew"


def test_the_first_word_of_the_one_that_tries_lets_the_others_in_and_a_break_after_it_is_one_more_failure():
    backoff = Backoff()
    for _ in range(3):
        backoff.fail(0.0, "500", at_once=False)
    assert backoff.begin_try()
    backoff.speak(asked=0.5)
    assert backoff.refusal(1.0) is None
    assert not backoff.begin_try()
    assert backoff.fail(2.0, "502", at_once=False) == 2.0


def test_a_first_word_to_a_request_from_before_the_backoff_says_nothing_of_it():
    backoff = Backoff()
    backoff.fail(10.0, "429", at_once=True, asked_seconds=60.0)
    backoff.speak(asked=9.0)
    assert backoff.refusal(11.0) == "backing off 59 s: 429"


def test_requests_that_fail_together_are_one_failure():
    backoff = Backoff()
    assert backoff.fail(0.0, "503", at_once=True) == 1.0
    assert [backoff.fail(0.5, "503", at_once=True) for _ in range(10)] == [None] * 10
    assert backoff.refusal(1.0) is None
    assert backoff.begin_try()
    assert backoff.fail(1.0, "503", at_once=True) == 2.0


def test_a_later_failure_may_lengthen_the_backoff():
    backoff = Backoff()
    backoff.fail(0.0, "503", at_once=True)
    backoff.fail(0.5, "429", at_once=True, asked_seconds=60.0)
    assert backoff.seconds_left(0.5) == 60.0


def test_an_answer_from_before_the_backoff_says_nothing_of_it():
    backoff = Backoff()
    backoff.fail(10.0, "429", at_once=True, asked_seconds=60.0)
    backoff.answer(asked=9.0)
    assert backoff.refusal(11.0) is not None
    backoff.forgive()
    assert backoff.refusal(11.0) is None


@given(st.lists(st.tuples(st.sampled_from(["at once", "in a row", "answer", "try", "left"]), st.floats(0, 400))))
def test_it_always_ends_and_never_counts_less_than_a_row(steps):
    backoff, now, row = Backoff(), 0.0, 0
    for step, seconds in steps:
        now += seconds
        match step:
            case "at once" | "in a row":
                row += 1
                begun = backoff.fail(now, "x", at_once=step == "at once")
                assert begun is None or SHORTEST_SECONDS <= begun <= LONGEST_SECONDS
                if step == "in a row" and begun is not None:
                    assert row >= REMOTE_FAILURES_IN_A_ROW
            case "answer":
                backoff.answer(now)
                row = 0
                assert backoff.refusal(now) is None
            case "try" if backoff.refusal(now) is None:
                backoff.begin_try()
            case "left":
                backoff.end_try()
        assert backoff.seconds_left(now) <= LONGEST_SECONDS
    backoff.end_try()
    assert backoff.refusal(now + LONGEST_SECONDS) is None
