"""Configuration: every mistake stops the start with one sentence that names the key."""

import re
import sys
from pathlib import Path
from typing import get_args

import pytest
import yaml

from coe_server.build.capacity import build_capacity
from coe_server.build.experts import build_experts, footprints_file, logs_folder, refuse_what_never_fits, seats_of
from coe_server.build.router import build_capabilities, build_router
from coe_server.build.service import require_tracing
from coe_server.cache.tiers import Bytes
from coe_server.config.http import HttpSettings
from coe_server.config.schema import ServerConfig, VllmExpert, load_config, read_config
from coe_server.config.types import Settings, Share
from coe_server.engines.cards import CardFacts, Cards, DeviceBytes
from coe_server.engines.engine import Footprint
from coe_server.engines.vllm.command import serve_command
from coe_server.engines.vllm.footprint import write_footprints
from coe_server.engines.vllm.settings import key_of
from coe_server.errors import ArtifactError, ConfigError, EngineError

ROOT = Path(__file__).resolve().parent.parent.parent
SIMULATED = {"name": "a", "engine": "simulated"}
REMOTE = {"name": "a", "engine": "remote", "model": "m"}
VLLM = {"name": "a", "engine": "vllm", "model": "x/y"}


def write(folder, **settings):
    path = folder / "serve.yaml"
    settings = {"experts": [SIMULATED], **settings}
    path.write_text(yaml.safe_dump({key: value for key, value in settings.items() if value is not ...}))
    return path


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"htpp": {}}, "htpp: there is no such key"),
        ({"http": {"prot": 1}}, "http.prot: there is no such key"),
        (
            {"http": {"allowed_hosts": ["coe", "*"]}},
            "http.allowed_hosts.1: '*' is not a host name or address; allowed: ",
        ),
        (
            {"http": {"allowed_hosts": ["coe:80"]}},
            "'coe:80' is not a host name or address; write it without",
        ),
        (
            {"http": {"host": "http://localhost"}},
            "http.host: 'http://localhost' is not a host name or address; write it",
        ),
        ({"http": {"host": "127.0.0.1:8080"}}, "http.host: '127.0.0.1:8080' is not a host name or address; write it"),
        ({"http": {"allowed_hosts": ["10.1.2.3:80"]}}, "'10.1.2.3:80' is not a host name or address; write it without"),
        ({"http": {"port": "eighty"}}, "http.port: must be a whole number, not 'eighty'"),
        ({"http": {"port": 80.5}}, "http.port: must be a whole number, not 80.5"),
        ({"scheduling": {"max_wait_seconds": "long"}}, "scheduling.max_wait_seconds: must be a number, not 'long'"),
        ({"scheduling": {"max_wait_seconds": -1}}, "scheduling.max_wait_seconds: must be greater than 0, not -1"),
        ({"log": {"prompts": "perhaps"}}, "log.prompts: must be a boolean, not 'perhaps'"),
        ({"memory": {"device": 40}}, "memory.device: 40 without a unit is 40 bytes; write the unit (40GiB)"),
        ({"memory": {"device": [2**34, 16]}}, "memory.device: 16 without a unit is 16 bytes; write the unit (16GiB)"),
        ({"memory": {"host": 60}}, "memory.host: 60 without a unit is 60 bytes; write the unit (60GiB)"),
        ({"http": {"port": 70000}}, "http.port: must be at most 65535, not 70000"),
        (
            {"memory": {"device": "much"}},
            "memory.device: 'much' is not an amount of memory (70GiB, 512MiB, 80% or auto)",
        ),
        ({"expert": [SIMULATED], "experts": ...}, "expert: there is no such key; experts is missing"),
        ({"scheduling": {"max_wait_seconds": float("inf")}}, "scheduling.max_wait_seconds: must be a finite"),
        ({"scheduling": {"max_wait_seconds": "1e400"}}, "scheduling.max_wait_seconds: must be a finite"),
        ({"log": {"keep_days": float("nan")}}, "log.keep_days: must be a finite"),
        (
            {"experts": [{**REMOTE, "base_url": "http://127.0.0.1:99999/v1"}]},
            "experts.a.base_url: 'http://127.0.0.1:99999",
        ),
        ({"experts": [{**REMOTE, "base_url": "http:///v1"}]}, "experts.a.base_url: 'http:///v1' is not an address"),
        (
            {"experts": [{**REMOTE, "base_url": "127.0.0.1:1/v1"}]},
            "experts.a.base_url: '127.0.0.1:1/v1' is not an address",
        ),
        ({"tracing": {"endpoint": "http://a:b/v1"}}, "tracing.endpoint: 'http://a:b/v1' is not an address"),
        (
            {"experts": [{**REMOTE, "base_url": "http://u:pw@a/v1"}]},
            "experts.a.base_url: 'http://...@a/v1' has credentials in it; leave them out",
        ),
        (
            {"experts": [{**REMOTE, "base_url": "http://a/v1/chat/completions"}]},
            "write the part before '/chat/completions': http://a/v1",
        ),
        ({"experts": [{**REMOTE, "base_url": "http://a/v1#x"}]}, "experts.a.base_url: 'http://a/v1#x' has a fragment"),
        ({"experts": [{**REMOTE, "base_url": "http://a/v1 "}]}, "experts.a.base_url: 'http://a/v1 ' has a blank"),
        (
            {"router": {"artifact": "r", "embeddings": {"model": "m", "base_url": "http://a/v1/embeddings"}}},
            "router.embeddings.base_url: 'http://a/v1/embeddings' is the address of one endpoint",
        ),
        ({"tracing": {"endpoint": "http://u:pw@a/v1/traces"}}, "tracing.endpoint: 'http://...@a/v1/traces' has cred"),
        (
            {"experts": [{**REMOTE, "base_url": "http://a/v1", "headers": {"Host": "b"}}]},
            "experts.a.headers: 'Host' cannot be set: the HTTP client sets it",
        ),
        (
            {"experts": [{**REMOTE, "base_url": "http://a/v1", "headers": {"X-A": 1}}]},
            "experts.a.headers: 'X-A' must have a text as its value; put the value in quotes",
        ),
        (
            {"experts": [{**REMOTE, "base_url": "http://a/v1", "headers": ["X-A: 1"]}]},
            "experts.a.headers: must be a mapping of names to texts: {X-Name: value}",
        ),
        ({"memory": {"device": "120%"}}, "memory.device: '120%' is not between 0 and 100 %"),
        ({"experts": []}, "experts: a server needs at least one"),
        ({"http": None}, "http: must be a mapping of settings, not None"),
        ({"vllm": {"command": []}}, "vllm.command: must have at least one entry"),
        ({"vllm": {"kv_cache": -1}}, "vllm.kv_cache: -1 is not a number of bytes (70GiB, 512MiB)"),
        ({"vllm": {"kv_cache": "80%"}}, "vllm.kv_cache: '80%' is not a number of bytes"),
        (
            {"experts": [{**SIMULATED, "pin": "device", "preload": "host"}]},
            "preload: 'host' is below its pin",
        ),
        (
            {"experts": [{**SIMULATED, "pin": "host", "preload": "disk"}]},
            "experts.a.preload: 'disk' is below its pin, 'host'",
        ),
        (
            {"experts": [{**VLLM, "sleep": False, "pin": "host"}]},
            "experts.a.pin: 'host' needs `sleep: true`; without it: device or disk",
        ),
        ({"experts": [{**VLLM, "sleep": False, "preload": "host"}]}, "experts.a.preload: 'host' needs `sleep: true`"),
        (
            {"experts": [{**SIMULATED, "vision": True, "modalities": ["audio"]}]},
            "experts.a.modalities: vision is true, but image is not among the modalities (audio); leave one of",
        ),
        (
            {"experts": [{**SIMULATED, "vision": False, "modalities": ["audio", "image"]}]},
            "experts.a.modalities: vision is false, but image is among the modalities (audio, image)",
        ),
        (
            {"experts": [{**SIMULATED, "modalities": ["sound"]}]},
            "experts.a.modalities.0: 'sound' is not one of 'image'",
        ),
        (
            {"vllm": {"allowed_media_domains": ["a.example", "https://b.example"]}},
            "vllm.allowed_media_domains.1: 'https://b.example' is not a host name or address; write it",
        ),
        (
            {"experts": [{**VLLM, "allowed_media_domains": [""]}]},
            "experts.a.allowed_media_domains.0: '' is not a host name",
        ),
        ({"memory": {"device": -1}}, "memory.device: -1 is not an amount of memory"),
        (
            {"experts": [{"name": "a", "engine": "vllm", "model": "x/y", "max_concurrency": 0}]},
            "experts.a.max_concurrency: must be",
        ),
        ({"experts": [SIMULATED, SIMULATED]}, "experts.a: the name is given 2 times"),
        ({"experts": [{**SIMULATED, "pin": "vram"}]}, "experts.a.pin: 'vram' is not one of 'device', 'host' or 'disk'"),
        (
            {"experts": [{**SIMULATED, "engine": "ollama"}]},
            "experts.a.engine: 'ollama' is not one of vllm, remote, command, lora, preset, simulated",
        ),
        (
            {"experts": [{"name": "a"}]},
            "experts.a.engine: is missing; write one of vllm, remote, command, lora, preset, simulated",
        ),
        ({"experts": [{**SIMULATED, "wheels": 4}]}, "experts.a.wheels: there is no such key"),
        ({"experts": [{**SIMULATED, "name": "auto"}]}, "experts.auto: the name 'auto' is reserved for the router"),
        ({"aliases": {"a": "b"}}, "aliases.a: the name belongs to an expert"),
        ({"aliases": {"auto:x": "a"}}, "aliases.auto:x: the name belongs to an expert or to the router"),
        (
            {"aliases": {"gpt-4o": "c"}},
            "aliases.gpt-4o: 'c' is neither an expert nor auto nor auto:OBJECTIVE; experts: a",
        ),
        ({"aliases": {"gpt 4o": "a"}}, "aliases.gpt 4o: 'gpt 4o' is not an alias: up to 128 letters"),
        ({"experts": [{"name": "a", "engine": "vllm"}]}, "experts.a.model: is missing"),
        (
            {"experts": [{"name": "a", "engine": "vllm", "model": "./nowhere"}]},
            "experts.a.model: there is no model in the folder",
        ),
    ],
)
def test_a_mistake_is_named_with_its_key(tmp_path, settings, sentence):
    with pytest.raises(ConfigError) as refused:
        load_config(write(tmp_path, **settings))
    assert sentence in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_file_that_is_missing_or_no_yaml_is_refused_with_a_sentence(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_text("a: [")
    with pytest.raises(ConfigError, match="is not YAML"):
        load_config(tmp_path / "bad.yaml")
    (tmp_path / "list.yaml").write_text("[1]")
    with pytest.raises(ConfigError, match="must be a mapping"):
        load_config(tmp_path / "list.yaml")


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        ("70GiB", 70 * 2**30),
        ("512 MiB", 2**29),
        ("1GB", 10**9),
        (1024, 1024),
        ("80%", Share(fraction=0.8)),
        ("auto", None),
    ],
)
def test_amounts_of_memory_are_read_with_their_unit(tmp_path, text, amount):
    assert load_config(write(tmp_path, memory={"device": text})).memory.device == amount


