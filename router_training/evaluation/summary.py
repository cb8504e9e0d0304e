"""The main figures of an evaluation, on a terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from router_training.evaluation.handover_evidence import handover_sentences
from router_training.evaluation.worth import worth_sentence


def show_evaluation(evaluation: dict[str, Any], console: Console) -> None:
    """Print the main figures of `evaluate`; scores in points."""
    show_worth(evaluation, console)
    skipped = evaluation["n_incomplete"]
    without = f" ({skipped} without an outcome from every expert left out)" if skipped else ""
    console.print(f"{evaluation['n_prompts']} prompts{without}", markup=False, highlight=False)
    console.print(_experts(evaluation))
    console.print(_objectives(evaluation))
    for line in _sentences(evaluation):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def show_worth(evaluation: dict[str, Any], console: Console) -> None:
    """Print what the router is worth in one sentence, after a warning where it was trained on the prompts."""
    if known := evaluation.get("n_trained_on"):
        console.print(
            f"warning: the router was trained on {known} of the {evaluation['n_prompts'] + evaluation['n_incomplete']}"
            " prompts, and what it shows on these says little about new ones",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
    if sentence := worth_sentence(evaluation):
        console.print(sentence, markup=False, highlight=False, soft_wrap=True)


def _experts(evaluation: dict[str, Any]) -> Table:
    table = Table("always the same", "score", box=None)
    for name, score in sorted(evaluation["experts"].items(), key=lambda pair: -pair[1]):
        table.add_row(name, f"{100 * score:.2f}")
    table.add_row("(any at random)", f"{100 * evaluation['random']:.2f}")
    table.add_row("(the best one for each prompt)", f"{100 * evaluation['oracle']:.2f}")
    return table


def _objectives(evaluation: dict[str, Any]) -> Table:
    table = Table("objective", "budget", "spent", "score", "gain, 95 % interval", "over", box=None)
    router, best = evaluation["router"], evaluation["best_single"]["expert"]
    budgets = {row["objective"]: row for row in evaluation["by_budget"]}
    if router["objective"] not in budgets:
        table.add_row(*_row(router, "none", best))
    for row in budgets.values():
        table.add_row(*_row(row, f"{row['budget_b']:g}", "mixing at random"))
    return table


def _row(row: dict[str, Any], budget: str, over: str) -> list[str]:
    low, high = row["gain_ci95"]
    return [
        row["objective"],
        budget,
        f"{row['mean_active_params_b']:.4g}",
        f"{100 * row['score']:.2f}",
        f"{100 * row['gain']:+.2f} ({100 * low:+.2f} to {100 * high:+.2f})",
        over,
    ]


def _sentences(evaluation: dict[str, Any]) -> list[str]:
    """One line each on calibration, the gate, perturbed prompts and time; unknown figures are left out."""
    calibration, router = evaluation["calibration"], evaluation["router"]
    sentences = []
    if calibration["ece"] is not None:
        sentences.append(
            f"calibration error {calibration['ece']:.3f} (before calibration {calibration['ece_before']:.3f}),"
            f" Brier score {calibration['brier']:.3f} ({calibration['brier_before']:.3f})"
        )
    return [
        *sentences,
        f"outside the gate: {100 * router['ood_share']:.1f} % of the prompts; small changes of a prompt change its"
        f" expert in {100 * evaluation['flip_rate']:.1f} % of cases",
        f"time for one decision: {evaluation['routing_ms']['p50']:.2f} ms at the median,"
        f" {evaluation['routing_ms']['p99']:.2f} ms at the 99th percentile",
        *handover_sentences(evaluation),
    ]
