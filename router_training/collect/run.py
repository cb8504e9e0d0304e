"""`coe-train collect`: every prompt to every expert, every answer recorded and scored. The story of a collection."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from coe_server.errors import DatasetError
from coe_server.system.files import require_writable_folder
from router_training import Track
from router_training.collect.asking import Asker
from router_training.collect.bars import Bars
from router_training.collect.by_agreement import ConsensusScorer
from router_training.collect.by_certainty import HEAD as CERTAINTY_HEAD
from router_training.collect.by_certainty import CertaintyScorer
from router_training.collect.endpoint import endpoint_to
from router_training.collect.faults import fault_of
from router_training.collect.judge import Case, Judge
from router_training.collect.progress import ExpertTally, Outcome, Step, Tally, refuse_unknown_format, write_outcomes
from router_training.collect.recording import Answers, Question, Recording, read_questions
from router_training.collect.scorers import (
    ChoiceScorer,
    ExactScorer,
    FunctionScorer,
    NumericScorer,
    RegexScorer,
    Scorer,
    Unscored,
)
from router_training.collect.settings import (
    CertaintySettings,
    ChoiceSettings,
    CollectConfig,
    ConsensusSettings,
    ExactSettings,
    FunctionSettings,
    JudgeSettings,
    NumericSettings,
    RegexSettings,
    SingleSettings,
    Target,
    expert_targets,
    judge_target,
)
from router_training.data.provenance import AGREEMENT


@dataclass(frozen=True, slots=True)
class Files:
    """`prompts` are read; every answer and verdict is appended to `raw`; `out` is derived from it."""

    prompts: tuple[Path, ...]
    out: Path
    raw: Path

    @classmethod
    def of(cls, prompts: Sequence[Path], out: Path, raw: Path | None) -> Files:
        """`raw` defaults to outcomes.raw.jsonl beside outcomes.jsonl."""
        return cls(tuple(prompts), out, raw or out.with_name(f"{out.stem}.raw.jsonl"))


def collect(config: CollectConfig, files: Files, bars: Bars, track: Track, *, rescore: bool = False) -> Tally:
    """Request missing answers, record them, score everything, write the outcomes.

    With `rescore` experts get no requests. Raises ConfigError or DatasetError before anything is sent.
    """
    _refuse_places(files)
    collection = prepare(config, files.prompts, files.raw)
    if rescore and not len(collection.recording):
        raise DatasetError(f"{files.raw}: no recorded answers to score")
    with collection.recording.open():
        asyncio.run(_ask(collection, bars, experts_too=not rescore))
        tally = collection.scored(track)
    if tally.outcomes:
        write_outcomes(files.out, tally.outcomes)
    return tally


def plan(config: CollectConfig, files: Files) -> list[Step]:
    """The requests that `collect` would send, after the same checks. Sends and writes nothing."""
    _refuse_places(files)
    return prepare(config, files.prompts, files.raw).steps()


def _refuse_places(files: Files) -> None:
    """Refuse output paths that are also inputs, and an outcomes path that cannot be written."""
    refuse_unknown_format(files.out)
    require_writable_folder("--out", files.out.parent)
    if files.out.is_dir():
        raise DatasetError(f"--out: {files.out} is a folder; name a file")
    used = [path.resolve() for path in (*files.prompts, files.out, files.raw)]
    for path in files.out, files.raw:
        if used.count(path.resolve()) > 1:
            raise DatasetError(f"{path}: prompts, outcomes and raw answers need separate files")


async def _ask(collection: Collection, bars: Bars, experts_too: bool) -> None:
    """Query one expert after the other, so that each is loaded once; then the judge, which may be one of them."""
    if experts_too:
        bars.plan({step.target.name: step.to_send for step in collection.steps()})
        for target in collection.targets:
            await collection.ask_expert(target, bars)
    bars.plan({step.target.name: step.to_send for step in collection.judging()})
    await collection.ask_judge(bars)


@dataclass(frozen=True, slots=True)
class Collection:
    """Everything a run needs, made by `prepare`. `judge` is None unless the scorer is a judge."""

    config: CollectConfig
    questions: tuple[Question, ...]
    targets: tuple[Target, ...]
    recording: Recording
    answers: Answers
    scorer: Scorer
    judge: Judge | None

    def steps(self) -> list[Step]:
        """All steps in the order of execution."""
        steps = []
        for target in self.targets:
            to_send = len(self._unanswered(target))
            steps.append(Step(target, len(self.questions) - to_send, to_send))
        return [*steps, *self.judging()]

    def judging(self) -> list[Step]:
        """The judge's step; empty unless the scorer is a judge."""
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
        """Send the expert every prompt without a recorded answer."""
        if unanswered := self._unanswered(target):
            await self._asker(bars).ask_expert(
                target, endpoint_to(target, self.config.request, logprobs=True), unanswered
            )

    async def ask_judge(self, bars: Bars) -> None:
        """Send the judge every case without a recorded verdict."""
        if self.judge is not None:
            target = self.judge.target
            cases = self._open_cases(self.judge)
            await self._asker(bars).ask_judge(target, endpoint_to(target, self.config.request), cases)

    def scored(self, track: Track) -> Tally:
        """The score of every answer, or the reason for a missing one."""
        tallies = {target.name: ExpertTally() for target in self.targets}
        for expert, tally in tallies.items():
            for question in track(self.questions, f"scoring {expert}"):
                self._score(question, expert, tally)
        findings = self.scorer.findings() if isinstance(self.scorer, ConsensusScorer) else None
        note = CERTAINTY_HEAD if isinstance(self.scorer, CertaintyScorer) else None
        return Tally(tallies, findings, note)

    def _score(self, question: Question, expert: str, tally: ExpertTally) -> None:
        answer = self.answers.of(expert, question)
        if answer is None:
            failure = self.answers.failure_of(expert, question)
            tally.add_missing(Unscored(failure.reason if failure else "not asked", may_change=True))
            return
        tally.add_answer(answer)
        words = self.answers.words(answer)
        fault = fault_of(answer.finish_reason, words, parses=self.scorer.parses(words))
        tally.add_fault(fault)
        score = self.scorer.score(question, expert, words)
        if isinstance(score, Unscored):
            tally.add_missing(score)
        else:
            by = _scored_by(self.scorer, question)
            tally.outcomes.append(
                Outcome(question.prompt_id, expert, score, answer.output_tokens, by, fault, answer.certainty)
            )

    def _unanswered(self, target: Target) -> list[Question]:
        return [question for question in self.questions if self.answers.of(target.name, question) is None]

    def _open_cases(self, judge: Judge) -> Iterator[Case]:
        """Lazy: all prompts to the judge together may be much larger than the answers."""
        for question, expert in self._pairs():
            yield from (case for case in judge.cases(question, expert) if not judge.is_decided(case))

    def _pairs(self) -> Iterator[tuple[Question, str]]:
        """Every question with every expert's name."""
        return ((question, target.name) for target in self.targets for question in self.questions)

    def _asker(self, bars: Bars) -> Asker:
        return Asker(self.recording, self.config.request.concurrency, bars)


