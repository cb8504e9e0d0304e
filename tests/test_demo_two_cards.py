"""The demo on two cards made of this machine's RAM and cores, with real vLLM engines: one expert lies on both."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from tests.patience import PATIENCE_SECONDS, until
from tests.ports import free_port

pytestmark = [pytest.mark.vllm, pytest.mark.long, pytest.mark.timeout(1800)]

WIDE = "generalist"
QUESTIONS = {
    "generalist": "Say my pretty perfect bags in French",
    "french": "Say my pretty perfect bags in French",
    "python": "Write Python that reverses `words`",
    "units": "What is 3 km in m?",
    "sql": "Count the rows of users in SQL",
}


class Served:
    """The running server, and every event that it has told so far."""

    def __init__(self, port, process):
        self.url, self.process, self.events = f"http://127.0.0.1:{port}", process, []

    def get(self, path):
        with urllib.request.urlopen(f"{self.url}{path}", timeout=PATIENCE_SECONDS) as answer:
            return json.load(answer)

    def ready(self):
        try:
            return self.get("/readyz")["status"] == "ready"
        except OSError:
            return self.process.poll() is not None

    def ask(self, name):
        messages = [{"role": "user", "content": QUESTIONS[name]}]
        body = {"model": name, "messages": messages, "temperature": 0, "max_tokens": 24}
        headers = {"content-type": "application/json"}
        request = urllib.request.Request(f"{self.url}/v1/chat/completions", json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=900) as answer:
            return json.load(answer)["choices"][0]["message"]["content"]

    def expert(self, name):
        return next(one for one in self.get("/admin/experts") if one["name"] == name)

    def cards(self, name):
        return [card["index"] for card in self.expert(name)["cards"]]

    def moves(self, *kinds):
        moves = [event for event in self.events if event["kind"] == "move"]
        return [move for move in moves if (move["from"], move["to"]) in kinds]

    def follow(self):
        with urllib.request.urlopen(f"{self.url}/admin/events", timeout=1800) as stream:
            for line in stream:
                if line.startswith(b"data: "):
                    self.events.append(json.loads(line[6:]))


def settings_of(root, vllm_environment, folder):
    """Those of the demo, with folders of their own; the wide expert goes to sleep by itself."""
    settings = yaml.safe_load((root / "configs/demo-two-cards.yaml").read_text())
    settings["http"]["port"] = free_port()
    settings["router"]["artifact"] = str(root / "artifacts/demo-router")
    settings["vllm"] |= {"command": str(vllm_environment / "bin/vllm"), "log_directory": str(folder / "logs")}
    settings["vllm"]["start_timeout_seconds"] = 900
    settings["state_directory"] = str(folder / "state")
    settings["scheduling"]["max_wait_seconds"] = 600
    for expert in settings["experts"]:
        expert["model"] = str(root / "demo/experts" / expert["name"])
        if expert["name"] == WIDE:
            expert["ttl_seconds"] = 5
    return settings


@contextmanager
def serving(folder, settings):
    config, log = folder / "serve.yaml", folder / "server.log"
    config.write_text(yaml.safe_dump(settings))
    with log.open("wb") as output:
        command = [Path(sys.executable).with_name("coe"), "serve", config]
        process = subprocess.Popen(command, stdout=output, stderr=output)
    served = Served(settings["http"]["port"], process)
    try:
        until(served.ready, 1200)
        assert process.poll() is None, log.read_text()
        threading.Thread(target=quietly, args=(served.follow,), daemon=True).start()
        yield served
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.wait(PATIENCE_SECONDS)


def quietly(follow):
    try:
        follow()
    except OSError:
        return  # the server ended


def ranks(folder):
    """The processes with the weights of the wide expert, first rank first, as the engine's log names them."""
    told = re.findall(r"Worker_TP(\d) pid=(\d+)", (folder / f"logs/{WIDE}.log").read_text())
    return [int(pid) for _, pid in sorted(dict(told).items())]


def lives(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_wide_expert_and_single_ones_live_on_two_cards(root, vllm_environment, tmp_path):
    with serving(tmp_path, settings_of(root, vllm_environment, tmp_path)) as served:
        answers = {}
        asked = threading.Thread(target=lambda: answers.update({WIDE: served.ask(WIDE)}))
        asked.start()
        until(lambda: served.expert(WIDE)["state"] == "starting", PATIENCE_SECONDS)
        first = {name: served.ask(name) for name in ("python", "french")}
        asked.join()
        assert (served.cards("french"), served.cards("python")) == ([0], [1])
        (start,) = [move for move in served.moves(("disk", "device")) if move["expert"] == WIDE]
        assert start["cards"] == [0, 1]
        beside = [move for move in served.moves(("host", "device")) if move["expert"] != WIDE]
        assert [move for move in beside if start["time"] - start["seconds"] < move["time"] < start["time"]], (
            "a single one woke while the wide one started"
        )

        until(lambda: served.expert(WIDE)["residency"] == "host", PATIENCE_SECONDS)
        assert served.expert(WIDE)["bytes"]["device"] == 0
        assert served.ask(WIDE) == answers[WIDE], "equal after a sleep"
        assert [move["cards"] for move in served.moves(("host", "device")) if move["expert"] == WIDE] == [[0, 1]]

        first_ranks = ranks(tmp_path)
        assert [lives(pid) for pid in first_ranks] == [True, True]
        os.kill(first_ranks[1], signal.SIGKILL)
        until(lambda: any(event["kind"] == "failure" for event in served.events), PATIENCE_SECONDS)
        assert {name: served.ask(name) for name in first} == first, "the others answer meanwhile"
        assert served.ask(WIDE) == answers[WIDE], "it came back"
        assert not set(ranks(tmp_path)) & set(first_ranks)
        assert [served.ask(name) for name in ("units", "sql")]
        assert {name: served.ask(name) for name in first} == first
    assert not any(map(lives, ranks(tmp_path)))
