"""One decision for a person: who answers and why in a line, then every expert with what it is worth."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from coe_server.routing.decision import RoutingDecision
from coe_server.visible import visible


def print_decision(decision: RoutingDecision) -> None:
    """To standard output. Somebody chose: an expert asked for by name has no probabilities to show."""
    console = Console(emoji=False)
    category = _shown(f"{decision.category} ({_how_sure(decision)})")
    console.print(
        f"[bold]{_shown(decision.expert)}[/bold], category {category}, reason {decision.reason}", soft_wrap=True
    )
    table = Table("expert", "expected score", "active params (B)", "value", "left out or behind because")
    for ranked in decision.ranking:
        numbers = (ranked.expected_score, ranked.active_params_b, ranked.value)
        why = ranked.excluded or ranked.doubt or ""
        figures = ("-" if number is None else f"{number:.4g}" for number in numbers)
        table.add_row(_shown(ranked.expert), *figures, _shown(why))
    console.print(table)


def _shown(word: str) -> str:
    """Names come from an artifact's files."""
    return escape(visible(word))


def _how_sure(decision: RoutingDecision) -> str:
    """The confidence belongs to the likeliest category, which is not the decision's where that was not believed."""
    likeliest, probability = max(decision.probabilities.items(), key=lambda pair: pair[1])
    if decision.gate.inside and decision.category == likeliest:
        return f"{probability:.0%} sure"
    why = "too unsure" if decision.gate.inside else "unlike the training prompts"
    return f"{why}; likeliest category: {likeliest}, {probability:.0%}"
