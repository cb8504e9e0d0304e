"""A data report as tables for a terminal."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console
from rich.table import Table
from rich.text import Text

from coe_server.system.visible import visible
from router_training.data.dataset_check import DataReport

LONGEST_TABLE = 40  # rows


def show_report(report: DataReport, console: Console) -> None:
    """The report, warnings last."""
    console.print(
        f"{report.prompts} prompts ({report.conversations} conversations of several turns), {report.complete} with an"
        f" outcome from every expert; {report.training} to train on, {report.held_out} held out"
    )
    experts = Table("expert", "prompts with outcome", "mean score", title="experts")
    for name, share in report.coverage.items():
        experts.add_row(name, f"{share:.1%}", f"{report.means[name]:.3f}" if share else "-")
    console.print(experts)
    for title, counts in (("categories", report.categories), ("groups", report.groups)):
        if counts:
            console.print(_counts(title, counts.items(), report.prompts))
    for sentence in report.warnings:
        console.print(f"note: {sentence}", style="yellow", markup=False)


def _counts(title: str, counts: Iterable[tuple[str, int]], prompts: int) -> Table:
    rows = list(counts)
    table = Table("name", "prompts", "share", title=f"{len(rows)} {title}")
    for name, count in rows[:LONGEST_TABLE]:
        table.add_row(Text(visible(name)), str(count), f"{count / prompts:.1%}")
    if len(rows) > LONGEST_TABLE:
        table.add_row(f"and {len(rows) - LONGEST_TABLE} more", str(sum(count for _, count in rows[LONGEST_TABLE:])), "")
    return table
