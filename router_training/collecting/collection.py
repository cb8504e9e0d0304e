"""Prompts, experts, a scorer and a recording, joined: what is still to be asked, and what the answers are worth."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from router_training.collecting.answers import Answers
from router_training.collecting.asking import Asker
from router_training.collecting.bars import Bars
from router_training.collecting.judge import Case, Judge
from router_training.collecting.outcomes import Outcome
from router_training.collecting.own_function import FunctionScorer
from router_training.collecting.patterns import PatternWorker, RegexScorer
from router_training.collecting.questions import Question, read_questions
from router_training.collecting.recording import Recording
from router_training.collecting.scorers import ChoiceScorer, ExactScorer, NumericScorer, Scorer, Unscored
from router_training.collecting.settings import (
    ChoiceSettings,
    CollectConfig,
    ExactSettings,
    FunctionSettings,
    JudgeSettings,
    NumericSettings,
    RegexSettings,
)
from router_training.collecting.tally import ExpertTally, Tally
from router_training.collecting.targets import Target, expert_targets, judge_target
from router_training.progress import Track


@dataclass(frozen=True, slots=True)
class Step:
    """All requests to one target: `recorded` already, `to_send` still (for a judge: at most)."""

    target: Target
    recorded: int
    to_send: int


@dataclass(frozen=True, slots=True)
class Collection:
    """Made by `prepare`. `judge` is None unless the scorer is one."""

    config: CollectConfig
    questions: tuple[Question, ...]
    targets: tuple[Target, ...]
    recording: Recording
    answers: Answers
    scorer: Scorer
    judge: Judge | None

    def steps(self) -> list[Step]:
        """In the order in which they are taken."""
        steps = []
        for target in self.targets:
            to_send = len(self._unanswered(target))
            steps.append(Step(target, len(self.questions) - to_send, to_send))
        return [*steps, *self.judging()]

    def judging(self) -> list[Step]:
        """The last step alone; none unless the scorer is a judge."""
        if self.judge is None:
            return []
        recorded = to_send = 0
        for question, expert in self._pairs():
            decided = [self.judge.is_decided(case) for case in self.judge.cases(question, expert)]
            recorded += sum(decided)
            to_come = self.judge.requests_each if self.judge.awaits_answers(question, expert) else 0
            to_send += len(decided) - sum(decided) + to_come
        return [Step(self.judge.target, recorded, to_send)]

    async def ask_expert(self, target: Target, bars: Bars) -> None:
        """Send the expert what it has not answered yet."""
        if unanswered := self._unanswered(target):
            await self._asker(bars).ask_expert(target, target.endpoint(self.config.request), unanswered)

    async def ask_judge(self, bars: Bars) -> None:
        """Send the judge what it has not decided yet."""
        if self.judge is not None:
            target = self.judge.target
            cases = self._open_cases(self.judge)
            await self._asker(bars).ask_judge(target, target.endpoint(self.config.request), cases)

    def scored(self, track: Track) -> Tally:
        """Every answer's score, and a reason where there is none."""
        tallies = {target.name: ExpertTally() for target in self.targets}
        for expert, tally in tallies.items():
            for question in track(self.questions, f"scoring {expert}"):
                self._score(question, expert, tally)
        return Tally(tallies)

    def _score(self, question: Question, expert: str, tally: ExpertTally) -> None:
        answer = self.answers.of(expert, question)
        if answer is None:
            failure = self.answers.failure_of(expert, question)
            tally.add_missing(Unscored(failure.reason if failure else "not asked", may_change=True))
            return
        tally.add_answer(answer)
        score = self.scorer.score(question, expert, self.answers.words(answer))
        if isinstance(score, Unscored):
            tally.add_missing(score)
        else:
            tally.outcomes.append(Outcome(question.prompt_id, expert, score, answer.output_tokens))

    def _unanswered(self, target: Target) -> list[Question]:
        return [question for question in self.questions if self.answers.of(target.name, question) is None]

    def _open_cases(self, judge: Judge) -> Iterator[Case]:
        """One at a time: all prompts to the judge together may be many times the answers."""
        for question, expert in self._pairs():
            yield from (case for case in judge.cases(question, expert) if not judge.is_decided(case))

    def _pairs(self) -> Iterator[tuple[Question, str]]:
        """Every question with every expert's name."""
        return ((question, target.name) for target in self.targets for question in self.questions)

    def _asker(self, bars: Bars) -> Asker:
        return Asker(self.recording, self.config.request.concurrency, bars)


def prepare(config: CollectConfig, prompts: Sequence[Path], raw: Path, worker: PatternWorker) -> Collection:
    """Everything read and checked: prompts, references, templates, keys. Raises ConfigError or DatasetError."""
    questions, targets, recording = read_questions(prompts), expert_targets(config), Recording(raw)
    answers = Answers(recording, targets, config.answer_after)
    scorer = _scorer(config, answers, recording, worker)
    judge = scorer if isinstance(scorer, Judge) else None
    for question in questions:
        scorer.check(question)
    for target in (*targets, *([judge.target] if judge else [])):
        target.endpoint(config.request)
    return Collection(config, questions, targets, recording, answers, scorer, judge)


def _scorer(config: CollectConfig, answers: Answers, recording: Recording, worker: PatternWorker) -> Scorer:
    match config.scorer:
        case ExactSettings() as settings:
            return ExactScorer(settings, config.answer_column)
        case NumericSettings() as settings:
            return NumericScorer(settings, config.answer_column)
        case ChoiceSettings() as settings:
            return ChoiceScorer(settings, config.answer_column)
        case RegexSettings() as settings:
            return RegexScorer(settings, worker)
        case FunctionSettings() as settings:
            return FunctionScorer(settings.function)
        case JudgeSettings() as settings:
            target = judge_target(config, settings)
            return Judge(settings, target, answers, recording, config.answer_column)
