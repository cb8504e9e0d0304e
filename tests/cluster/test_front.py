"""A front with nodes: it learns their experts, passes requests on, and holds no queue of its own."""

import json
import threading
from contextlib import ExitStack

import pytest
import yaml
from typer.testing import CliRunner

from coe_server.cli import app
from coe_server.keys import Key, hashed, write_keys
from coe_server.routing import artifact as artifacts
from tests.cluster.servers import KEY, cluster, expert, front_settings, in_thread, node_settings, recording_node
from tests.patience import until
from tests.routing.small_artifact import SIZES, held_out, small_artifact

# FastAPI silences it with a filter that is not per thread, and here several servers start in threads.
pytestmark = pytest.mark.filterwarnings("ignore::pydantic.warnings.UnsupportedFieldAttributeWarning")


@pytest.fixture(scope="module")
def two():
    """A front with two nodes: both have `coder`, each has one of its own."""
    nodes = {
        "left": [expert("coder"), expert("left-only", context_tokens=512, tools=False)],
        "right": [expert("coder"), expert("right-only")],
    }
    with cluster(nodes) as found:
        yield found


def test_experts_of_nodes_are_models_of_the_front(two):
    front, _ = two
    assert {one["id"] for one in front.json("/v1/models")["data"]} == {"coder", "left-only", "right-only"}


def test_a_chat_goes_through_to_the_node_that_has_the_expert(two):
    front, _ = two
    status, headers, body = front.chat("right-only")
    assert status == 200
    assert json.loads(body)["choices"][0]["message"]["content"] == "right-only answers: hello there"
    assert (headers["x-coe-expert"], headers["x-coe-node"]) == ("right-only", "right")
    assert float(headers["x-coe-wait-ms"]) >= 0


def test_a_stream_comes_through_byte_for_byte(two):
    front, nodes = two
    status, headers, through = front.chat("left-only", stream=True)
    _, _, directly = nodes["left"].ask(
        "POST",
        "/v1/chat/completions",
        {"model": "left-only", "stream": True, "messages": [{"role": "user", "content": "hello there"}]},
        content_type="application/json",
        authorization=f"Bearer {KEY}",
    )
    assert (status, headers["x-coe-node"]) == (200, "left")
    assert _without_times(through) == _without_times(directly)
    assert through.endswith(b"data: [DONE]\n\n")


def _without_times(stream):
    events = (event.removeprefix(b"data: ") for event in stream.split(b"\n\n") if event.startswith(b"data: {"))
    return [{**json.loads(event), "created": 0} for event in events]


def test_what_a_node_said_of_an_expert_excludes_it_as_configuration_would(two):
    front, _ = two
    tools = [{"type": "function", "function": {"name": "look"}}]
    status, _, body = front.chat("left-only", tools=tools)
    assert (status, json.loads(body)["error"]["code"]) == (400, "no_capable_expert")
    assert "cannot call tools" in json.loads(body)["error"]["message"]


def test_the_operators_view_shows_each_node_with_its_tiers(two):
    front, _ = two
    rows = {row["name"]: row for row in front.json("/admin/experts")}
    assert [place["name"] for place in rows["coder"]["nodes"]] == ["left", "right"]
    assert {place["residency"] for place in rows["coder"]["nodes"]} <= {"device", "host", "disk"}
    nodes = {node["name"]: node for node in front.json("/admin/overview")["nodes"]}
    assert nodes["left"]["usable"]
    assert nodes["left"]["experts"] == ["coder", "left-only"]
    assert nodes["left"]["cards"][0]["capacity"] == 8 << 30
    assert front.json("/admin/overview")["tiers"]["device"]["capacity"] == 16 << 30  # of both nodes


def test_metrics_carry_the_node(two):
    front, _ = two
    front.chat("right-only")
    _, _, body = front.ask("GET", "/metrics")
    lines = body.decode().splitlines()
    assert 'coe_node_usable{node="left"} 1.0' in lines
    assert any(line.startswith('coe_node_residency{expert="coder",node="right",') for line in lines)
    assert any(line.startswith('coe_node_requests_total{node="right",outcome="answered"}') for line in lines)
    assert not any(line.startswith("coe_residency{") for line in lines)


