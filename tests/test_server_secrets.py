"""A server's secrets: what an expert's code can read of them, and that a reload still knows them."""

import http.client
import json
import os
import re
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from tests.patience import PATIENCE_SECONDS, until
from tests.ports import free_port
from tests.same_user import powerless

COE = Path(sys.executable).with_name("coe")
NOSY = Path(__file__).parent / "engines/nosy_vllm.py"
PRETEND = {"name": "pretend", "engine": "simulated", "weights_bytes": "1MiB", "start_seconds": 0}
SECRETS = {name: f"s3cret-{name}" for name in ("OWN", "ADMIN", "HOSTED", "VLLM_HOSTED", "LATER")}
TRUSTING = {"trust_remote_code": True}
KEYS = {"api_key_env": "OWN", "admin_key_env": "ADMIN"}


def hosted(**more):
    return {"name": "hosted", "engine": "remote", "base_url": "http://127.0.0.1:9/v1", "model": "m", **more}


@contextmanager
def serving(folder, before=(), **settings):
    """The process, a way to ask it, its configuration and its log."""
    port = free_port()
    config, log = folder / "serve.yaml", folder / "server.log"
    settings = {"http": {"port": port}, "keys": KEYS, "experts": [PRETEND], **settings}
    config.write_text(yaml.safe_dump(settings))
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*before, COE, "serve", config], stdout=output, stderr=output, env={**os.environ, **SECRETS}
        )

    def ask(method, path, key, body=None):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_SECONDS)
        try:
            headers = {"authorization": f"Bearer {SECRETS.get(key, key)}"}
            connection.request(method, path, json.dumps(body) if body is not None else None, headers)
            response = connection.getresponse()
            return response.status, response.read().decode()
        finally:
            connection.close()

    def listens():
        try:
            return ask("GET", "/healthz", "OWN")[0] == 200
        except OSError:
            return process.poll() is not None

    try:
        until(listens)
        assert process.poll() is None, log.read_text()
        yield process, ask, config, settings
    finally:
        process.terminate()
        process.wait(PATIENCE_SECONDS)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What an expert's code could read, and the environment that the server shows to root."""
    folder = tmp_path_factory.mktemp("nosy")
    (folder / "model").mkdir()
    (folder / "model/config.json").write_text("{}")
    (folder / "model/model.safetensors").write_bytes(bytes(2000))
    vllm = {"command": [sys.executable, str(NOSY)], "platform": "cpu", "kv_cache": "16MiB", "process_memory": "16MiB"}
    experts = [
        {"name": "nosy", "engine": "vllm", "model": str(folder / "model"), "preload": "device", "args": TRUSTING},
        hosted(api_key_env="HOSTED", headers={"X-A": "{env.VLLM_HOSTED}"}),
    ]
    memory = {"device": "64MiB", "host": "64MiB"}
    log = folder / "state/logs/nosy.log"
    with serving(folder, powerless(), vllm=vllm, memory=memory, experts=experts) as (process, *_):
        told = []
        until(lambda: told.extend(findings(log)) or told)
        seen = {**json.loads(told[0]), "server log": (folder / "server.log").read_text()}
        yield seen, shown_environment(process.pid)


def findings(log):
    """Each whole line of what it found; the expert ends and is started again, and then its log is a new file."""
    if not log.exists():
        return []
    return [line.removeprefix("found ") for line in log.read_text().splitlines(True) if re.match(r"found .*\n", line)]


def shown_environment(pid):
    try:
        return Path(f"/proc/{pid}/environ").read_bytes()
    except PermissionError:  # only root may
        return b""


def test_an_experts_code_can_read_nothing_of_the_gateway(found):
    seen, _ = found
    assert {"environment", "memory", "memory map", "open files"} <= set(seen["keeper"]), "it can read what is its own"
    assert seen["gateway"] == []


def test_a_models_own_code_is_warned_of_at_the_start(found):
    seen, _ = found
    told = [json.loads(line) for line in seen["server log"].splitlines()]
    assert [line["level"] for line in told if "args.trust_remote_code: Python code" in line["message"]] == ["warning"]


def test_no_process_shows_a_secret_to_an_experts_code(found):
    seen, _ = found
    assert seen["marked"] == []
    assert seen["own"] == [], "not by a name that looks like vLLM's own either"


def test_the_environment_that_root_sees_has_no_secret_that_was_named(found):
    _, shown = found
    for name in ("OWN", "ADMIN", "HOSTED", "VLLM_HOSTED"):
        assert SECRETS[name].encode() not in shown


def test_a_reload_knows_the_secrets_that_were_read_before_and_takes_new_ones(tmp_path):
    with serving(tmp_path) as (process, ask, config, settings):

        def reload(status, admin, **keys):
            config.write_text(yaml.safe_dump({**settings, "keys": keys}))
            answer = ask("POST", "/admin/reload", admin)
            assert answer[0] == status, answer
            return answer[1]

        assert ask("GET", "/v1/models", "OWN")[0] == 200
        reload(200, "ADMIN", **KEYS)
        assert ask("GET", "/v1/models", "OWN")[0] == 200
        told = reload(409, "ADMIN", **KEYS | {"api_key_env": "NOWHERE"})
        assert "keys.api_key_env: the environment variable 'NOWHERE' is not set" in told
        assert ask("GET", "/v1/models", "OWN")[0] == 200
        reload(200, "ADMIN", **KEYS | {"api_key_env": "LATER"})
        assert ask("GET", "/v1/models", "LATER")[0] == 200
        assert ask("GET", "/v1/models", "OWN")[0] == 401
        assert SECRETS["LATER"].encode() not in shown_environment(process.pid)
        reload(200, "ADMIN", **KEYS)
        assert ask("GET", "/v1/models", "OWN")[0] == 200
