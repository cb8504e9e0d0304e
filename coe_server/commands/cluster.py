"""`coe cluster up`, `status` and `down`: nodes on a Ray cluster, started, shown and ended."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from coe_server.cluster.ray_control import connected, plan_of
from coe_server.cluster.ray_members import RESOURCE, Member
from coe_server.commands.terminal import mistakes_as_sentences, table_console, tell
from coe_server.config.schema import load_config

RayAddress = Annotated[str, typer.Option(help="The Ray cluster, HOST:PORT. Default: the one that this machine is in.")]

_START_SECONDS = 60.0


def up(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="A node's YAML file (role: node), for all of them.")],
    address: RayAddress = "auto",
) -> None:
    """Start a node on every machine of a Ray cluster that has the resource coe_node, also on those that join later.

    Run it on a machine of the cluster, best its head. The file is sent to each machine; the node key is not: each Ray
    node reads it from the environment that it was started with.

    Example: ray start --head; coe cluster up node.yaml
    """
    with mistakes_as_sentences():
        plan = plan_of(load_config(config), config)
        with connected(address) as cluster:
            if not cluster.has_tokens:
                tell(NO_TOKENS)
            cluster.bring_up(plan)
            members = cluster.wait_for_addresses(_START_SECONDS)
    table_console().print(nodes_table(members))
    if not members:
        tell(NO_MACHINE)


NO_TOKENS = (
    "warning: Ray asks for no token here: whatever reaches its ports can run programs on every machine."
    " Start it with RAY_AUTH_MODE=token (ray get-auth-token --generate)"
)
NO_MACHINE = (
    f"no machine has the resource {RESOURCE} yet; on each machine for a node:"
    f" ray start --address=HEAD:6379 --resources='{{\"{RESOURCE}\": 1}}'"
)


def status(
    address: RayAddress = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")] = False,
) -> None:
    """Show the nodes on a Ray cluster: where they are, how long they have run, and why the run before ended.

    Example: coe cluster status
    """
    with mistakes_as_sentences(), connected(address) as cluster:
        members = cluster.members()
    if as_json:
        typer.echo(json.dumps({name: asdict(one) for name, one in members.items()}, indent=1))
    else:
        table_console().print(nodes_table(members))


def down(address: RayAddress = "auto") -> None:
    """End all nodes on a Ray cluster, and their directory. Answers in progress have http.shutdown_seconds.

    Example: coe cluster down
    """
    with mistakes_as_sentences(), connected(address) as cluster:
        count = cluster.take_down()
    typer.echo(f"{count} {'node has' if count == 1 else 'nodes have'} ended")


def nodes_table(members: dict[str, Member]) -> Table:
    """One line for each node."""
    table = Table("node", "state", "address", "for", "runs", "GPUs", "log", "last end")
    for name, one in members.items():
        run = one.run
        cells = (name, run.state, run.url or "", f"{run.running_seconds:.0f} s" if run.url else "", str(run.runs))
        table.add_row(*map(escape, (*cells, f"{one.machine.gpus:g}", run.log, run.last_end or "")))
    return table
