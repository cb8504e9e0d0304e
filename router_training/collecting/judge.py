"""The LLM judge as a scorer: what it is to be asked about an answer, and what its verdicts make of it.

Does not ask; `asking.py` does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean

from router_training.collecting.answers import Answers
from router_training.collecting.questions import Message, Question
from router_training.collecting.recording import Recording
from router_training.collecting.scorers import Unscored, references
from router_training.collecting.settings import JudgeSettings
from router_training.collecting.targets import Target
from router_training.collecting.verdicts import (
    ALONE,
    EXPERT_FIRST,
    ORDERS,
    REFERENCE_FIRST,
    Mode,
    read_template,
    score_of,
    token_for,
)

EVEN = 0.5


@dataclass(frozen=True, slots=True)
class Case:
    """One request to the judge about one answer. `asked` is its fingerprint."""

    prompt_id: str
    expert: str
    order: str
    mode: Mode
    prompt: str
    token: str
    asked: str

    @property
    def messages(self) -> tuple[Message, ...]:
        return ({"role": "user", "content": self.prompt},)


class Judge:
    """Scores answers by recorded verdicts: against the reference expert in both orders, or by a grade."""

    def __init__(
        self, settings: JudgeSettings, target: Target, answers: Answers, recording: Recording, column: str
    ) -> None:
        self._mode: Mode = settings.mode
        self._reference_expert = settings.reference_expert
        self._template = read_template(settings.mode, settings.template)
        self.target = target
        self._answers = answers
        self._recording = recording
        self._column = column

    @property
    def requests_each(self) -> int:
        """To the judge, for one answer."""
        return len(ORDERS[self._mode])

    def check(self, question: Question) -> None:
        if "reference" in self._template.places:
            references(question, self._column)

    def score(self, question: Question, expert: str, answer: str) -> float | Unscored:
        if expert == self._reference_expert:
            return EVEN
        if self._reference_expert is not None:
            rival = self._words_of(self._reference_expert, question)
            if rival is None:
                return Unscored("the reference expert has no answer", may_change=True)
            if rival == answer:
                return EVEN
        scores = []
        for case in self.cases(question, expert):
            verdict = self._recording.verdict(case.prompt_id, expert, case.order, case.asked)
            if verdict is None:
                return Unscored("the judge did not answer", may_change=True)
            if verdict.said is None:
                return Unscored("the judge's verdict was unreadable")
            scores.append(score_of(case.order, verdict.said))
        return fmean(scores)

    def cases(self, question: Question, expert: str) -> list[Case]:
        """What the judge has to be asked about this expert's answer; nothing if the score is plain without it."""
        answer = self._words_of(expert, question)
        if answer is None or expert == self._reference_expert:
            return []
        if self._reference_expert is None:
            return [self._case(question, expert, ALONE, {"answer": answer})]
        rival = self._words_of(self._reference_expert, question)
        if rival is None or rival == answer:
            return []
        shown = {
            EXPERT_FIRST: {"answer_a": answer, "answer_b": rival},
            REFERENCE_FIRST: {"answer_a": rival, "answer_b": answer},
        }
        return [self._case(question, expert, order, answers) for order, answers in shown.items()]

    def is_decided(self, case: Case) -> bool:
        """Whether there is a verdict. An unreadable one counts: asking again would hardly change it."""
        return self._recording.verdict(case.prompt_id, case.expert, case.order, case.asked) is not None

    def awaits_answers(self, question: Question, expert: str) -> bool:
        """Whether `cases` may give more once the experts have answered."""
        compared = {expert, self._reference_expert or expert}
        return expert != self._reference_expert and any(self._words_of(name, question) is None for name in compared)

    def _case(self, question: Question, expert: str, order: str, answers: Mapping[str, str]) -> Case:
        values = {"question": question.text, **answers}
        if "reference" in self._template.places:
            values["reference"] = " or ".join(references(question, self._column))
        token = token_for(values.values())
        prompt = self._template.filled({**values, "token": token})
        asked = self.target.asked([{"role": "user", "content": prompt}])
        return Case(question.prompt_id, expert, order, self._mode, prompt, token, asked)

    def _words_of(self, expert: str, question: Question) -> str | None:
        answer = self._answers.of(expert, question)
        return None if answer is None else self._answers.words(answer)
