"""How likely an expert's answer is right, from the log-probabilities of its first tokens. Pure.

Does not know how tokens are obtained, what an answer costs, or which expert would be next.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

FIRST_TOKENS = (1, 2, 4, 8, 16)  # the lengths that are calibrated, and WHOLE
WHOLE = 0  # the whole answer, instead of a number of first tokens
LEAST_LOGPROB = -100.0  # of one token: an engine may give -9999 or minus infinity for an impossible one
SURE = 1e-4  # a mean log-probability closer to 0 says no more: an engine rounds


@dataclass(frozen=True, slots=True)
class Curve:
    """A logistic function of the certainty of the first `tokens` tokens: larger certainty is never less likely right.

    With the router's expected score of the expert the logit is `intercept + certainty * x + score * expected`; without
    it `alone_intercept + alone_certainty * x`.
    """

    tokens: int
    intercept: float
    certainty: float
    score: float
    alone_intercept: float
    alone_certainty: float

    def probability(self, mean_logprob: float, expected: float | None) -> float:
        """P(right), in [0, 1]; `expected` None: the router says nothing of this prompt."""
        x = certainty(mean_logprob)
        if expected is None:
            return _logistic(self.alone_intercept + self.alone_certainty * x)
        return _logistic(self.intercept + self.certainty * x + self.score * expected)


@dataclass(frozen=True, slots=True)
class Instead:
    """Another expert's mean score where this one is right, and where it is wrong; in [0, 1]."""

    where_right: float
    where_wrong: float


@dataclass(frozen=True, slots=True)
class CertaintyModel:
    """One expert's curves, by number of tokens, each number once. There is at least one curve.

    `instead`: what the other experts score where this one is right and where it is wrong.
    """

    curves: tuple[Curve, ...]
    instead: Mapping[str, Instead] = field(default_factory=dict)

    def probability(self, logprobs: Sequence[float], expected: float | None, tokens: int = WHOLE) -> float:
        """P(right) of an answer whose tokens so far have these log-probabilities.

        `tokens`: how many first tokens to judge by; fewer `logprobs` are an answer that has ended. `expected`: the
        router's expected score, None outside the gate and without a router. An answer without tokens has probability 0.
        """
        if not logprobs:
            return 0.0
        curve = self.curve(tokens)
        return curve.probability(mean_of_first(logprobs, curve.tokens), expected)

    def expected_instead(self, other: str, right: float) -> float | None:
        """The other expert's expected score if this one's answer is right with this probability; None if unknown.

        For prompts of which the router says nothing: overall means cannot tell which expert knows what this one lacks.
        """
        found = self.instead.get(other)
        return None if found is None else right * found.where_right + (1.0 - right) * found.where_wrong

    def curve(self, tokens: int) -> Curve:
        """The calibrated curve for this many tokens: the longest that is not longer, else the shortest."""
        known = sorted(self.curves, key=lambda curve: curve.tokens or math.inf)
        if tokens == WHOLE:
            return known[-1]
        fitting = [curve for curve in known if WHOLE < curve.tokens <= tokens]
        return fitting[-1] if fitting else known[0]


@dataclass(frozen=True, slots=True)
class Handover:
    """An objective's rule: judge by the first `tokens` tokens, hand over if another is better by more than `margin`."""

    tokens: int
    margin: float

    def takes(self, first_value: float, second_value: float) -> bool:
        """True if the second expert takes the answer over.

        `first_value`: the first one's P(right) less its costs. `second_value`: the second one's expected score less
        its costs; the caller subtracts costs and waits in the objective's terms.
        """
        return second_value - first_value > self.margin


def certainty(mean_logprob: float) -> float:
    """A mean log-probability on the scale of the curves: evenly spread where experts differ, about -5 to 9."""
    return -math.log(SURE - min(mean_logprob, 0.0))


def mean_of_first(logprobs: Sequence[float], tokens: int) -> float:
    """The mean of the first `tokens` log-probabilities (WHOLE: of all), each at least LEAST_LOGPROB."""
    first = logprobs[:tokens] if tokens else logprobs
    return sum(max(one, LEAST_LOGPROB) for one in first) / len(first)


def judged_tokens(tokens: int) -> str:
    """What a handover judges an answer by, for a sentence."""
    if tokens == WHOLE:
        return "the whole answer"
    return "the first token" if tokens == 1 else f"the first {tokens} tokens"


def _logistic(logit: float) -> float:
    if logit >= 0.0:
        return 1.0 / (1.0 + math.exp(-min(logit, 700.0)))
    power = math.exp(max(logit, -700.0))
    return power / (1.0 + power)
