"""Two machines that people have: planned with `coe validate` for a machine elsewhere, then served as planned."""

import json
import subprocess

import pytest
import yaml

from tests.cuda.cards import GIB
from tests.cuda.test_one_card import starts
from tests.cuda.test_two_cards import COE, MEMORY, serving
from tests.patience import PATIENCE_SECONDS, until

SMALL = {"num_hidden_layers": 24, "num_key_value_heads": 8, "head_dim": 64, "num_attention_heads": 64}
LARGE = {"num_hidden_layers": 80, "num_key_value_heads": 8, "head_dim": 128, "num_attention_heads": 64}
LARGE |= {"hidden_size": 8192}


@pytest.fixture
def homelab(downloaded):
    """One card of 24 GB; files of their published sizes."""
    models = {
        "generalist": downloaded("Qwen/Qwen2.5-14B-Instruct-AWQ", 9_986_000_000, num_hidden_layers=48),
        "thinker": downloaded("openai/gpt-oss-20b", 13_761_000_000, **SMALL, max_position_embeddings=131072),
        "coder": downloaded("Qwen/Qwen2.5-Coder-7B-Instruct-AWQ", 5_571_000_000),
    }
    return [{"name": name, "engine": "vllm", "model": model, "preload": "host"} for name, model in models.items()]


@pytest.fixture
def shop(downloaded):
    """Four cards of 80 GB: one model of 70 B on two of them, and six small ones."""
    large = downloaded("meta-llama/Llama-3.3-70B-Instruct", 141_000_000_000, **LARGE)
    args = {"tensor_parallel_size": 2}
    experts = [{"name": "large", "engine": "vllm", "model": large, "args": args, "preload": "device"}]
    for number in range(6):
        model = downloaded(f"org/small-{number}-8B", 16_000_000_000, num_hidden_layers=32, num_key_value_heads=8)
        experts.append({"name": f"small-{number}", "engine": "vllm", "model": model, "preload": "host"})
    return experts


def plan(folder, environment, machine, experts):
    """What `coe validate` says of another machine: its words and its JSON."""
    config, out = folder / "plan.yaml", folder / "plan.json"
    config.write_text(yaml.safe_dump({"experts": experts, "vllm": {"kv_cache": "1GiB"}, "memory": MEMORY}))
    words = [COE, "validate", config, "--machine", machine, "--json", out]
    limit = 4 * PATIENCE_SECONDS
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=limit, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, json.loads(out.read_text())


def test_a_homelab_with_one_card_gets_what_its_plan_says(tmp_path, pretend_machine, homelab):
    _, environment = pretend_machine(24 * GIB, ram=64 * GIB)
    words, planned = plan(tmp_path, environment, "24GiB,host=64GiB", homelab)
    assert words.startswith("Fits: 3 local experts on one card of 24.0 GiB and 64.0 GiB of host memory")
    with serving(tmp_path, environment, homelab) as served:
        until(served.is_ready)
        assert starts(tmp_path) == (3, [])
        assert set(served.residency().values()) == {"host"}
        for name in planned["awake_together"]:
            served.complete(name)
        awake = [name for name, tier in served.residency().items() if tier == "device"]
        assert set(awake) >= set(planned["awake_together"]), "no less is loaded than was planned"
        for expert in homelab:
            served.complete(expert["name"])


def test_a_shop_with_four_cards_gets_what_its_plan_says(tmp_path, pretend_machine, shop):
    cards, environment = pretend_machine(*[80 * GIB] * 4, ram=512 * GIB)
    words, planned = plan(tmp_path, environment, "4x80GiB,host=512GiB", shop)
    assert words.startswith("Fits: 7 local experts on 4 cards of 80.0 GiB")
    with serving(tmp_path, environment, shop) as served:
        until(served.is_ready)
        assert starts(tmp_path) == (7, [])
        for name in planned["awake_together"]:
            served.complete(name)
        told = {one["name"]: one for one in served.ask("GET", "/admin/experts")[1]}
        awake = {name for name, one in told.items() if one["residency"] == "device"}
        assert awake == set(planned["awake_together"]) == set(told), "all have room together, as planned"
        assert len(told["large"]["cards"]) == 2
        seen = served.ask("GET", "/admin/overview")[1]["tiers"]["device"]["cards"]
        assert len(seen) == 4
        assert all(card["used"] <= card["capacity"] for card in seen)
    until(lambda: cards.held() == {})
