from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from coe_server.routing.intervals import FEWEST, differences, interval, reach

Vector = npt.NDArray[np.float64]
RUNS, TURNS = 300, 1_500
ALPHA_OF_ONE_LOOK = 1.96  # standard errors of a 95 % interval that holds once


def replayed(chance: np.random.Generator, means: tuple[float, float], share: float) -> tuple[Vector, Vector]:
    """(values, turns of the rarer expert so far): ratings of two experts, the better one so far drawn more often."""
    uniform, answers = chance.random(TURNS), chance.random(TURNS)
    experts, scores = np.zeros(TURNS, dtype=np.int64), np.zeros(TURNS)
    probabilities, sums, counts = np.zeros((TURNS, 2)), [0.0, 0.0], [0, 0]
    for turn in range(TURNS):
        best = int(sums[1] / max(counts[1], 1) > sums[0] / max(counts[0], 1))
        probabilities[turn] = share / 2
        probabilities[turn, best] += 1.0 - share
        drawn = int(uniform[turn] >= probabilities[turn, 0])
        scores[turn] = float(answers[turn] < means[drawn])
        experts[turn] = drawn
        sums[drawn] += scores[turn]
        counts[drawn] += 1
    rarer = np.minimum(np.cumsum(experts == 0), np.cumsum(experts == 1))
    return differences(experts, scores, probabilities, 1, 0), rarer.astype(np.float64)


def ever_apart(values: Vector, rarer: Vector, widths: Vector) -> bool:
    """True if the interval leaves 0 out at any look from the first one that counts."""
    count = np.arange(1, len(values) + 1)
    means = np.cumsum(values) / count
    deviations = np.sqrt(np.maximum(np.cumsum(values**2) / count - means**2, 0.0) * count / np.maximum(count - 1, 1))
    return bool((np.abs(means) > deviations * widths)[rarer >= FEWEST].any())


@pytest.mark.parametrize("share", [1.0, 0.3, 0.05])
def test_two_equal_experts_are_parted_in_at_most_five_percent_of_runs_at_any_time(share: float) -> None:
    chance, count = np.random.default_rng(5), np.arange(1, TURNS + 1)
    ours, at_one_look = np.array([reach(int(n)) for n in count]), ALPHA_OF_ONE_LOOK / np.sqrt(count)
    runs = [replayed(chance, (0.6, 0.6), share) for _ in range(RUNS)]
    parted = np.mean([ever_apart(values, rarer, ours) for values, rarer in runs])
    naive = np.mean([ever_apart(values, rarer, at_one_look) for values, rarer in runs])
    assert parted <= 0.05
    if share == 1.0:
        assert naive > 0.2, "an interval of one look parts them, so the runs are long enough to tell"


def test_two_different_experts_are_parted_in_the_right_direction() -> None:
    values, _ = replayed(np.random.default_rng(1), (0.4, 0.7), 0.5)
    found = interval(values)
    assert found.is_apart
    assert found.low < 0.3 < found.high


def test_it_says_how_many_more_values_it_takes() -> None:
    chance = np.random.default_rng(2)
    few = chance.normal(0.0, 1.0, 100)
    needed = interval(few, 0.1).needed
    deviation = float(few.std(ddof=1))
    assert deviation * reach(100 + needed) <= 0.1 < deviation * reach(100 + needed - 1)
    assert interval(np.tile(few, 100), 0.1).needed == 0


def test_differences_are_unbiased_where_the_probabilities_follow_the_ratings() -> None:
    chance = np.random.default_rng(3)
    means = [replayed(chance, (0.3, 0.5), 0.2)[0].mean() for _ in range(200)]
    assert abs(np.mean(means) - 0.2) < 4 * np.std(means) / np.sqrt(len(means))
