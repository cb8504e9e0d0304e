"""The compose file of a front and two nodes: its services are confined, and its configurations are valid."""

import pytest

from coe_server.config.schema import load_config
from deploy.check.plain_compose import plain


@pytest.fixture(scope="module")
def services(root):
    return plain(root / "compose.cluster.yaml")["services"]


def test_there_is_a_front_with_two_nodes_and_only_the_front_is_published_on_loopback(services):
    assert set(services) == {"front", "node-1", "node-2"}
    assert services["front"]["ports"] == ["${COE_BIND:-127.0.0.1}:${COE_PORT:-8080}:8080"]
    assert all("ports" not in services[name] for name in ("node-1", "node-2"))


def test_every_service_is_confined(services):
    for service in services.values():
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["mem_limit"]
        assert set(service["logging"]["options"]) == {"max-size", "max-file"}


def test_the_nodes_know_no_key_of_the_front_and_share_no_state(services):
    for name in ("node-1", "node-2"):
        assert services[name]["secrets"] == ["COE_NODE_KEY"]
        assert services[name]["volumes"][1] == f"{name}-state:/var/lib/coe"


def test_the_front_finds_the_nodes_at_their_names_and_ports(root, services):
    front = load_config(root / "deploy/cluster-demo/front/serve.yaml")
    node = load_config(root / "deploy/cluster-demo/node/serve.yaml")
    assert {one.name: one.address for one in front.nodes} == {
        name: f"http://{name}:{node.http.port}" for name in services if name != "front"
    }
    assert node.role == "node"
    assert node.keys.node_key_env == front.nodes[0].api_key_env == "COE_NODE_KEY"
