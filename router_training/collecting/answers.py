"""The answers that count: those to the words, model and options of this run, as far as they are recorded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from router_training.collecting.questions import Question
from router_training.collecting.recording import Answer, Failure, Recording
from router_training.collecting.targets import Target


class Answers:
    """Looks answers up in a recording."""

    def __init__(self, recording: Recording, targets: Sequence[Target], answer_after: str | None) -> None:
        self._recording = recording
        self._targets: Mapping[str, Target] = {target.name: target for target in targets}
        self._answer_after = answer_after

    def of(self, expert: str, question: Question) -> Answer | None:
        """The expert's answer; None if it was not asked or failed."""
        asked = self._targets[expert].asked(question.messages)
        return self._recording.answer(question.prompt_id, expert, asked)

    def failure_of(self, expert: str, question: Question) -> Failure | None:
        """How the expert failed; None if it answered or was not asked."""
        asked = self._targets[expert].asked(question.messages)
        return self._recording.failure(question.prompt_id, expert, None, asked)

    def words(self, answer: Answer) -> str:
        """What is scored: the text after the last `answer_after`, or all of it where that does not occur."""
        return answer.text.rpartition(self._answer_after)[2] if self._answer_after else answer.text