def test_an_expert_is_loaded_pinned_and_unloaded_on_the_named_node(two):
    front, _ = two
    status, _, body = front.ask("POST", "/admin/experts/coder/load?node=right")
    assert (status, json.loads(body)["node"]) == (200, "right")
    until(lambda: _place(front, "coder", "right")["residency"] == "device")
    assert front.ask("POST", "/admin/experts/coder/pin?node=right")[0] == 200
    until(lambda: _place(front, "coder", "right")["pin"] == "device")
    status, _, body = front.ask("POST", "/admin/experts/coder/unload?node=right")
    assert (status, "pinned" in json.loads(body)["error"]["message"]) == (409, True)
    assert front.ask("POST", "/admin/experts/coder/unpin?node=right")[0] == 200
    until(lambda: _place(front, "coder", "right")["pin"] is None)
    assert front.ask("POST", "/admin/experts/coder/unload?node=right")[0] == 200
    until(lambda: _place(front, "coder", "right")["residency"] == "disk")


def test_an_engine_is_restarted_and_its_log_read_on_the_named_node(two):
    front, _ = two
    front.ask("POST", "/admin/experts/coder/load?node=right")
    status, _, body = front.ask("POST", "/admin/experts/coder/restart?node=right")
    assert (status, json.loads(body)["node"]) == (200, "right")
    status, _, body = front.ask("GET", "/admin/experts/coder/log?node=right")
    assert (status, "no engine process" in json.loads(body)["error"]["message"]) == (400, True)  # it is simulated
    assert front.ask("POST", "/admin/experts/coder/unload?node=right")[0] == 200


@pytest.mark.parametrize("log", [b"", b"[1]", b"\xff", b'"lines"', b"[" * 100_000, b'{"lines": ' + b"9" * 5000])
def test_a_node_that_tells_anything_as_a_log_is_told_of_in_a_sentence(log):
    with recording_node(log) as (url, _), in_thread(front_settings({"left": url})) as front:
        front.until_usable("left")
        status, _, body = front.ask("GET", "/admin/experts/coder/log")
        assert (status, json.loads(body)["error"]["message"]) == (502, "node 'left' gave no log")


def _place(front, name, node):
    row = next(row for row in front.json("/admin/experts") if row["name"] == name)
    return next(place for place in row["nodes"] if place["name"] == node)


def test_a_move_names_a_node_that_has_the_expert(two):
    front, _ = two
    status, _, body = front.ask("POST", "/admin/experts/coder/load?node=moon")
    assert (status, json.loads(body)["error"]["message"]) == (400, "there is no node 'moon'; known: left, right")
    status, _, body = front.ask("POST", "/admin/experts/left-only/load?node=right")
    assert (status, "does not have expert" in json.loads(body)["error"]["message"]) == (400, True)


def test_a_drained_node_gets_nothing_new_until_it_is_resumed(two):
    front, _ = two
    assert front.ask("POST", "/admin/nodes/left/drain")[0] == 200
    assert front.nodes()["left"]["why"] == "drained"
    answered = {front.chat("coder")[1]["x-coe-node"] for _ in range(6)}
    status, headers, body = front.chat("left-only")
    assert front.ask("POST", "/admin/nodes/left/resume")[0] == 200
    assert answered == {"right"}
    assert (status, json.loads(body)["error"]["code"], int(headers["retry-after"]) >= 1) == (
        503,
        "expert_unavailable",
        True,
    )
    assert "left: drained" in json.loads(body)["error"]["message"]
    assert front.chat("left-only")[0] == 200


def test_a_conversation_stays_with_its_node(two):
    front, _ = two
    said = [{"role": "user", "content": "a conversation that goes on"}]
    _, first, _ = front.ask(
        "POST", "/v1/chat/completions", {"model": "coder", "messages": said}, content_type="application/json"
    )
    for turn in range(5):
        said += [{"role": "assistant", "content": "yes"}, {"role": "user", "content": f"turn {turn}"}]
        body = {"model": "coder", "messages": said}
        _, headers, _ = front.ask("POST", "/v1/chat/completions", body, content_type="application/json")
        assert headers["x-coe-node"] == first["x-coe-node"]


