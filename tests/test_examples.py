"""Properties do not fail by luck in `make test`, and look further in `make check-long`."""

from hypothesis import settings

from tests.examples import LONG, USUAL, examples


def test_the_usual_examples_are_the_same_each_time_and_the_long_ones_new_and_ten_times_as_many():
    usual, long = settings.get_profile(USUAL), settings.get_profile(LONG)
    assert (usual.derandomize, long.derandomize) == (True, False)
    assert long.max_examples == 10 * usual.max_examples
    for profile in (usual, long):
        assert (profile.deadline, profile.database) == (None, None)


def test_a_number_of_ones_own_grows_with_the_profile():
    assert examples(30).max_examples == 30 * settings.default.max_examples / settings.get_profile(USUAL).max_examples
    assert examples(30).derandomize == settings.default.derandomize