def test_a_key_that_stands_twice_is_refused(tmp_path):
    path = tmp_path / "twice.yaml"
    path.write_text("http: {port: 1}\nexperts: []\nhttp: {port: 2}\n")
    with pytest.raises(ConfigError, match="the key 'http' occurs twice"):
        load_config(path)


def test_a_missing_vllm_stops_the_start(tmp_path):
    expert = {"name": "a", "engine": "vllm", "model": "Qwen/Qwen2.5-7B-Instruct"}
    config = load_config(write(tmp_path, experts=[expert], vllm={"command": "./nowhere/vllm", "platform": "cpu"}))
    with pytest.raises(ConfigError, match=r"vllm\.command: there is no program"):
        build_experts(config)


def test_paths_start_at_the_folder_of_the_file(tmp_path):
    (tmp_path / "models/m").mkdir(parents=True)
    (tmp_path / "models/m/config.json").write_text("{}")
    path = write(
        tmp_path,
        router={"artifact": "art"},
        vllm={"command": "bin/vllm", "log_directory": "logs"},
        experts=[
            {"name": "a", "engine": "vllm", "model": "./models/m"},
            {"name": "b", "engine": "vllm", "model": "Qwen/Qwen2.5-0.5B"},
        ],
    )
    config = load_config(path)
    assert config.router.artifact == tmp_path / "art"
    assert config.vllm.command == [str(tmp_path / "bin/vllm")]
    assert config.vllm.log_directory == tmp_path / "logs"
    assert [expert.model for expert in config.experts] == [str(tmp_path / "models/m"), "Qwen/Qwen2.5-0.5B"]


