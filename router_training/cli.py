"""`coe-train`: the table of its commands; each one's options stand in `commands`.

A user's mistake ends a command with one sentence and an exit code, never with a traceback.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from typing import Annotated

import typer

from router_training.commands.data import ask, check, collect, prompts
from router_training.commands.measuring import compare, evaluate, probe, report
from router_training.commands.training import draft, fit, map_

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="""Train a router from recorded outcomes, and measure any router on any outcomes.

    1. Prompts, as JSONL or Parquet: prompt_id, prompt (or messages), category, and if you have them group and weight.

    2. Outcomes, the same: prompt_id, expert, score from 0 to 1. coe-train collect makes and scores them.

    3. A config that names both files and your experts: `coe config --example train` explains every key.

    4. coe-train fit CONFIG --out artifacts/router; then point the server's router.artifact at that folder.

    Without outcomes: coe-train draft routes.yaml --out router makes one from a few examples of each route.""",
)

COMMANDS: dict[str, dict[str, Callable[..., None]]] = {  # panel of the help -> commands, in its order
    "A router from examples": {"draft": draft},
    "Data": {"prompts": prompts, "collect": collect, "ask": ask, "check": check},
    "A router from outcomes": {"fit": fit, "map": map_},
    "What it is worth": {"evaluate": evaluate, "report": report, "probe": probe, "compare": compare},
}
for panel, commands in COMMANDS.items():
    for name, command in commands.items():
        app.command(name, rich_help_panel=panel)(command)


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"coe-train {version('coe-server')}")
        raise typer.Exit


@app.callback()
def coe_train(
    _: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Options of every command."""
