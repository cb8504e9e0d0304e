"""Which keys a running server takes over, and the sentence for those it does not."""

import pytest
import yaml

from coe_server.config.diff import LIVE, live_changes
from coe_server.config.schema import load_config
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
            {"experts": [EXPERT, {**EXPERT, "name": "b"}]},
            r"experts changed \(added b\); restart required",
        ),
        ({"experts": [{**EXPERT, "name": "b"}]}, r"experts changed \(added b; removed a\); restart"),
        ({"experts": [{**EXPERT, "pin": "device"}]}, "experts.a.pin: was None and is 'device'"),
    ],
)
def test_what_needs_a_restart_is_refused_by_name(tmp_path, wanted, sentence):
    with pytest.raises(ReloadRefused, match=sentence):
        live_changes(config(tmp_path), config(tmp_path, **wanted))


def test_every_live_key_is_told_in_the_explained_configuration(root):
    head = (root / "configs/serve.yaml").read_text().split("http:")[0].replace("\n#", "")
    for pattern in LIVE:
        assert pattern.removeprefix("experts.*.").removesuffix(".*") in head, pattern


@pytest.mark.parametrize(
    ("wanted", "sentence"),
    [
        ({"headers": {"X-A": "s3cret-2"}}, r"experts\.a\.headers\.X-A: was '\.\.\.' and is '\.\.\.' in the file"),
        ({"headers": {}}, r"experts\.a\.headers\.X-A: was '\.\.\.' and is absent in the file"),
        (
            {"base_url": "http://b/v1?key=s3cret-2"},
            r"base_url: was 'http://a/v1\?\.\.\.' and is 'http://b/v1\?\.\.\.' in",
        ),
    ],
)
def test_a_change_of_what_may_be_secret_is_told_without_it(tmp_path, wanted, sentence):
    remote = {"name": "a", "engine": "remote", "model": "m", "base_url": "http://a/v1?key=s3cret"}
    remote |= {"headers": {"X-A": "s3cret"}}
    running = config(tmp_path, experts=[remote])
    with pytest.raises(ReloadRefused, match=sentence) as told:
        live_changes(running, config(tmp_path, experts=[remote | wanted]))
    assert "s3cret" not in str(told.value)
