"""`coe validate` as a plan for any machine: what fits, what is loaded together, hints with numbers, exit codes."""

import json

import pytest
import yaml
from typer.testing import CliRunner

from coe_server.cli import app
from coe_server.commands.machine import Machine, parse_machine
from coe_server.errors import ConfigError
from tests.engines.stand_in_hub import serving_hub

GIB = 1 << 30
SHAPE = {
    "num_hidden_layers": 36,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "num_attention_heads": 32,
    "hidden_size": 4096,
    "max_position_embeddings": 40_960,
}


@pytest.mark.parametrize(
    ("text", "machine"),
    [
        ("24GiB,host=64GiB", Machine((24 * GIB,), 64 * GIB)),
        ("4x80GiB,host=512GiB", Machine((80 * GIB,) * 4, 512 * GIB)),
        ("2 x 80GiB + 24GiB, host=1GiB", Machine((80 * GIB, 80 * GIB, 24 * GIB), GIB)),
        ("host=16GiB", Machine((), 16 * GIB)),
    ],
)
def test_a_machine_is_read(text, machine):
    assert parse_machine(text) == machine


@pytest.mark.parametrize("text", ["", "24GiB", "24GiB,host=", "24,host=64GiB", "x80GiB,host=1GiB", "80%,host=1GiB"])
def test_what_is_no_machine_is_refused_with_how_it_is_written(text):
    with pytest.raises(ConfigError, match="--machine: "):
        parse_machine(text)


@pytest.fixture
def hf(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    return tmp_path / "hf/hub"


def downloaded(hub, name, gib, **changes):
    folder = hub / f"models--{name.replace('/', '--')}/snapshots/main"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(SHAPE | changes))
    with (folder / "model.safetensors").open("wb") as out:
        out.truncate(round(gib * GIB))


def validate(folder, machine, experts, **sections):
    path, out = folder / "serve.yaml", folder / "plan.json"
    path.write_text(yaml.safe_dump({"experts": experts, "vllm": {"command": "no-such-vllm"}, **sections}))
    words = ["validate", str(path), "--json", str(out), *(["--machine", machine] if machine else [])]
    done = CliRunner().invoke(app, words)
    return done, json.loads(out.read_text())


def expert(name, model="org/m", **more):
    return {"name": name, "engine": "vllm", "model": model, **more}


def test_five_small_models_on_a_24_gib_card_without_vllm(tmp_path, hf):
    downloaded(hf, "org/m", 5.2)
    experts = [expert(name, args={"max_model_len": 8192}) for name in "abcde"]
    done, plan = validate(tmp_path, "24GiB,host=64GiB", experts)
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("Fits: 5 local experts on one card of 24.0 GiB and 64.0 GiB of host memory")
    assert plan["fits"] is True
    assert plan["awake_together"] == ["a"]
    assert plan["cards"][0]["asleep"] == 8 * GIB
    assert plan["experts"][0]["kv_tokens"] == 29_127
    assert plan["wait"]["bound"] > plan["wait"]["typical"] > 0
    assert "lower max_generation_seconds or queue_limit to shorten it" in done.stdout
    (cache,) = [hint for hint in plan["hints"] if hint.startswith("vllm.kv_cache")]
    size = cache.split()[1]
    _, smaller = validate(tmp_path, "24GiB,host=64GiB", experts, vllm={"kv_cache": size})
    assert len(smaller["awake_together"]) == 2, "the hint says what happens"


@pytest.mark.parametrize(
    ("machine", "args"), [("24GiB,host=64GiB", {"max_model_len": 40_960}), ("host=64GiB", {}), ("host=64GiB", None)]
)
def test_a_context_that_the_kv_cache_cannot_hold_is_said_in_tokens(tmp_path, hf, machine, args):
    downloaded(hf, "org/m", 5)
    _, plan = validate(tmp_path, machine, [expert("a", **({} if args is None else {"args": args}))])
    assert plan["hints"] == [
        "experts.a: 4.0 GiB of KV cache = 29,127 tokens, and the context is 40,960; vLLM refuses that: args:"
        " {max_model_len: 28672}, or kv_cache: 5760MiB"
    ]


