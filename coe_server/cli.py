"""`coe`: the server's commands. Says everything in sentences; a mistake ends with exit code 2."""

from __future__ import annotations

import json
import logging
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from coe_server.app import build_capacity, build_experts, build_router, build_server, refuse_what_never_fits
from coe_server.cache.planner import mib
from coe_server.config import ServerConfig, load_config
from coe_server.errors import ArtifactError, CoeError, ConfigError
from coe_server.http.service import AUTO
from coe_server.routing.conversation import Conversation
from coe_server.routing.decision import Availability, RouteOptions, RoutingDecision

logger = logging.getLogger(__name__)

app = typer.Typer(
    name="coe",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    help="One OpenAI-compatible endpoint for many experts: routed by a router you train, served by vLLM.",
)

ConfigPath = Annotated[
    Path, typer.Argument(metavar="CONFIG", help="A YAML file; configs/serve.yaml explains every key.")
]


@app.command()
def serve(
    config: ConfigPath,
    port: Annotated[int | None, typer.Option(help="Listen here instead of http.port.", min=0, max=65535)] = None,
    names_only: Annotated[
        bool, typer.Option("--names-only", help="Leave the router out: to record outcomes before there is one.")
    ] = False,
) -> None:
    """Start the server and stay up until it is told to stop (Ctrl-C or SIGTERM).

    The experts to preload are started one at a time; GET /readyz answers 200 when they are up. Experts are stopped
    before the server ends, and also if it is killed.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    with _mistakes_as_sentences():
        settings = load_config(config)
        if names_only:
            settings = settings.model_copy(update={"router": None})
        if port is not None:
            settings = settings.model_copy(update={"http": settings.http.model_copy(update={"port": port})})
        server = build_server(settings)
        logger.info("http://%s:%s/v1, ready when GET /readyz says so", settings.http.host, settings.http.port)
    server.run()
    if not server.started:  # the port is taken, say: uvicorn has said why
        raise typer.Exit(1)


@app.command()
def validate(config: ConfigPath) -> None:
    """Check a configuration without starting anything, and show who fits where."""
    with _mistakes_as_sentences():
        settings = load_config(config)
        router = build_router(settings)
        capacity = build_capacity(settings)
        experts = build_experts(settings)
        refuse_what_never_fits(experts, capacity)
    table = Table("expert", "engine", "device", "host", "sleeps", title=str(config))
    for expert, expert_settings in zip(experts, settings.experts, strict=True):
        need = expert.engine.footprint
        sleeps = "yes" if need.can_sleep else "no"
        table.add_row(expert.name, expert_settings.engine, mib(need.device_awake), mib(need.host), sleeps)
    table.add_section()
    table.add_row("limit", "", mib(capacity.device), mib(capacity.host), "")
    Console().print(table)
    Console().print(f"router {router.version}, objectives: {', '.join(router.objectives) or 'none (experts by name)'}")


@app.command()
def route(
    config: ConfigPath,
    prompt: Annotated[str, typer.Argument(help="What a user would ask.")],
    objective: Annotated[str | None, typer.Option(help="The objective to decide under.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the whole decision as JSON.")] = False,
) -> None:
    """Show which expert a prompt would go to, and why. Nothing is started; no expert is taken to be resident."""
    with _mistakes_as_sentences():
        settings = load_config(config)
        decision = _decide(settings, prompt, objective)
    if as_json:
        Console(soft_wrap=True).print_json(json.dumps(decision.as_json()))
    else:
        _print_decision(decision)


@app.command()
def experts(config: ConfigPath) -> None:
    """Show where the experts of a running server are: state, bytes, users, queue and last move."""
    with _mistakes_as_sentences():
        settings = load_config(config)
        found = _ask_server(f"http://{settings.http.host}:{settings.http.port}", "/admin/experts")
    table = Table("expert", "state", "device", "host", "leases", "queued", "last move", "failure")
    for expert in found:
        move = expert["last_move"]
        table.add_row(
            *(expert["name"], expert["state"], mib(expert["bytes"]["device"]), mib(expert["bytes"]["host"])),
            *(str(expert["leases"]), str(expert["queued"])),
            f"{move['from']} -> {move['to']} in {move['seconds']:.2f} s" if move else "",
            expert["failure"] or "",
        )
    Console().print(table)


def _ask_server(url: str, path: str) -> Any:
    try:
        with urllib.request.urlopen(url + path, timeout=10) as answer:
            return json.load(answer)
    except OSError as error:
        raise CoeError(f"no server answers at {url} ({error}); `coe serve CONFIG` starts one") from error


def _decide(settings: ServerConfig, prompt: str, objective: str | None) -> RoutingDecision:
    if settings.router is None:
        raise ConfigError(f"router.artifact: is not set, so '{AUTO}' cannot choose; train one with coe-train fit")
    on_disk = {expert.name: Availability("disk", 0.0) for expert in settings.experts}
    options = RouteOptions(objective=objective or settings.router.objective)
    return build_router(settings).route(Conversation.of_prompt(prompt), options, on_disk)


def _print_decision(decision: RoutingDecision) -> None:
    console = Console()
    sure = f" ({decision.confidence:.0%} sure)" if decision.confidence is not None else ""
    console.print(f"[bold]{decision.expert}[/bold], category {decision.category}{sure}, reason {decision.reason}")
    table = Table("expert", "expected score", "active params (B)", "value", "left out because")
    for ranked in decision.ranking:
        numbers = (ranked.expected_score, ranked.active_params_b, ranked.value)
        table.add_row(
            ranked.expert, *("-" if number is None else f"{number:.4g}" for number in numbers), ranked.excluded or ""
        )
    console.print(table)


@contextmanager
def _mistakes_as_sentences() -> Iterator[None]:
    try:
        yield
    except (ConfigError, ArtifactError) as error:
        print(f"coe: {error}", file=sys.stderr)  # noqa: T201  the one line a person needs, whatever the log's settings
        raise typer.Exit(2) from error
    except CoeError as error:
        print(f"coe: {error}", file=sys.stderr)  # noqa: T201  as above
        raise typer.Exit(1) from error
