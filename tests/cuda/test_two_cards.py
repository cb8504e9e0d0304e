"""A whole server on a pretend machine with two cards: an expert as wide as both, and two that each take one."""

import json
import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path

import pytest
import yaml

from coe_server.engines.memory import process_tree
from tests.cuda.cards import GIB, VARIABLE, Cards
from tests.patience import PATIENCE_SECONDS, until
from tests.ports import free_port

ROOT = Path(__file__).parents[2]
COE = Path(sys.executable).with_name("coe")
STAND_IN = Path(__file__).with_name("stand_in.py")
PROGRAM = Path(__file__).parent.with_name("engines") / "stand_in_command.py"  # `engine: command`
MEMORY = {"host": "90%"}


class Served:
    def __init__(self, port, process):
        self.port, self.process = port, process

    def ask(self, method, path, body=None):
        connection = HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_SECONDS)
        try:
            connection.request(method, path, body and json.dumps(body), {"content-type": "application/json"})
            response = connection.getresponse()
            return response.status, json.loads(response.read())
        finally:
            connection.close()

    def complete(self, name):
        status, answer = self.ask("POST", "/v1/completions", {"model": name, "prompt": "hi", "max_tokens": 4})
        assert status == 200, answer
        return answer["choices"][0]["text"]

    def residency(self):
        return {expert["name"]: expert["residency"] for expert in self.ask("GET", "/admin/experts")[1]}

    def cards(self, name):
        told = {expert["name"]: expert for expert in self.ask("GET", "/admin/experts")[1]}[name]
        return [card["index"] for card in told["cards"]]

    def has_left(self, name, card):
        """True once the server has seen that its engine there died: until then a request may be lost with it."""
        return self.residency()[name] != "device" or self.cards(name) != [card]

    def program(self, name):
        """Process of a program that this server started for an expert."""
        for pid in process_tree(self.process.pid):
            words = Path(f"/proc/{pid}/cmdline").read_text().rstrip("\0").split("\0")
            if words[1] == str(PROGRAM) and words[-1] == name:
                return pid
        raise AssertionError(f"no program of '{name}' runs")

    def listens(self):
        try:
            return self.ask("GET", "/healthz")[0] == 200
        except OSError:
            return self.process.poll() is not None

    def is_ready(self):
        return self.ask("GET", "/readyz")[0] == 200


@contextmanager
def serving(folder, environment, experts, memory=MEMORY, kv_cache="1GiB"):
    port = free_port()
    settings = {
        "http": {"port": port},
        "memory": memory,
        "vllm": {"command": [sys.executable, str(STAND_IN)], "platform": "cuda", "kv_cache": kv_cache},
        "scheduling": {"prefetch": False},  # experts move by requests alone
        "state_directory": str(folder / "state"),
        "experts": experts,
    }
    config, log = folder / "serve.yaml", folder / "server.log"
    config.write_text(yaml.safe_dump(settings))
    with log.open("wb") as output:
        process = subprocess.Popen(
            [COE, "serve", config, "--names-only"], env=environment, stdout=output, stderr=output
        )
    served = Served(port, process)
    try:
        until(served.listens)
        assert process.poll() is None, log.read_text()
        yield served
    finally:
        process.terminate()
        process.wait(PATIENCE_SECONDS)


@pytest.fixture
def two_cards(tmp_path, vllm_rules):
    cards = Cards.create(tmp_path / "cards.json", [24 * GIB] * 2)
    driver = Path(__file__).with_name("driver")
    pretended = {VARIABLE: str(tmp_path / "cards.json"), "PYTHONPATH": f"{ROOT}:{driver}"}
    return cards, {**os.environ, **vllm_rules, **pretended}


def on(cards, card):
    return round(cards.held(card=card).get("weights", 0) / GIB)


def one_wide_two_single(make_model):
    """`wide` on both cards, `a` on either, `b` on the second one."""

    def expert(name, size, **more):
        model = str(make_model(name, size * GIB))
        return {"name": name, "engine": "vllm", "model": model, "sleep": False, **more}

    wide = expert("wide", 30, args={"tensor_parallel_size": 2})
    return [wide, expert("a", 12), expert("b", 12, cards=[1])]