def prepare(config: CollectConfig, prompts: Sequence[Path], raw: Path) -> Collection:
    """Read and check prompts, references, templates and keys. Raises ConfigError or DatasetError."""
    questions, targets, recording = read_questions(prompts), expert_targets(config), Recording(raw)
    answers = Answers(recording, targets, config.answer_after)
    scorer = _scorer(config, answers, recording, questions)
    judge = scorer if isinstance(scorer, Judge) else None
    for question in questions:
        scorer.check(question)
    for target in (*targets, *([judge.target] if judge else [])):
        endpoint_to(target, config.request)
    return Collection(config, questions, targets, recording, answers, scorer, judge)


def _scorer(config: CollectConfig, answers: Answers, recording: Recording, questions: Sequence[Question]) -> Scorer:
    match config.scorer:
        case JudgeSettings() as settings:
            target = judge_target(config, settings)
            return Judge(settings, target, answers, recording, config.answer_column)
        case ConsensusSettings() as settings:
            return ConsensusScorer(settings, answers, questions, config.expert_names)
        case CertaintySettings() as settings:
            labels = None if settings.labels is None else _single_scorer(settings.labels, config.answer_column)
            return CertaintyScorer(labels, config.answer_column, answers, questions, config.expert_names)
        case settings:
            return _single_scorer(settings, config.answer_column)


def _scored_by(scorer: Scorer, question: Question) -> str | None:
    """The mark of weak scores."""
    match scorer:
        case ConsensusScorer():
            return AGREEMENT
        case CertaintyScorer():
            return scorer.scored_by(question)
        case _:
            return None


def _single_scorer(settings: SingleSettings, column: str) -> Scorer:
    """The scorer of one answer by itself."""
    match settings:
        case ExactSettings():
            return ExactScorer(settings, column)
        case NumericSettings():
            return NumericScorer(settings, column)
        case ChoiceSettings():
            return ChoiceScorer(settings, column)
        case RegexSettings():
            return RegexScorer(settings)
        case FunctionSettings():
            return FunctionScorer(settings.function)
