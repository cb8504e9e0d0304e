"""A real vLLM engine behind a whole server, and what is left when one of them is killed."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from tests.patience import PATIENCE_SECONDS, until
from tests.ports import free_port

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(3600)]  # beside eight busy processes a start takes two minutes


@contextmanager
def one_real_expert(root, vllm_environment, folder, run_directories):
    """`coe serve` with a single tiny expert; its run directories are in a folder of their own."""
    port = free_port()
    config = folder / "serve.yaml"
    expert = {"name": "french", "engine": "vllm", "model": str(root / "demo/experts/french"), "preload": "host"}
    config.write_text(
        yaml.safe_dump(
            {
                "http": {"port": port},
                "memory": {"device": "300MiB", "host": "2GiB"},
                "vllm": {"command": str(vllm_environment / "bin/vllm"), "kv_cache": "64MiB", "platform": "cpu"},
                "experts": [{**expert, "args": {"max_model_len": 128}}],
            }
        )
    )
    log = folder / "server.log"
    with log.open("wb") as output:
        server = subprocess.Popen(
            [Path(sys.executable).with_name("coe"), "serve", config],
            stdout=output,
            stderr=output,
            env=os.environ | {"TMPDIR": str(run_directories)},
        )
    try:
        until(lambda: ready(port) or server.poll() is not None, 900)
        assert server.poll() is None, log.read_text()
        yield server, port
    finally:
        if server.poll() is None:
            server.send_signal(signal.SIGTERM)
            server.wait(PATIENCE_SECONDS)


def ready(port):
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=PATIENCE_SECONDS) as answer:
            return answer.status == 200
    except (urllib.error.URLError, ConnectionError):
        return False


def ask_french(port):
    body = {
        "model": "french",
        "messages": [{"role": "user", "content": "Say my pretty perfect bags in French"}],
        "temperature": 0,
        "max_tokens": 32,
    }
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=900) as answer:
        return json.load(answer)["choices"][0]["message"]["content"]


def descendants(pid):
    found = []
    queue = [pid]
    for one in queue:
        for task in Path(f"/proc/{one}/task").glob("*/children"):
            queue.extend(int(child) for child in task.read_text().split())
    return [one for one in queue if one != pid and one not in found]


def alive(pids):
    def is_alive(pid):
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        except OSError:
            return False

    return [pid for pid in pids if is_alive(pid)]


def shared_memory_of(pid):
    """The named shared memory a process has mapped."""
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    return {Path(line.split(maxsplit=5)[5]) for line in lines if "/dev/shm/" in line and "(deleted)" not in line}


def test_a_killed_engine_is_restarted_and_a_killed_server_leaves_nothing(root, vllm_environment, tmp_path):
    with (
        tempfile.TemporaryDirectory(prefix="coe-e2e-", dir="/tmp") as run_directories,
        one_real_expert(root, vllm_environment, tmp_path, run_directories) as (server, port),
    ):
        answer = ask_french(port)
        assert answer == "mes jolis sacs parfaits"
        engine = descendants(server.pid)
        assert len(engine) >= 3  # the keeper, vLLM's API process, its engine core
        os.kill(engine[-1], signal.SIGKILL)
        assert ask_french(port) == answer
        engine = descendants(server.pid)
        assert alive(engine) == engine
        shared = {path for pid in engine for path in shared_memory_of(pid)}
        assert os.listdir(run_directories) != []
        server.kill()
        until(lambda: not alive(engine))
        server.wait()
        until(lambda: not any(path.exists() for path in shared))
        until(lambda: os.listdir(run_directories) == [])
