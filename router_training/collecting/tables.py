"""What a person sees before and after a collection."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from coe_server.config.addresses import shown_address
from coe_server.system.visible import visible
from router_training.collecting.collection import Step
from router_training.collecting.tally import Tally


def show_steps(steps: Sequence[Step], console: Console) -> None:
    """Who would be asked what."""
    table = Table("asked", "at", "as model")
    for column in ("recorded", "to send"):
        table.add_column(column, justify="right")
    for step in steps:
        target = step.target
        table.add_row(
            target.name, shown_address(target.base_url), target.model, f"{step.recorded:,}", f"{step.to_send:,}"
        )
    console.print(table)
    console.print("Everything needed is there; nothing was sent. A judge's requests are counted at their most.")


def show_tally(tally: Tally, out: Path, raw: Path, console: Console) -> None:
    """Scores and costs, what is missing and why, and where everything is."""
    table = Table("expert", "mean score")
    for column in ("answers", "no outcome", "cut short", "output tokens", "s per answer"):
        table.add_column(column, justify="right")
    for expert, one in tally.by_expert.items():
        mean = "-" if one.mean_score is None else f"{one.mean_score:.3f}"
        per_answer = f"{one.seconds / one.answers:.2f}" if one.answers else "-"
        counts = (one.answers, one.missing, one.cut_short, one.output_tokens)
        table.add_row(expert, mean, *(f"{count:,}" for count in counts), per_answer)
    console.print(table)
    for problem in tally.problems:
        console.print(visible(problem), style="yellow", markup=False)
    if tally.may_grow:
        console.print("Some requests failed: the same command again asks only those.", style="yellow")
    written = f"{len(tally.outcomes):,} outcomes -> {out}" if tally.outcomes else f"no outcomes; {out} is not written"
    console.print(f"{written}; every answer is in {raw}", markup=False)
