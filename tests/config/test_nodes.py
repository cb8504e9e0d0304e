"""Settings of nodes and fronts: what is valid, and what each mistake says."""

import re

import pytest
import yaml
from typer.testing import CliRunner

from coe_server.cli import app
from coe_server.commands.config_warnings import dangers
from coe_server.config.schema import load_config, read_config

EXPERT = {"name": "a", "engine": "simulated"}
LEFT = {"name": "left", "address": "http://10.0.0.1:8081", "api_key_env": "COE_NODE_KEY"}
NODE = {"role": "node", "keys": {"node_key_env": "COE_NODE_KEY"}, "experts": [EXPERT]}


def write(folder, **settings):
    path = folder / "serve.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def test_a_front_needs_no_experts_of_its_own_and_its_files_are_found_from_its_folder(tmp_path):
    https = {**LEFT, "address": "https://left.example:8081", "ca_file": "certificates/ca.pem"}
    config = load_config(write(tmp_path, experts=[], nodes=[https]))
    assert config.has_nodes
    assert config.nodes[0].ca_file == tmp_path / "certificates/ca.pem"
    assert config.secret_variables == {"COE_NODE_KEY"}


def test_a_directory_stands_instead_of_the_list(tmp_path):
    dns = {"directory": "dns", "host": "nodes.example", "port": 8081}
    assert load_config(write(tmp_path, experts=[], nodes=dns)).nodes.host == "nodes.example"
    ray = {"directory": "ray", "api_key_env": "COE_NODE_KEY"}
    assert load_config(write(tmp_path, experts=[], nodes=ray)).nodes.address == "auto"


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"experts": []}, "experts: a server needs at least one"),
        ({**NODE, "router": {"artifact": "x"}}, "router: a node serves its experts by name"),
        ({**NODE, "nodes": [LEFT]}, "nodes: a node has no nodes of its own"),
        ({**NODE, "role": "server"}, "keys.node_key_env: is the key of a node; set role: node"),
        ({"experts": [], "nodes": [LEFT, LEFT]}, "nodes: two of them have the same name"),
        (
            {"experts": [], "nodes": [{**LEFT, "address": "http://10.0.0.1:8081/v1"}]},
            "nodes.left.address: .* has a path",
        ),
        ({"experts": [], "nodes": [{**LEFT, "ca_file": "ca.pem"}]}, "nodes.left.ca_file: is for https"),
        (
            {"experts": [], "nodes": [{**LEFT, "address": "https://l", "key": "a.key"}]},
            "nodes.left.certificate: needs both",
        ),
        ({"experts": [], "nodes": {"directory": "dns", "host": "a", "port": 1, "ca_file": "x"}}, "nodes.scheme: https"),
    ],
)
def test_a_mistake_is_named_with_its_key_and_the_way_out(tmp_path, settings, sentence):
    _, mistakes = read_config(write(tmp_path, **settings))
    assert len(mistakes) == 1
    assert re.search(sentence, mistakes[0]), mistakes


def test_plain_http_to_another_machine_is_warned_of_and_to_this_one_is_not(tmp_path):
    here = {**LEFT, "name": "here", "address": "http://127.0.0.1:8081"}
    (told,) = dangers(load_config(write(tmp_path, experts=[], nodes=[LEFT, here])))
    assert told.startswith("nodes.left.address: http://10.0.0.1:8081 is plain HTTP")
    open_node = {**NODE, "http": {"host": "0.0.0.0"}}
    (told,) = dangers(load_config(write(tmp_path, **open_node)))
    assert told.startswith("http.tls: is not set")


def test_a_front_and_a_node_are_checked_by_coe_validate(tmp_path, monkeypatch):
    monkeypatch.setenv("COE_NODE_KEY", "secret")
    for settings in ({"experts": [], "nodes": [LEFT]}, NODE):
        done = CliRunner().invoke(app, ["validate", str(write(tmp_path, **settings))])
        assert done.exit_code == 0, done.output
