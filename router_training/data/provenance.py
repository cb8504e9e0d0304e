"""Where prompts and outcomes come from: prompts written by an expert, scores by agreement or certainty, answers
without content.

Such prompts are never held out, and such scores measure nothing where there are others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

AGREEMENT = "agreement"  # `scored_by` of an outcome that other experts' answers scored
CERTAINTY = "certainty"  # of an outcome that the expert's own log-probabilities scored
BY_AGREEMENT_ALONE = "scored by agreement alone: measure it with right answers, a judge or ratings"
SCORED_BY_AGREEMENT = "scored by agreement: the figures count how often experts agree, not who is right"
WEAK = frozenset((AGREEMENT, CERTAINTY))  # such scores measure nothing where there are others
ALONE = {
    AGREEMENT: BY_AGREEMENT_ALONE,
    CERTAINTY: "scored by the experts' own certainty alone: measure it with right answers, a judge or ratings",
}
SCORED_BY = {
    AGREEMENT: SCORED_BY_AGREEMENT,
    CERTAINTY: "scored by certainty: the figures say how sure experts are of their own answers, not who is right",
}
Fault = Literal["truncated", "refused", "unparsed"]
FAULTS: tuple[Fault, ...] = get_args(Fault)

Flags = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Provenance:
    """`writers` [n]: the expert that wrote a prompt; `weak` [n]: the weak kind of its scores; "" for other prompts.

    `faults`: expert -> kind of fault -> answers with score 0; subsets of rows do not keep it.
    """

    writers: npt.NDArray[np.str_]
    weak: npt.NDArray[np.str_]
    faults: Mapping[str, Mapping[str, int]]

    @classmethod
    def plain(cls, prompts: int) -> Provenance:
        """Prompts of users with scores of other kinds."""
        return cls(np.full(prompts, "", dtype=np.str_), np.full(prompts, "", dtype=np.str_), {})

    @property
    def synthetic(self) -> Flags:
        """[n]: True for prompts that an expert wrote."""
        return np.asarray(self.writers != "")

    def rows(self, kept: Ints) -> Provenance:
        """Of the prompts with these row numbers."""
        return Provenance(self.writers[kept], self.weak[kept], {})

    def joined(self, other: Provenance) -> Provenance:
        """Of both data sets, this one's prompts first."""
        writers = np.concatenate((self.writers, other.writers))
        return Provenance(writers, np.concatenate((self.weak, other.weak)), {})
