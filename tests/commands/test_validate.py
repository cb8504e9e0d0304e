"""The plan that `coe validate` prints: what fits, and what can never take effect."""

import json
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from coe_server.build.router import build_router
from coe_server.cache.slot import Expert
from coe_server.cache.tiers import Bytes, Tier
from coe_server.cli import app
from coe_server.commands.config_warnings import dead_configuration
from coe_server.commands.validate import container_limit, placement
from coe_server.config.schema import ServerConfig
from coe_server.engines.engine import Footprint
from coe_server.engines.remote import RemoteEngine
from coe_server.keys import Key, hashed
from coe_server.routing import artifact as artifacts
from coe_server.routing.by_name import NamedRouter
from coe_server.routing.router import Router
from tests.http.test_api import GIB, simulated
from tests.routing.small_artifact import SIZES, held_out, small_artifact


def expert(name, gib=1, **more):
    engine = simulated(name)
    engine.footprint = Footprint(device_awake=gib * GIB, host_image=gib * GIB)
    return Expert(name, engine, **more)


def config(*names, **sections):
    experts = [{"name": name, "engine": "simulated"} for name in names or ("a",)]
    return ServerConfig.model_validate({"experts": experts, **sections})


def said(settings=None, router=None, experts=(), capacity=None, keys=()):
    settings = settings or config()
    names = [one.name for one in settings.experts]
    return dead_configuration(
        settings, router or NamedRouter(names), experts, capacity or Bytes(99 * GIB, 99 * GIB), keys
    )


@pytest.fixture
def router(tmp_path):
    artifacts.save(small_artifact(), held_out(), None, tmp_path / "router")
    return Router.load(tmp_path / "router")


def test_a_sound_configuration_has_nothing_dead():
    assert said(experts=[expert("a", preload=Tier.DEVICE, ttl_seconds=600.0)]) == []


def test_how_many_fit_at_once_and_which_expert_is_where():
    experts = [expert("a", 4, preload=Tier.HOST), expert("b", 2, pin=Tier.DEVICE), expert("c", 1), expert("d", 1)]
    first, *rest = placement(experts, Bytes(5 * GIB, 99 * GIB))
    assert first == "On the device at once: 1 (the largest) to 3 (the smallest) of 4 local experts."
    assert rest == ["In device memory when ready: b.", "In host memory when ready: a."]


PROGRAM = {"engine": "command", "command": "sh -c {port}"}


def reported(folder, *experts):
    file = folder / "serve.yaml"
    memory = {"device": "2GiB", "host": "1GiB"}
    file.write_text(json.dumps({"experts": experts, "memory": memory, "vllm": {"platform": "cpu"}}))
    return CliRunner().invoke(app, ["validate", str(file)])


def test_programs_that_take_whole_cards_since_their_size_is_not_given_are_named(tmp_path):
    unknown, known = {**PROGRAM, "name": "a", "pin": "device"}, {**PROGRAM, "name": "b", "device_bytes": "1GiB"}
    told = reported(tmp_path, unknown, known)
    assert told.exit_code == 4
    assert "hint: experts.a: device_bytes is not given, so a whole card is planned for each" in told.stdout
    both = reported(tmp_path, {**unknown, "device_bytes": "1GiB"}, known)
    assert both.exit_code == 0
    assert "device_bytes" not in both.stdout


def test_the_typical_wait_names_host_memory_only_where_an_expert_sleeps_there(tmp_path):
    programs = [{**PROGRAM, "name": name, "device_bytes": "1GiB"} for name in "abc"]
    told = " ".join(reported(tmp_path, *programs).stdout.split())
    assert "Typical wait for an expert that is not loaded: 32 s from disk (estimated" in told
    sleeper = {**PROGRAM, "name": "d", "device_bytes": "256MiB", "sleep": "POST /sleep", "wake": "POST /wake"}
    told = " ".join(reported(tmp_path, *programs, sleeper).stdout.split())
    assert "s from host memory, " in told


def test_remote_experts_are_listed_in_the_order_of_the_file(tmp_path):
    names = [f"hosted-{number}" for number in range(9)]
    remote = [{"name": name, "engine": "remote", "base_url": "http://127.0.0.1:1/v1", "model": "m"} for name in names]
    told = reported(tmp_path, *remote).stdout
    assert sorted(names, key=told.index) == names


