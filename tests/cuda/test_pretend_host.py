"""The pretend cards and the stand-in engine behave as vLLM's source and upstream's reports say."""

import json
import os
import socket
import subprocess
import sys
from contextlib import ExitStack
from http.client import HTTPConnection
from pathlib import Path

import pytest

from tests.cuda.cards import DRIVER_BYTES, GIB, MIB, VARIABLE, Cards, OutOfMemory
from tests.cuda.stand_in import ACTIVATIONS_SMALL, CONTEXT, GRAPH, NCCL
from tests.patience import PATIENCE_SECONDS, until

STAND_IN = Path(__file__).with_name("stand_in.py")
KV = 2 * GIB


class Unix(HTTPConnection):
    def __init__(self, path):
        super().__init__("localhost", timeout=PATIENCE_SECONDS)
        self._path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(str(self._path))


class Started:
    """One stand-in engine; `ask` gives status and JSON."""

    def __init__(self, folder, environment, words):
        self.socket, self.log = folder / "engine.sock", folder / "engine.log"
        folder.mkdir()
        command = [sys.executable, STAND_IN, "serve", *words, "--uds", self.socket]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)

    def ready(self):
        def answers():
            if self.process.poll() is not None:
                return True
            try:
                return self.ask("GET", "/health")[0] == 200
            except OSError:
                return False

        until(answers)
        return self.process.poll() is None

    def ask(self, method, path, body=None):
        connection = Unix(self.socket)
        try:
            connection.request(method, path, json.dumps(body) if body else None, {"content-type": "application/json"})
            response = connection.getresponse()
            text = response.read()
            return response.status, json.loads(text) if text else None
        finally:
            connection.close()

    def end(self):
        self.process.terminate()
        self.process.wait(PATIENCE_SECONDS)


@pytest.fixture
def host(tmp_path, vllm_rules):
    """Makes a machine of cards, and a way to start engines there."""
    with ExitStack() as stack:

        def make(*totals):
            cards = Cards.create(tmp_path / "cards.json", totals)

            def start(model, *words, fault="", visible=None, kv=KV):
                environment = {
                    **os.environ,
                    **vllm_rules,
                    VARIABLE: str(tmp_path / "cards.json"),
                    "PRETEND_FAULT": fault,
                }
                if visible is not None:
                    environment["CUDA_VISIBLE_DEVICES"] = visible
                given = [model, "--served-model-name", model.name, "--kv-cache-memory-bytes", str(kv)]
                number = len(list(tmp_path.glob("engine-*")))
                engine = Started(tmp_path / f"engine-{number}", environment, [*given, "--enable-sleep-mode", *words])
                stack.callback(engine.end)
                return engine

            return cards, start

        yield make


def test_a_second_engine_is_refused_with_vllms_default_utilisation(host, make_model):
    cards, start = host(24 * GIB)
    model = make_model("qwen")
    first = start(model, "--max-model-len", "auto", "--gpu-memory-utilization", "0.3")
    assert first.ready()
    assert first.ask("POST", "/sleep?level=1&mode=wait")[0] == 200
    second = start(model, "--max-model-len", "auto")
    assert not second.ready()
    assert "less than desired GPU memory utilization" in second.log.read_text()
    assert start(model, "--max-model-len", "auto", "--gpu-memory-utilization", "0.05").ready()
    assert cards.reading(0).used > 2 * CONTEXT


def test_an_engine_holds_context_weights_cache_and_graphs_and_a_sleeper_its_residue(host, make_model):
    cards, start = host(24 * GIB)
    engine = start(make_model("qwen", 5 * GIB), "--max-model-len", "auto", "--gpu-memory-utilization", "0.1")
    assert engine.ready()
    assert cards.held() == {"context": CONTEXT, "weights": 5 * GIB, "kv_cache": KV, "graphs": 51 * GRAPH}
    engine.ask("POST", "/sleep?level=1&mode=wait")
    assert cards.held() == {"context": CONTEXT, "graphs": 51 * GRAPH}
    engine.ask("POST", "/wake_up")
    assert cards.held() == {"context": CONTEXT, "weights": 5 * GIB, "kv_cache": KV, "graphs": 51 * GRAPH}
    engine.end()
    assert cards.reading(0).used == DRIVER_BYTES


def test_fewer_sequences_make_fewer_graphs(host, make_model):
    cards, start = host(24 * GIB)
    words = ("--max-model-len", "auto", "--gpu-memory-utilization", "0.1", "--max-num-seqs", "16")
    assert start(make_model("qwen"), *words).ready()
    assert cards.held()["graphs"] == 7 * GRAPH


def test_the_first_long_prompt_takes_activations_that_go_with_the_next_sleep(host, make_model):
    cards, start = host(24 * GIB)
    engine = start(make_model("qwen"), "--max-model-len", "auto", "--gpu-memory-utilization", "0.1")
    assert engine.ready()
    short = engine.ask("POST", "/v1/completions", {"model": "qwen", "prompt": "a"})[1]["choices"][0]["text"]
    assert "activations" not in cards.held()
    long = engine.ask("POST", "/v1/completions", {"model": "qwen", "prompt": "a" * 5000})[1]["choices"][0]["text"]
    assert cards.held()["activations"] == ACTIVATIONS_SMALL
    assert short == long
    engine.ask("POST", "/sleep?level=1&mode=wait")
    assert "activations" not in cards.held()