def test_a_conversation_that_began_on_another_node_goes_on_there(two):
    front, _ = two
    for node in ("left", "right"):
        assert front.ask("POST", f"/admin/experts/coder/load?node={node}")[0] == 200
        until(lambda node=node: _place(front, "coder", node)["residency"] == "device")
    assert front.ask("POST", "/admin/nodes/left/drain")[0] == 200
    assert front.chat("coder", text="it began while left was drained")[1]["x-coe-node"] == "right"
    assert front.ask("POST", "/admin/nodes/left/resume")[0] == 200
    assert front.chat("coder", text="a conversation that begins now")[1]["x-coe-node"] == "left"
    assert front.chat("coder", text="it began while left was drained")[1]["x-coe-node"] == "right"


def test_the_node_key_opens_v1_and_node_and_nothing_else(two):
    _, nodes = two
    left = nodes["left"]
    as_front = {"authorization": f"Bearer {KEY}"}
    assert left.ask("GET", "/v1/models", **as_front)[0] == 200
    assert left.ask("GET", "/node/snapshot", **as_front)[0] == 200
    for path in ("/admin/experts", "/metrics", "/admin/overview", "/"):
        status, _, body = left.ask("GET", path, **as_front)
        assert (status, json.loads(body)["error"]["code"]) == (403, "forbidden"), path
    assert left.ask("POST", "/admin/reload", **as_front)[0] == 403
    assert left.ask("GET", "/v1/models")[0] == 401
    assert left.ask("GET", "/node/snapshot", authorization="Bearer wrong")[0] == 401


def test_a_front_and_a_server_alone_have_no_path_for_fronts(two):
    front, _ = two
    assert front.ask("GET", "/node/snapshot")[0] == 404


def test_a_caller_never_sees_the_node_key(two):
    front, _ = two
    answers = [front.chat("coder"), front.chat("nothing"), front.ask("GET", "/admin/nodes")]
    assert all(KEY not in str(answer) for answer in answers)


def test_a_front_starts_before_its_nodes():
    with ExitStack() as held:
        front = held.enter_context(in_thread(front_settings({"late": "http://127.0.0.1:9"})))
        until(lambda: front.ask("GET", "/readyz")[0] == 200)
        assert front.json("/v1/models")["data"] == []
        assert "could not be reached" in front.nodes()["late"]["why"]
        assert front.chat("coder")[0] == 404


def test_a_node_that_refuses_the_key_is_named_with_what_to_do(caplog):
    other = {"COE_NODE_KEY": "another"}
    with (
        in_thread(node_settings([expert("coder")]), environment=other) as node,
        in_thread(front_settings({"left": node.url})) as front,
    ):
        until(lambda: "does not accept this front's key" in (front.nodes()["left"]["why"] or ""))
    assert "node_key_env" in caplog.text
    assert KEY not in caplog.text


def test_a_node_lets_in_with_a_key_of_its_file_as_with_one_of_the_environment(tmp_path):
    file = tmp_path / "keys.json"
    write_keys(file, [Key(name="front", sha256=hashed(KEY), node=True, priority=True)])
    with cluster({"left": node_settings([expert("coder")], keys={"file": str(file)})}) as (front, nodes):
        assert front.chat("coder", coe={"priority": "high"})[0] == 200
        assert nodes["left"].ask("GET", "/admin/experts", authorization=f"Bearer {KEY}")[0] == 403


def test_a_server_that_is_no_node_is_told_so():
    plain = node_settings([expert("coder")], role="server", keys={})
    with in_thread(plain) as server, in_thread(front_settings({"left": server.url})) as front:
        until(lambda: "role: node" in (front.nodes()["left"]["why"] or ""))


def test_the_experts_of_the_front_itself_come_first_and_work_beside_those_of_nodes(caplog):
    with cluster({"left": [expert("coder"), expert("more")]}, experts=[expert("coder", context_tokens=99)]) as (
        front,
        _,
    ):
        assert {one["id"] for one in front.json("/v1/models")["data"]} == {"coder", "more"}
        _, headers, _ = front.chat("coder")
        assert "x-coe-node" not in headers
        assert front.chat("more")[1]["x-coe-node"] == "left"
    assert "has the name of an expert of this front" in caplog.text


