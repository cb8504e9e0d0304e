"""Which machines of a Ray cluster run a node, and under which names."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coe_server.cluster.directory import NodeAddress
from coe_server.cluster.ray_actors import without_rays
from coe_server.cluster.ray_members import Member, NodePlan, NodeRun, RayMachine, addresses, host_of, machines, named
from coe_server.config.types import require_served_name


def listed(**fields):
    """One entry of the list that `ray.nodes()` gives, as Ray 2.60 does."""
    entry = {
        "NodeID": "7f" * 28,
        "Alive": True,
        "NodeManagerAddress": "10.0.0.7",
        "NodeManagerHostname": "box-a",
        "NodeName": "box-a",
        "Resources": {"CPU": 8.0, "GPU": 2.0, "coe_node": 1.0, "node:10.0.0.7": 1.0},
    }
    return {**entry, **fields}


def member(name, state="running", url="http://10.0.0.7:8081", node_id="7f" * 28):
    return Member(RayMachine(node_id, name, "10.0.0.7"), NodeRun(state, url))


def test_a_living_machine_with_the_resource_runs_a_node_with_all_of_its_gpus():
    found = machines([listed(), listed(Alive=False), listed(Resources={"CPU": 8.0}), listed(Resources={"coe_node": 0})])
    assert found == (RayMachine("7f" * 28, "box-a", "10.0.0.7", 2.0),)


def test_a_machine_without_a_name_has_its_address_as_name():
    assert [one.name for one in machines([listed(NodeName=""), listed(NodeName="10.0.0.7")])] == ["10.0.0.7"] * 2


@given(st.text())
def test_every_machine_has_a_name_that_a_node_may_have(name):
    (machine,) = machines([listed(NodeName=name)])
    assert require_served_name(machine.name) == machine.name


def test_a_machine_that_is_back_has_its_name_while_ray_still_counts_the_killed_one():
    killed, back = member("box-a", "unreachable", "http://10.0.0.7:1", "a" * 56), member("box-a", node_id="b" * 56)
    assert named([killed, back]) == {"box-a": back}
    assert addresses([killed, back]) == (NodeAddress("box-a", "http://10.0.0.7:8081"),)


def test_a_node_that_does_not_answer_its_directory_keeps_its_address():
    assert addresses([member("box-a", "unreachable")]) == (NodeAddress("box-a", "http://10.0.0.7:8081"),)


def test_a_node_without_an_address_is_not_told():
    assert addresses([member("box-a", "starting", None)]) == ()


def test_machines_of_the_same_name_have_names_of_their_own():
    assert list(named([member("box", node_id="b" * 56), member("box", node_id="a" * 56)])) == ["box", "box-bbbbbbbb"]


@given(
    st.lists(st.tuples(st.text("ab", min_size=56, max_size=56), st.sampled_from("xy")), unique_by=lambda one: one[0])
)
def test_no_two_addresses_have_the_same_name_and_the_order_of_the_list_does_not_matter(pairs):
    members = [member(name, node_id=node_id) for node_id, name in pairs]
    found = addresses(members)
    assert found == addresses(members[::-1])
    assert len({one.name for one in found}) == len(found)


@pytest.mark.parametrize(("host", "reached"), [("0.0.0.0", "10.0.0.7"), ("::", "10.0.0.7"), ("127.0.0.1", "127.0.0.1")])
def test_a_node_is_reached_at_rays_address_unless_its_configuration_names_one(host, reached):
    assert host_of(NodePlan("", "/state", host, 8081), RayMachine("7f", "box-a", "10.0.0.7")) == reached


def test_each_node_has_its_own_name_in_its_configuration():
    plan = NodePlan("state_directory: /var/lib/coe/{node}\n", "/var/lib/coe/{node}", "0.0.0.0", 8081)
    assert plan.configuration_of("box-a") == "state_directory: /var/lib/coe/box-a\n"
    assert plan.folder_of("box-a") == "/var/lib/coe/box-a"


def test_a_server_gets_none_of_rays_variables_and_no_token():
    given_to_ray = {"RAY_AUTH_TOKEN": "secret", "RAY_AUTH_MODE": "token", "PATH": "/bin", "COE_NODE_KEY": "key"}
    assert without_rays(given_to_ray) == {"PATH": "/bin", "COE_NODE_KEY": "key"}
