"""`coe learning`: what ratings have moved, and undoing the last step, with the server running or not."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from coe_server.build.router import steps_file
from coe_server.commands.experts import RunningServer
from coe_server.commands.terminal import mistakes_as_sentences, table_console
from coe_server.config.addresses import host_and_port
from coe_server.config.schema import ServerConfig, load_config
from coe_server.errors import CoeError
from coe_server.journal.steps import read_steps, steps_as_json, write_steps
from coe_server.system.process import is_locked, state_lock
from coe_server.system.visible import visible

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Steps by which ratings moved the router's scores (router.exploration).",
)

ConfigPath = Annotated[Path, typer.Argument(metavar="CONFIG", help="The server's YAML file.")]
Port = Annotated[int | None, typer.Option(help="Port of the running server. Default: http.port.", min=1)]
AdminKey = Annotated[
    str | None, typer.Option(envvar="COE_ADMIN_KEY", help="Admin key, if the server requires one.", show_default=False)
]


@app.command()
def show(config: ConfigPath, port: Port = None, admin_key: AdminKey = None) -> None:
    """Print the steps, newest first. With a running server also the differences between experts, with intervals, and
    how many more ratings tell a difference of 3 points.

    Example: coe learning show serve.yaml
    """
    with mistakes_as_sentences():
        settings, console = load_config(config), table_console()
        if is_locked(settings.state_directory):
            found = _server(settings, port, admin_key).learning()
        else:
            found = {"steps": steps_as_json(read_steps(steps_file(settings)))}
        for line in lines_of(found):
            console.print(line, soft_wrap=True)


@app.command()
def undo(config: ConfigPath, port: Port = None, admin_key: AdminKey = None) -> None:
    """Undo the last step: scores are as before it, and its ratings no longer count.

    Example: coe learning undo serve.yaml
    """
    with mistakes_as_sentences():
        settings = load_config(config)
        if is_locked(settings.state_directory):
            left = len(_server(settings, port, admin_key).undo_learning()["steps"])
        else:
            with state_lock(settings.state_directory):
                file = steps_file(settings)
                steps = read_steps(file).without_last(time.time())
                write_steps(file, steps)
                left = len(steps.steps)
        Console().print(f"the last step is undone; steps in force: {left}")


def lines_of(found: dict[str, Any] | None) -> list[str]:
    """What `GET /admin/learning` tells, as lines with markup."""
    if found is None:
        raise CoeError("the server keeps no decisions (log.decisions: false), so it cannot learn")
    lines = [line for step in found["steps"] for line in _step_lines(step)] or ["no steps: ratings have moved no score"]
    if "ratings" in found:
        lines += ["", f"ratings in use: {found['ratings']}" + (f" ({found['source']})" if found["source"] else "")]
        lines += [f"pooled after calibration: {count} by {source}" for source, count in found["pooled"].items()]
        lines += [f"left out: {count}, {why}" for why, count in found["left_out"].items()]
        lines += [escape(visible(_difference_line(one))) for one in found["differences"]]
    return lines


def _step_lines(step: dict[str, Any]) -> list[str]:
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(step["time"]))
    head = f"[bold]{when}[/bold]  by {step['ratings']} ratings ({escape(visible(step['source']))})"
    moved = (
        f"  {one['category']}: {one['expert']} {100 * one['before']:+.1f} -> {100 * one['after']:+.1f} points"
        for one in step["moved"]
    )
    return [head, *(escape(visible(line)) for line in moved)]


def _difference_line(one: dict[str, Any]) -> str:
    told = f"{one['category']}: {one['other']} against {one['best']}, {one['ratings']} ratings: "
    if one["difference"] is None:
        return f"{told}not known yet"
    between = f"{100 * one['difference']:+.1f} points ({100 * one['low']:+.1f} to {100 * one['high']:+.1f})"
    more = f"; {one['needed']:,} more ratings tell a difference of 3 points" if one["needed"] else ""
    return f"{told}{between}{more}"


def _server(settings: ServerConfig, port: int | None, admin_key: str | None) -> RunningServer:
    return RunningServer(f"http://{host_and_port(settings.http.host, port or settings.http.port)}", admin_key)
