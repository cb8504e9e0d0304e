"""What is kept of an answer's log-probabilities: their mean, the least, and the means of the first few tokens.

Does not know endpoints or files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import numpy as np
import numpy.typing as npt

from coe_server.routing.certainty import FIRST_TOKENS, LEAST_LOGPROB, WHOLE, mean_of_first

Ints = npt.NDArray[np.int64]
Vector = npt.NDArray[np.float64]

LENGTHS = (WHOLE, *FIRST_TOKENS)  # the order of the last axis of `FirstTokens.means`
COLUMN_OF = {WHOLE: "logprob_mean", **{tokens: f"logprob_first_{tokens}" for tokens in FIRST_TOKENS}}
LEAST, COUNT = "logprob_least", "logprob_tokens"
COLUMNS = (*COLUMN_OF.values(), LEAST, COUNT)


def summary(logprobs: Sequence[float]) -> dict[str, float | int]:
    """The columns of an answer with these log-probabilities; none without any."""
    if not logprobs:
        return {}
    means = {column: round(min(mean_of_first(logprobs, tokens), 0.0), 6) for tokens, column in COLUMN_OF.items()}
    return {**means, LEAST: round(min(max(min(logprobs), LEAST_LOGPROB), 0.0), 6), COUNT: len(logprobs)}


@dataclass(frozen=True, slots=True)
class FirstTokens:
    """Of n prompts and their experts' answers, NaN where not recorded.

    `means` [n, experts, LENGTHS] of log-probabilities; `tokens` [n, experts] written.
    """

    means: Vector
    tokens: Vector

    @classmethod
    def empty(cls, prompts: int, experts: int) -> FirstTokens:
        """Nothing recorded."""
        return cls(np.full((prompts, experts, len(LENGTHS)), np.nan), np.full((prompts, experts), np.nan))

    def rows(self, kept: Ints) -> FirstTokens:
        """Of the prompts with these row numbers."""
        return FirstTokens(self.means[kept], self.tokens[kept])

    def joined(self, other: FirstTokens) -> FirstTokens:
        """Of both data sets, this one's prompts first."""
        return FirstTokens(np.concatenate((self.means, other.means)), np.concatenate((self.tokens, other.tokens)))

    def of(self, tokens: int) -> Vector:
        """[n, experts]: the means of the first `tokens` (WHOLE: all)."""
        return np.asarray(self.means[:, :, LENGTHS.index(tokens)])

    @property
    def recorded(self) -> npt.NDArray[np.bool_]:
        """[n, experts]: True where log-probabilities are known."""
        return np.asarray(~np.isnan(self.means).any(axis=2))

    def note(self, row: int, expert: int, outcome: Mapping[str, Any]) -> str | None:
        """Take the columns of an outcome. Returns the first column that is no log-probability; None if all are.

        A count that is no number is unknown.
        """
        counts = (_number(outcome.get(column)) for column in (COUNT, "output_tokens"))
        self.tokens[row, expert] = next((count for count in counts if count is not None and count >= 0.0), np.nan)
        for place, tokens in enumerate(LENGTHS):
            if (value := outcome.get(COLUMN_OF[tokens])) is None:
                continue
            found = _number(value)
            if found is None or found > 0.0:
                return COLUMN_OF[tokens]
            self.means[row, expert, place] = max(found, LEAST_LOGPROB)
        return None


def _number(value: object) -> float | None:
    """None also for an integer beyond all floats."""
    try:
        return float(value) if isinstance(value, int | float | Decimal) and not isinstance(value, bool) else None
    except (OverflowError, ValueError):  # the latter for a signalling NaN
        return None
