"""Two Ray machines with two tiny vLLM experts each, one front, one machine killed. The tests tell one story."""

import importlib.util
import json
from pathlib import Path

import pytest

from tests.cluster.on_ray import on_ray
from tests.cluster.test_with_vllm import START_PATIENCE_SECONDS, answer, asked, loaded_on, node
from tests.engines.tiny_llama import tiny_llama
from tests.patience import until

pytestmark = [
    pytest.mark.long,
    pytest.mark.vllm,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(
        importlib.util.find_spec("ray") is None, reason="Ray is not installed: it comes with the extra `ray`"
    ),
]
BOXES = {"box-a", "box-b"}


@pytest.fixture(scope="module")
def two(vllm_environment, tmp_path_factory):
    model = tiny_llama(tmp_path_factory.mktemp("model"))
    settings = node(model, vllm_environment / "bin/vllm", "french", "german")
    limits = {"max_generation_seconds": START_PATIENCE_SECONDS}
    settings |= {"http": {"port": 0, "shutdown_seconds": 1}}
    with on_ray(settings, START_PATIENCE_SECONDS, scheduling=limits) as made:
        yield made


def test_both_experts_answer_while_both_are_started(two):
    both = [asked(two.front, expert) for expert in ("french", "german")]
    for asking in both:
        status, headers, body = answer(*asking)
        assert (status, headers["x-coe-node"] in BOXES) == (200, True), body
        assert json.loads(body)["choices"][0]["text"]


def test_the_next_request_goes_where_the_expert_is_loaded_and_streams(two):
    until(lambda: loaded_on(two.front, "french"))
    status, headers, body = answer(*asked(two.front, "french", stream=True))
    assert (status, headers["x-coe-node"] in loaded_on(two.front, "french")) == (200, True), body
    assert body.rstrip().endswith(b"data: [DONE]")


def test_after_its_machine_is_killed_the_other_one_answers(two):
    _, headers, _ = answer(*asked(two.front, "german"))
    first = headers["x-coe-node"]
    two.ray.kill(first)
    until(lambda: not two.front.nodes().get(first, {"usable": False})["usable"])
    status, headers, body = answer(*asked(two.front, "german"))
    assert (status, {headers["x-coe-node"]}) == (200, BOXES - {first}), body


def test_no_engine_outlives_its_node(two):
    keepers = [run["keeper_pid"] for run in two.runs().values() if run["keeper_pid"] is not None]
    two.coe("down")
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in keepers))
