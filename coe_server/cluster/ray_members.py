"""Which machines of a Ray cluster run a node, and under which names. Pure: values in, values out; knows no Ray."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from coe_server.cluster.directory import NodeAddress

RESOURCE = "coe_node"  # of the Ray nodes that run a node: ray start --resources='{"coe_node": 1}'

NAMESPACE = "coe"  # of the actors on a Ray cluster
DIRECTORY = "directory"
NODE_PREFIX = "node-"
NAME_PLACEHOLDER = "{node}"

RunState = Literal["starting", "running", "ended", "failed", "unreachable"]


@dataclass(frozen=True, slots=True)
class NodePlan:
    """What every node runs: the text of its configuration, and what that says of its address, folder and end.

    `{node}` in the text stands for the node's name.
    """

    configuration: str
    state_directory: str
    host: str
    port: int  # 0: any free one
    scheme: Literal["http", "https"] = "http"
    shutdown_seconds: float = 30.0

    def configuration_of(self, name: str) -> str:
        """The text for the node of this name."""
        return self.configuration.replace(NAME_PLACEHOLDER, name)

    def folder_of(self, name: str) -> str:
        """The state directory of the node of this name."""
        return self.state_directory.replace(NAME_PLACEHOLDER, name)


@dataclass(frozen=True, slots=True)
class RayMachine:
    """A living Ray node with the resource. Its `id` is new after each restart, its `name` stays."""

    id: str
    name: str
    host: str
    gpus: float = 0.0


@dataclass(frozen=True, slots=True)
class NodeRun:
    """What a node's actor says of its server; `unreachable`: it has not answered yet, or has stopped answering."""

    state: RunState = "unreachable"
    url: str | None = None
    runs: int = 0  # of the server, since the actor was started
    running_seconds: float = 0.0
    last_end: str | None = None  # how the run before ended
    log: str = ""
    keeper_pid: int | None = None  # the parent of the server's process


@dataclass(frozen=True, slots=True)
class Member:
    """A machine and the last that is known of its node."""

    machine: RayMachine
    run: NodeRun


def machines(listed: Iterable[Mapping[str, Any]]) -> tuple[RayMachine, ...]:
    """The machines that should run a node, of the list that `ray.nodes()` gives."""
    return tuple(
        RayMachine(
            id=one["NodeID"],
            name=_served_name(str(one.get("NodeName") or one["NodeManagerAddress"])),
            host=one["NodeManagerAddress"],
            gpus=float(one["Resources"].get("GPU", 0.0)),
        )
        for one in listed
        if one["Alive"] and one["Resources"].get(RESOURCE, 0) >= 1
    )


def _served_name(name: str) -> str:
    """A Ray node's name, by default its address, in the letters of a node's name."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", name).lstrip("._-")[:64] or "node"


def named(members: Sequence[Member]) -> dict[str, Member]:
    """The members by different names.

    Ray counts a killed machine as living for a while. If the same machine is back already, the one whose node answers
    has the name. Where several of a name answer, all but the first have a piece of their id behind it.
    """
    alive = {one.machine.name for one in members if one.run.state != "unreachable"}
    kept = [one for one in members if one.run.state != "unreachable" or one.machine.name not in alive]
    found: dict[str, Member] = {}
    for one in sorted(kept, key=lambda one: one.machine.id):
        name = one.machine.name
        found[f"{name[:55]}-{one.machine.id[:8]}" if name in found else name] = one
    return dict(sorted(found.items()))


def addresses(members: Sequence[Member]) -> tuple[NodeAddress, ...]:
    """The nodes that have an address; whether they answer there, the front finds out."""
    found = ((name, one.run.url) for name, one in named(members).items())
    return tuple(NodeAddress(name, url) for name, url in found if url is not None)


_EVERY_ADDRESS = {"0.0.0.0", "::", ""}


def host_of(plan: NodePlan, machine: RayMachine) -> str:
    """The host at which the front reaches the machine's node: Ray's address, unless the configuration names one."""
    return machine.host if plan.host in _EVERY_ADDRESS else plan.host
