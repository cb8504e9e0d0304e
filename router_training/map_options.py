"""What `coe-train map` is asked to change, and the words of its options."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from coe_server.config.types import require_served_name
from coe_server.errors import ConfigError
from coe_server.routing.manifest import ExpertEntry
from router_training.assignment.objectives import Limits
from router_training.expert_settings import LARGEST_COST


@dataclass(frozen=True, slots=True)
class MapOptions:
    """Changes to the artifact: objective -> budget, limits, new experts; and the files to learn from."""

    budgets: Mapping[str, float] = field(default_factory=dict)
    limits: Limits = field(default_factory=Limits)
    new_experts: Sequence[ExpertEntry] = ()
    prompts: Sequence[Path] = ()
    outcomes: Sequence[Path] = ()
    feedback: Path | None = None
    resamples: int = 1000


def read_map_options(
    *,
    budgets: Sequence[float],
    objectives: Sequence[str],
    limits: Limits,
    experts: Sequence[str],
    prompts: Sequence[Path],
    outcomes: Sequence[Path],
    feedback: Path | None = None,
) -> MapOptions:
    """Raises ConfigError naming the word that cannot be read."""
    if bool(prompts) != bool(outcomes):
        raise ConfigError("--prompts and --outcomes belong together: give both or neither")
    named: dict[str, float] = {}
    for name, amount in _budgets(budgets, objectives):
        if named.setdefault(name, amount) != amount:
            raise ConfigError(f"objective {name} is given two budgets, {named[name]!r} and {amount!r}")
    return MapOptions(named, limits, [_expert(text) for text in experts], prompts, outcomes, feedback)


def _budgets(budgets: Sequence[float], objectives: Sequence[str]) -> Iterator[tuple[str, float]]:
    for budget in budgets:
        yield budget_name(budget), _positive("--budget", str(budget))
    for text in objectives:
        name, amount = _named_pair("--objective", text)
        yield name, _positive("--objective", amount)


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
                f"--pin: {category!r} is pinned to {pinned[category]!r} and to {expert!r}; name one expert"
            )
    if hosted_params_b is not None:
        _positive("--hosted-budget", str(hosted_params_b))
    return Limits(hosted_params_b, max_experts, pinned, banned)


def budget_name(amount: float) -> str:
    """The default name of an objective with this budget."""
    return f"budget-{amount:g}b"


def _expert(text: str) -> ExpertEntry:
    name, amounts = _named_pair("--expert", text)
    parts = amounts.split(",")
    if len(parts) not in {2, 3}:
        raise ConfigError(f"--expert {text}: expected NAME=ACTIVE,TOTAL or NAME=ACTIVE,TOTAL,PRICE")
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
        raise ConfigError(f"{option} {text!r}: expected KEY=VALUE")
    return left, right


def _named_pair(option: str, text: str) -> tuple[str, str]:
    """A pair NAME=VALUE with a name that can be served."""
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
    if not 0.0 < amount <= LARGEST_COST:
        raise ConfigError(f"{option}: {text} is not above 0, or is above {LARGEST_COST:g}")
    return amount
