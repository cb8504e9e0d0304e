"""`coe load`, `unload`, `pin`, `unpin`, `restart` and `logs`: one expert of a running server. Uses HTTP only."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import quote, urlencode

import typer

from coe_server.commands.experts import server_of
from coe_server.commands.terminal import mistakes_as_sentences
from coe_server.config.schema import load_config
from coe_server.system.visible import visible

Config = Annotated[Path, typer.Argument(metavar="CONFIG", help="The server's YAML file.")]
Name = Annotated[str, typer.Argument(metavar="NAME", help="An expert, as `coe experts` shows it.")]
Node = Annotated[str | None, typer.Option(help="On a front: the node. Default: the best one.")]
Port = Annotated[int | None, typer.Option(help="Port of the server. Default: http.port.", min=1)]
AdminKey = Annotated[
    str | None, typer.Option(envvar="COE_ADMIN_KEY", help="Admin key, if the server requires one.", show_default=False)
]


def load(config: Config, name: Name, node: Node = None, port: Port = None, admin_key: AdminKey = None) -> None:
    """Load an expert onto the device, in turn like a request. Returns when it is loaded.

    A failed expert is tried again at once. Example: coe load serve.yaml coder
    """
    _say(_told(config, port, admin_key, name, "load", node=node))


def unload(config: Config, name: Name, node: Node = None, port: Port = None, admin_key: AdminKey = None) -> None:
    """Evict an idle expert to disk. Refused while it is in use, requested or pinned.

    Example: coe unload serve.yaml coder
    """
    _say(_told(config, port, admin_key, name, "unload", node=node))


def pin(
    config: Config,
    name: Name,
    tier: Annotated[Literal["device", "host"], typer.Option(help="The tier that it never falls below.")] = "device",
    node: Node = None,
    port: Port = None,
    admin_key: AdminKey = None,
) -> None:
    """Keep an expert on the device, or in host memory, until the server ends or `coe unpin`.

    Refused if another expert could then never be loaded. Example: coe pin serve.yaml coder --tier host
    """
    _say(_told(config, port, admin_key, name, "pin", tier=tier, node=node))


def unpin(config: Config, name: Name, node: Node = None, port: Port = None, admin_key: AdminKey = None) -> None:
    """Remove an expert's pin.

    Example: coe unpin serve.yaml coder
    """
    _say(_told(config, port, admin_key, name, "unpin", node=node))


def restart(config: Config, name: Name, node: Node = None, port: Port = None, admin_key: AdminKey = None) -> None:
    """Stop an expert's engine after its answers in progress, and start it again. Returns when it is loaded.

    Requests that come meanwhile wait for the new engine. Example: coe restart serve.yaml coder
    """
    _say(_told(config, port, admin_key, name, "restart", node=node))


def logs(
    config: Config,
    name: Name,
    lines: Annotated[int, typer.Option("--lines", "-n", help="How many lines from its end.", min=1, max=2000)] = 200,
    node: Node = None,
    port: Port = None,
    admin_key: AdminKey = None,
) -> None:
    """Print the end of the log of an expert's engine, of at most 64 KiB.

    Known keys, and what looks like a key or like a logged prompt, are left out. A program may print others: look
    before you show it. Example: coe logs serve.yaml coder --lines 50
    """
    found = _told(config, port, admin_key, name, "log", "GET", lines=lines, node=node)
    for line in found["lines"]:
        typer.echo(visible(line))
    if not found["lines"]:
        typer.echo("coe: its log is empty", err=True)


def _told(
    config: Path, port: int | None, admin_key: str | None, name: str, action: str, method: str = "POST", **query: Any
) -> dict[str, Any]:
    """The server's answer. A load takes as long as it takes: no time limit."""
    given = urlencode({key: value for key, value in query.items() if value is not None})
    with mistakes_as_sentences():
        server = server_of(load_config(config), port, admin_key)
        return server.ask(f"/admin/experts/{quote(name, safe='')}/{action}?{given}".rstrip("?"), method, None)
    raise AssertionError("a mistake ends the command")


def _say(row: dict[str, Any]) -> None:
    """One sentence: where the expert is now."""
    moving = f", {row['state']}" if row["state"] not in (row["residency"], "device") else ""
    pinned = f", pinned to {row['pin']}" if row["pin"] else ""
    node = f" (node {row['node']})" if row.get("node") else ""
    typer.echo(visible(f"{row['name']}: {row['residency']}{moving}{pinned}{node}"))