def test_the_engines_logs_are_where_no_other_servers_are_unless_a_place_is_named(tmp_path):
    config = load_config(write(tmp_path, state_directory="mine"))
    assert logs_folder(config) == tmp_path / "mine" / "logs"
    named = load_config(write(tmp_path, state_directory="mine", vllm={"log_directory": "elsewhere"}))
    assert logs_folder(named) == tmp_path / "elsewhere"


def test_an_expert_larger_than_the_device_stops_the_start_with_the_numbers(tmp_path):
    config = load_config(write(tmp_path, memory={"device": "10GiB", "host": "20GiB"}))
    with pytest.raises(
        ConfigError, match=r"experts\.a: expert 'a' needs 15,360 MiB of device memory; the limit is 10,240"
    ):
        refuse_what_never_fits(build_experts(config), build_capacity(config))


def test_more_memory_than_the_machine_has_stops_the_start(tmp_path):
    (tmp_path / "m").mkdir()
    (tmp_path / "m/config.json").write_text("{}")
    expert = {"name": "a", "engine": "vllm", "model": "./m", "kv_cache": "1GiB"}
    path = write(tmp_path, memory={"device": "900TiB", "host": "1GiB"}, vllm={"platform": "cpu"}, experts=[expert])
    with pytest.raises(ConfigError, match=r"memory: device and host together need .* is available; lower them"):
        build_capacity(load_config(path))