@pytest.mark.parametrize("args", [{}, {"max-model-len": "auto"}, {"max_model_len": -1}])
def test_on_a_gpu_the_context_is_what_the_kv_cache_holds_and_one_sentence_says_so_of_all(tmp_path, hf, args):
    downloaded(hf, "org/m", 5)
    _, plan = validate(tmp_path, "48GiB,host=64GiB", [expert("a", args=args), expert("b", args=args)])
    assert plan["hints"] == [
        "experts.a, b: 4.0 GiB of KV cache = 29,127 tokens of a context of 40,960; requests that need more are routed"
        " elsewhere; kv_cache: 5760MiB holds all"
    ]


def test_a_wide_expert_and_small_ones_on_four_cards(tmp_path, hf):
    downloaded(hf, "org/big", 131)
    downloaded(hf, "org/m", 15)
    experts = [expert("big", "org/big", args={"tensor_parallel_size": 2, "max_model_len": 4096}, kv_cache="2GiB")]
    experts += [expert(name, args={"max_model_len": 4096}) for name in "abcdef"]
    done, plan = validate(tmp_path, "4x80GiB,host=512GiB", experts)
    assert done.exit_code == 0, done.output
    assert plan["experts"][0]["width"] == 2
    assert plan["experts"][0]["seats"] == [[0, 1], [2, 3]]
    assert plan["experts"][1]["seats"] == [[0], [1], [2], [3]]
    assert len(plan["cards"]) == 4
    assert "big" in plan["awake_together"]


def test_a_wide_expert_counts_with_its_share_of_each_card_in_warnings_and_waits(tmp_path, hf):
    downloaded(hf, "org/big", 131)
    downloaded(hf, "org/m", 15)
    small = [expert(name, args={"max_model_len": 4096}, preload="host") for name in "abcdef"]
    args = {"tensor_parallel_size": 2, "max_model_len": 4096}
    big = expert("big", "org/big", args=args, preload="device")
    done, plan = validate(tmp_path, "4x80GiB,host=512GiB", [big, *small])
    assert "warning" not in done.stdout, done.stdout
    assert set(plan["awake_together"]) == {"big", *"abcdef"}


def test_what_does_not_fit_has_exit_code_4_and_a_way_out(tmp_path, hf):
    downloaded(hf, "org/m", 17.7)
    done, plan = validate(tmp_path, "24GiB,host=64GiB", [expert("a", args={"max_model_len": 4096})])
    assert done.exit_code == 4
    assert done.stdout.startswith("Does not fit: the local expert on one card of 24.0 GiB")
    assert "experts.a: expert 'a' needs" in done.stderr
    assert plan["fits"] is False
    assert any(hint.startswith("experts.a.kv_cache: ") and "makes it fit" in hint for hint in plan["hints"])
    assert any(hint.startswith("memory.device: ") for hint in plan["hints"])


def test_more_device_memory_than_a_card_has_is_a_mistake(tmp_path):
    simulated = {"name": "a", "engine": "simulated", "weights_bytes": "1GiB"}
    done, plan = validate(tmp_path, "24GiB,host=64GiB", [simulated], memory={"device": "25GiB", "host": "65GiB"})
    assert done.exit_code == 1
    assert plan["mistakes"] == ["memory.host: needs 66,560 MiB of RAM; the machine has 65,536 MiB; lower it"]
    _, plan = validate(tmp_path, "24GiB,host=64GiB", [simulated], memory={"device": "25GiB"})
    assert plan["mistakes"] == ["memory.device: 25,600 MiB is more than the card has (24,576 MiB); lower it"]


def test_all_mistakes_are_told_at_once_with_exit_code_1(tmp_path, hf):
    experts = [expert("a", pin="vram"), expert("b", weight_bytes=1)]
    done, plan = validate(tmp_path, "24GiB,host=64GiB", experts, memroy={})
    assert done.exit_code == 1
    assert done.stderr.count("\n") == len(plan["mistakes"]) == 3
    assert "did you mean 'weights_bytes'?" in done.stderr


