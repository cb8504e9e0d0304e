"""The commands as a person meets them: sentences and exit codes, never a traceback."""

import json
import os
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from coe_server.cli import app
from tests.patience import PATIENCE_SECONDS, until
from tests.ports import free_port

COE = Path(sys.executable).with_name("coe")


def coe(*words):
    """The program as a process of its own, as `serve` has to be: it changes the process that it runs in."""
    done = subprocess.run([COE, *words], capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False)
    assert "Traceback" not in done.stdout + done.stderr
    return done


def said_by(*words):
    """The same from within this process, which has imported everything: two seconds less."""
    result = CliRunner().invoke(app, [str(word) for word in words], prog_name="coe")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return subprocess.CompletedProcess(words, result.exit_code, result.stdout, result.stderr)


PROGRAMS = {"serve": coe, "validate": said_by}


def config(folder, **settings):
    path = folder / "serve.yaml"
    expert = {"name": "a", "engine": "simulated", "weights_bytes": "1GiB"}
    common = {"http": {"port": 0}, "memory": {"device": "2GiB", "host": "2GiB"}, "experts": [expert]}
    path.write_text(yaml.safe_dump({**common, **settings}))
    return path


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"experts": [{"name": "a", "engine": "vllm", "model": "./gone"}]}, "experts.a.model: there is no model in"),
        ({"memory": {"device": "1MiB"}}, "experts.a: expert 'a' needs 1,024 MiB of device memory; the limit is 1 MiB"),
        ({"router": {"artifact": "gone"}}, "gone"),
        ({"surprise": 1}, "surprise: there is no such key"),
    ],
)
@pytest.mark.parametrize("command", ["serve", "validate"])
def test_a_mistake_stops_the_start_with_one_sentence(tmp_path, command, settings, sentence):
    done = PROGRAMS[command](command, config(tmp_path, **settings))
    assert done.returncode == (2 if command == "serve" else 4 if "memory" in settings else 1)
    assert [line.startswith("coe: ") for line in done.stderr.splitlines()].count(True) == done.stderr.count("\n")
    assert done.stderr.count("\n") == 1 or command == "validate"  # which also says that vLLM is not here
    assert sentence in done.stderr


def test_a_damaged_artifact_is_refused_with_a_sentence(tmp_path):
    artifact = tmp_path / "router"
    artifact.mkdir()
    (artifact / "manifest.json").write_text('{"format_version": 1')
    done = coe("serve", config(tmp_path, router={"artifact": "router"}))
    assert done.returncode == 2
    assert "manifest.json" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_port_in_use_is_said_and_ends_the_server(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = coe("serve", config(tmp_path), "--port", str(port))
    assert done.returncode == 1  # not 2: who holds the port may leave it
    assert done.stderr == (
        f"coe: cannot listen on 127.0.0.1:{port}: address already in use; give another port (http.port or --port)\n"
    )


def test_validate_shows_which_experts_fit_where(tmp_path):
    done = said_by("validate", config(tmp_path))
    assert done.returncode == 0
    assert "1.0 GiB" in done.stdout
    assert "1.0 GiB of 2.0 GiB" in done.stdout


def test_validate_gives_the_wait_bound_and_warns_of_a_ttl_that_never_rests(tmp_path):
    expert = {"name": "a", "engine": "simulated", "weights_bytes": "1GiB", "ttl_seconds": 0.5}
    limits = {"max_wait_seconds": 10, "queue_limit": 8, "max_concurrency": 8, "max_generation_seconds": 20}
    done = said_by("validate", config(tmp_path, experts=[expert], scheduling=limits))
    assert "No request waits longer than 62 s" in done.stdout  # 10 + 1 x (20 + 30 for a start + 2 for the victim)
    told = " ".join(done.stdout.split())
    assert "max_wait 10 s + a turn of 20 s and a switch of 32.0 s, estimated, for one expert that has" in told
    assert "experts.a.ttl_seconds: 0.5 s is less than the move to host and back takes (2.0 s, estimated)" in told
    assert "A turn serves 8 queued requests, 8 at a time, each of maximum length (20 s)" in told
    assert "(measured, or estimated before), the bound would be 47 s" in told


def test_validate_says_how_many_turns_and_switches_are_in_the_wait_bound(tmp_path):
    moves = {"start": 20.0, "wake": 0.5, "sleep": 0.5, "stop": 4.0}
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "costs.json").write_text(json.dumps({"a": moves, "b": moves, "c": moves}))
    experts = [{"name": name, "engine": "simulated", "weights_bytes": "1GiB"} for name in "abc"]
    limits = {"max_wait_seconds": 10, "queue_limit": 8, "max_concurrency": 8, "max_generation_seconds": 20}
    room = {"device": "1GiB", "host": "3GiB"}
    told = " ".join(
        said_by("validate", config(tmp_path, memory=room, experts=experts, scheduling=limits)).stdout.split()
    )
    assert (
        "No request waits longer than 186 s: max_wait 10 s + 4 x (a turn of 20 s and a switch of 24.0 s, measured), "
        "one for each of the 3 experts that share the device, and the present one." in told
    )


