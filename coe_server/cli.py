"""`coe`: the table of its commands; each one's options stand in `commands` beside what it does.

An invalid option or configuration ends with exit code 2.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from typing import Annotated

import typer

from coe_server.commands import keys, learning
from coe_server.commands.bench import bench
from coe_server.commands.change import add, remove
from coe_server.commands.cluster import down, status, up
from coe_server.commands.drain import drain, resume
from coe_server.commands.example import config
from coe_server.commands.experts import experts
from coe_server.commands.export import export
from coe_server.commands.init import init
from coe_server.commands.moves import load, logs, pin, restart, unload, unpin
from coe_server.commands.pull import pull
from coe_server.commands.route import route
from coe_server.commands.serve import serve
from coe_server.commands.simulate import simulate
from coe_server.commands.validate import validate

app = typer.Typer(
    name="coe",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    help="One OpenAI-compatible endpoint for many experts: routed by a router you train, served by vLLM.",
)
journal = typer.Typer(no_args_is_help=True, help="The decision log of a server.")
cluster = typer.Typer(no_args_is_help=True, help="Nodes: on a Ray cluster, and of a front.")

COMMANDS: dict[typer.Typer, tuple[Callable[..., None], ...]] = {  # each under its function's name, in the help's order
    app: (
        *(bench, add, remove, config, init, serve, pull, validate, route, experts),
        *(load, unload, pin, unpin, restart, logs, simulate),
    ),
    journal: (export,),
    cluster: (up, status, down, drain, resume),
}
for group, commands in COMMANDS.items():
    for command in commands:
        group.command()(command)
app.add_typer(keys.app, name="keys")
app.add_typer(learning.app, name="learning")
app.add_typer(journal, name="journal")
app.add_typer(cluster, name="cluster")


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"coe {version('coe-server')}")
        raise typer.Exit


@app.callback()
def coe(
    _: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Options of all commands."""
