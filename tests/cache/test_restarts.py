"""How long an expert that fails is left alone."""

from coe_server.cache.backoff import (
    FAILURES_IN_THE_WINDOW,
    LONGEST_BACKOFF_SECONDS,
    SHORTEST_BACKOFF_SECONDS,
    WINDOW_SECONDS,
    Restarts,
)


def test_one_failure_costs_no_rest_and_a_second_in_a_row_does():
    restarts = Restarts()
    assert restarts.fail(0.0, hopeless=False) is None
    assert restarts.fail(1.0, hopeless=False) == SHORTEST_BACKOFF_SECONDS


def test_a_hopeless_failure_costs_a_rest_at_once():
    assert Restarts().fail(0.0, hopeless=True) == SHORTEST_BACKOFF_SECONDS


def test_after_a_rest_there_is_one_try_and_each_rest_is_twice_as_long_up_to_the_longest():
    restarts = Restarts()
    restarts.fail(0.0, hopeless=False)
    backoffs = [restarts.fail(2_000.0 * number, hopeless=False) for number in range(1, 9)]
    assert backoffs == [30, 60, 120, 240, 480, 960, LONGEST_BACKOFF_SECONDS, LONGEST_BACKOFF_SECONDS]


def test_an_expert_that_never_comes_up_again_may_be_tried_for_years():
    restarts = Restarts()
    assert [restarts.fail(1e6 * number, hopeless=True) for number in range(2_000)][-1] == LONGEST_BACKOFF_SECONDS


def test_an_answer_ends_the_row():
    restarts = Restarts()
    restarts.fail(0.0, hopeless=True)
    restarts.answer()
    assert restarts.fail(1_000.0, hopeless=False) is None
    assert restarts.fail(2_000.0, hopeless=False) == SHORTEST_BACKOFF_SECONDS


def test_answers_in_between_do_not_help_an_expert_that_dies_all_the_time():
    restarts = Restarts()
    backoffs = []
    for number in range(FAILURES_IN_THE_WINDOW):
        backoffs.append(restarts.fail(10.0 * number, hopeless=False))
        restarts.answer()
    assert backoffs == [None] * (FAILURES_IN_THE_WINDOW - 1) + [SHORTEST_BACKOFF_SECONDS]
    assert restarts.fail(100.0, hopeless=False) is None, "after its rest the window begins anew"


def test_failures_that_lie_far_apart_do_not_add_up():
    restarts = Restarts()
    for number in range(3 * FAILURES_IN_THE_WINDOW):
        assert restarts.fail(number * WINDOW_SECONDS / 2, hopeless=False) is None
        restarts.answer()


def test_what_a_person_forgives_is_forgotten():
    restarts = Restarts()
    for number in range(FAILURES_IN_THE_WINDOW - 1):
        restarts.fail(float(number), hopeless=True)
    restarts.forgive()
    assert restarts.fail(10.0, hopeless=False) is None