def on_a_card(folder, device):
    expert = {**VLLM, "model": "x/y-1B"}
    return load_config(write(folder, memory={"device": device, "host": 0}, vllm={"platform": "cuda"}, experts=[expert]))


def test_more_memory_than_the_card_has_stops_the_start(tmp_path):
    assert build_capacity(on_a_card(tmp_path, "70GiB"), cards=lambda: [DeviceBytes(80 * 2**30, 0)]).device == 70 * 2**30
    with pytest.raises(
        ConfigError, match=r"^memory\.device: 92,160 MiB is more than the card has \(81,920 MiB\); lower it"
    ):
        build_capacity(on_a_card(tmp_path, "90GiB"), cards=lambda: [DeviceBytes(80 * 2**30, 0)])


def test_auto_takes_of_a_card_what_is_free_and_leaves_some(tmp_path):
    def auto(total_gib, used_gib):
        card = DeviceBytes(int(total_gib * 2**30), int(used_gib * 2**30))
        return build_capacity(on_a_card(tmp_path, "auto"), lambda: [card]).device

    assert auto(24, 3) == 21 * 2**30 - 512 * 2**20
    assert auto(100, 10) == 88 * 2**30
    assert auto(24, 24) == 0


class FourCards(Cards):
    def visible(self):
        return tuple(f"GPU-{letter}" for letter in "abcd")

    def facts(self, uuid):
        return CardFacts(uuid, 24 * 2**30, "one model")


def test_an_expert_lies_on_its_cards_by_index_or_uuid():
    def seats(width, cards):
        return seats_of(VllmExpert(name="a", engine="vllm", model="x/y-1B", cards=cards), width, FourCards())

    assert seats(1, None) == ((0,), (1,), (2,), (3,))
    assert seats(2, [2, "GPU-d"]) == ((2, 3),)
    with pytest.raises(ConfigError, match=r"^experts\.a\.cards: 'GPU-x' is not a visible card; visible: 0 to 3, GPU-a"):
        seats(1, ["GPU-x"])
    with pytest.raises(ConfigError, match=r"^experts\.a\.cards: there is no seat for an expert that needs 2 cards"):
        seats(2, [1])


def test_every_visible_card_has_its_own_limit(tmp_path):
    cards = [DeviceBytes(80 * 2**30, 0), DeviceBytes(24 * 2**30, 4 * 2**30)]
    found = build_capacity(on_a_card(tmp_path, "50%"), lambda: cards)
    assert found.cards == (40 * 2**30, 12 * 2**30)
    assert build_capacity(on_a_card(tmp_path, "auto"), lambda: cards).on(1) == 20 * 2**30 - 512 * 2**20


def test_a_list_has_an_amount_for_each_card(tmp_path):
    cards = [DeviceBytes(80 * 2**30, 0), DeviceBytes(24 * 2**30, 4 * 2**30), DeviceBytes(24 * 2**30, 0)]
    found = build_capacity(on_a_card(tmp_path, ["70GiB", "auto", "50%"]), lambda: cards)
    assert found.cards == (70 * 2**30, 20 * 2**30 - 512 * 2**20, 12 * 2**30)
    with pytest.raises(ConfigError, match=r"^memory\.device: it lists 2 amounts, and there are 3 cards$"):
        build_capacity(on_a_card(tmp_path, ["70GiB", "20GiB"]), lambda: cards)
    with pytest.raises(ConfigError, match=r"^memory\.device: 30,720 MiB is more than the card has \(24,576 MiB\)"):
        build_capacity(on_a_card(tmp_path, ["70GiB", "30GiB", "auto"]), lambda: cards)


