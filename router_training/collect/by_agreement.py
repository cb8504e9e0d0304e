"""The scorer `consensus`: reads the recorded answers of all experts, and reports what their agreement says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

from coe_server.system.visible import visible
from router_training.collect.consensus import Agreement, agreement
from router_training.collect.recording import Answers, Question
from router_training.collect.scorers import Unscored, chosen_letter, comparable, last_number
from router_training.collect.settings import ConsensusSettings

UNREADABLE = "\0unreadable"
TOO_FEW = "fewer than two independent other experts agree"
HEAD = "scored by agreement: a score says that the other experts agree with an answer, not that it is right"
LEAST_PROMPTS = 10  # with a score, to name the best expert of a category
DEVIATIONS = 2.0  # that the best is ahead by


class ConsensusScorer:
    """Scores all answers at the first question, when every expert has been asked."""

    def __init__(
        self, settings: ConsensusSettings, answers: Answers, questions: Sequence[Question], experts: Sequence[str]
    ) -> None:
        self._settings = settings
        self._answers = answers
        self._questions = questions
        self._experts = experts
        self._found: Agreement | None = None
        self._rows = {question.prompt_id: row for row, question in enumerate(questions)}

    def check(self, question: Question) -> None:
        """Check nothing: a prompt needs no reference."""

    def score(self, question: Question, expert: str, answer: str) -> float | Unscored:
        del answer
        score = self.found.scores[self._rows[question.prompt_id], self._experts.index(expert)]
        return Unscored(TOO_FEW) if np.isnan(score) else float(score)

    def parses(self, answer: str) -> bool:
        return self._read(answer) is not None

    @property
    def found(self) -> Agreement:
        """The scores of all answers, computed once."""
        if self._found is None:
            given = {name: [self._given(name, one) for one in self._questions] for name in self._experts}
            self._found = agreement(given, self.categories, list(self._settings.families.values()))
        return self._found

    @property
    def categories(self) -> list[str]:
        """[prompts]: the prompt's category, "" without one."""
        return [str(question.row.get("category") or "") for question in self._questions]

    def _given(self, expert: str, question: Question) -> str | None:
        answer = self._answers.of(expert, question)
        if answer is None:
            return None
        read = self._read(self._answers.words(answer))
        return f"{UNREADABLE} {expert}" if read is None else read  # equal to no other expert's

    def _read(self, text: str) -> str | None:
        """The part of an answer that is compared."""
        match self._settings.compare:
            case "number":
                number = last_number(text)
                return None if number is None else repr(number)
            case "choice":
                return chosen_letter(text, self._settings.letters)
            case "text":
                return comparable(text, self._settings.ignore) or None

    def findings(self) -> Findings:
        """What the agreement says of each category."""
        return findings(self.found, self.categories, self._experts)


@dataclass(frozen=True, slots=True)
class CategoryFinding:
    """`means` and `counts`: expert -> mean score, None where unknown, and prompts. `best` is None where unknown."""

    name: str
    prompts: int
    means: dict[str, float | None]
    counts: dict[str, int]
    best: str | None


@dataclass(frozen=True, slots=True)
class Findings:
    """The families, with those found by shared errors, and each category."""

    agreement: Agreement
    categories: tuple[CategoryFinding, ...]


def findings(found: Agreement, categories: Sequence[str], experts: Sequence[str]) -> Findings:
    """The table of an agreement."""
    kinds = np.array(categories, dtype=np.str_)
    rows = (_finding(str(name), found.scores[kinds == name], experts) for name in np.unique(kinds))
    return Findings(found, tuple(rows))


def _finding(name: str, scores: npt.NDArray[np.float64], experts: Sequence[str]) -> CategoryFinding:
    known = ~np.isnan(scores)
    counts = known.sum(axis=0)
    sums = np.where(known, scores, 0.0).sum(axis=0)
    means = [float(total / count) if count else None for total, count in zip(sums, counts, strict=True)]
    return CategoryFinding(
        name,
        len(scores),
        dict(zip(experts, means, strict=True)),
        dict(zip(experts, counts.tolist(), strict=True)),
        _best(scores, means, experts),
    )


def _best(scores: npt.NDArray[np.float64], means: Sequence[float | None], experts: Sequence[str]) -> str | None:
    """The expert certainly ahead of every other one; None where one is unknown: it may be better."""
    if None in means:
        return None
    best = int(np.argmax(np.array(means, dtype=np.float64)))
    for other in range(len(experts)):
        differences = (scores[:, best] - scores[:, other])[~np.isnan(scores[:, best] + scores[:, other])]
        if other == best:
            continue
        if len(differences) < LEAST_PROMPTS:
            return None
        error = float(differences.std(ddof=1) / np.sqrt(len(differences)))
        if differences.mean() <= DEVIATIONS * error:
            return None
    return experts[best]


def show_findings(findings: Findings, console: Console) -> None:
    """Print the head, the table of categories and experts, and the families."""
    console.print(HEAD, style="yellow", markup=False)
    experts = list(findings.categories[0].means)
    table = Table("category", "prompts", *(visible(name) for name in experts), "clearly best")
    for row in findings.categories:
        cells = (_cell(row.means[name], row.counts[name]) for name in experts)
        table.add_row(visible(row.name or "(none)"), str(row.prompts), *cells, visible(row.best or "unknown"))
    console.print(table)
    for family in findings.agreement.families:
        if len(family) > 1:
            console.print(visible(f"one vote: {', '.join(family)}"), markup=False)
    for pair in findings.agreement.found:
        one, other = pair.experts
        console.print(
            visible(
                f"{one} and {other} gave the same wrong answer to {pair.same} of the {pair.wrong} prompts that both got"
                f" wrong; other pairs to {pair.chance:.0%}"
            ),
            markup=False,
        )


def _cell(mean: float | None, count: int) -> str:
    return "unknown" if mean is None else f"{mean:.2f} ({count})"
