"""Scorers: exact text, last number, chosen letter, regular expression, and the user's own function.

An answer without a number or a letter is a wrong answer, not a missing one. The patterns of this module are bounded:
they take time in proportion to the answer's length. The user's patterns have a time limit.
"""

from __future__ import annotations

import importlib
import math
import re
import unicodedata
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import regex

from coe_server.errors import ConfigError, DatasetError
from router_training.collect.recording import Question
from router_training.collect.settings import ChoiceSettings, ExactSettings, NumericSettings, RegexSettings
from router_training.data.rows import as_text, is_nothing, shown_value


@dataclass(frozen=True, slots=True)
class Unscored:
    """No score, and why: the outcome is missing, not zero. `may_change`: asking again could bring one."""

    reason: str
    may_change: bool = False


class Scorer(Protocol):
    """Scores an answer."""

    def check(self, question: Question) -> None:
        """Raise DatasetError if the prompt lacks data that the score needs; called before any request."""

    def score(self, question: Question, expert: str, answer: str) -> float | Unscored:
        """From 0 to 1."""

    def parses(self, answer: str) -> bool:
        """False if the answer holds nothing that could be compared; such an answer is wrong, and counted apart."""


class ExactScorer:
    """1 if the answer equals a reference, up to the differences that `ExactSettings` allows."""

    def __init__(self, settings: ExactSettings, column: str) -> None:
        self._ignored = frozenset(settings.ignore)
        self._column = column

    def check(self, question: Question) -> None:
        references(question, self._column)

    def score(self, question: Question, expert: str, answer: str) -> float | Unscored:
        del expert
        wanted = {self._normal(reference) for reference in references(question, self._column)}
        return float(self._normal(answer) in wanted)

    def parses(self, answer: str) -> bool:
        return bool(answer.strip())

    def _normal(self, text: str) -> str:
        return comparable(text, self._ignored)


class NumericScorer:
    """1 if the last number in the answer is the last number in the reference, or near enough."""

    def __init__(self, settings: NumericSettings, column: str) -> None:
        self._absolute, self._relative = settings.absolute_tolerance, settings.relative_tolerance
        self._column = column

    def check(self, question: Question) -> None:
        self._wanted(question)

    def score(self, question: Question, expert: str, answer: str) -> float | Unscored:
        del expert
        number = last_number(answer)
        near = number is not None and any(
            math.isclose(number, wanted, rel_tol=self._relative, abs_tol=self._absolute)
            for wanted in self._wanted(question)
        )
        return float(near)

    def parses(self, answer: str) -> bool:
        return last_number(answer) is not None

    def _wanted(self, question: Question) -> list[float]:
        wanted = [last_number(reference) for reference in references(question, self._column)]
        numbers = [number for number in wanted if number is not None]
        if len(numbers) < len(wanted):
            raise DatasetError(f"{question.place}: no number in {self._column!r} {question.row[self._column]!r}")
        return numbers


class ChoiceScorer:
    """1 if the letter chosen in the answer is the reference's."""

    def __init__(self, settings: ChoiceSettings, column: str) -> None:
        self._letters = settings.letters
        self._column = column

    def check(self, question: Question) -> None:
        for reference in references(question, self._column):
            if reference.strip().upper() not in tuple(self._letters):
                raise DatasetError(
                    f"{question.place}: {self._column!r} {reference!r} is not one of the letters {self._letters}"
                )

    def score(self, question: Question, expert: str, answer: str) -> float | Unscored:
        del expert
        wanted = {reference.strip().upper() for reference in references(question, self._column)}
        return float(chosen_letter(answer, self._letters) in wanted)

    def parses(self, answer: str) -> bool:
        return chosen_letter(answer, self._letters) is not None


class RegexScorer:
    """1 if the prompt's pattern, or else the common pattern, matches anywhere in the answer.

    A backtracking engine needs exponential time for some patterns. A search that exceeds `time_limit_seconds` of
    processor time ends, and the outcome is missing.
    """

    def __init__(self, settings: RegexSettings) -> None:
        self._settings = settings

    def check(self, question: Question) -> None:
        pattern = self._pattern(question)
        try:
            regex.compile(pattern, regex.V0)
        except (regex.error, RecursionError, OverflowError) as error:
            raise DatasetError(f"{question.place}: {pattern!r} is not a regular expression: {error}") from error

    def score(self, question: Question, expert: str, answer: str) -> float | Unscored:
        del expert
        limit_seconds = self._settings.time_limit_seconds
        try:
            found = regex.search(self._pattern(question), answer, regex.V0, timeout=limit_seconds)
        except TimeoutError:
            return Unscored(f"the pattern took longer than {limit_seconds:g} s")
        except (regex.error, RecursionError, OverflowError, MemoryError) as error:
            return Unscored(f"the pattern failed: {error or type(error).__name__}")
        return float(found is not None)

    def parses(self, answer: str) -> bool:
        return bool(answer.strip())

    def _pattern(self, question: Question) -> str:
        pattern = self._settings.pattern or question.row.get(self._settings.column)
        if not isinstance(pattern, str) or not pattern:
            raise DatasetError(f"{question.place} has no {self._settings.column!r}, and scorer.pattern is not set")
        return pattern