@pytest.mark.parametrize("said", [[], ["much"], [["70GiB"]], ["70GiB", -1]])
def test_a_list_of_anything_but_amounts_is_refused(tmp_path, said):
    with pytest.raises(ConfigError, match=r"memory\.device: .* is not an amount of memory"):
        on_a_card(tmp_path, said)


def on_a_cpu(folder, **memory):
    expert = {**VLLM, "model": "x/y-1B", "kv_cache": "1MiB", "weights_bytes": "1MiB"}
    vllm = {"platform": "cpu", "command": sys.executable}
    return load_config(write(folder, memory=memory, vllm=vllm, experts=[expert]))


def test_without_a_gpu_ram_is_divided_into_equal_cards(tmp_path):
    assert build_capacity(on_a_cpu(tmp_path, cards=2, device="1GiB", host="1GiB")).cards == (2**30, 2**30)
    halves = build_capacity(on_a_cpu(tmp_path, cards=2, device="20%", host="1GiB")).cards
    whole = build_capacity(on_a_cpu(tmp_path, device="20%", host="1GiB")).cards
    assert len(halves) == 2
    assert sum(halves) == pytest.approx(whole[0], rel=0.2), "of what is available, which changes"
    listed = build_capacity(on_a_cpu(tmp_path, cards=2, device=["1GiB", "512MiB"], host="1GiB"))
    assert listed.cards == (2**30, 2**29)


def test_a_list_without_cards_names_the_key_that_makes_them(tmp_path):
    with pytest.raises(
        ConfigError, match=r"memory\.device: it lists 2 amounts, and there is one card; memory\.cards: 2"
    ):
        build_capacity(on_a_cpu(tmp_path, device=["1GiB", "1GiB"], host="1GiB"))


def test_a_machine_is_divided_only_without_a_gpu_and_with_a_core_for_each_card(tmp_path):
    expert = {**VLLM, "model": "x/y-1B"}
    with_gpu = write(tmp_path, memory={"cards": 2}, vllm={"platform": "cuda"}, experts=[expert])
    with pytest.raises(
        ConfigError, match=r"^memory\.cards: divides RAM and cores of a machine without a GPU, and here"
    ):
        build_capacity(load_config(with_gpu), lambda: [])
    with pytest.raises(ConfigError, match=r"^memory\.cards: each card needs a core, and this server may run on"):
        build_capacity(on_a_cpu(tmp_path, cards=64, device="1MiB", host="1MiB"))


def test_on_a_divided_machine_experts_lie_on_any_card_or_on_their_own(tmp_path):
    def seats(**more):
        expert = {**VLLM, "model": "x/y-1B", "weights_bytes": "1MiB", **more}
        settings = {"memory": {"cards": 2, "device": "1GiB"}, "vllm": {"platform": "cpu", "command": sys.executable}}
        return build_experts(load_config(write(tmp_path, experts=[expert], **settings)))[0].seats

    assert seats() == ((0,), (1,))
    assert seats(cards=[1]) == ((1,),)
    assert seats(args={"tensor_parallel_size": 2}) == ((0, 1),)
    with pytest.raises(ConfigError, match=r"^experts\.a\.cards: 2 is not a card; cards: 0 to 1 \(memory\.cards\)"):
        seats(cards=[2])
    with pytest.raises(ConfigError, match=r"^experts\.a\.cards: there is no seat for an expert that needs 2 cards"):
        seats(cards=[1], args={"tensor_parallel_size": 2})


def test_where_no_card_can_be_asked_bytes_are_taken_as_they_are_given_and_shares_are_not(tmp_path):
    def no_card():
        raise EngineError("cannot read the GPU's memory: Driver Not Loaded")

    assert build_capacity(on_a_card(tmp_path, "70GiB"), no_card).device == 70 * 2**30
    assert build_capacity(on_a_card(tmp_path, ["70GiB", "20GiB"]), no_card).cards == (70 * 2**30, 20 * 2**30)
    with pytest.raises(ConfigError, match="give the size in bytes"):
        build_capacity(on_a_card(tmp_path, "80%"), no_card)