def test_a_cache_that_holds_no_request_of_full_length_is_refused_and_auto_fits_itself(host, make_model):
    _, start = host(24 * GIB)
    model = make_model("qwen", num_key_value_heads=28)
    refused = start(model, "--gpu-memory-utilization", "0.1")
    assert not refused.ready()
    assert "To serve at least one request" in refused.log.read_text()
    fitting = start(model, "--gpu-memory-utilization", "0.1", "--max-model-len", "auto")
    assert fitting.ready()
    assert fitting.ask("GET", "/v1/models")[1]["data"][0]["max_model_len"] == KV // (2 * 28 * 28 * 128 * 2)


def test_ranks_lie_on_the_cards_they_are_given_with_nccl(host, make_model):
    cards, start = host(*[24 * GIB] * 4)
    engine = start(
        make_model("qwen", 20 * GIB),
        *("--tensor-parallel-size", "2", "--max-model-len", "auto", "--gpu-memory-utilization", "0.1"),
        visible=f"{cards.uuid(2)},3",
    )
    assert engine.ready()
    assert [bool(cards.held(card=card)) for card in range(4)] == [False, False, True, True]
    assert cards.held(card=3)["nccl"] == NCCL
    assert cards.held(card=2)["weights"] > cards.held(card=3)["weights"] == 10 * GIB
    assert engine.ask("POST", "/collective_rpc", {"method": "check_health"})[1] == {"results": [None, None]}
    engine.ask("POST", "/sleep?level=1&mode=wait")
    assert cards.held(card=2) == {"context": CONTEXT, "nccl": NCCL, "graphs": 51 * GRAPH}


def test_copies_answer_one_collective_call_for_the_first_alone_and_all_sleep(host, make_model):
    cards, start = host(*[24 * GIB] * 2)
    words = ("--data-parallel-size", "2", "--api-server-count", "1", "--max-model-len", "auto")
    engine = start(make_model("qwen"), *words, "--gpu-memory-utilization", "0.1")
    assert engine.ready()
    assert engine.ask("POST", "/collective_rpc", {"method": "check_health"})[1] == {"results": [None]}
    engine.ask("POST", "/sleep?level=1&mode=wait")
    assert all("weights" not in cards.held(card=card) for card in range(2))


def test_a_rank_that_lacks_room_ends_the_engine_and_its_bytes(host, make_model):
    cards, start = host(*[12 * GIB] * 2)
    engine = start(
        make_model("big", 17 * GIB),
        *("--tensor-parallel-size", "2", "--max-model-len", "auto", "--gpu-memory-utilization", "0.1"),
        fault="a rank lacks room",
    )
    assert not engine.ready()
    assert "out of memory" in engine.log.read_text()
    until(lambda: cards.held() == {})


@pytest.mark.parametrize(
    ("fault", "left"),
    [
        ("sleep frees nothing", {"context", "weights", "kv_cache", "graphs"}),
        ("slow release", {"context", "weights", "kv_cache", "graphs"}),
        ("", {"context", "graphs"}),
    ],
)
def test_what_a_sleep_gives_back_at_once(host, make_model, fault, left):
    cards, start = host(24 * GIB)
    engine = start(make_model("qwen"), "--max-model-len", "auto", "--gpu-memory-utilization", "0.1", fault=fault)
    assert engine.ready()
    assert engine.ask("POST", "/sleep?level=1&mode=wait")[0] == 200
    assert set(cards.held()) == left
    if fault == "slow release":
        until(lambda: set(cards.held()) == {"context", "graphs"})


def test_a_neighbour_that_takes_memory_during_a_sleep_fails_vllms_own_assertion(host, make_model):
    cards, start = host(24 * GIB)
    engine = start(
        make_model("qwen"), "--max-model-len", "auto", "--gpu-memory-utilization", "0.1", fault="takes as it sleeps"
    )
    assert engine.ready()
    status, body = engine.ask("POST", "/sleep?level=1&mode=wait")
    assert status == 500
    assert "Memory usage increased after sleeping" in body["error"]["message"]
    assert set(cards.held()) == {"context", "graphs"}, "what it gave back is gone all the same"


def test_a_card_holds_what_it_has_and_neighbours_count(tmp_path):
    cards = Cards.create(tmp_path / "cards.json", [GIB], driver=0)
    cards.take(0, "weights", 600 * MIB)
    with pytest.raises(OutOfMemory):
        cards.take(0, "weights", 500 * MIB)
    cards.neighbour(0, 300 * MIB)
    assert cards.reading(0).free == GIB - 900 * MIB
    cards.give_back(0, "weights")
    assert cards.reading(0).free == GIB - 300 * MIB
    cards.lose(0)
    with pytest.raises(OutOfMemory):
        cards.take(0, "weights", 1)


def test_the_pretend_driver_reads_the_cards(tmp_path):
    cards = Cards.create(tmp_path / "cards.json", [24 * GIB, 80 * GIB])
    script = """
import pynvml as n
try:
    n.nvmlDeviceGetCount()
except n.NVMLError as error:
    print(error)
n.nvmlInit()
handle = n.nvmlDeviceGetHandleByUUID(n.nvmlDeviceGetUUID(n.nvmlDeviceGetHandleByIndex(1)))
print(n.nvmlDeviceGetCount(), n.nvmlDeviceGetMemoryInfo(handle).total)
"""
    root, driver = Path(__file__).parents[2], Path(__file__).with_name("driver")
    environment = {**os.environ, "PYTHONPATH": f"{driver}:{root}", VARIABLE: str(tmp_path / "cards.json")}
    told = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert told.stdout.split("\n")[:2] == ["Uninitialized", f"2 {cards.reading(1).total}"]
