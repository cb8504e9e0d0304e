"""Two nodes with real vLLM engines on a CPU, two tiny experts each, behind one front. The tests tell one story."""

import json
import threading
from contextlib import ExitStack

import pytest

from tests.cluster.servers import as_process, front_settings, in_thread
from tests.engines.tiny_llama import tiny_llama
from tests.patience import until
from tests.ports import free_port

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(3600)]
START_PATIENCE_SECONDS = 1500.0  # beside eight busy processes a start takes two minutes


class Cluster:
    """`left` has `french` and `shared`, `right` has `german` and `shared`."""

    def __init__(self, folder, model, command):
        self._held = ExitStack()
        self.nodes = {}
        for name, own in (("left", "french"), ("right", "german")):
            settings = node(model, command, own, "shared")
            self.nodes[name] = self._held.enter_context(as_process(folder, name, settings, free_port()))
        urls = {name: server.url for name, server in self.nodes.items()}
        limits = {"max_generation_seconds": START_PATIENCE_SECONDS}
        self.front = self._held.enter_context(in_thread(front_settings(urls, scheduling=limits)))
        self.front.until_usable("left", "right", patience_seconds=START_PATIENCE_SECONDS)

    def close(self):
        self._held.close()


def node(model, command, *experts):
    engine = {
        "engine": "vllm",
        "model": str(model),
        "kv_cache": "32MiB",
        "args": {"max_model_len": 512, "max_num_seqs": 4},
    }
    return {
        "role": "node",
        "keys": {"node_key_env": "COE_NODE_KEY"},
        "vllm": {"command": str(command), "platform": "cpu", "start_timeout_seconds": START_PATIENCE_SECONDS},
        "memory": {"device": "512MiB", "host": "3GiB"},
        "scheduling": {"max_generation_seconds": START_PATIENCE_SECONDS, "prefetch": False},
        "experts": [{"name": name, **engine} for name in experts],
    }


@pytest.fixture(scope="module")
def two(vllm_environment, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cluster")
    made = Cluster(folder, tiny_llama(folder / "model"), vllm_environment / "bin/vllm")
    try:
        yield made
    finally:
        made.close()


def asked(front, expert, **fields):
    """One answer, in a thread of its own: an expert may have to start."""
    found = []
    words = {"model": expert, "prompt": "hello", "max_tokens": 4, "temperature": 0, **fields}

    def ask():
        found.append(
            front.ask("POST", "/v1/completions", words, START_PATIENCE_SECONDS, content_type="application/json")
        )

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    return thread, found


def answer(thread, found):
    thread.join(START_PATIENCE_SECONDS)
    assert found, "no answer came"
    return found[0]


def test_each_expert_answers_from_the_node_that_has_it(two):
    both = [asked(two.front, expert) for expert in ("french", "german")]  # their engines start at the same time
    for asking, node_name in zip(both, ("left", "right"), strict=True):
        status, headers, body = answer(*asking)
        assert (status, headers["x-coe-node"]) == (200, node_name), body
        assert json.loads(body)["choices"][0]["text"]


def test_a_stream_of_what_both_have_comes_from_one_of_them_and_then_it_is_loaded_there(two):
    status, _, body = answer(*asked(two.front, "shared", stream=True))
    assert status == 200, body
    assert body.rstrip().endswith(b"data: [DONE]")
    _, headers, _ = answer(*asked(two.front, "shared"))
    until(lambda: loaded_on(two.front, "shared") == [headers["x-coe-node"]])  # with the node's next pulse


def loaded_on(front, expert):
    places = next(row["nodes"] for row in front.json("/admin/experts") if row["name"] == expert)
    return [place["name"] for place in places if place["residency"] == "device"]


def test_after_its_node_is_killed_the_other_one_answers(two):
    _, headers, _ = answer(*asked(two.front, "shared"))
    first = headers["x-coe-node"]
    two.nodes[first].process.kill()
    status, headers, body = answer(*asked(two.front, "shared"))
    assert (status, headers["x-coe-node"]) == (200, "right" if first == "left" else "left"), body
    until(lambda: not two.front.nodes()[first]["usable"])
    gone = "french" if first == "left" else "german"
    status, _, body = answer(*asked(two.front, gone))
    assert (status, json.loads(body)["error"]["code"]) == (503, "expert_unavailable")