def test_what_one_node_is_too_full_for_goes_to_the_next_and_what_none_takes_is_refused_with_a_time():
    slow = {"ttft_seconds": 1000.0, "max_concurrency": 1}
    scheduling = {"queue_limit": 1, "max_generation_seconds": 2000}
    full = [node_settings([expert("coder", **slow)], scheduling=scheduling) for _ in range(2)]
    with ExitStack() as held:
        front, _ = held.enter_context(cluster({"left": full[0], "right": full[1]}))
        _ask_twice(front)
        until(lambda: _row(front, "coder")["leases"] == 2)  # one in the engine of each node
        _ask_twice(front)
        until(lambda: sum(node["in_flight"] for node in front.nodes().values()) == 4)  # and one in each queue
        assert {node["in_flight"] for node in front.nodes().values()} == {2}
        status, headers, body = front.chat("coder")
        assert (status, json.loads(body)["error"]["code"]) == (429, "queue_full")
        assert int(headers["retry-after"]) >= 1


def _ask_twice(front):
    for _ in range(2):
        threading.Thread(target=lambda: _quietly(front), daemon=True).start()


def _row(front, name):
    return next(row for row in front.json("/admin/experts") if row["name"] == name)


def _quietly(front):
    try:
        front.chat("coder")
    except OSError:
        return


def test_a_router_chooses_among_the_experts_of_nodes_and_leaves_out_what_no_node_has(tmp_path, caplog):
    folder = tmp_path / "router"
    artifacts.save(small_artifact(), held_out(), None, folder)
    router = {"artifact": str(folder), "objective": "quality"}
    present, missing = sorted(SIZES)[:-1], sorted(SIZES)[-1]
    with cluster({"left": [expert(name) for name in present]}, router=router) as (front, _):
        status, _, body = front.ask(
            "POST", "/v1/route", {"messages": [{"role": "user", "content": "hello"}]}, content_type="application/json"
        )
        decision = json.loads(body)
        excluded = {one["expert"]: one["excluded"] for one in decision["ranking"]}
        assert (status, decision["expert"] in present) == (200, True)
        assert excluded[missing] == "no node has it"
        assert [one["residency"] for one in decision["ranking"] if one["expert"] in present] == ["disk"] * len(present)
        status, headers, _ = front.chat("auto")
        assert (status, headers["x-coe-expert"] in present, headers["x-coe-node"]) == (200, True, "left")
        status, headers, body = front.chat(missing)
        assert (status, json.loads(body)["error"]["code"]) == (404, "model_not_found")
    assert f"no node has its expert '{missing}'" in caplog.text


def test_before_any_node_is_there_a_routed_request_is_told_to_come_again(tmp_path):
    folder = tmp_path / "router"
    artifacts.save(small_artifact(), held_out(), None, folder)
    with in_thread(front_settings({"late": "http://127.0.0.1:9"}, router={"artifact": str(folder)})) as front:
        status, headers, body = front.chat("auto")
    assert (status, json.loads(body)["error"]["code"]) == (503, "expert_unavailable")
    assert int(headers["retry-after"]) >= 1


def test_a_trace_crosses_the_front_unchanged_where_it_has_no_tracing_of_its_own():
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    with recording_node() as (node, seen), in_thread(front_settings({"left": node})) as front:
        front.until_usable("left")
        body = {"model": "coder", "messages": [{"role": "user", "content": "hello"}]}
        caller = {
            "content_type": "application/json",
            "traceparent": trace,
            "authorization": "Bearer the-callers-own",
        }
        assert front.ask("POST", "/v1/chat/completions", body, **caller)[0] == 200
    (headers,) = seen
    assert (headers["traceparent"], headers["authorization"]) == (trace, f"Bearer {KEY}")  # the caller's own stays here


def test_coe_cluster_drain_and_resume_and_coe_experts_show_it(two, tmp_path):
    front, nodes = two
    file = tmp_path / "front.yaml"
    file.write_text(yaml.safe_dump(front_settings({name: node.url for name, node in nodes.items()})))
    port = ["--port", str(front.port)]

    def coe(*words):
        done = CliRunner().invoke(app, [*words, *port])
        return done.exit_code, done.output

    assert coe("cluster", "drain", str(file), "left") == (0, "left gets nothing new and owes no answer\n")
    code, shown = coe("experts", str(file))
    assert (code, "none: drained" in shown, "right" in shown) == (0, True, True)
    assert coe("cluster", "resume", str(file), "left") == (0, "left gets requests again\n")
    code, told = coe("cluster", "drain", str(file), "moon")
    assert (code, "there is no node 'moon'; known: left, right" in told) == (1, True)
