"""Experts that come and go on a node: its front follows, without an error for what stays."""

import json
from contextlib import ExitStack

import pytest

from tests.cluster.servers import expert, front_settings, in_thread, node_settings
from tests.patience import until

# FastAPI silences it with a filter that is not per thread, and here several servers start in threads.
pytestmark = pytest.mark.filterwarnings("ignore::pydantic.warnings.UnsupportedFieldAttributeWarning")


@pytest.fixture
def cluster():
    """A front with two nodes, `left` with experts a and b, `right` with b; and the settings of each node."""
    told = {"left": node_settings([expert("a"), expert("b")]), "right": node_settings([expert("b")])}
    with ExitStack() as held:
        nodes = {name: held.enter_context(in_thread(one)) for name, one in told.items()}
        front = held.enter_context(in_thread(front_settings({name: one.url for name, one in nodes.items()})))
        front.until_usable(*nodes)
        yield front, nodes, told


def reload(node, settings, experts):
    settings["experts"] = experts
    status, _, body = node.ask("POST", "/admin/reload")
    assert status == 200, body


def models(front):
    return {one["id"] for one in front.json("/v1/models")["data"]}


def test_a_front_follows_what_a_node_gets_and_loses(cluster):
    front, nodes, told = cluster
    assert models(front) == {"a", "b"}
    reload(nodes["left"], told["left"], [expert("b"), expert("c")])
    until(lambda: models(front) == {"b", "c"})
    assert front.chat("b")[0] == front.chat("c")[0] == 200
    status, _, body = front.chat("a")
    assert (status, json.loads(body)["error"]["code"]) == (404, "model_not_found")
    until(lambda: {row["name"] for row in front.json("/admin/experts")} == {"b", "c"})
    assert 'expert="a"' not in front.ask("GET", "/metrics")[2].decode()


def test_an_expert_stays_while_another_node_has_it_and_comes_back(cluster):
    front, nodes, told = cluster
    reload(nodes["left"], told["left"], [expert("a")])
    until(lambda: front.nodes()["left"]["experts"] == ["a"])
    assert front.chat("b")[1]["x-coe-node"] == "right"
    reload(nodes["left"], told["left"], [expert("c")])
    until(lambda: models(front) == {"b", "c"})
    reload(nodes["left"], told["left"], [expert("a"), expert("c")])
    until(lambda: models(front) == {"a", "b", "c"})
    assert front.chat("a")[0] == 200


def test_a_changed_expert_restarts_on_its_node_and_the_front_waits(cluster):
    front, nodes, told = cluster
    assert front.chat("a")[0] == 200
    reload(nodes["left"], told["left"], [expert("a", tokens_per_second=2000), expert("b")])
    assert front.chat("a")[0] == 200
    assert models(front) == {"a", "b"}
