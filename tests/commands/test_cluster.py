"""`coe cluster` as far as it goes without Ray: what it refuses, and how it shows nodes."""

import importlib.util
import io

import pytest
import yaml
from rich.console import Console
from typer.testing import CliRunner

from coe_server.cli import app
from coe_server.cluster.ray_control import plan_of
from coe_server.cluster.ray_members import Member, NodePlan, NodeRun, RayMachine
from coe_server.commands.cluster import nodes_table
from coe_server.config.schema import load_config
from coe_server.errors import ConfigError


@pytest.fixture
def node_file(tmp_path, monkeypatch):
    """Writes a node's configuration with these settings, and gives its path."""
    monkeypatch.setenv("COE_NODE_KEY", "a-node-key")

    def written(**settings):
        node = {
            "role": "node",
            "http": {"host": "0.0.0.0", "port": 8081},
            "keys": {"node_key_env": "COE_NODE_KEY"},
            "memory": {"device": "8GiB", "host": "16GiB"},
            "state_directory": "/var/lib/coe/{node}",
            "experts": [{"name": "coder", "engine": "simulated", "weights_bytes": "1GiB"}],
        }
        path = tmp_path / "node.yaml"
        path.write_text(yaml.safe_dump({**node, **settings}))
        return path

    return written


def test_the_plan_is_the_text_of_the_file_and_what_it_says_of_the_address(node_file):
    path = node_file()
    plan = plan_of(load_config(path), path)
    assert plan == NodePlan(path.read_text(), "/var/lib/coe/{node}", "0.0.0.0", 8081, "http", 30.0)
    assert "a-node-key" not in repr(plan)


@pytest.mark.parametrize("folder", [None, "state"])
def test_a_plan_whose_state_would_be_lost_is_refused(node_file, folder):
    path = node_file()
    path.write_text(
        path.read_text().replace("state_directory: /var/lib/coe/{node}", f"state_directory: {folder}" if folder else "")
    )
    with pytest.raises(ConfigError, match=r"state_directory: each machine needs an absolute path"):
        plan_of(load_config(path), path)


def test_a_file_that_is_not_a_nodes_is_refused(node_file):
    path = node_file(role="server", keys={"api_key_env": "COE_NODE_KEY"})
    with pytest.raises(ConfigError, match=r"role: 'server' is not a node's; write role: node"):
        plan_of(load_config(path), path)


@pytest.mark.skipif(importlib.util.find_spec("ray") is not None, reason="Ray is here")
@pytest.mark.parametrize("words", [["up"], ["status"], ["down"]])
def test_without_ray_each_command_says_what_to_install(node_file, words):
    done = CliRunner().invoke(app, ["cluster", *words, *([str(node_file())] if words == ["up"] else [])])
    assert done.exit_code == 2
    assert done.stderr == "coe: Ray is not installed here: it comes with the extra `ray` (docs/upgrade.md)\n"


def test_a_node_is_shown_with_its_address_and_why_it_ended_before():
    run = NodeRun(
        "running", "http://10.0.0.7:8081", 2, 61.4, "exit code 137: [killed]", "/var/lib/coe/box-a/server.log"
    )
    out = io.StringIO()
    members = {"box-a": Member(RayMachine("7f", "box-a", "10.0.0.7", 2.0), run)}
    Console(file=out, width=300).print(nodes_table(members))
    for cell in ("box-a", "running", "http://10.0.0.7:8081", "61 s", "exit code 137: [killed]", "server.log"):
        assert cell in out.getvalue()
