"""Which keys a running server takes over, and the sentence for those it does not."""

import pytest
import yaml

from coe_server.config.diff import LIVE, expert_changes, live_changes
from coe_server.config.schema import load_config
from coe_server.engines.preset import PresetExpert
from coe_server.errors import ReloadRefused

EXPERT = {"name": "a", "engine": "simulated"}


def config(folder, experts=(EXPERT,), **settings):
    path = folder / "serve.yaml"
    path.write_text(yaml.safe_dump({"experts": list(experts), **settings}))
    return load_config(path)


def test_nothing_differs_between_a_configuration_and_itself(tmp_path):
    assert live_changes(config(tmp_path), config(tmp_path)) == ()


@pytest.mark.parametrize(
    ("wanted", "changed"),
    [
        ({"http": {"max_body": "1MiB"}}, ("http.max_body",)),
        ({"http": {"keepalive_seconds": 5, "body_seconds": 5}}, ("http.body_seconds", "http.keepalive_seconds")),
        ({"http": {"allowed_hosts": ["coe"]}}, ("http.allowed_hosts",)),
        ({"log": {"prompts": True}}, ("log.prompts",)),
        ({"experts": [{**EXPERT, "vision": True}]}, ("experts.a.vision",)),
        ({"experts": [{**EXPERT, "modalities": ["audio"]}]}, ("experts.a.modalities",)),
        ({"experts": [{**EXPERT, "endpoints": ["chat"]}]}, ("experts.a.endpoints",)),
    ],
)
def test_what_requests_are_read_by_is_taken_over(tmp_path, wanted, changed):
    assert live_changes(config(tmp_path), config(tmp_path, **wanted)) == changed


def test_a_router_may_come_and_change(tmp_path):
    routed = {"router": {"artifact": "somewhere"}}
    assert "router.artifact" in live_changes(config(tmp_path), config(tmp_path, **routed))
    other = {"router": {"artifact": "somewhere", "objective": "cheap"}}
    assert live_changes(config(tmp_path, **routed), config(tmp_path, **other)) == ("router.objective",)


@pytest.mark.parametrize(
    ("wanted", "sentence"),
    [
        ({"http": {"port": 1}}, r"http.port: was 8080 and is 1 in the file; restart required"),
        ({"scheduling": {"max_wait_seconds": 1}}, r"scheduling.max_wait_seconds: was 30.0 and is 1.0"),
        ({"memory": {"device": "1GiB"}}, "memory.device: was None and is 1073741824"),
        (
            {"experts": [EXPERT, {"name": "b", "engine": "preset", "of": "a", "set": {"top_p": 1}}]},
            "experts.b: was engine simulated and is preset in the file; remove it in one reload and add it in the next",
        ),
    ],
)
def test_what_needs_a_restart_is_refused_by_name(tmp_path, wanted, sentence):
    running = config(tmp_path, experts=[EXPERT, {**EXPERT, "name": "b"}])
    with pytest.raises(ReloadRefused, match=sentence):
        live_changes(running, config(tmp_path, **{"experts": [EXPERT, {**EXPERT, "name": "b"}], **wanted}))


PRESET = {"name": "p", "engine": "preset", "of": "a", "set": {"top_p": 1}}
REMOTE = {"name": "a", "engine": "remote", "model": "m", "base_url": "http://b/v1"}


@pytest.mark.parametrize(
    ("before", "after", "news", "keys"),
    [
        ([EXPERT], [EXPERT], {}, ()),
        ([EXPERT], [EXPERT, {**EXPERT, "name": "b.c"}], {"added": ["b.c"]}, ("experts.b.c",)),
        ([EXPERT], [{**EXPERT, "name": "b"}], {"added": ["b"], "removed": ["a"]}, ("experts.a", "experts.b")),
        ([EXPERT], [{**EXPERT, "pin": "device"}], {"adjusted": ["a"]}, ("experts.a.pin",)),
        ([EXPERT], [{**EXPERT, "preload": "host"}], {"adjusted": ["a"]}, ("experts.a.preload",)),
        ([EXPERT], [{**EXPERT, "ttl_seconds": 1}], {"adjusted": ["a"]}, ("experts.a.ttl_seconds",)),
        ([EXPERT], [{**EXPERT, "tools": False}], {"adjusted": ["a"]}, ("experts.a.tools",)),
        ([EXPERT], [{**EXPERT, "start_seconds": 1}], {"restarted": ["a"]}, ("experts.a.start_seconds",)),
        ([EXPERT], [{**EXPERT, "max_concurrency": 1}], {"restarted": ["a"]}, ("experts.a.max_concurrency",)),
        ([EXPERT], [{**EXPERT, "pin": "host", "width": 2}], {"restarted": ["a"]}, ("experts.a.pin", "experts.a.width")),
        ([EXPERT], [EXPERT, PRESET], {"added": ["p"]}, ("experts.p",)),
        ([EXPERT, PRESET], [EXPERT], {"removed": ["p"]}, ("experts.p",)),
        ([EXPERT, PRESET], [EXPERT, {**PRESET, "set": {"top_p": 0}}], {"adjusted": ["p"]}, ("experts.p.set.top_p",)),
        ([{**EXPERT, "name": "b"}, EXPERT], [EXPERT, {**EXPERT, "name": "b"}], {}, ()),
    ],
)
def test_which_experts_come_go_restart_or_go_on(tmp_path, before, after, news, keys):
    running, wanted = config(tmp_path, experts=before), config(tmp_path, experts=after)
    nothing = {"added": [], "removed": [], "restarted": [], "adjusted": []}
    assert expert_changes(running, wanted).as_json() == nothing | news
    assert live_changes(running, wanted) == keys


def test_an_expert_may_become_one_of_another_kind(tmp_path):
    changed = expert_changes(config(tmp_path), config(tmp_path, experts=[REMOTE]))
    assert changed.restarted == ("a",)


class StartedWithItsBase(PresetExpert):
    launched_by_base = True


def test_an_expert_that_its_bases_engine_must_know_concerns_that(tmp_path):
    def beside(**settings):
        there = config(tmp_path)
        return there.model_copy(update={"experts": [*there.experts, StartedWithItsBase(**PRESET, **settings)]})

    for running, wanted in ((config(tmp_path), beside()), (beside(), config(tmp_path))):
        assert expert_changes(running, wanted).regrouped == ("a",)
    assert expert_changes(beside(), beside(vision=True)).restarted == ()


def test_every_live_key_is_told_in_the_explained_configuration(root):
    head = (root / "configs/serve.yaml").read_text().split("http:")[0].replace("\n#", "")
    for pattern in LIVE:
        assert pattern.removeprefix("experts.*.").removesuffix(".*") in head, pattern


@pytest.mark.parametrize(
    ("wanted", "keys"),
    [
        ({"headers": {"X-A": "s3cret-2"}}, ("experts.a.headers.X-A",)),
        ({"headers": {}}, ("experts.a.headers.X-A",)),
        ({"base_url": "http://b/v1?key=s3cret-2"}, ("experts.a.base_url",)),
    ],
)
def test_a_change_of_what_may_be_secret_is_told_by_its_key_alone(tmp_path, wanted, keys):
    remote = {"name": "a", "engine": "remote", "model": "m", "base_url": "http://a/v1?key=s3cret"}
    remote |= {"headers": {"X-A": "s3cret"}}
    running = config(tmp_path, experts=[remote])
    assert live_changes(running, config(tmp_path, experts=[remote | wanted])) == keys
