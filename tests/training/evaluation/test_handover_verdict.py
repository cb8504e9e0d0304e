"""Whether an objective's handover is shipped."""

from __future__ import annotations

import pytest

from coe_server.routing.certainty import Handover
from router_training.evaluation.handover import NEVER, HandoverGain
from router_training.evaluation.handover_evidence import HandoverEvidence, entry_of, handover_sentences


@pytest.mark.parametrize(("margin", "shipped"), [(0.1, True), (NEVER, False)])
def test_a_rule_that_hands_nothing_over_is_not_shipped_whatever_the_folds_gained(margin: float, shipped: bool) -> None:
    gain = HandoverGain(gain=0.05, low=0.02, high=0.08, share=0.05, score=0.9, score_without=0.85, cost=1.0)
    entry = entry_of(Handover(1, margin), HandoverEvidence(gain, None), 0.0)
    assert entry.shipped is shipped
    assert (entry.refusal is None) is shipped


@pytest.mark.parametrize(
    ("tokens", "said"),
    [(0, "by the whole answer"), (1, "by the first token"), (4, "by the first 4 tokens")],
)
def test_the_line_of_a_handover_names_what_it_judges_by(tokens: int, said: str) -> None:
    row = {"objective": "quality", "tokens": tokens, "share": 0.25, "gain": 0.02, "gain_ci95": [0.01, 0.03]}
    (line,) = handover_sentences({"handover": [row]})
    assert line.startswith(f"handover, objective quality: {said} 25.0% handed over, +2.00 (+1.00 to +3.00) points")