def test_sizes_that_are_not_here_come_from_the_hub(tmp_path, hf, monkeypatch):
    files = {"model.safetensors": b"", "config.json": json.dumps(SHAPE).encode()}
    with serving_hub({"org/m": files}, claimed={"model.safetensors": 5 * GIB}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        done, plan = validate(tmp_path, "24GiB,host=64GiB", [expert("a"), expert("gone", "org/gone")])
        assert done.exit_code == 1
        (mistake,) = plan["mistakes"]
        assert mistake.startswith("experts.gone.model: 'org/gone' is not downloaded, and its size is unknown:")
        assert mistake.endswith("set experts.gone.weights_bytes, e.g. 9.3GiB")
        done, plan = validate(tmp_path, "24GiB,host=64GiB", [expert("a"), expert("b", "x/y", weights_bytes="5GiB")])
    assert done.exit_code == 0, done.output
    assert plan["experts"][0]["device_awake"] == plan["experts"][1]["device_awake"] > 11 * GIB
    assert plan["experts"][0]["kv_tokens"] == 29_127


def test_on_this_machine_vllm_has_to_be_here(tmp_path, hf):
    done, plan = validate(tmp_path, None, [expert("a", weights_bytes="1GiB")])
    assert done.exit_code == 1
    assert plan["mistakes"][0].startswith("vllm.command: there is no program 'no-such-vllm'")


def test_a_machine_without_a_gpu_is_planned_as_the_cards_it_is_divided_into(tmp_path, hf):
    downloaded(hf, "org/m", 1)
    wide = expert("wide", args={"max_model_len": 4096, "tensor_parallel_size": 2})
    memory = {"cards": 2, "device": "3GiB", "host": "16GiB"}
    done, plan = validate(tmp_path, "host=32GiB", [wide, expert("a")], memory=memory, vllm={"kv_cache": "1GiB"})
    assert done.exit_code == 0, done.output
    told = "Fits: 2 local experts on a machine without a GPU and with 32.0 GiB of RAM, divided into 2 cards"
    assert done.stdout.startswith(f"{told} (3.0 GiB each and 16.0 GiB usable)")
    assert [card["room"] for card in plan["cards"]] == [3 * GIB] * 2
    assert [one["seats"] for one in plan["experts"]] == [[[0, 1]], [[0], [1]]]


def test_equal_cards_have_room_for_a_wide_expert_though_their_limits_differ(tmp_path, hf):
    downloaded(hf, "org/m", 20)
    wide = expert("wide", args={"max_model_len": 4096, "tensor_parallel_size": 2})
    done, plan = validate(tmp_path, "2x80GiB,host=99GiB", [wide], memory={"device": ["70GiB", "20GiB"]})
    assert done.exit_code == 0, done.output
    assert "(70.0 GiB, 20.0 GiB and " in done.stdout
    assert [card["room"] for card in plan["cards"]] == [70 * GIB, 20 * GIB]


def test_a_list_of_another_length_than_the_cards_is_a_mistake(tmp_path, hf):
    downloaded(hf, "org/m", 1)
    done, plan = validate(tmp_path, "3x80GiB,host=99GiB", [expert("a")], memory={"device": ["70GiB", "20GiB"]})
    assert done.exit_code == 1
    assert plan["mistakes"] == ["memory.device: it lists 2 amounts, and there are 3 cards"]


def test_cards_made_of_ram_are_refused_beside_real_ones(tmp_path, hf):
    downloaded(hf, "org/m", 1)
    done, plan = validate(tmp_path, "80GiB,host=99GiB", [expert("a")], memory={"cards": 2})
    assert done.exit_code == 1
    assert plan["mistakes"][0].startswith("memory.cards: divides RAM and cores of a machine without a GPU, and here")


def test_the_plan_keeps_experts_to_their_cards(tmp_path, hf):
    downloaded(hf, "org/m", 1)
    settings = {"memory": {"cards": 2, "device": "3GiB", "host": "16GiB"}, "vllm": {"kv_cache": "1GiB"}}
    both = [expert("a", cards=[1]), expert("b", cards=[1])]
    done, plan = validate(tmp_path, "host=32GiB", both, **settings)
    assert done.exit_code == 0, done.output
    assert [one["seats"] for one in plan["experts"]] == [[[1]], [[1]]]
    assert plan["cards"][0]["awake"] == 0
    assert plan["awake_together"] == ["a"]
    by_uuid = [expert("a", cards=["GPU-1f5c"])]
    assert validate(tmp_path, "2x24GiB,host=32GiB", by_uuid)[1]["experts"][0]["seats"] == [[0], [1]]
    wide = [expert("a", cards=[1], args={"tensor_parallel_size": 2})]
    done, plan = validate(tmp_path, "2x24GiB,host=32GiB", wide)
    assert done.exit_code == 4
    assert plan["experts"][0]["left_out"] == "expert 'a' finds no 2 equal cards among [1]"
