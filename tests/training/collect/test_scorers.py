"""Every scorer on telling answers, and properties that hold for all of them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coe_server.errors import ConfigError, DatasetError
from router_training.collect.recording import Question
from router_training.collect.scorers import (
    ChoiceScorer,
    ExactScorer,
    FunctionScorer,
    NumericScorer,
    RegexScorer,
    Scorer,
    Unscored,
    chosen_letter,
    last_number,
)
from router_training.collect.settings import ChoiceSettings, ExactSettings, NumericSettings, RegexSettings

LONG = 200_000


def question(**row: Any) -> Question:
    return Question("p", ({"role": "user", "content": "?"},), row, "prompts.jsonl, row 1")


def exact(*ignore: str) -> ExactScorer:
    return ExactScorer(ExactSettings.model_validate({"kind": "exact", "ignore": ignore}), "answer")


def numeric(**settings: float) -> NumericScorer:
    return NumericScorer(NumericSettings.model_validate({"kind": "numeric", **settings}), "answer")


CHOICE = ChoiceScorer(ChoiceSettings(kind="choice"), "answer")


@pytest.mark.parametrize(
    ("ignore", "reference", "answer", "score"),
    [
        ((), "Paris", " Paris\n", 1),
        ((), "Paris", "paris", 0),
        ((), "cafe\u0301", "caf\u00e9", 1),
        (("case",), "STRASSE", "straße", 1),
        (("whitespace",), "a b", "a \n\t b", 1),
        (("punctuation",), "Paris", "«Paris!»", 1),
        (("articles",), "cat", "The cat", 1),
        (("articles",), "cat", "theory cat", 0),
        (("case", "punctuation", "articles"), "eiffel tower", "The Eiffel Tower.", 1),
        ((), ["Paris", "Lutetia"], "Lutetia", 1),
        ((), 42, "42", 1),
        ((), 42.0, "42", 1),
        ((), [float("nan"), 0.5], "0.5", 1),
        ((), "Paris", "", 0),
    ],
)
def test_exact(ignore: tuple[str, ...], reference: object, answer: str, score: float) -> None:
    assert exact(*ignore).score(question(answer=reference), "a", answer) == score


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("so it is 42.", 42),
        ("5-3", 3),
        ("5 - -3", -3),
        ("-3", -3),
        ("\u22127", -7),
        ("$1,234.50 in all", 1234.5),
        ("1,234,567", 1234567),
        ("12,34", 34),
        ("1,2345", 2345),
        ("2e-3", 0.002),
        (".5", 0.5),
        ("\\boxed{17}", 17),
        ("**17**", 17),
        ("_17_", 17),
        ("#### 18", 18),
        ("50%", 50),
        ("10x", 10),
        ("答えは5個です", 5),
        ("water is H2O", None),
        ("version 1.2.3", None),
        ("version 12.3.4", None),
        ("none", None),
        ("", None),
        ("٣", None),
    ],
)
def test_the_last_number(text: str, number: float | None) -> None:
    assert last_number(text) == number


@given(st.floats(allow_nan=False, allow_infinity=False, width=32) | st.integers(-(10**12), 10**12))
def test_any_number_written_by_python_is_read_back(number: float) -> None:
    assert last_number(f"after 7 tries: {number}, I think") == pytest.approx(number)
    if isinstance(number, int):
        assert last_number(f"it is {number:,}.") == number


def test_numbers_may_be_off_by_the_tolerance() -> None:
    row = question(answer="#### 3.14")
    assert numeric().score(row, "a", "3.1400001") == 1
    assert numeric().score(row, "a", "3.15") == 0
    assert numeric(absolute_tolerance=0.02).score(row, "a", "3.15") == 1
    assert numeric(relative_tolerance=0.01).score(row, "a", "3.15") == 1
    assert numeric().score(row, "a", "no idea") == 0
    assert numeric().score(question(answer=[1, 2]), "a", "2") == 1


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B", "B"),
        ("b", "B"),
        ("(b)", "B"),
        ("B.", "B"),
        ("B) Paris", "B"),
        ("**B**", "B"),
        ("The answer is (B).", "B"),
        ("Answer: **C**", "C"),
        ("answer:\nD", "D"),
        ("A is wrong. The answer is C", "C"),
        ("First I thought the answer is A. But the answer is B because", "B"),
        ("The correct option is D.", "D"),
        ("so $\\boxed{\\text{B}}$", "B"),
        ("Of (A) and (B), it must be (B)", "B"),
        ("The answer is not B", None),
        ("A good guess would be hard", None),
        ("The answer is Dublin", None),
        ("E", None),
        ("", None),
    ],
)
def test_the_chosen_letter(answer: str, letter: str | None) -> None:
    assert chosen_letter(answer, "ABCD") == letter


def test_a_choice_is_right_or_wrong() -> None:
    assert CHOICE.score(question(answer="b"), "a", "The answer is B") == 1
    assert CHOICE.score(question(answer="b"), "a", "The answer is C") == 0
    assert CHOICE.score(question(answer="b"), "a", "hard to say") == 0


@given(st.sampled_from("ABCD"), st.text(alphabet="abc xyz.,:;()\n", max_size=40))
def test_a_stated_letter_is_found_after_any_lower_case_reasoning(letter: str, reasoning: str) -> None:
    assert chosen_letter(f"{reasoning}\nThe answer is {letter}.", "ABCD") == letter


@pytest.mark.parametrize("scorer", [exact("case", "punctuation", "articles"), numeric(), CHOICE])
@pytest.mark.parametrize(
    "piece", ["a", "9", "9,", "1,234", "answer ", "answer", "(", "*", " ", "\n", "-", "1.", "\\boxed{"]
)
def test_no_answer_however_long_takes_for_ever(scorer: Scorer, piece: str) -> None:
    """Were any pattern more than linear, this would run into the test's time limit."""
    row = question(answer="1" if isinstance(scorer, NumericScorer) else "B")
    assert scorer.score(row, "a", piece * (LONG // len(piece)) + "!") in {0.0, 1.0}


@given(st.text())
def test_any_answer_has_a_score(answer: str) -> None:
    for scorer, reference in ((exact("case", "articles"), "x"), (numeric(), "1"), (CHOICE, "A")):
        assert scorer.score(question(answer=reference), "a", answer) in {0.0, 1.0}


@given(st.text().filter(str.strip))
def test_the_reference_is_always_an_exact_match(text: str) -> None:
    for ignore in ((), ("case",), ("whitespace", "punctuation"), ("articles", "case")):
        assert exact(*ignore).score(question(answer=text), "a", f"  {text}\n") == 1


@pytest.mark.parametrize(
    ("scorer", "row", "sentence"),
    [
        (exact(), {}, "has no 'answer', the reference"),
        (exact(), {"answer": None}, "has no 'answer', the reference"),
        (exact(), {"answer": []}, "has no 'answer', the reference"),
        (exact(), {"answer": float("nan")}, "has no 'answer', the reference"),
        (exact(), {"answer": " "}, "has no 'answer', the reference"),
        (exact(), {"answer": {"text": "x"}}, r"'answer' {'text': 'x'} is neither a text nor a list of texts"),
        (exact(), {"answer": [["x"]]}, r"'answer' \[\['x'\]\] is neither a text nor a list of texts"),
        (numeric(), {"answer": "many"}, "no number in 'answer' 'many'"),
        (CHOICE, {"answer": "E"}, "'E' is not one of the letters ABCD"),
        (CHOICE, {"answer": "AB"}, "'AB' is not one of the letters ABCD"),
    ],
)
def test_what_cannot_be_scored_is_said_with_its_row(scorer: Scorer, row: dict[str, Any], sentence: str) -> None:
    with pytest.raises(DatasetError, match=sentence) as caught:
        scorer.check(question(**row))
    assert str(caught.value).startswith("prompts.jsonl, row 1")


# Patterns


def pattern_scorer(**settings: Any) -> RegexScorer:
    return RegexScorer(RegexSettings.model_validate({"kind": "regex", **settings}))


def test_a_pattern_is_searched_for_all_prompts_or_for_each() -> None:
    for_all = pattern_scorer(pattern=r"(?i)\bparis\b")
    assert [for_all.score(question(), "a", text) for text in ("It is Paris.", "comparison")] == [1.0, 0.0]
    for_each = pattern_scorer(column="wanted")
    assert for_each.score(question(wanted="^é\nx$"), "a", "é\nx") == 1.0
    with pytest.raises(DatasetError, match="row 1 has no 'wanted'"):
        for_each.check(question())
    with pytest.raises(DatasetError, match="is not a regular expression"):
        for_each.check(question(wanted="("))


@pytest.mark.parametrize(
    ("pattern", "slow", "quick"),
    [("(.*?,){25}P", ",".join(map(str, range(60))), "1," * 25 + "P"), ("^(a|aa)+$", "a" * 60 + "b", "aaa")],
)
def test_a_catastrophic_pattern_is_ended_and_the_next_search_works(pattern: str, slow: str, quick: str) -> None:
    scorer = pattern_scorer(pattern=pattern, time_limit_seconds=0.3)
    assert scorer.score(question(), "a", slow) == Unscored("the pattern took longer than 0.3 s")
    assert scorer.score(question(), "a", quick) == 1.0


@pytest.mark.parametrize("pattern", ["^(a+)+$", "(x+x+)+y", "([a-z]+)*=", r"^(\w+\s?)*$"])
def test_a_pattern_with_nested_repeats_ends_with_a_score_or_a_reason(pattern: str) -> None:
    scorer = pattern_scorer(pattern=pattern, time_limit_seconds=0.3)
    assert scorer.score(question(), "a", "ax" * 30 + "!") in (0.0, Unscored("the pattern took longer than 0.3 s"))


# The user's own function


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    source = [
        "def half(row, answer): return 0.5 if answer == row['answer'] else None",
        "def wrong(row, answer): return 2",
        "def broken(row, answer): return answer / 2",
        "number = 3",
    ]
    (tmp_path / "my_scorers.py").write_text("\n".join(source))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_scorers", raising=False)
    return "my_scorers"


def test_a_function_of_the_users_scores(own_module: str) -> None:
    scorer = FunctionScorer(f"{own_module}:half")
    assert scorer.score(question(answer="x"), "a", "x") == 0.5
    assert scorer.score(question(answer="x"), "a", "y") == Unscored("my_scorers:half gave none")


def test_a_function_that_fails_names_expert_and_prompt(own_module: str) -> None:
    with pytest.raises(DatasetError, match="my_scorers:wrong returned 2 for 'a', 'p': not a number in"):
        FunctionScorer(f"{own_module}:wrong").score(question(), "a", "x")
    with pytest.raises(DatasetError, match="my_scorers:broken failed on 'a', 'p': TypeError"):
        FunctionScorer(f"{own_module}:broken").score(question(), "a", "x")


@pytest.mark.parametrize(("name", "sentence"), [("gone:score", "PYTHONPATH"), ("my_scorers:gone", "PYTHONPATH")])
def test_a_function_that_is_not_there_is_a_mistake_in_the_config(own_module: str, name: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        FunctionScorer(name)
    with pytest.raises(ConfigError, match="is not a function"):
        FunctionScorer(f"{own_module}:number")
