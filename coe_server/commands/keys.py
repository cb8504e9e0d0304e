"""`coe keys`: creates, lists and removes API keys. A key is printed once; only its hash is stored."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from coe_server.commands.terminal import mistakes_as_sentences, table_console
from coe_server.config.nodes import Role
from coe_server.config.schema import load_config
from coe_server.errors import ConfigError
from coe_server.keys import MOST_A_MINUTE, MOST_WEIGHT, NAME, Key, hashed, new_key, read_keys, write_keys

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Create, list and remove API keys. They are stored as hashes in keys.file of the configuration.",
)

ConfigPath = Annotated[Path, typer.Argument(metavar="CONFIG", help="The server's YAML file; its keys.file is changed.")]
Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of the key; it appears in metrics and in the log.")]


@app.command()
def add(
    config: ConfigPath,
    name: Name,
    admin: Annotated[bool, typer.Option("--admin", help="Also allow /admin, /metrics and the page.")] = False,
    scrape: Annotated[bool, typer.Option("--scrape", help="Allow only /metrics, for Prometheus.")] = False,
    node: Annotated[
        bool, typer.Option("--node", help="On a node (role: node): allow a front, and nothing else.")
    ] = False,
    requests_per_minute: Annotated[
        int | None, typer.Option(help="Requests per minute. Default: no limit.", min=1, max=MOST_A_MINUTE)
    ] = None,
    concurrency: Annotated[int | None, typer.Option(help="Concurrent requests.", min=1)] = None,
    max_fan_out: Annotated[
        int | None,
        typer.Option(help="Answers that one request may ask for (n, prompts). Default: the server's.", min=1),
    ] = None,
    priority: Annotated[bool, typer.Option("--priority", help="Allow `priority: high`.")] = False,
    weight: Annotated[
        float, typer.Option(help="Share of half-full queues relative to the other keys.", min=0.001, max=MOST_WEIGHT)
    ] = 1.0,
    expert: Annotated[
        list[str] | None, typer.Option(help="Allow this expert (repeatable). Default: every expert.")
    ] = None,
    objective: Annotated[
        list[str] | None, typer.Option(help="Allow auto:OBJECTIVE (repeatable). Default: every objective.")
    ] = None,
) -> None:
    """Create a key and print it, once. A running server accepts it after a reload.

    Example: coe keys add serve.yaml alice --requests-per-minute 60 --concurrency 4 --objective cheap
    """
    with mistakes_as_sentences():
        settings = load_config(config)
        file = _file(settings.keys.file)
        if re.fullmatch(NAME, name) is None:
            raise ConfigError(f"NAME: '{name}' is not a name: up to 64 letters, digits, dots, dashes and underscores")
        if scrape and (admin or expert or objective or requests_per_minute or concurrency):
            raise ConfigError("--scrape: such a key allows only /metrics; give no other option")
        if node:
            _require_node_alone(
                settings.role,
                admin or scrape or priority or expert or objective or requests_per_minute or concurrency or max_fan_out,
            )
        if not settings.has_nodes:  # a front learns names from its nodes
            _refuse_unknown(expert or (), {one.name for one in settings.experts})
        known = read_keys(file) if file.exists() else ()
        if any(key.name == name for key in known):
            raise ConfigError(f"keys.file: key '{name}' already exists; `coe keys remove {config} {name}` removes it")
        key = new_key()
        entry = Key(
            name=name,
            sha256=hashed(key),
            created=datetime.now(UTC).date(),
            admin=admin,
            scrape=scrape,
            node=node,
            requests_per_minute=requests_per_minute,
            concurrency=concurrency,
            max_fan_out=max_fan_out,
            priority=priority or node,  # the front has checked its callers' keys
            weight=weight,
            experts=frozenset(expert) if expert else None,
            objectives=frozenset(objective) if objective else None,
        )
        write_keys(file, (*known, entry))
    typer.echo(key)
    typer.echo(
        f"stored as a hash in {file}; the key cannot be shown again; a running server takes it after a reload", err=True
    )


@app.command(name="list")
def show(config: ConfigPath) -> None:
    """Show the names of the keys and what each may do; the keys themselves are not stored.

    Example: coe keys list serve.yaml
    """
    with mistakes_as_sentences():
        found = read_keys(_file(load_config(config).keys.file))
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in (
        "name",
        "created",
        "opens",
        "a minute",
        "at a time",
        "answers",
        "high",
        "weight",
        "experts",
        "objectives",
    ):
        table.add_column(title, overflow="fold", no_wrap=title == "created")
    for key in found:
        table.add_row(
            key.name,
            key.created.isoformat() if key.created else "",
            _opened(key),
            *(
                "-" if limit is None else str(limit)
                for limit in (key.requests_per_minute, key.concurrency, key.max_fan_out)
            ),
            "yes" if key.priority or key.admin else "",
            f"{key.weight:g}",
            *("all" if names is None else ", ".join(sorted(names)) for names in (key.experts, key.objectives)),
        )
    table_console().print(table)


@app.command()
def remove(config: ConfigPath, name: Name) -> None:
    """Remove a key. A running server refuses it after a reload.

    Example: coe keys remove serve.yaml alice
    """
    with mistakes_as_sentences():
        file = _file(load_config(config).keys.file)
        found = read_keys(file)
        if all(key.name != name for key in found):
            names = ", ".join(key.name for key in found) or "none"
            raise ConfigError(f"keys.file: there is no key '{name}'; the keys are {names}")
        write_keys(file, (key for key in found if key.name != name))
    typer.echo(f"removed from {file}; a running server refuses it after a reload", err=True)


def _opened(key: Key) -> str:
    """What the key opens."""
    if key.node:
        return "/v1, /node"
    return "all" if key.admin else "/metrics" if key.scrape else "/v1"


def _require_node_alone(role: Role, other: object) -> None:
    if role != "node":
        raise ConfigError("--node: such a key is for a node's file, and this one has no role: node")
    if other:
        raise ConfigError("--node: such a key allows a front what it needs, and nothing else; give no other option")


def _file(file: Path | None) -> Path:
    if file is None:
        raise ConfigError("keys.file: is not set; set it, e.g. keys: {file: keys.json}")
    return file


def _refuse_unknown(experts: list[str] | tuple[()], known: set[str]) -> None:
    if unknown := sorted(set(experts) - known):
        raise ConfigError(f"--expert: there is no expert '{unknown[0]}'; the experts are {', '.join(sorted(known))}")
