"""The two kinds of Ray actors of `coe cluster up`: a directory, and one node on each machine with the resource.

They are the control plane alone: they start servers and say where these are. Requests, keys and tokens never come here.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from coe_server.cluster.directory import NodeAddress
from coe_server.cluster.ray_members import (
    DIRECTORY,
    NAMESPACE,
    NODE_PREFIX,
    RESOURCE,
    Member,
    NodePlan,
    NodeRun,
    RayMachine,
    addresses,
    host_of,
    machines,
)
from coe_server.config.addresses import host_and_port
from coe_server.engines.kept_process import KeptProcess, make_run_directory
from coe_server.engines.listeners import free_port
from coe_server.engines.log_file import fresh_log, last_lines
from coe_server.system.files import create_private

LOOK_SECONDS = 1.0
SETTLING_SECONDS = 20.0  # after that a node that does not answer is left out

_WRONG_CONFIGURATION = 2  # exit code of `coe serve`: another start would end in the same way
_SHORTEST_PAUSE_SECONDS = 1.0
_LONGEST_PAUSE_SECONDS = 30.0
_STEADY_SECONDS = 60.0  # a run of this length was no failed start
_KILL_SECONDS = 20.0  # beyond http.shutdown_seconds

logger = logging.getLogger(__name__)


class Node:
    """Runs one `coe serve` under a keeper, which ends it with this actor, even after SIGKILL. Starts it again."""

    def __init__(self, plan: NodePlan, machine: RayMachine) -> None:
        self._plan = plan
        self._machine = machine
        self._run = NodeRun(state="starting")
        self._since = time.monotonic()
        self._process: KeptProcess | None = None
        self._work: asyncio.Task[None] | None = None
        self._stopping = False

    async def state(self) -> NodeRun:
        """What the server does now. The first call starts it: an actor's constructor has no event loop."""
        if self._work is None and not self._stopping:
            self._work = asyncio.create_task(self._keep_running())
        return replace(self._run, running_seconds=time.monotonic() - self._since)

    async def stop(self) -> None:
        """End the server as SIGTERM does: answers in progress have `http.shutdown_seconds`."""
        self._stopping = True
        if self._process is not None:
            await self._process.end(self._plan.shutdown_seconds + _KILL_SECONDS)
        if self._work is not None:
            self._work.cancel()
            await asyncio.wait([self._work])

    async def _keep_running(self) -> None:
        pause_seconds = _SHORTEST_PAUSE_SECONDS
        while not self._stopping:
            try:
                status, log = await self._one_run()
            except OSError as error:
                status, log = -1, Path()
                self._run = replace(self._run, state="ended", last_end=f"cannot be started: {error}")
            else:
                said = " ".join(last_lines(log).split())[-400:]
                self._run = replace(self._run, state="ended", last_end=f"exit code {status}: {said}")
            if status == _WRONG_CONFIGURATION:
                self._run = replace(self._run, state="failed")
                return
            steady = time.monotonic() - self._since > _STEADY_SECONDS
            pause_seconds = _SHORTEST_PAUSE_SECONDS if steady else min(2 * pause_seconds, _LONGEST_PAUSE_SECONDS)
            await asyncio.sleep(pause_seconds)

    async def _one_run(self) -> tuple[int, Path]:
        folder = make_run_directory(None)
        port = self._plan.port or free_port()
        create_private(folder / "node.yaml", self._plan.configuration_of(self._machine.name))
        log = fresh_log(Path(self._plan.folder_of(self._machine.name)), "server")
        command = (sys.executable, "-m", "coe_server", "serve", str(folder / "node.yaml"), "--port", str(port))
        self._process = await KeptProcess.start(command, server_environment(), folder, log)
        self._since = time.monotonic()
        url = f"{self._plan.scheme}://{host_and_port(host_of(self._plan, self._machine), port)}"
        self._run = NodeRun("running", url, self._run.runs + 1, 0.0, self._run.last_end, str(log), self._process.pid)
        return await asyncio.shield(self._process.over), log


def server_environment() -> dict[str, str]:
    """The environment that this Ray node was started with, without Ray's own variables, its token among them.

    Ray changes variables in its workers (OMP_NUM_THREADS, CUDA_VISIBLE_DEVICES), so those of the start are read. The
    actor takes all of its machine's GPUs, so that Ray gives them to no other.
    """
    entries = Path("/proc/self/environ").read_bytes().decode(errors="surrogateescape").split("\0")
    return without_rays(dict(entry.split("=", 1) for entry in entries if "=" in entry))