def test_a_front_without_experts_of_its_own_is_told_where_waits_come_from(tmp_path):
    file = tmp_path / "front.yaml"
    file.write_text("experts: []\nnodes: [{name: left, address: 'http://127.0.0.1:8081'}]\n")
    told = CliRunner().invoke(app, ["validate", str(file)])
    assert told.exit_code == 0
    assert told.stdout.startswith("Fits: a front without experts of its own. Its nodes decide about waits")
    assert "remote" not in told.stdout
    assert "No request waits longer" not in told.stdout


def test_a_container_must_allow_the_tiers_in_ram_and_the_server_itself():
    assert "at least 5120m: 4,096 MiB for the tiers in RAM" in container_limit(4 * GIB)
    assert "at least 1025m" in container_limit(1)


def test_a_preload_without_room_is_named():
    experts = [expert("a", 4, pin=Tier.DEVICE), expert("b", 4, preload=Tier.DEVICE)]
    (sentence,) = said(experts=experts, capacity=Bytes(5 * GIB, 99 * GIB))
    assert sentence.startswith("experts.b.preload: too little memory is left (needs 4,096 MiB of device")


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"ttl_seconds": 0.5}, "0.5 s is less than the move to host and back takes (2.0 s, estimated)"),
        ({"ttl_seconds": 600.0, "pin": Tier.DEVICE}, "never applies, the expert is pinned to the device"),
    ],
)
def test_a_lifetime_that_makes_no_sense_is_named(given, sentence):
    (found,) = said(experts=[expert("a", **given)])
    assert found.startswith("experts.a.ttl_seconds: ")
    assert sentence in found


def test_a_remote_expert_has_no_lifetime():
    for seconds in (600.0, 0.001):
        (found,) = said(experts=[Expert("a", RemoteEngine("a", "http://x/v1", None), ttl_seconds=seconds, remote=True)])
        assert found == "experts.a.ttl_seconds: never applies, it is remote"


@pytest.mark.parametrize("key", ["pin", "preload"])
def test_a_remote_expert_has_no_tier(key):
    remote = {"name": "a", "engine": "remote", "base_url": "http://x/v1", "model": "m", key: "device"}
    (found,) = said(ServerConfig.model_validate({"experts": [remote]}))
    assert found == f"experts.a.{key}: 'device' never applies; the expert is remote and uses no memory here"


@pytest.mark.parametrize(
    ("sections", "sentence"),
    [
        ({"scheduling": {"queue_limit": 50, "queue_limit_total": 10}}, "scheduling.queue_limit: 50 is never reached"),
        ({"keys": {"open": True}}, "keys.open: 127.0.0.1 is a loopback address"),
        ({"router": {"artifact": "x", "residency_tolerance": 0.1}}, "residency_tolerance: has no effect"),
    ],
)
def test_a_setting_that_another_one_overrules_is_named(sections, sentence):
    (found,) = said(config(**sections))
    assert sentence in found


def vllm(**args):
    return ServerConfig.model_validate({"experts": [{"name": "a", "engine": "vllm", "model": "x/y-7B", "args": args}]})


@pytest.mark.parametrize("key", ["trust_remote_code", "trust-remote-code"])
def test_a_models_own_code_is_warned_of_with_what_it_can_do(key):
    (found,) = said(vllm(**{key: True}))
    assert found.startswith("experts.a.args.trust_remote_code: Python code of 'x/y-7B' runs here as the")
    assert "it can access all files of this user" in found
    assert "pin args.revision and args.code_revision" in found
    assert said(vllm(**{key: False}, max_model_len=512)) == []


def test_files_that_callers_can_have_read_are_warned_of():
    (found,) = said(vllm(allowed_local_media_path="/srv"))
    assert (
        found == "experts.a.args.allowed_local_media_path: every client of 'a' can make it read any media file in /srv"
    )


def test_keys_for_what_is_not_there_are_named():
    keys = [Key(name="k", sha256=hashed("k"), objectives=frozenset({"cheap"}), experts=frozenset())]
    assert said(keys=keys) == [
        "keys.file: key 'k' may ask for objective 'cheap', which the router does not serve",
        "keys.file: key 'k' may use no expert",
    ]


