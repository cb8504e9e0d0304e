"""A front judges the first tokens of a node's expert, and hands over to an expert of another node."""

import json

import pytest

from coe_server.routing import artifact as artifacts
from tests.cluster.servers import cluster, expert
from tests.http.test_handover import CURVES, EARNED, PATHS, WORDS
from tests.patience import until
from tests.routing.small_artifact import BEST, SIZES, held_out, objective, small_artifact

# FastAPI silences it with a filter that is not per thread, and here several servers start in threads.
pytestmark = pytest.mark.filterwarnings("ignore::pydantic.warnings.UnsupportedFieldAttributeWarning")


@pytest.fixture(scope="module")
def over_two_nodes(tmp_path_factory):
    """Linguist is on one node, big on the other, coder on both."""
    folder = tmp_path_factory.mktemp("handover") / "router"
    objectives = {"quality": objective(BEST, handover=EARNED)}
    artifact = small_artifact(objectives=objectives, certainty=dict.fromkeys(SIZES, CURVES))
    artifacts.save(artifact, held_out(), None, folder)
    nodes = {"left": [expert("linguist"), expert("coder")], "right": [expert("big"), expert("coder")]}
    with cluster(nodes, router={"artifact": str(folder), "handover": {}}) as found:
        for name in SIZES:  # loaded, so that no wait weighs against them
            assert found[0].chat(name)[0] == 200
        yield found


def ask(front, text, path="chat", **fields):
    said = {"messages": [{"role": "user", "content": text}]} if path == "chat" else {"prompt": text}
    return front.ask("POST", PATHS[path], {"model": "auto", **said, **fields}, content_type="application/json")


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("stream", [False, True])
def test_an_unsure_answer_of_one_node_is_handed_over_to_an_expert_of_another(over_two_nodes, path, stream):
    front, nodes = over_two_nodes
    status, headers, raw = ask(front, WORDS, path, stream=stream)
    assert (status, headers["x-coe-expert"], headers["x-coe-reason"]) == (200, "big", "handed_over")
    assert (headers["x-coe-node"], headers["x-coe-handed-over-from"]) == ("right", "linguist")
    assert b"linguist" not in raw
    for server in nodes.values():
        until(lambda server=server: not any(one["leases"] for one in server.json("/admin/experts")))


@pytest.mark.parametrize("stream", [False, True])
def test_a_sure_answer_of_a_node_comes_through_as_if_it_had_not_been_judged(over_two_nodes, stream):
    front, _ = over_two_nodes
    _, headers, judged = ask(front, f"{WORDS} linguist", stream=stream)
    assert (headers["x-coe-expert"], headers["x-coe-node"]) == ("linguist", "left")
    assert float(headers["x-coe-certainty"]) > 0.9
    _, headers, plain = ask(front, f"{WORDS} linguist", stream=stream, model="linguist")
    assert "x-coe-certainty" not in headers
    assert [one for one in _values(judged) if one["choices"]] == [one for one in _values(plain) if one["choices"]]


def _values(raw):
    lines = raw.split(b"\n") if raw.startswith(b"data: ") else [b"data: " + raw]
    events = (json.loads(line[6:]) for line in lines if line.startswith(b"data: {"))
    return [{**event, "created": 0, "id": ""} for event in events]