def test_a_missing_artifact_stops_the_start(tmp_path):
    with pytest.raises(ArtifactError, match="nowhere"):
        build_router(load_config(write(tmp_path, router={"artifact": "nowhere"})))


REMOTE_HERE = {**REMOTE, "base_url": "http://a.example/v1"}


@pytest.mark.parametrize(
    ("expert", "key"),
    [
        ({"api_key_env": "SECRET"}, "experts.a.api_key_env"),
        ({"headers": {"X-A": "Token {env.SECRET}"}}, "experts.a.headers.X-A"),
    ],
)
@pytest.mark.parametrize(
    ("value", "sentence"),
    [(None, "is not set"), (" ", "is blank"), ("s3\ncret", "has a line break")],
)
def test_a_secret_that_is_missing_or_cannot_be_sent_stops_the_start_unseen(
    tmp_path, monkeypatch, expert, key, value, sentence
):
    config = load_config(write(tmp_path, experts=[{**REMOTE_HERE, **expert}]))
    if value is None:
        monkeypatch.delenv("SECRET", raising=False)
    else:
        monkeypatch.setenv("SECRET", value)
    with pytest.raises(ConfigError, match=f"^{key}: the environment variable 'SECRET' {sentence}") as refused:
        build_experts(config)
    assert "cret" not in str(refused.value)


def test_tracing_headers_that_cannot_be_sent_stop_the_start_unseen(tmp_path, monkeypatch):
    config = load_config(write(tmp_path, tracing={}))
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-one=1, authorization=Bearer%20abc\n")
    require_tracing(config)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "authorization=Bearer%20s3cret%0Aword")
    told = "^tracing: header 'authorization': the environment variable 'OTEL_EXPORTER_OTLP_TRACES_HEADERS' has a line"
    with pytest.raises(ConfigError, match=told) as refused:
        require_tracing(config)
    assert "s3cret" not in str(refused.value)


def test_a_proxy_of_another_kind_stops_the_start_where_it_would_be_used(tmp_path, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "no_proxy", "NO_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ALL_PROXY", "socks5://user:s3cret@p.example:1")
    with pytest.raises(ConfigError, match=r"^ALL_PROXY: 'socks5://\.\.\.@p\.example:1' is not an HTTP proxy"):
        build_experts(load_config(write(tmp_path, experts=[REMOTE_HERE])))
    build_experts(load_config(write(tmp_path, experts=[{**REMOTE_HERE, "base_url": "http://127.0.0.1:1/v1"}])))


@pytest.mark.parametrize(
    ("settings", "own", "allowed"),
    [
        ({}, {}, ()),
        ({"allowed_media_domains": ["A.example"]}, {}, ("a.example",)),
        ({"allowed_media_domains": ["a.example"]}, {"allowed_media_domains": []}, ()),
        ({"allowed_media_domains": ["a.example"]}, {"allowed_media_domains": ["[::1]"]}, ("[::1]",)),
    ],
)
def test_an_expert_fetches_media_from_its_own_domains_else_from_those_of_all(tmp_path, settings, own, allowed):
    expert = {"name": "a", "engine": "vllm", "model": "x/y-7B", "weights_bytes": "1GiB", **own}
    vllm = {"command": sys.executable, "platform": "cpu", **settings}
    (built,) = build_experts(load_config(write(tmp_path, experts=[expert], vllm=vllm)))
    assert built.engine.launch.allowed_media_domains == allowed


@pytest.mark.parametrize("model", ["./quantised", "./quantised/model-q4.gguf"])
def test_gguf_is_named_with_what_serves_it(tmp_path, model):
    (tmp_path / "quantised").mkdir()
    (tmp_path / "quantised/model-q4.gguf").write_bytes(b"GGUF")
    with pytest.raises(ConfigError, match=r"experts\.a\.model: .* is GGUF, .* engine: command \(docs/engines\.md\)"):
        load_config(write(tmp_path, experts=[VLLM | {"model": model}]))


VLLM_HERE = {"name": "a", "engine": "vllm", "model": "x/y-7B", "weights_bytes": "1GiB"}


