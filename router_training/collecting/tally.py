"""What a collection came to, expert by expert. Missing outcomes are counted by their reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from router_training.collecting.outcomes import Outcome
from router_training.collecting.recording import Answer
from router_training.collecting.scorers import Unscored

REASONS_SHOWN = 3
CUT_SHORT = "length"  # the finish_reason of an answer that reached max_tokens


@dataclass(slots=True)
class ExpertTally:
    """One expert's outcomes, and the reasons for those that are missing: `open` ones may come if asked again."""

    outcomes: list[Outcome] = field(default_factory=list)
    open: Counter[str] = field(default_factory=Counter)
    closed: Counter[str] = field(default_factory=Counter)
    answers: int = 0
    output_tokens: int = 0
    seconds: float = 0.0
    cut_short: int = 0

    def add_answer(self, answer: Answer) -> None:
        """Counts what the answer cost, whatever its score."""
        self.answers += 1
        self.output_tokens += answer.output_tokens or 0
        self.seconds += answer.seconds
        self.cut_short += answer.finish_reason == CUT_SHORT

    def add_missing(self, why: Unscored) -> None:
        """Counts an outcome that is not there."""
        (self.open if why.may_change else self.closed)[why.reason] += 1

    @property
    def missing(self) -> int:
        """How many outcomes are not there."""
        return self.open.total() + self.closed.total()

    @property
    def mean_score(self) -> float | None:
        """Over the prompts that have a score."""
        return fmean(outcome.score for outcome in self.outcomes) if self.outcomes else None


@dataclass(frozen=True, slots=True)
class Tally:
    """All experts, in the config's order."""

    by_expert: Mapping[str, ExpertTally]

    @property
    def outcomes(self) -> Sequence[Outcome]:
        return [outcome for tally in self.by_expert.values() for outcome in tally.outcomes]

    @property
    def may_grow(self) -> bool:
        """Whether the same command again could bring more outcomes."""
        return any(tally.open for tally in self.by_expert.values())

    @property
    def problems(self) -> list[str]:
        """A sentence for each of an expert's commonest reasons why outcomes are missing."""
        return [
            f"{expert}: {count:,} without an outcome: {reason}"
            for expert, tally in self.by_expert.items()
            for reason, count in (tally.open + tally.closed).most_common(REASONS_SHOWN)
        ]
