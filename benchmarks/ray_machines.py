"""A Ray cluster of several machines that are processes of this one, on the loopback network; needs the extra [ray].

Ray runs in a process of its own, which takes its orders as lines: `python -m benchmarks.ray_machines`. When that
process ends, or its input closes, so does the cluster.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from coe_server.cluster.ray_members import DIRECTORY, NAMESPACE, RESOURCE

HOST = "127.0.0.2"  # Ray replaces 127.0.0.1 by the machine's own address
END_SECONDS = 60.0
SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_memory_monitor_refresh_ms": "0",  # it counts the memory of the whole machine
    "RAY_raylet_start_wait_time_s": "180",  # on a busy machine its 30 s are short
    "RAY_worker_register_timeout_seconds": "180",
}


class RayMachines:
    """The cluster's head and its machines, started and killed by name."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.address: str = self._asked("head")["address"]

    def add(self, name: str) -> None:
        """A machine with the resource; it has joined on return."""
        self._asked("add", name)

    def kill(self, name: str) -> None:
        """SIGKILL to all of Ray's processes on the machine."""
        self._asked("kill", name)

    def kill_directory(self) -> None:
        """SIGKILL to the directory's process, which Ray then starts again."""
        self._asked("kill directory")

    def kill_head(self) -> None:
        """SIGKILL to the head's process that holds the cluster together (the GCS)."""
        self._asked("kill head")

    def _asked(self, *words: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(words) + "\n")
        self._process.stdin.flush()
        for line in self._process.stdout:
            if line.startswith("{"):  # Ray prints, too
                answer: dict[str, Any] = json.loads(line)
                return answer
        raise RuntimeError(f"Ray's process ended after {words}")


@contextmanager
def ray_machines(folder: str, environment: Mapping[str, str]) -> Iterator[RayMachines]:
    """A cluster with its head. `environment`: of every machine, so the node key is there. `folder`: a short path."""
    words = [sys.executable, "-m", "benchmarks.ray_machines"]
    process = subprocess.Popen(
        words,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **SETTINGS, "RAY_TMPDIR": folder, **environment},
        start_new_session=True,
    )
    try:
        yield RayMachines(process)
    finally:
        assert process.stdin is not None
        with suppress(BrokenPipeError):
            process.stdin.close()
        try:
            process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        assert process.stdout is not None
        process.stdout.close()


def main() -> None:
    from ray.cluster_utils import Cluster  # noqa: PLC0415  an extra

    machine: dict[str, Any] = {"num_cpus": 1, "num_gpus": 0, "node_ip_address": HOST}
    machine["object_store_memory"] = 80 << 20
    head = {**machine, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    address = cluster.address  # without a head it has none
    there: dict[str, Any] = {}
    try:
        for line in sys.stdin:
            match json.loads(line):
                case ["add", name]:
                    there[name] = cluster.add_node(**machine, node_name=name, resources={RESOURCE: 1})
                case ["kill", name]:
                    cluster.remove_node(there.pop(name), allow_graceful=False)
                case ["kill directory"]:
                    _kill_directory(address)
                case ["kill head"]:
                    cluster.head_node.kill_gcs_server(check_alive=False)
            print(json.dumps({"address": address}), flush=True)
    finally:
        cluster.shutdown()


def _kill_directory(address: str) -> None:
    import ray  # noqa: PLC0415  an extra

    ray.init(address=address, namespace=NAMESPACE, log_to_driver=False)
    try:
        ray.kill(ray.get_actor(DIRECTORY), no_restart=False)
    finally:
        ray.shutdown()  # the cluster ends no machine to which this process is connected


if __name__ == "__main__":
    main()