def test_a_wide_expert_and_two_single_ones_take_turns_on_two_cards(tmp_path, two_cards, make_model):
    cards, environment = two_cards
    with serving(tmp_path, environment, one_wide_two_single(make_model)) as served:
        first = {name: served.complete(name) for name in ("a", "b")}
        assert (on(cards, 0), on(cards, 1)) == (12, 12), "side by side, `b` on the card that it was given"
        first["wide"] = served.complete("wide")
        assert (on(cards, 0), on(cards, 1)) == (15, 15), "one rank on each card"
        assert served.residency() == {"wide": "device", "a": "disk", "b": "disk"}
        told = {expert["name"]: expert for expert in served.ask("GET", "/admin/experts")[1]}["wide"]
        assert [card["index"] for card in told["cards"]] == [0, 1]
        assert [one["context_tokens"] for one in served.ask("GET", "/admin/experts")[1]] == [
            32768,  # all of the model's
            *[GIB // (2 * 28 * 4 * 128 * 2)] * 2,  # what their caches hold, as their engines told
        ]
        assert sum(card["bytes"] for card in told["cards"]) == told["bytes"]["device"]
        seen = served.ask("GET", "/admin/overview")[1]["tiers"]["device"]["cards"]
        assert [card["used"] for card in seen] == [card["bytes"] for card in told["cards"]], "`a` and `b` are on disk"
        assert served.complete("b") == first["b"]
        assert (on(cards, 0), on(cards, 1)) == (0, 12)
        assert served.complete("a") == first["a"]
        assert served.residency() == {"wide": "disk", "a": "device", "b": "device"}
        assert served.complete("wide") == first["wide"]
    until(lambda: cards.held() == {})


def test_when_a_card_is_lost_its_expert_starts_on_the_other_and_the_rest_goes_on(tmp_path, two_cards, make_model):
    cards, environment = two_cards
    with serving(tmp_path, environment, one_wide_two_single(make_model)) as served:
        first = {name: served.complete(name) for name in ("a", "b")}
        (rank,) = cards.processes(0)
        engine = int(Path(f"/proc/{rank}/stat").read_text().rpartition(")")[2].split()[1])  # its parent
        cards.lose(0)
        os.kill(engine, signal.SIGKILL)
        assert served.complete("b") == first["b"], "the other card goes on"
        until(lambda: served.has_left("a", 0))
        assert served.complete("a") == first["a"], "it has started on the other card"
        assert on(cards, 1) == 12
        assert served.residency() == {"wide": "disk", "a": "device", "b": "disk"}
        status, answer = served.ask("POST", "/v1/completions", {"model": "wide", "prompt": "hi", "max_tokens": 4})
        assert status == 503
        assert "card" in answer["error"]["message"]
        assert "card 0 is lost" in (tmp_path / "server.log").read_text()
    until(lambda: cards.held() == {})


def test_a_program_that_dies_with_its_card_starts_on_the_other(tmp_path, two_cards):
    cards, environment = two_cards

    def program(name, **more):
        command = [sys.executable, str(PROGRAM), "--socket", "{socket}", "--name", "{name}"]
        return {"name": name, "engine": "command", "command": command, "device_bytes": "12GiB", **more}

    wide = program("wide", width=2)
    with serving(tmp_path, environment, [program("a"), program("b", cards=[1]), wide]) as served:
        first = {name: served.complete(name) for name in ("a", "b")}
        assert (served.cards("a"), served.cards("b")) == ([0], [1])
        cards.lose(0)
        os.kill(served.program("a"), signal.SIGKILL)
        assert served.complete("b") == first["b"], "the other card goes on"
        until(lambda: served.has_left("a", 0))
        assert served.complete("a") == first["a"]
        assert served.cards("a") == [1]
        status, answer = served.ask("POST", "/v1/completions", {"model": "wide", "prompt": "hi", "max_tokens": 4})
        assert status == 503
        assert "card" in answer["error"]["message"]
        assert "card 0 is lost" in (tmp_path / "server.log").read_text()


def test_a_place_that_no_card_has_stops_the_start_with_a_sentence(tmp_path, two_cards, make_model):
    _, environment = two_cards
    experts = [{"name": "a", "engine": "vllm", "model": str(make_model("a")), "args": {"tensor_parallel_size": 4}}]
    config = tmp_path / "serve.yaml"
    vllm = {"command": [sys.executable, str(STAND_IN)], "platform": "cuda"}
    config.write_text(yaml.safe_dump({"http": {"port": 0}, "vllm": vllm, "experts": experts}))
    done = subprocess.run(
        [COE, "serve", config, "--names-only"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert done.returncode == 2
    assert "experts.a.cards: there is no seat for an expert that needs 4 cards" in done.stderr
