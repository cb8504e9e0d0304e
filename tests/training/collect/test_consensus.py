"""Scores by agreement: simulated exams with known answers, the demo's recorded answers, and copying families."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from router_training.collect.by_agreement import findings
from router_training.collect.consensus import agreement

DEMO = Path(__file__).parents[3] / "demo/data"
EXPERTS = tuple("abcdef")
COMPETENT = 3


@dataclass(frozen=True)
class Exam:
    """Answers of six experts; `right` [prompts], `categories` [prompts]."""

    answers: Mapping[str, Sequence[str]]
    right: Sequence[str]
    categories: Sequence[str]

    def table_error(self) -> float:
        """The mean distance between scores by agreement and true shares, over categories and experts."""
        scores = agreement(self.answers, self.categories).scores
        kinds, errors = np.array(self.categories), []
        for kind in set(self.categories):
            rows = np.flatnonzero(kinds == kind)
            for place, given in enumerate(self.answers.values()):
                true = np.mean([given[row] == self.right[row] for row in rows])
                assert not np.isnan(scores[rows, place]).all(), f"{kind}, {place}: unknown"
                errors.append(abs(float(np.nanmean(scores[rows, place])) - true))
        return float(np.mean(errors))


def exam(seed: int, options: int, copied: Sequence[str] = (), prompts: int = 150) -> Exam:
    """Three experts of six are right in 80 %, the others in 30 %; which ones they are differs by category, unless some
    are `copied`: these repeat 95 % of the answers of the first of them."""
    chance = random.Random(seed)
    answers: dict[str, list[str]] = {name: [] for name in EXPERTS}
    right, categories = [], []
    for category in ("law", "sums", "facts"):
        good = chance.sample(EXPERTS, COMPETENT) if not copied else list(EXPERTS[:COMPETENT])
        for _ in range(prompts):
            true = chance.randrange(options)
            row = {}
            for name in EXPERTS:
                knows = chance.random() < (0.8 if name in good else 0.3)
                row[name] = true if knows else (true + 1 + chance.randrange(options - 1)) % options
            for name in copied[1:]:
                row[name] = row[copied[0]] if chance.random() < 0.95 else row[name]
            for name, answer in row.items():
                answers[name].append(str(answer))
            right.append(str(true))
            categories.append(category)
    return Exam(answers, right, categories)


@pytest.mark.parametrize("options", [4, 1000])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_table_of_six_experts_with_three_competent_ones_is_right_within_five_points(
    seed: int, options: int
) -> None:
    found = exam(seed, options)
    assert found.table_error() <= 0.05
    assert not agreement(found.answers, found.categories).found


@pytest.mark.parametrize("options", [4, 1000])
@pytest.mark.parametrize("copied", [("d", "e", "f"), ("e", "f")])
def test_a_family_that_copies_is_found_and_named(copied: Sequence[str], options: int) -> None:
    found = exam(3, options, copied)
    said = agreement(found.answers, found.categories)
    assert copied in said.families
    assert {name for pair in said.found for name in pair.experts} == set(copied)
    assert all(pair.same / pair.wrong > 0.9 for pair in said.found)
    assert found.table_error() <= 0.05


def test_where_every_wrong_answer_is_the_same_there_is_no_family() -> None:
    found = exam(4, options=2)
    assert not agreement(found.answers, found.categories).found


@pytest.mark.parametrize("seed", [6, 7])
def test_an_experts_own_answers_do_not_change_what_the_others_agree_on(seed: int) -> None:
    found = exam(seed, 4)
    before = agreement(found.answers, found.categories).scores[:, 0]
    changed = agreement({**found.answers, "a": ["9"] * len(found.right)}, found.categories)
    assert not changed.found
    after = changed.scores[:, 0]
    assert (np.isnan(before) == np.isnan(after)).all()
    assert np.nanmax(after) == 0.0


def test_two_votes_of_one_family_are_too_few() -> None:
    answers = {"a": ["x"] * 20, "b": ["x"] * 20, "c": ["y"] * 20}
    assert np.nanmax(agreement(answers, ["k"] * 20).scores[:, 2]) == 0.0
    alone = agreement(answers, ["k"] * 20, declared=[("a", "b")])
    assert alone.families == (("a", "b"), ("c",))
    assert np.isnan(alone.scores).all()


def test_a_missing_answer_is_unknown_and_supports_none() -> None:
    answers: dict[str, list[str | None]] = {"a": ["x"] * 9, "b": ["x"] * 8 + [None], "c": ["x"] * 8 + [None]}
    scores = agreement(answers, ["k"] * 9).scores
    assert (scores[:8] == 1.0).all()
    assert np.isnan(scores[8]).all()


def test_few_scores_of_a_category_are_unknown() -> None:
    answers = {"a": list("xxxxxxxxxx"), "b": list("xabcdefghi"), "c": list("xjklmnopqr")}
    assert np.isnan(agreement(answers, ["k"] * 10).scores).all()


def test_of_the_demo_units_and_facts_are_unknown_and_no_mapping_is_wrong() -> None:
    categories = {row["prompt_id"]: row["category"] for row in read("held_out.prompts.jsonl")}
    answers: dict[str, list[str]] = {}
    for row in read("held_out.answers.jsonl"):
        answers.setdefault(row["expert"], []).append(row["text"].strip())
    found = agreement(answers, list(categories.values()))
    said = {one.name: one for one in findings(found, list(categories.values()), list(answers)).categories}
    assert set(said) == {"french", "python", "sql", "units", "facts"}
    for name in ("units", "facts"):
        assert set(said[name].means.values()) == {None}
    right = true_scores(categories)
    for one in said.values():
        assert one.best in {None, max(right[one.name], key=right[one.name].__getitem__)}
        for expert, mean in one.means.items():
            assert mean is None or mean == pytest.approx(right[one.name][expert], abs=0.05)
    assert said["french"].means["python"] == 0.0
    assert said["french"].means["french"] is None  # the generalist alone agrees


def true_scores(categories: Mapping[str, str]) -> dict[str, dict[str, float]]:
    """category -> expert -> share of right answers."""
    sums: dict[str, Counter[str]] = {}
    sizes = Counter(categories.values())
    for row in read("held_out.outcomes.jsonl"):
        sums.setdefault(categories[row["prompt_id"]], Counter())[row["expert"]] += row["score"]
    return {name: {expert: total / sizes[name] for expert, total in found.items()} for name, found in sums.items()}


def read(name: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (DEMO / name).read_text(encoding="utf-8").splitlines()]
