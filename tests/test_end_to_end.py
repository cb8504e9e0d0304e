"""The whole product with real vLLM engines: the demo from training to its score, and what happens when things die."""

import json
import os
import signal
import socket
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

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(3600)]  # beside eight busy processes a start takes two minutes
DEMO_SECONDS, DEMO_PATIENCE_SECONDS = 3500, 1500


@pytest.fixture(scope="module")
def demo(root, vllm_environment, tmp_path_factory):
    """What one run of the demo saw. Starts that were measured on a quiet machine are not known to it."""
    folder = tmp_path_factory.mktemp("demo")
    result, config = folder / "result.json", folder / "demo.yaml"
    shipped = (root / "configs/demo.yaml").read_text()
    config.write_text(shipped.replace("../artifacts/demo-state", str(folder / "state")).replace("../", f"{root}/"))
    run = subprocess.run(
        [
            *(sys.executable, "demo/run.py", "--json", result),
            *("--config", config, "--patience", str(DEMO_PATIENCE_SECONDS)),
        ],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=DEMO_SECONDS,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    return json.loads(result.read_text())


def test_the_composition_beats_the_best_single_expert_by_15_points(demo):
    assert demo["gain_points"] >= 15
    assert len(demo["share_of_traffic"]) == 5


def test_every_kind_of_move_happens(demo):
    kinds = {(move["from"], move["to"]) for move in demo["moves"]}
    assert kinds == {
        *(("disk", "device"), ("device", "host"), ("host", "device")),
        *(("host", "disk"), ("device", "disk")),
    }


def test_the_first_question_to_a_topic_moves_its_expert_and_the_second_finds_it_there(demo):
    for first, second in zip(demo["tour"][:10:2], demo["tour"][1:10:2], strict=True):
        assert first["expert"] == second["expert"]
        assert second["residency"] == "device"


def test_waking_is_faster_than_starting(demo):
    def fastest(source):
        return min(m["seconds"] for m in demo["moves"] if (m["from"], m["to"]) == (source, "device"))

    assert fastest("host") < fastest("disk") / 5


@contextmanager
def one_real_expert(root, vllm_environment, folder, run_directories):
    """`coe serve` with a single tiny expert; its run directories are where nobody else's are."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
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