def test_where_no_experts_share_the_device_the_wait_bound_is_a_turn_of_ones_own(tmp_path):
    expert = {"name": "a", "engine": "remote", "base_url": "http://127.0.0.1:9/v1", "model": "a"}
    limits = {"max_wait_seconds": 2, "queue_limit": 8, "max_concurrency": 4, "max_generation_seconds": 10}
    told = " ".join(said_by("validate", config(tmp_path, experts=[expert], scheduling=limits)).stdout.split())
    assert "No request waits longer than 22 s: max_wait 2 s + a turn of 20 s, since no experts share the device" in told
    assert "with answers of 5.0 s, the slowest expert's (measured, or estimated before), the bound would be 12" in told
    assert "lists of prompts; up to 128, scheduling.max_fan_out) can make it 42 s." in told  # four rounds, not two


def test_where_a_request_asks_for_one_answer_the_wait_bound_has_no_condition(tmp_path):
    limits = {"max_fan_out": 1}
    assert "several answers" not in said_by("validate", config(tmp_path, scheduling=limits)).stdout


@pytest.mark.parametrize(
    ("memory", "pin", "sentence"),
    [
        ({"device": "10GiB", "host": "64GiB"}, None, "needs 15,360 MiB of device memory; the limit is 10,240 MiB"),
        ({"device": "20GiB", "host": "10GiB"}, None, "needs 15,360 MiB of host memory; the limit is 10,240 MiB"),
        (
            {"device": "20GiB", "host": "64GiB"},
            "device",
            "needs 15,360 MiB of device memory; the limit is 20,480 MiB, of which pinned experts keep 15,360 MiB",
        ),
        ({"device": "180%", "host": "64GiB"}, None, "memory.device: '180%' is not between 0 and 100 %"),
    ],
)
def test_memory_that_can_never_do_is_refused_with_numbers(tmp_path, memory, pin, sentence):
    experts = [{"name": name, "engine": "simulated", "weights_bytes": "15GiB"} for name in "ab"]
    experts[0]["pin"] = pin
    done = said_by("validate", config(tmp_path, memory=memory, experts=experts))
    assert done.returncode == (1 if "%" in memory["device"] else 4)
    assert sentence in done.stderr


def test_every_command_explains_itself():
    overview = said_by("--help").stdout
    for command in ("serve", "validate", "route", "experts"):
        assert command in overview
        assert "CONFIG" in said_by(command, "--help").stdout


def test_the_shell_completes_commands():
    environment = {**os.environ, "_COE_COMPLETE": "complete_bash", "COMP_WORDS": "coe va", "COMP_CWORD": "1"}
    done = subprocess.run([COE], capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False, env=environment)
    assert done.stdout.split() == ["validate"]


def test_route_without_a_router_says_how_to_get_one(tmp_path):
    done = said_by("route", config(tmp_path), "hello")
    assert done.returncode == 2
    assert "coe-train fit" in done.stderr


def test_experts_shows_a_running_server(tmp_path):
    done = said_by("experts", config(tmp_path, http={"port": 1}))
    assert done.returncode == 1
    assert "no server answers at http://127.0.0.1:1 (Connection refused); `coe serve CONFIG` starts one" in done.stderr


