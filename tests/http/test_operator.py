"""The operator restarts experts, reads the ends of their logs and sees downloads; so do the commands."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from coe_server.cli import app
from coe_server.engines.engine import Download
from coe_server.engines.log_file import log_end
from coe_server.engines.simulated import SimulatedEngine
from coe_server.keys import Key, Keyring, hashed
from tests.http.server import running_server

GIB = 2**30
FAST = {"start_seconds": 0.0, "wake_seconds": 0.0, "sleep_seconds": 0.0, "ttft_seconds": 0.0, "tokens_per_second": 1000}


class LoggedEngine(SimulatedEngine):
    """A simulated engine with a log, and with a model that is not whole until its first start."""

    log = Path("nothing.log")
    starts = 0

    async def start(self, *arguments, **options):
        self.starts += 1
        await super().start(*arguments, **options)

    def log_end(self, count):
        return log_end(self.log, count)

    def download(self):
        return None if self.starts else Download(GIB, 2 * GIB)


def told(server, method, path, **headers):
    status, _, raw = server.ask(method, f"/admin/experts{path}", headers=headers)
    return status, json.loads(raw)


@pytest.fixture
def engine(tmp_path):
    made = LoggedEngine("coder", weights_bytes=GIB, **FAST)
    made.log = tmp_path / "coder.log"
    made.log.write_text("one\nprompt: 'who am I'\nthree\n")
    return made


@pytest.fixture
def served(engine):
    with running_server({"coder": engine, "plain": SimulatedEngine("plain", weights_bytes=GIB, **FAST)}) as running:
        yield running


def test_a_restart_answers_once_the_new_engine_is_loaded(served, engine):
    assert told(served, "POST", "/coder/load")[0] == 200
    status, row = told(served, "POST", "/coder/restart")
    assert (status, row["residency"], engine.starts) == (200, "device", 2)
    assert told(served, "POST", "/nothing/restart")[1]["error"]["code"] == "model_not_found"


def test_the_end_of_a_log_has_as_many_lines_as_asked_for_and_no_prompt(served):
    status, log = told(served, "GET", "/coder/log?lines=2")
    assert (status, log["name"], log["lines"]) == (200, "coder", ["prompt: [left out]", "three"])
    assert "operators only" in log["note"]
    assert told(served, "GET", "/coder/log?lines=0")[0] == 400


def test_an_expert_without_an_engine_process_has_no_log(served):
    status, refused = told(served, "GET", "/plain/log")
    assert (status, refused["error"]["param"]) == (400, "name")
    assert "no engine process here" in refused["error"]["message"]
    rows = {row["name"]: row["has_log"] for row in told(served, "GET", "")[1]}
    assert rows == {"coder": True, "plain": False}


def test_an_unfinished_download_is_told_until_the_expert_is_loaded(served):
    rows = told(served, "GET", "")[1]
    assert [row["download"] for row in rows] == [{"bytes": GIB, "of": 2 * GIB}, None]
    told(served, "POST", "/coder/load")
    assert [row["download"] for row in told(served, "GET", "")[1]] == [None, None]


def test_log_and_restart_are_the_operators(engine):
    keys = (Key(name="boss", sha256=hashed("coe-boss"), admin=True), Key(name="app", sha256=hashed("coe-app")))
    with running_server({"coder": engine}, keyring=Keyring(keys)) as locked:
        for method, path in (("GET", "/coder/log"), ("POST", "/coder/restart")):
            assert told(locked, method, path)[0] == 401
            assert told(locked, method, path, authorization="Bearer coe-app")[0] == 403
            assert told(locked, method, path, authorization="Bearer coe-boss")[0] == 200


def test_the_commands_move_pin_restart_and_read(served, engine, tmp_path):
    config = tmp_path / "serve.yaml"
    config.write_text(
        "experts: [{name: coder, engine: simulated, weights_bytes: 1GiB}]\nmemory: {device: 1GiB, host: 1GiB}\n"
    )

    def coe(*words):
        return CliRunner().invoke(app, [words[0], str(config), *words[1:], "--port", str(served.port)])

    said = {
        words: coe(*words).output
        for words in [("load", "coder"), ("pin", "coder"), ("restart", "coder"), ("unpin", "coder")]
    }
    assert said == {
        ("load", "coder"): "coder: device\n",
        ("pin", "coder"): "coder: device, pinned to device\n",
        ("restart", "coder"): "coder: device, pinned to device\n",
        ("unpin", "coder"): "coder: device\n",
    }
    assert engine.starts == 2
    assert coe("unload", "coder").exit_code == 0
    assert coe("logs", "coder", "--lines", "1").output == "three\n"
    refused = coe("restart", "nothing")
    assert (refused.exit_code, "unknown expert 'nothing'" in refused.output) == (1, True)
