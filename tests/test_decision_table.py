"""A decision as `coe route` tells it."""

import pytest

from coe_server.commands.decision_table import print_decision
from coe_server.routing.decision import BudgetReading, GateReading, RankedExpert, ResidentTrade, RoutingDecision


def decision(category, reason, inside, **probabilities):
    return RoutingDecision(
        decision_id="0",
        router_version="v",
        objective="quality",
        category=category,
        confidence=max(probabilities.values()),
        probabilities=probabilities,
        expert="a",
        reason=reason,
        ranking=(RankedExpert("a", 0.5, 1.0, 0.5, "disk", 0.0, None),),
        gate=GateReading(0.5, 0.3, inside),
        budget=BudgetReading(None, None, 0.0),
        resident=ResidentTrade(),
        routing_ms=0.1,
    )


@pytest.mark.parametrize(
    ("made", "sentence"),
    [
        (decision("sums", "mapped", True, sums=0.97, code=0.03), "a, category sums (97% sure), reason mapped"),
        (
            decision("general", "out_of_domain", False, sums=0.97, code=0.03),
            "a, category general (unlike the training prompts; likeliest category: sums, 97%), reason out_of_domain",
        ),
        (
            decision("general", "general", True, sums=0.4, code=0.3, general=0.3),
            "a, category general (too unsure; likeliest category: sums, 40%), reason general",
        ),
        (decision("general", "mapped", True, general=0.9, code=0.1), "a, category general (90% sure), reason mapped"),
    ],
)
def test_a_confidence_is_told_with_the_category_that_it_is_of(capsys, made, sentence):
    print_decision(made)
    assert capsys.readouterr().out.splitlines()[0] == sentence