@pytest.mark.parametrize("platform", ["cpu", "cuda"])
@pytest.mark.parametrize(
    ("own", "admitted", "word"),
    [
        ({}, None, "7"),
        ({"max_concurrency": 3}, 3, "3"),
        ({"args": {"max-num-seqs": 5}}, 5, "5"),
        ({"args": {"max_num_seqs": 5}, "max_concurrency": 3}, 3, "5"),
    ],
)
def test_as_many_are_let_in_as_the_engine_runs(tmp_path, platform, own, admitted, word):
    vllm, common = {"command": sys.executable, "platform": platform}, {"max_concurrency": 7}
    config = load_config(write(tmp_path, experts=[VLLM_HERE | own], vllm=vllm, scheduling=common))
    (built,) = build_experts(config)
    command = serve_command(built.engine.launch, Path("/run/x.sock"))
    assert built.max_concurrency == admitted
    assert command[command.index("--max-num-seqs") + 1] == word
    assert command.count("--max-num-seqs") == 1


def test_of_copies_each_runs_its_number(tmp_path):
    args = {"max_num_seqs": 5, "data_parallel_size": 2}
    vllm = {"command": sys.executable, "platform": "cuda"}
    config = load_config(write(tmp_path, experts=[VLLM_HERE | {"args": args}], vllm=vllm))
    assert config.experts[0].concurrency == 10


@pytest.mark.parametrize("kind", [SIMULATED, {**REMOTE, "base_url": "http://127.0.0.1:1/v1"}])
def test_every_kind_of_expert_may_have_a_number_of_its_own(tmp_path, kind):
    (built,) = build_experts(load_config(write(tmp_path, experts=[kind | {"max_concurrency": 2}])))
    assert built.max_concurrency == 2


def test_what_an_earlier_start_measured_is_what_the_next_one_reserves(tmp_path):
    config = load_config(write(tmp_path, experts=[VLLM_HERE], vllm={"command": sys.executable, "platform": "cpu"}))
    (guessed,) = build_experts(config)
    measured = Footprint(device_awake=1 << 30, host_process=1 << 28, host_image=1 << 29)
    write_footprints(footprints_file(config), {key_of(guessed.engine.launch): measured})
    (known,) = build_experts(config)
    assert known.engine.footprint == measured != guessed.engine.footprint
    other = load_config(
        write(
            tmp_path, experts=[VLLM_HERE | {"max_concurrency": 2}], vllm={"command": sys.executable, "platform": "cpu"}
        )
    )
    (another,) = build_experts(other)
    assert another.engine.footprint == guessed.engine.footprint, "it runs other numbers of sequences"


def test_simulated_experts_take_no_memory_of_this_machine(tmp_path):
    config = load_config(write(tmp_path, memory={"device": "900TiB", "host": "900TiB"}))
    assert build_capacity(config) == Bytes(900 * 2**40, 900 * 2**40)


def settings_in(annotation):
    """Every settings class inside a type like `list[Annotated[A | B, ...]] | None`."""
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        yield annotation
    for inner in get_args(annotation):
        yield from settings_in(inner)


def all_keys(model, under=""):
    """Each key by its whole path; the kinds of experts share `experts`."""
    for field_name, field in model.model_fields.items():
        name = field.alias or field_name
        yield f"{under}{name}"
        for inner in settings_in(field.annotation):
            yield from all_keys(inner, f"{under}{name}.")


def explained_keys(lines):
    """Each key of a YAML file that has a comment beside it, or keys of its own below it, by its whole path.

    Also a key that is commented out, of an alternative that cannot stand beside what is in force.
    """
    path = []  # of the line: each part with its indentation
    for line in lines:
        alternative = re.fullmatch(r"( *)# ( *(?:- )?[\w-]+:(?: .*# .*| *))", line)
        text, _, comment = (alternative[1] + alternative[2] if alternative else line).partition("# ")
        found = re.match(r"( *(?:- )?)([\w-]+):(.*)", text)
        if found is None:
            continue
        indentation, key, value = len(found[1]), found[2], found[3].strip()
        path = [*((at, part) for at, part in path if at < indentation), (indentation, key)]
        if comment or not value:
            yield ".".join(part for _, part in path)


@pytest.mark.parametrize(
    ("said", "known"),
    [
        ({}, {}),
        ({"vision": True}, {"image": True}),
        ({"vision": False}, {"image": False}),
        ({"modalities": []}, {"image": False, "audio": False, "video": False, "file": False}),
        ({"modalities": ["image", "file"]}, {"image": True, "audio": False, "video": False, "file": True}),
        ({"vision": True, "modalities": ["image"]}, {"image": True, "audio": False, "video": False, "file": False}),
    ],
)
def test_what_an_expert_takes_is_known_from_vision_or_from_a_whole_list(tmp_path, said, known):
    config = load_config(write(tmp_path, experts=[{**SIMULATED, **said}]))
    assert build_capabilities(config)["a"].modalities == known


