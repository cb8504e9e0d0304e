"""The LLM judge as a scorer: its prompts, verdicts and scores. Sends no requests.

Nothing in a question, an answer or a reference can be read as a verdict, because a verdict carries a token that
occurs in none of them. An answer may still persuade the judge; judging in both orders halves the harm of "choose A".
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from statistics import fmean
from typing import Literal

from coe_server.errors import ConfigError
from router_training.collect.recording import Answers, Question, Recording
from router_training.collect.scorers import Unscored, references
from router_training.collect.settings import JudgeSettings, Message, Target

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
        """The request to the judge about one answer."""
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

    def parses(self, answer: str) -> bool:
        return bool(answer.strip())

    def cases(self, question: Question, expert: str) -> list[Case]:
        """The requests to the judge about this expert's answer; none if the score is known without them."""
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
        """True if there is a verdict. An unreadable one counts: a repeated request would hardly change it."""
        return self._recording.verdict(case.prompt_id, case.expert, case.order, case.asked) is not None

    def awaits_answers(self, question: Question, expert: str) -> bool:
        """True if `cases` may return more once more experts have answered."""
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


Mode = Literal["pairwise", "grade"]

EXPERT_FIRST, REFERENCE_FIRST, ALONE = "expert_first", "reference_first", "alone"
ORDERS: Mapping[Mode, tuple[str, ...]] = {"pairwise": (EXPERT_FIRST, REFERENCE_FIRST), "grade": (ALONE,)}
REQUIRED: Mapping[Mode, frozenset[str]] = {
    "pairwise": frozenset(("question", "answer_a", "answer_b", "token")),
    "grade": frozenset(("question", "answer", "token")),
}
OPTIONAL = frozenset(("reference",))  # the prompt's right answer, from `answer_column`
_SAID: Mapping[Mode, str] = {"pairwise": r"VERDICT {token}: (A|B|TIE)", "grade": r"GRADE {token}: (10|[1-9])"}
_PLACE = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True, slots=True)
class Template:
    """A judge's prompt with places to fill: {question}, {answer} or {answer_a} and {answer_b}, {reference}, {token}."""

    mode: Mode
    text: str

    @property
    def places(self) -> frozenset[str]:
        return frozenset(_PLACE.findall(self.text)) & (REQUIRED[self.mode] | OPTIONAL)

    def filled(self, values: Mapping[str, str]) -> str:
        """The template with every placeholder replaced once. A `{token}` inside an inserted text stays."""
        places = self.places
        return _PLACE.sub(lambda place: values[place[1]] if place[1] in places else place[0], self.text)


def read_template(mode: Mode, path: Path | None) -> Template:
    """The template in a file, or the built-in one. Raises ConfigError if a required placeholder is missing."""
    shipped = resources.files("router_training.collect").joinpath("templates", f"{mode}.txt")
    try:
        text = shipped.read_text(encoding="utf-8") if path is None else path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"scorer.template: {path} cannot be read: {error}") from error
    template = Template(mode, text)
    missing = REQUIRED[mode] - template.places
    if missing:
        raise ConfigError(f"scorer.template: {path} lacks {', '.join(f'{{{place}}}' for place in sorted(missing))}")
    return template


def token_for(texts: Iterable[str]) -> str:
    """Six hexadecimal digits that occur in none of the texts; the same texts give the same token."""
    texts = tuple(texts)
    digits = hashlib.sha256("\0".join(texts).encode("utf-8", "surrogatepass")).hexdigest()
    while any(digits[:6] in text.lower() for text in texts):
        digits = hashlib.sha256(digits.encode()).hexdigest()
    return digits[:6]


def read_verdict(mode: Mode, token: str, reply: str) -> str | None:
    """ "A", "B", "TIE" or a grade's digits; None unless the last line is a verdict and no other line contradicts it.

    Around the verdict only blanks and Markdown's `*`, `_` and backticks are allowed.
    """
    verdict = re.compile(r"[\s*_`]*" + _SAID[mode].format(token=re.escape(token)) + r"[\s*_`]*", re.IGNORECASE)
    lines = [line for line in reply.splitlines() if line.strip()]
    found = [match[1].upper() for line in lines if (match := verdict.fullmatch(line))]
    ends_with_one = bool(lines) and verdict.fullmatch(lines[-1]) is not None
    return found[-1] if ends_with_one and len(set(found)) == 1 else None


def reminder(mode: Mode, token: str) -> str:
    """The follow-up message after a reply without a verdict, sent once."""
    form = f"GRADE {token}: <1 to 10>" if mode == "grade" else f"VERDICT {token}: <A, B or TIE>"
    return f"Your reply did not end with a verdict in the form asked for. Reply with that line only: {form}"


def score_of(order: str, said: str) -> float:
    """The score of the expert's answer: 1, 0.5 or 0 against the reference, or a grade mapped from 1-10 to [0, 1]."""
    if order == ALONE:
        return (int(said) - 1) / 9
    if said == "TIE":
        return 0.5
    return float((said == "A") == (order == EXPERT_FIRST))