@contextmanager
def serving(folder, **settings):
    """`coe serve` on a free port, ready; stopped at the end."""
    port = free_port()
    server = subprocess.Popen(
        [COE, "serve", config(folder, **settings), "--port", str(port)], stderr=subprocess.DEVNULL
    )
    try:
        until(lambda: answers(port) or server.poll() is not None)
        assert server.poll() is None
        yield server, str(port)
    finally:
        server.terminate()
        server.wait(PATIENCE_SECONDS)


def answers(port):
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=PATIENCE_SECONDS) as answer:
            return answer.status == 200
    except (urllib.error.URLError, ConnectionError):
        return False


def post(port, path):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", b"", timeout=PATIENCE_SECONDS) as answer:
        return json.load(answer)


QUICK = {"name": "a", "engine": "simulated", "weights_bytes": "1GiB", "start_seconds": 0, "sleep_seconds": 0}


def test_experts_of_a_running_server_stand_in_one_line_each(tmp_path):
    hosted = {"name": "hosted", "engine": "remote", "base_url": "http://127.0.0.1:9/v1", "model": "m"}
    with serving(tmp_path, experts=[QUICK | {"preload": "host"}, hosted]) as (_, port):
        done = said_by("experts", tmp_path / "serve.yaml", "--port", port)
        found = said_by("experts", tmp_path / "serve.yaml", "--port", port, "--json")
    assert [one["name"] for one in json.loads(found.stdout)] == ["a", "hosted"]
    assert done.returncode == 0
    lines = [line.split() for line in done.stdout.splitlines()]
    assert lines[0] == ["expert", "state", "pin", "device", "host", "leases", "queued", "last", "move"]
    assert lines[1][:3] == ["a", "host", "0"]
    assert lines[1][-5:-2] == ["device", "->", "host,"]
    assert lines[2] == ["hosted", "remote", "0", "MiB", "0", "MiB", "0", "0"]


def test_a_watched_server_is_shown_again_at_each_change_until_it_ends(tmp_path):
    with serving(tmp_path, experts=[QUICK]) as (server, port):
        words = [COE, "experts", tmp_path / "serve.yaml", "--watch", "--port", port]
        watch = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        try:
            assert watch.stdout.readline().startswith("expert")
            assert watch.stdout.readline().split()[:2] == ["a", "disk"]
            post(port, "/admin/experts/a/load")
            assert watch.stdout.readline().startswith("expert")
            assert watch.stdout.readline().split()[:2] == ["a", "device"]
            server.terminate()
            rest, mistake = watch.communicate(timeout=PATIENCE_SECONDS)
        finally:
            watch.kill()
    assert watch.returncode == 1
    assert "no server answers at http://127.0.0.1:" in mistake
    assert "Traceback" not in rest + mistake


def test_json_output_is_nothing_but_json(root):
    artifact = root / "artifacts/demo-router/manifest.json"
    if not artifact.exists():
        pytest.skip("the demo's router has not been trained: `make demo` does")
    done = said_by("route", root / "configs/demo.yaml", "What is 3 km in m?", "--json")
    assert json.loads(done.stdout)["expert"]


def test_validate_names_a_secret_that_no_header_can_carry_and_never_shows_it(tmp_path, monkeypatch):
    remote = {"name": "a", "engine": "remote", "model": "m", "base_url": "https://a.example/v1"}
    remote |= {"api_key_env": "THEIRS", "headers": {"X-Team": "t0p-{env.TEAM}"}}
    path = config(tmp_path, experts=[remote])
    monkeypatch.setenv("THEIRS", "s3cret\n")
    monkeypatch.setenv("TEAM", "s3cret")
    done = said_by("validate", path)
    assert done.returncode == 0, done.stderr
    assert "s3cret" not in done.stdout + done.stderr
    assert "t0p" not in done.stdout + done.stderr
    monkeypatch.setenv("THEIRS", "s3cret\nword")
    for command in "validate", "serve":
        done = PROGRAMS[command](command, path)
        assert done.returncode == (2 if command == "serve" else 1)
        assert "experts.a.api_key_env: the environment variable 'THEIRS' has a line break" in done.stderr
        assert "s3cret" not in done.stdout + done.stderr


def test_a_running_server_of_this_machine_is_not_asked_through_a_proxy(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "")
    with serving(tmp_path) as (_, port):
        monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
        done = said_by("experts", tmp_path / "serve.yaml", "--port", port)
        monkeypatch.delenv("http_proxy")
    assert done.returncode == 0, done.stderr