def test_every_key_is_explained_in_serve_yaml():
    explained = set(explained_keys((ROOT / "configs/serve.yaml").read_text().splitlines()))
    explained |= {key.replace(".by_endpoint.messages.", ".by_endpoint.") for key in explained}  # a mapping by names
    of_all = "router.handover."  # an objective has the same keys
    explained |= {
        key.replace(of_all, f"{of_all}objectives.") for key in explained if f"{of_all}objectives" in explained
    }
    keys = set(all_keys(ServerConfig))
    assert len(keys) > 30
    assert keys - explained == set()


def test_a_key_that_is_explained_in_one_section_is_not_taken_to_be_explained_in_another():
    lines = ["a:", "  key: 1    # so many", "b:", "  key: 1", "c:", "  - name: x # a name", "    key: 1  # also"]
    assert set(explained_keys(lines)) == {"a", "a.key", "b", "c", "c.name", "c.key"}


def test_the_example_is_a_valid_configuration_but_for_its_artifact():
    config = load_config(ROOT / "configs/serve.yaml")
    assert [expert.engine for expert in config.experts] == ["vllm", "remote", "command", "preset", "lora", "simulated"]


@pytest.mark.parametrize(
    ("host", "is_loopback"),
    [
        *((host, True) for host in ("localhost", "127.0.0.1", "127.0.0.2", "::1", "::ffff:127.0.0.1")),
        *((host, False) for host in ("0.0.0.0", "::", "10.0.0.1", "127.evil.example", "127.0.0.1.example.org", "")),
    ],
)
def test_only_an_address_or_localhost_is_loopback_and_no_name_that_looks_like_one(host, is_loopback):
    assert HttpSettings(host=host).is_loopback is is_loopback


def test_all_mistakes_of_a_file_are_found_at_once(tmp_path):
    experts = [
        {"name": "a", "engine": "simulated", "weight_bytes": 1, "pin": "vram"},
        {"name": "b", "engine": "vllm", "model": "x/y", "max_model_len": 1},
    ]
    path = write(tmp_path, memroy={}, http={"prot": 1, "port": 99_999}, experts=experts)
    config, mistakes = read_config(path)
    assert config is None
    assert mistakes == [
        "http.prot: there is no such key; did you mean 'port'?",
        "experts.a.weight_bytes: there is no such key; did you mean 'weights_bytes'?",
        "experts.b.max_model_len: there is no such key",
        "memroy: there is no such key; did you mean 'memory'?",
        "http.port: must be at most 65535, not 99999",
        "experts.a.pin: 'vram' is not one of 'device', 'host' or 'disk'",
    ]
    with pytest.raises(ConfigError, match=re.escape(f"{path}: {mistakes[0]}")):
        load_config(path)


def test_mistakes_between_keys_are_found_at_once(tmp_path):
    experts = [
        {"name": "a", "engine": "simulated", "pin": "device", "preload": "disk"},
        {"name": "b", "engine": "vllm", "model": "./nowhere"},
    ]
    _, mistakes = read_config(write(tmp_path, experts=experts, aliases={"x": "gone"}))
    assert [mistake.partition(":")[0] for mistake in mistakes] == ["aliases.x", "experts.a.preload", "experts.b.model"]


@pytest.mark.parametrize(
    ("settings", "server"),
    [
        ({"model_list": [{"model_name": "a", "litellm_params": {"model": "openai/a"}}]}, "LiteLLM"),
        ({"models": {"a": {"cmd": "llama-server --port ${PORT}"}}}, "llama-swap"),
        ({"model": "org/model", "host": "127.0.0.1"}, "vLLM"),
    ],
)
def test_a_file_of_another_server_is_known_as_one(tmp_path, settings, server):
    path = write(tmp_path, experts=..., **settings)
    with pytest.raises(ConfigError) as refused:
        load_config(path)
    key = next(iter(settings))
    assert f"{path}: {key}: this looks like a configuration of {server}: docs/coming-from.md has" in str(refused.value)


def test_a_strange_key_beside_experts_is_only_a_strange_key(tmp_path):
    with pytest.raises(ConfigError, match="model: there is no such key"):
        load_config(write(tmp_path, model="org/model"))