def without_rays(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that are not Ray's."""
    return {name: value for name, value in environment.items() if not name.startswith(("RAY_", "__RAY_"))}


class Directory:
    """Keeps a node on every machine with the resource, and knows where they are. A new one finds the nodes again."""

    def __init__(self, plan: NodePlan) -> None:
        self._plan = plan
        self._handles: dict[str, Any] = {}
        self._asked: dict[str, Any] = {}  # one question a node; a frozen one is not asked again
        self._members: dict[str, Member] = {}
        self._looked = False
        self._settled_at = time.monotonic() + SETTLING_SECONDS
        self._stopped = threading.Event()
        threading.Thread(target=self._keep_looking, daemon=True, name="machines").start()

    def plan(self) -> NodePlan:
        """What the nodes run."""
        return self._plan

    def addresses(self) -> tuple[NodeAddress, ...] | None:
        """The nodes and where they are; None while a directory that has just started does not know them all."""
        silent = any(one.run.state == "unreachable" for one in self._members.values())
        if (not self._looked or silent) and time.monotonic() < self._settled_at:
            return None
        return addresses(tuple(self._members.values()))

    def members(self) -> tuple[Member, ...]:
        """All that is known of each machine."""
        return tuple(self._members.values())

    def stop_looking(self) -> None:
        """Start no node any more."""
        self._stopped.set()

    def _keep_looking(self) -> None:
        from ray.exceptions import RayError  # noqa: PLC0415  an extra

        while not self._stopped.wait(LOOK_SECONDS):
            try:
                self._look()
            except (RayError, OSError, ValueError) as error:
                logger.warning("the machines of the Ray cluster cannot be looked at: %s", error)

    def _look(self) -> None:
        import ray  # noqa: PLC0415  an extra

        found = machines(ray.nodes())
        for machine in found:
            if machine.id not in self._handles:
                self._handles[machine.id] = node_actor(self._plan, machine)
        for gone in self._handles.keys() - {machine.id for machine in found}:
            self._forget(gone)
        for machine in found:
            if machine.id not in self._asked and machine.id in self._handles:
                self._asked[machine.id] = self._handles[machine.id].state.remote()
        answered, _ = ray.wait(list(self._asked.values()), num_returns=len(self._asked), timeout=LOOK_SECONDS)
        self._members = {machine.id: self._after(machine, answered) for machine in found}
        self._looked = True

    def _after(self, machine: RayMachine, answered: list[Any]) -> Member:
        """The member with the node's answer; without one it keeps its address."""
        import ray  # noqa: PLC0415  an extra
        from ray.exceptions import ActorDiedError, RayError  # noqa: PLC0415

        before = self._members[machine.id].run if machine.id in self._members else NodeRun()
        silent = Member(machine, replace(before, state="unreachable"))
        question = self._asked.get(machine.id)
        if question not in answered:
            return silent
        self._asked.pop(machine.id)
        try:
            return Member(machine, ray.get(question))
        except ActorDiedError:  # for good: Ray restarts one that only its process has left
            self._forget(machine.id)
        except RayError as error:
            logger.warning("the node on %s: %s", machine.name, error)
        return silent

    def _forget(self, machine_id: str) -> None:
        self._handles.pop(machine_id, None)
        self._asked.pop(machine_id, None)


def node_actor(plan: NodePlan, machine: RayMachine) -> Any:
    """The machine's node, started if it is not there: detached, so that it outlives the directory."""
    import ray  # noqa: PLC0415  an extra
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy  # noqa: PLC0415

    return (
        ray.remote(Node)
        .options(
            name=f"{NODE_PREFIX}{machine.id}",
            namespace=NAMESPACE,
            lifetime="detached",
            get_if_exists=True,
            max_restarts=-1,
            num_cpus=0,
            num_gpus=machine.gpus,
            resources={RESOURCE: 1},
            scheduling_strategy=NodeAffinitySchedulingStrategy(machine.id, soft=False),
        )
        .remote(plan, machine)
    )


def directory_actor(plan: NodePlan) -> Any:
    """The cluster's directory, started if it is not there; preferably on this machine, which is the head."""
    import ray  # noqa: PLC0415  an extra
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy  # noqa: PLC0415

    here = ray.get_runtime_context().get_node_id()
    return (
        ray.remote(Directory)
        .options(
            name=DIRECTORY,
            namespace=NAMESPACE,
            lifetime="detached",
            get_if_exists=True,
            max_restarts=-1,
            num_cpus=0,
            max_concurrency=4,
            scheduling_strategy=NodeAffinitySchedulingStrategy(here, soft=True),
        )
        .remote(plan)
    )
