"""A Ray cluster with two machines that are processes of this one, a node on each, and a front."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import ExitStack, contextmanager
from pathlib import Path

import yaml

from benchmarks.ray_machines import ray_machines
from tests.cluster.servers import ENVIRONMENT, as_process, front_settings
from tests.patience import PATIENCE_SECONDS, until
from tests.ports import free_port


class OnRay:
    """`node`: the settings of each node; `front`: further ones of the front."""

    def __init__(self, folder, held, node, front, patience_seconds):
        self.folder = folder
        (folder / "r").mkdir()
        self.ray = held.enter_context(ray_machines(str(folder / "r"), ENVIRONMENT))
        for name in ("box-a", "box-b"):
            self.ray.add(name)
        self.file = folder / "node.yaml"
        self.file.write_text(yaml.safe_dump({**node, "state_directory": str(folder / "{node}")}))
        self.up = self.coe("up", str(self.file))
        there = {"directory": "ray", "address": self.ray.address, "api_key_env": "COE_NODE_KEY"}
        settings = {**front_settings({}), "nodes": there, **front}
        self.front = held.enter_context(as_process(folder, "front", settings, free_port()))
        until(lambda: (folder / "front.log").exists() and self.answers())
        until(lambda: {"box-a", "box-b"} <= self.front.nodes().keys())
        self.front.until_usable("box-a", "box-b", patience_seconds=patience_seconds)

    def answers(self):
        try:
            return self.front.ask("GET", "/healthz")[0] == 200
        except OSError:
            return False

    def coe(self, *words):
        """`coe cluster WORDS`: what it says on standard output and standard error."""
        command = [sys.executable, "-m", "coe_server", "cluster", *words, "--address", self.ray.address]
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=2 * PATIENCE_SECONDS,
            check=False,
            env={**os.environ, **ENVIRONMENT},
        )
        assert done.returncode == 0, done.stderr
        return done.stdout, done.stderr

    def runs(self):
        """Node -> what its actor says of its server."""
        return {name: one["run"] for name, one in json.loads(self.coe("status", "--json")[0]).items()}


@contextmanager
def on_ray(node, patience_seconds=PATIENCE_SECONDS, **front):
    """The cluster, with a folder that is removed afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="coe-ray-", dir="/tmp"))  # Ray's sockets need a short path
    try:
        with ExitStack() as held:
            yield OnRay(folder, held, node, front, patience_seconds)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
