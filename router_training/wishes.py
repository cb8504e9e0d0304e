"""What `coe-train map` is asked for in words, and what it answers as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from coe_server.config.types import require_served_name
from coe_server.errors import ConfigError
from coe_server.routing.artifact import Artifact
from coe_server.routing.manifest import ExpertEntry
from router_training.remap import Wishes, budget_name
from router_training.step_two.solving import Limits

WIDTH_OF_A_FILE = 160
NO_GAP = 1e-9  # rounding


def read_wishes(
    *,
    budgets: Sequence[float],
    objectives: Sequence[str],
    limits: Limits,
    experts: Sequence[str],
    prompts: Sequence[Path],
    outcomes: Sequence[Path],
    feedback: Path | None = None,
) -> Wishes:
    """Raises ConfigError naming the word that cannot be read."""
    named = {budget_name(amount): _positive("--budget", str(amount)) for amount in budgets}
    for text in objectives:
        name, amount = _named_pair("--objective", text)
        named[name] = _positive("--objective", amount)
    return Wishes(named, limits, [_expert(text) for text in experts], prompts, outcomes, feedback)


def read_limits(
    hosted_params_b: float | None, max_experts: int | None, pins: Sequence[str], bans: Sequence[str]
) -> Limits:
    """Raises ConfigError naming the word that cannot be read."""
    banned: dict[str, list[str]] = {}
    for text in bans:
        category, expert = _pair("--ban", text)
        banned.setdefault(category, []).append(expert)
    pinned: dict[str, str] = {}
    for text in pins:
        category, expert = _pair("--pin", text)
        if pinned.setdefault(category, expert) != expert:
            raise ConfigError(
                f"--pin: {category!r} is pinned to {pinned[category]!r} and to {expert!r}; one can answer it"
            )
    return Limits(hosted_params_b, max_experts, pinned, banned)


def print_table(artifact: Artifact, shares: Mapping[str, Mapping[str, float]]) -> None:
    """One line for each objective; `shares` has what each expert is given of the prompts under it."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH_OF_A_FILE)
    manifest = artifact.manifest
    table = Table("objective", "budget", "mean cost", "score", "gap", "who answers", "served")
    for name, entry in manifest.objectives.items():
        refused = "no" if entry.refusal is None else f"no: {entry.refusal}"
        mark = "" if entry.measured else ", not measured"
        table.add_row(
            name,
            "-" if entry.budget is None else f"{entry.budget:g}",
            f"{entry.expected_active_params_b:.4g}",
            f"{100 * entry.expected_score:.2f}",
            f"{100 * entry.gap:.2g} %" if entry.gap > NO_GAP else "0",
            _who(shares[name]),
            ("yes" if entry.shipped else refused) + mark,
        )
    unit = "billions of active parameters" if manifest.cost_unit == "active_params_b" else "price per million tokens"
    table.caption = (
        f"budget and mean cost in {unit} per prompt; mean cost, score and who answers as expected on unseen prompts"
    )
    console.print(table)


def _who(shares: Mapping[str, float]) -> str:
    """Most prompts first; without those that get none."""
    given = sorted(shares.items(), key=lambda pair: (-pair[1], pair[0]))
    return ", ".join(f"{name} {_percent(share)}" for name, share in given if share > 0.0)


def _percent(share: float) -> str:
    return "<1 %" if share < 0.01 else f"{share:.0%}".replace("%", " %")


def _expert(text: str) -> ExpertEntry:
    name, amounts = _named_pair("--expert", text)
    parts = amounts.split(",")
    if len(parts) not in {2, 3}:
        raise ConfigError(f"--expert {text}: NAME=ACTIVE,TOTAL or NAME=ACTIVE,TOTAL,PRICE is expected")
    active, total, *price = (_positive("--expert", part) for part in parts)
    return ExpertEntry(
        name=name,
        active_params_b=active,
        total_params_b=total,
        price_per_million_tokens=price[0] if price else None,
        context_tokens=None,
        vision=False,
        tools=True,
    )


def _pair(option: str, text: str) -> tuple[str, str]:
    left, equals, right = text.rpartition("=")
    if not equals or not left or not right:
        raise ConfigError(f"{option} {text!r}: two words with = between them are expected")
    return left, right


def _named_pair(option: str, text: str) -> tuple[str, str]:
    """A pair whose left side is to be served under that name."""
    name, right = _pair(option, text)
    try:
        return require_served_name(name), right
    except ValueError as error:
        raise ConfigError(f"{option}: {error}") from error


def _positive(option: str, text: str) -> float:
    try:
        amount = float(text)
    except ValueError as error:
        raise ConfigError(f"{option}: {text!r} is not a number") from error
    if not 0.0 < amount < float("inf"):
        raise ConfigError(f"{option}: {text} is not above 0")
    return amount