def test_an_expert_that_cannot_be_routed_to_is_named(router):
    found = said(config(*SIZES, "stranger"), router)
    assert "experts.stranger: the router does not know it; it answers only requests for its name" in found
    assert "objective 'unearned' is not served: it lost" in found
    assert not any(name in sentence for sentence in found for name in ("experts.coder", "experts.big"))


def test_an_expert_taken_out_of_service_is_told_and_the_others_go_on(tmp_path, router, caplog):
    at = {"router": {"artifact": str(tmp_path / "router"), "objective": "quality"}}
    build_router(config(*SIZES, **at))
    assert not caplog.messages
    build_router(config(*[name for name in SIZES if name != "coder"], **at))
    assert caplog.messages == ["router.artifact: its expert 'coder' is not configured; the next best answers"]


def test_an_expert_no_category_maps_to_is_named(router):
    manifest = router.artifact.manifest
    everything_to_big = dict.fromkeys((*manifest.categories, "general"), "big")
    objectives = {
        name: entry.model_copy(update={"mapping": everything_to_big, "fallback": "big"})
        for name, entry in manifest.objectives.items()
    }
    mapping = {name: dict(everything_to_big) for name in objectives}
    unused = "experts.coder: no category maps to it under any served objective"
    for mode, sentence in (
        ("hard", unused),
        ("soft", f"{unused}; with soft mixing some prompts may still go to it"),
    ):
        narrowed = manifest.model_copy(update={"objectives": objectives, "mode": mode})
        found = said(config(*SIZES), Router(replace(router.artifact, manifest=narrowed, mapping=mapping)))
        assert sentence in found
    assert not any(sentence.startswith("experts.big") for sentence in found)


@pytest.mark.parametrize("exploration", ["learn", 0.1])
def test_an_expert_that_exploration_draws_is_in_use_although_no_category_maps_to_it(router, exploration):
    manifest = router.artifact.manifest
    categories = (*manifest.categories, "general")
    to_big = dict.fromkeys(categories, "big")

    def told(**others):
        objectives = {
            name: entry.model_copy(update={"mapping": to_big, "fallback": "big"})
            for name, entry in manifest.objectives.items()
        }
        changed = manifest.model_copy(update={"objectives": objectives, "mode": "hard", **others})
        mapping = dict.fromkeys(objectives, to_big)
        artifact = replace(router.artifact, manifest=changed, mapping=mapping)
        return said(config(*SIZES), Router(artifact, exploration=exploration))

    unused = "experts.coder: no category maps to it under any served objective"
    assert unused not in told()
    assert unused in told(bans={one: ["coder"] for one in categories}), "it is never drawn where it is banned"


def test_a_pin_that_is_banned_is_never_obeyed(router):
    manifest = router.artifact.manifest.model_copy(update={"pins": {"code": "coder"}, "bans": {"code": ["coder"]}})
    found = said(config(*SIZES), Router(replace(router.artifact, manifest=manifest)))
    assert any("'code' is pinned to 'coder'" in sentence and "the pin has no effect" in sentence for sentence in found)


def test_a_key_that_a_header_takes_the_place_of_is_named():
    remote = {"name": "a", "engine": "remote", "model": "m", "base_url": "http://a/v1", "api_key_env": "KEY"}
    replaced = ServerConfig.model_validate({"experts": [{**remote, "headers": {"authorization": "Token t"}}]})
    (sentence,) = said(replaced)
    assert sentence == "experts.a.api_key_env: is never sent; the Authorization in headers replaces it"
    assert said(ServerConfig.model_validate({"experts": [{**remote, "headers": {"X-A": "1"}}]})) == []


@pytest.mark.parametrize("address", ["http://a", "http://a:8000/", "https://a?api-version=1"])
def test_an_address_without_a_path_is_named(address):
    remote = {"name": "a", "engine": "remote", "model": "m", "base_url": address}
    (sentence,) = said(ServerConfig.model_validate({"experts": [remote]}))
    assert sentence.startswith("experts.a.base_url: '")
    assert sentence.endswith("' has no path; most servers have OpenAI's API at /v1")
