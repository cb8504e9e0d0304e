"""`coe route`: one decision without a server, as a line and a table. No expert is started; all count as unloaded."""

from __future__ import annotations

import asyncio
import json
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from coe_server.build.router import build_embedder, build_router
from coe_server.commands.terminal import ConfigPath, mistakes_as_sentences
from coe_server.config.schema import ServerConfig, load_config
from coe_server.errors import ConfigError
from coe_server.http.serving import AUTO, Decides
from coe_server.routing.conversation import Conversation
from coe_server.routing.decision import Availability, RouteOptions, RoutingDecision
from coe_server.routing.embeddings import with_embeddings
from coe_server.system.visible import visible

WIDTH_OF_A_FILE = 300  # columns: names of up to 200 characters are whole


def route(
    config: ConfigPath,
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="The prompt to route.")],
    objective: Annotated[str | None, typer.Option(help="The objective to decide under.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the whole decision as JSON.")] = False,
) -> None:
    """Show which expert a prompt would go to, and why. Nothing is started; no expert counts as loaded.

    Example: coe route serve.yaml "Sort a list in python"
    """
    with mistakes_as_sentences():
        settings = load_config(config)
        decision = decide_offline(settings, prompt, objective)
    if as_json:
        Console(soft_wrap=True).print_json(json.dumps(decision.as_json()), ensure_ascii=True)
    else:
        print_decision(decision)


def decide_offline(settings: ServerConfig, prompt: str, objective: str | None) -> RoutingDecision:
    """The decision while every local expert is on disk. Raises ConfigError or ArtifactError."""
    if settings.router is None:
        raise ConfigError(
            f"router: is not set, so '{AUTO}' cannot choose; write a routes.yaml, or train with coe-train fit"
        )
    remote = {expert.name for expert in settings.with_engines if expert.remote}
    unloaded = {
        expert.name: Availability("remote" if (expert.base or expert.name) in remote else "disk", 0.0)
        for expert in settings.experts
    }
    options = RouteOptions(objective=objective or settings.router.objective)
    router = build_router(settings)
    return router.route(asyncio.run(_prepared(prompt, settings, router)), options, unloaded)


async def _prepared(prompt: str, settings: ServerConfig, router: Decides) -> Conversation:
    """The prompt, with an embedding if the router's features need one."""
    conversation = Conversation.of_prompt(prompt)
    embedder = build_embedder(settings, router)
    if embedder is None:
        return conversation
    try:
        return await with_embeddings(conversation, embedder)
    finally:
        await embedder.close()


def print_decision(decision: RoutingDecision) -> None:
    """Print a routed decision to standard output. (An expert chosen by name has no probabilities.)"""
    console = Console(emoji=False)
    if not console.is_terminal:
        console = Console(emoji=False, width=WIDTH_OF_A_FILE)
    category = _shown(f"{decision.category} ({_how_sure(decision)})")
    console.print(
        f"[bold]{_shown(decision.expert)}[/bold], category {category}, reason {decision.reason}", soft_wrap=True
    )
    expert = Column("expert", no_wrap=not console.is_terminal, overflow="fold")  # names may differ in a letter
    table = Table(expert, "expected score", "active params (B)", "value", "excluded or ranked lower because")
    for ranked in decision.ranking:
        numbers = (ranked.expected_score, ranked.active_params_b, ranked.value)
        why = ranked.excluded or ranked.doubt or ""
        figures = ("-" if number is None else f"{number:.4g}" for number in numbers)
        table.add_row(_shown(ranked.expert), *figures, _shown(why))
    console.print(table)


def _shown(word: str) -> str:
    """A name from an artifact's files, made safe to print."""
    return escape(visible(word))


def _how_sure(decision: RoutingDecision) -> str:
    """The confidence; if the decision did not use the likeliest category, also that category and the reason."""
    likeliest, probability = max(decision.probabilities.items(), key=lambda pair: pair[1])
    if decision.reason == "route" and decision.category != likeliest:
        return "by a rule"
    if decision.gate.inside and decision.category == likeliest:
        return f"{probability:.0%} sure"
    why = "too unsure" if decision.gate.inside else "unlike the training prompts"
    return f"{why}; likeliest category: {likeliest}, {probability:.0%}"