def comparable(text: str, ignored: Collection[str]) -> str:
    """The text without the differences that do not count: case, whitespace, punctuation, articles."""
    text = unicodedata.normalize("NFC", text).strip()
    if "case" in ignored:
        text = text.casefold()
    if "punctuation" in ignored:
        text = "".join(letter for letter in text if not unicodedata.category(letter).startswith("P"))
    if "articles" in ignored:
        text = _ARTICLES.sub(" ", text)
    if "whitespace" in ignored or "articles" in ignored:
        text = " ".join(text.split())
    return text.strip()


def references(question: Question, column: str) -> list[str]:
    """The references in the prompt's row: one, or a list of alternatives. Raises DatasetError without one."""
    value = question.row.get(column)
    given = [one for one in (value if isinstance(value, list) else [value]) if not is_nothing(one)]
    found = [text for one in given if (text := as_text(one)).strip()]
    if not found:
        raise DatasetError(f"{question.place} has no {column!r}, the reference for answers")
    if any(isinstance(one, list | dict) for one in given):
        raise DatasetError(f"{question.place}: {column!r} {shown_value(value)} is neither a text nor a list of texts")
    return found


def last_number(text: str) -> float | None:
    """The last number in a text, None without one.

    `1,234.5`, `-3`, `.5`, `2e-3`; a comma stands between thousands, never before decimals. A sign that follows a
    letter or digit is none: `5-3` ends with 3. Digits within words (`H2O`) and version numbers (`1.2.3`) do not count.
    """
    found = None
    for found in _NUMBER.finditer(text):  # noqa: B007  the last one is what we want
        pass
    return float(found[0].replace(",", "").replace("\u2212", "-")) if found else None


def chosen_letter(text: str, letters: str) -> str | None:
    """The letter a multiple-choice answer settles on, None without one.

    In this order: the last "answer is X" or boxed X; an answer that begins with X and a delimiter, or is X alone; the
    last X in parentheses or in bold.
    """
    one_of = f"[{letters}]"
    for pattern in (_CUE, _BEGINNING, _MARKED):
        found = re.findall(pattern.format(letter=one_of), text)
        if found:
            return str(found[-1])
    alone = text.strip().strip("().*").upper()
    return alone if len(alone) == 1 and alone in letters else None


_NUMBER = re.compile(  # atomic groups and possessive quantifiers: no backtracking from a number to a shorter one
    r"(?<![A-Za-z0-9.])(?:(?<!\))[-+\u2212])?"
    r"(?:(?>[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]++)?+|\.[0-9]++)"
    r"(?:[eE][-+]?[0-9]{1,4}(?![0-9]))?+(?!\.[0-9])"
)
_ARTICLES = re.compile(r"\b(?:a|an|the)\b", re.IGNORECASE)

_OPENING = r"[\s:*_(\[{{\"'`$]{{0,20}}"
_CUE = (
    r"(?:(?i:\banswer|\bcorrect (?:option|choice|letter))(?i:\s{{1,3}}is)?|\\boxed|\\text)"
    + _OPENING
    + r"({letter})(?![A-Za-z0-9'])"
)
_BEGINNING = r"\A[\s*_(\[\"'`]{{0,20}}({letter})(?:[).:,\]*]|\s*\Z)"
_MARKED = r"(?:\(|\*\*|\n)({letter})(?:[).:]|\*\*|\n|\Z)"


OwnFunction = Callable[[Mapping[str, Any], str], float | None]  # (the prompt's row, the answer's text) -> score


class FunctionScorer:
    """The score of the user's function: 0 to 1, or None for no score."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._function = _imported(name)

    def check(self, question: Question) -> None:
        """Checks nothing: the function alone knows its requirements."""

    def score(self, question: Question, expert: str, answer: str) -> float | Unscored:
        """Raises DatasetError, naming the prompt, if the function raises or returns anything else."""
        try:
            score = self._function(question.row, answer)
        except Exception as error:  # the user's code ends here
            reason = f"{type(error).__name__}: {error}"
            raise DatasetError(f"{self._name} failed on {expert!r}, {question.prompt_id!r}: {reason}") from error
        if score is None:
            return Unscored(f"{self._name} gave none")
        if not isinstance(score, int | float) or not 0.0 <= score <= 1.0:
            raise DatasetError(
                f"{self._name} returned {score!r} for {expert!r}, {question.prompt_id!r}: not a number in [0, 1]"
            )
        return float(score)

    def parses(self, answer: str) -> bool:
        return bool(answer.strip())


def _imported(name: str) -> OwnFunction:
    module, _, attribute = name.partition(":")
    try:
        function: OwnFunction = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"scorer.function: {name} cannot be imported ({error}); its folder must be on PYTHONPATH"
        ) from error
    if not callable(function):
        raise ConfigError(f"scorer.function: {name} is not a function")
    return function
