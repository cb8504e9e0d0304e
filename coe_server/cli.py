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
    rich_markup_mode="markdown",
    help="""One OpenAI-compatible endpoint for many experts; a router chooses the expert of each prompt.

    1. `coe init` writes serve.yaml from the models of this machine; `coe config --example serve` explains every key.

    2. `coe validate serve.yaml` shows what fits.

    3. `coe serve serve.yaml` serves http://127.0.0.1:8080/v1, and a page at http://127.0.0.1:8080.

    A router: `coe config --example routes`, or `coe-train --help`.""",
)
journal = typer.Typer(no_args_is_help=True, help="The decision log of a server.")
cluster = typer.Typer(no_args_is_help=True, help="Nodes: on a Ray cluster, and of a front.")

SET_UP, RUNNING, PLANNING = "Set up and serve", "A running server", "Measure and plan"
COMMANDS: dict[typer.Typer, dict[str | None, tuple[Callable[..., None], ...]]] = {
    # group of commands -> panel of its help -> commands, in the help's order, each under its function's name
    app: {
        SET_UP: (init, config, validate, pull, serve, add, remove),
        RUNNING: (experts, load, unload, pin, unpin, restart, logs),
        PLANNING: (route, bench, simulate),
    },
    journal: {None: (export,)},
    cluster: {None: (up, status, down, drain, resume)},
}
for group, panels in COMMANDS.items():
    for panel, commands in panels.items():
        for command in commands:
            group.command(rich_help_panel=panel)(command)
app.add_typer(keys.app, name="keys", rich_help_panel=SET_UP)
app.add_typer(learning.app, name="learning", rich_help_panel=RUNNING)
app.add_typer(journal, name="journal", rich_help_panel=RUNNING)
app.add_typer(cluster, name="cluster", rich_help_panel=RUNNING)


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
