from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from coe_server.routing.evidence import (
    FEWEST_WITH_BOTH,
    RATINGS_PER_STEP,
    Evidence,
    Pair,
    Turn,
    compared,
    evidence,
    next_step,
    resumed,
    settled_categories,
)
from coe_server.routing.exploration import nothing_learned

ROWS, COLUMNS = {"code": 0, "law": 1}, {"small": 0, "big": 1}
EVEN = {"small": 0.5, "big": 0.5}


def turn(number: int, score: float | None = 1.0, **changes: Any) -> Turn:
    scores = {} if score is None else {"score": score}
    fields = {"category": "code", "drawn": "big", "answered": "big", "scores": scores} | changes
    return Turn(float(number), f"talk {number}", probabilities=EVEN, expected=None, **fields)


def usable(*turns: Turn, pairs: list[Pair] | None = None) -> Evidence:
    return evidence(turns, pairs or [], ROWS, COLUMNS)


def test_an_answer_of_another_expert_than_the_drawn_one_counts_for_nothing() -> None:
    found = usable(turn(1), turn(2, answered="small"))
    assert (len(found), found.left_out) == (1, {"another expert answered than was drawn": 1})


def test_all_turns_of_a_conversation_are_one_rating() -> None:
    later = replace(turn(2, 0.0), conversation="talk 1")
    assert usable(turn(1, 1.0), later).ratings.scores.tolist() == [0.5]


def test_a_category_or_expert_that_is_gone_counts_for_nothing() -> None:
    assert len(usable(turn(1, category="cooking"), turn(2, drawn="gone", answered="gone"))) == 0


def test_another_source_is_left_out_until_it_is_calibrated() -> None:
    exact = [turn(number, float(number % 2)) for number in range(60)]
    thumbs = [turn(100 + number, None, scores={"thumbs": 1.0}) for number in range(5)]
    found = usable(*exact, *thumbs)
    assert (found.source, len(found), found.pooled) == ("score", 60, {})
    assert found.left_out == {"rated by another source than 'score'": 5}
    both = [
        turn(200 + n, None, scores={"thumbs": float(n % 2), "score": 0.2 + 0.5 * (n % 2)})
        for n in range(FEWEST_WITH_BOTH)
    ]
    pooled = usable(*exact, *thumbs, *both)
    assert pooled.pooled == {"thumbs": 5}
    assert pooled.ratings.scores[60:65] == pytest.approx([0.7] * 5)


def test_a_source_that_contradicts_the_other_is_never_pooled() -> None:
    chance = np.random.default_rng(0)
    both = [turn(n, None, scores={"thumbs": float(chance.random() < 0.5), "score": chance.random()}) for n in range(80)]
    only = [turn(100 + n, None, scores={"thumbs": 1.0}) for n in range(5)]
    exact = [turn(300 + n, 0.5) for n in range(20)]
    assert usable(*both, *only, *exact).pooled == {}


def test_one_key_has_at_most_its_share_of_a_cell() -> None:
    many = [turn(number, key="loud") for number in range(200)]
    others = [turn(300 + number, key=f"key {number}") for number in range(20)]
    found = usable(*many, *others)
    assert len(found) == 22
    assert found.left_out == {"one key has its share of the cell": 198}


def test_differences_need_thirty_ratings_of_both_experts_and_then_say_how_many_more() -> None:
    table = np.zeros((2, 2))
    few = [turn(number, drawn="small", answered="small") for number in range(29)]
    many = [turn(100 + number, float(number % 2)) for number in range(60)]
    (unknown,) = compared(usable(*few, *many), ROWS, COLUMNS, table)
    assert unknown.interval is None
    (known,) = compared(usable(*few, turn(50, drawn="small", answered="small"), *many), ROWS, COLUMNS, table)
    assert known.interval is not None
    assert known.interval.needed > 1_000
    assert settled_categories([unknown]) == []
    assert settled_categories([known]) == ["code"]


def test_an_expert_that_is_never_drawn_in_a_category_is_not_compared_there() -> None:
    columns = {**COLUMNS, "stranger": len(COLUMNS)}
    turns = [turn(number, drawn=name, answered=name) for number in range(80) for name in [[*COLUMNS][number % 2]]]
    table = np.zeros((len(ROWS), len(columns)))
    table[:, columns["stranger"]] = 1.0  # pooled from other categories
    found = compared(evidence(turns, (), ROWS, columns), ROWS, columns, table)
    assert [{one.best, one.other} for one in found] == [{*COLUMNS}]


def test_steps_go_towards_the_better_expert_and_settle_in_the_end() -> None:
    chance = np.random.default_rng(4)
    turns = []
    for number in range(8_000):
        name = ("small", "big")[number % 2]
        score = float(chance.random() < (0.8 if name == "big" else 0.4))
        turns.append(turn(number, score, drawn=name, answered=name))
    known = nothing_learned((*ROWS,), (*COLUMNS,))
    found = usable(*turns)
    once = next_step(found, known)
    assert once.steps == 1
    assert once.shift("code", "big") == pytest.approx(0.05)
    assert next_step(found, once).shift("code", "big") > 0.09
    assert once.settled == {"code"}
    again = resumed(found, known)
    assert (again.steps, again.shifts.any(), again.settled) == (0, False, {"code"})


def test_compared_answers_are_paired_and_need_no_probabilities() -> None:
    pairs = [Pair("law", ("small", "big"), (0.0, 1.0)) for _ in range(RATINGS_PER_STEP)]
    pairs += [Pair("law", ("big", "small"), (0.5, 0.5)) for _ in range(20)]
    found = usable(pairs=pairs)
    assert (found.source, found.is_enough) == ("judge", True)
    after = next_step(found, nothing_learned((*ROWS,), (*COLUMNS,)))
    assert after.shift("law", "big") == pytest.approx(0.05)
    (difference,) = compared(found, ROWS, COLUMNS, after.shifts)
    assert (difference.best, difference.other) == ("big", "small")
    assert difference.interval is not None
    assert difference.interval.mean == pytest.approx(-100 / 120)


def test_compared_answers_are_not_mixed_with_ratings_of_another_source() -> None:
    assert usable(turn(1), pairs=[Pair("law", ("small", "big"), (0.0, 1.0))]).pairs == []
