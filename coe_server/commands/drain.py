"""`coe cluster drain` and `resume`: take a node of a running front out, and use it again. Uses HTTP only."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from coe_server.commands.experts import RunningServer, server_of
from coe_server.commands.terminal import mistakes_as_sentences
from coe_server.config.schema import load_config

FrontConfig = Annotated[Path, typer.Argument(metavar="CONFIG", help="The front's YAML file.")]
NodeName = Annotated[str, typer.Argument(metavar="NODE", help="A node's name, as `coe experts` shows it.")]
Port = Annotated[int | None, typer.Option(help="Port of the front. Default: http.port.", min=1)]
AdminKey = Annotated[
    str | None, typer.Option(envvar="COE_ADMIN_KEY", help="Admin key, if the front requires one.", show_default=False)
]

_LOOK_SECONDS = 0.5


def drain(
    config: FrontConfig,
    node: NodeName,
    wait: Annotated[bool, typer.Option(help="Return once its answers in progress have ended.")] = True,
    port: Port = None,
    admin_key: AdminKey = None,
) -> None:
    """Send a node nothing new; its conversations move to other nodes. It can be stopped once this command ends.

    `coe cluster resume` ends it; a restart of the front does not. With several fronts drain the node on each.

    Example: coe cluster drain front.yaml left
    """
    with mistakes_as_sentences():
        front = server_of(load_config(config), port, admin_key)
        left = int(front.tell(f"/admin/nodes/{node}/drain")["in_flight"])
        while wait and left:
            typer.echo(f"{node}: {left} answers in progress")
            left = _after_a_change(front, node, left)
    typer.echo(f"{node} gets nothing new" + (f"; {left} answers are in progress" if left else " and owes no answer"))


def resume(config: FrontConfig, node: NodeName, port: Port = None, admin_key: AdminKey = None) -> None:
    """Use a drained node again.

    Example: coe cluster resume front.yaml left
    """
    with mistakes_as_sentences():
        server_of(load_config(config), port, admin_key).tell(f"/admin/nodes/{node}/resume")
    typer.echo(f"{node} gets requests again")


def _after_a_change(front: RunningServer, node: str, before: int) -> int:
    """The answers that it still owes, once that number has changed."""
    while (left := _owed(front, node)) == before:
        time.sleep(_LOOK_SECONDS)
    return left


def _owed(front: RunningServer, node: str) -> int:
    return next((int(one["in_flight"]) for one in front.nodes() if one["name"] == node), 0)
