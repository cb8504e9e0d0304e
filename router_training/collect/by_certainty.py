"""The scorer `certainty`: scores an answer by the log-probabilities that its expert gave for it.

Prompts with a right answer keep the score of that, and calibrate the others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from coe_server.routing.certainty import WHOLE, Curve
from router_training.classifier.certainty import fitted_curve
from router_training.collect.recording import Answer, Answers, Question
from router_training.collect.scorers import Scorer, Unscored
from router_training.data.first_tokens import COLUMN_OF
from router_training.data.provenance import CERTAINTY

HEAD = "scored by certainty: a score says how sure the expert is of its own answer, not that it is right"
LEAST_LABELS = 20  # of an expert, with a right and a wrong answer among them, to calibrate it by its own
NO_LOGPROBS = "the expert gave no log-probabilities"


class CertaintyScorer:
    """Scores by the mean log-probability of the whole answer, calibrated on the prompts that `labels` can score.

    An expert with few of these is calibrated by those of all experts. Without any, a score is the mean probability of
    the answer's tokens (their geometric mean): it compares experts and is too high.
    """

    def __init__(
        self,
        labels: Scorer | None,
        column: str,
        answers: Answers,
        questions: Sequence[Question],
        experts: Sequence[str],
    ) -> None:
        self._labels = labels
        self._column = column
        self._answers = answers
        self._questions = questions
        self._experts = experts
        self._curves: Mapping[str, Curve] | None = None

    def check(self, question: Question) -> None:
        """Check the right answer of a prompt that has one."""
        if self._labels is not None and self._is_labelled(question):
            self._labels.check(question)

    def score(self, question: Question, expert: str, answer: str) -> float | Unscored:
        if self._labels is not None and self._is_labelled(question):
            return self._labels.score(question, expert, answer)
        recorded = self._answers.of(expert, question)
        mean = None if recorded is None else _mean(recorded)
        if mean is None:
            return Unscored(NO_LOGPROBS)
        curve = self.curves.get(expert)
        return math.exp(mean) if curve is None else curve.probability(mean, None)

    def parses(self, answer: str) -> bool:
        return bool(answer.strip())

    def scored_by(self, question: Question) -> str | None:
        """The mark of this prompt's outcomes: None where right answers scored them."""
        return None if self._labels is not None and self._is_labelled(question) else CERTAINTY

    @property
    def curves(self) -> Mapping[str, Curve]:
        """Expert -> its curve, computed once; empty without enough prompts with a right answer."""
        if self._curves is None:
            labelled = {name: self._labelled(name) for name in self._experts}
            everyone = [pair for pairs in labelled.values() for pair in pairs]
            curves = {}
            for name, own in labelled.items():
                pairs = own if _is_enough(own) else everyone
                if _is_enough(pairs):
                    curves[name] = _curve(pairs)
            self._curves = curves
        return self._curves

    def _is_labelled(self, question: Question) -> bool:
        value: Any = question.row.get(self._column)
        return value not in (None, "", [])

    def _labelled(self, expert: str) -> list[tuple[float, float]]:
        """(mean log-probability, score) of each answer to a prompt with a right answer."""
        pairs = []
        for question in self._questions if self._labels is not None else ():
            answer = self._answers.of(expert, question) if self._is_labelled(question) else None
            mean = None if answer is None else _mean(answer)
            if answer is None or mean is None or self._labels is None:
                continue
            score = self._labels.score(question, expert, self._answers.words(answer))
            if not isinstance(score, Unscored):
                pairs.append((mean, score))
        return pairs


def _mean(answer: Answer) -> float | None:
    value = (answer.certainty or {}).get(COLUMN_OF[WHOLE])
    return None if value is None else float(value)


def _is_enough(pairs: Sequence[tuple[float, float]]) -> bool:
    return len(pairs) >= LEAST_LABELS and len({score >= 0.5 for _, score in pairs}) > 1


def _curve(pairs: Sequence[tuple[float, float]]) -> Curve:
    means, scores = np.array(pairs).T
    return fitted_curve(WHOLE, means, np.full(len(means), np.nan), scores, np.ones(len(means)))
